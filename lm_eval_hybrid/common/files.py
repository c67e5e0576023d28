"""Files read with a size limit, written atomically, and folders locked for one run."""

import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lm_eval_hybrid.common.errors import HybridError


def check_regular(path: Path, limit: int) -> None:
    """Raise HybridError unless `path` is a regular file of at most `limit` bytes."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise HybridError(f"{path}: no such file; it is needed here; copy the whole folder again") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
        raise HybridError(f"{path}: not a regular file; a regular file is needed here; copy it again")
    if status.st_size > limit:
        raise HybridError(f"{path}: larger than the limit of {limit:,} bytes; use a smaller file")


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file. Raises HybridError as `check_regular` does, or if it cannot be read."""
    check_regular(path, limit)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(data) > limit:  # it has grown meanwhile, or is a file that states no size
        raise HybridError(f"{path}: larger than the limit of {limit:,} bytes; use a smaller file")
    return data


def _unreadable(path: Path, error: Exception) -> HybridError:
    reason = error.strerror if isinstance(error, OSError) else error
    return HybridError(f"{path}: cannot be read ({reason}); it is needed here; copy it again")


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill; it becomes `target` when the block ends, and is removed if the block raises.

    Replaces whatever is at `target` by then: check before whether that is allowed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{target.name}.{secrets.token_hex(4)}"
    staging, former = target.with_name(f"{mark}.new"), target.with_name(f"{mark}.old")
    try:
        staging.mkdir()
        yield staging
        if target.exists():
            target.rename(former)
        try:
            staging.rename(target)
        except OSError:
            if former.exists():
                former.rename(target)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files, by plain name, into an existing folder."""
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def write_file(path: Path, data: bytes) -> None:
    """Write one file atomically, replacing any that exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        staging.write_bytes(data)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, option: str, name: str = ".lock") -> Iterator[None]:
    """Hold a lock file in `folder`, made if missing, so that no other run writes there.

    Args:
        option: the command-line option that named the folder, for errors.
        name: the lock file's; processes that share the folder take a name each.

    Raises:
        HybridError: another run holds it, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # takes 40 ms, which listing bundles does not need

    lock = FileLock(folder / name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise HybridError(
            f"{folder}: another run is at work in it; wait for that one, or name another {option} folder"
        ) from None
    except OSError as error:
        raise HybridError(f"{folder}: cannot be written ({error.strerror}); name another {option} folder") from None
    try:
        yield
    finally:
        lock.release()
