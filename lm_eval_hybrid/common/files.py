"""Files read with a size limit, written atomically, and folders locked for one run."""

import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lm_eval_hybrid.common.errors import HybridError


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        HybridError: where there is none, it is a folder, pipe or device, cannot be read, or has over `limit` bytes.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise HybridError(f"{path}: this must be a regular file; found something else; copy it again")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise HybridError(f"{path}: this file is needed; found none; copy the whole folder again") from None
    except OSError as error:
        raise HybridError(f"{path}: this file must be readable; found {error.strerror}; copy it again") from None
    if len(data) > limit:
        raise HybridError(f"{path}: must have at most {limit:,} bytes; found more; use another")
    return data


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A new sibling folder to fill, which becomes `target` when the block ends, and nothing when it raises.

    What is at `target` then is replaced: whoever calls has asked before whether it may be.
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


def write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of plain names into a folder that is there."""
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def write_file(path: Path, data: bytes) -> None:
    """Write one file, whole or not at all, in the place of what was there."""
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
