"""Zip archives from strangers: few plain files, stored as they are, and nothing else.

Nothing that an archive says is believed. Its directory is bounded before the zip library reads it; members are plain
files that neither overlap nor reach out of the archive, so they cannot unfold into more than it is; and they are only
read, never extracted by the library.
"""

from __future__ import annotations

import io
import re
import reprlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lm_eval_hybrid.bundles.manifest import FILE_PATTERN
from lm_eval_hybrid.common.errors import HybridError

MAX_MEMBERS = 64

_MAX_DIRECTORY = 1 << 16
_CHUNK = 1 << 20
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_DOS_FOLDER = 0x10
_END = struct.Struct("<4s4H2LH")  # mark, disks (2), entries (2), the directory's size and start, the comment's length
_LOCATOR_BYTES = 20  # what a 64-bit zip has before its end record
_LOCAL_BYTES = 30  # a member's header, before its name and extra field
_LENGTHS = struct.Struct("<2H")  # of these two, at the header's end

# All that zipfile raises over damaged archives.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    EOFError,
    MemoryError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zlib.error,
)


@contextmanager
def opened(path: Path, limit: int) -> Iterator[zipfile.ZipFile]:
    """The archive at `path`, once all of it has been checked but its members' bytes.

    Raises:
        HybridError: where it is no such archive, or has more than `limit` bytes.
    """
    with _open_regular(path, limit) as file:
        with _one_line(path):
            directory = _directory_start(file, path)
            archive = zipfile.ZipFile(file)
            entries = archive.infolist()
            problem = names_problem([entry.orig_filename for entry in entries])
            problem = problem or next(filter(None, map(_entry_problem, entries)), None)
            if problem:
                raise refusal(path, f"must hold at most {MAX_MEMBERS} plain files, stored as they are", problem)
            _check_places(entries, file, directory, path)
        yield archive


def chunks(archive: zipfile.ZipFile, name: str, path: Path) -> Iterator[bytes]:
    """The bytes of a member, piece by piece. HybridError where they are not those that were put in."""
    with _one_line(path), archive.open(name) as member:
        while chunk := member.read(_CHUNK):
            yield chunk


def names_problem(names: Sequence[str]) -> str | None:
    """What is wrong with these as the names of an archive's members, if anything."""
    if len(names) > MAX_MEMBERS:
        return f"{len(names)} files"
    seen: set[str] = set()
    for name in names:
        if not re.fullmatch(FILE_PATTERN, name):
            return f"the name {reprlib.repr(name)}"
        # Where file systems do not tell A from a, one would end in the other's place.
        if name.casefold() in seen:
            return f"the name {reprlib.repr(name)} twice"
        seen.add(name.casefold())
    return None


def refusal(path: Path, required: str, found: str) -> HybridError:
    """That an archive is not as it must be."""
    return HybridError(
        f"{path}: {required}; found {found}; make it with `lm-eval-hybrid behaviors pack`, or copy it again"
    )


def _open_regular(path: Path, limit: int) -> BinaryIO:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise HybridError(f"{path}: an archive must be a regular file; found something else; mend the path")
        if found.st_size > limit:
            raise HybridError(f"{path}: must have at most {limit:,} bytes; found {found.st_size:,}; use another bundle")
        return path.open("rb")
    except OSError as error:
        raise HybridError(f"{path}: must be a file to read; found {error.strerror}; mend the path") from None


def _directory_start(file: BinaryIO, path: Path) -> int:
    """Where the directory starts: it is small, and ends where the end record, the last of the file, begins.

    zipfile would read a directory of any length, wherever it is said to be, into objects of ten times its size.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _LOCATOR_BYTES - _END.size))
    tail = file.read()
    end = tail[-_END.size :]
    if len(end) < _END.size or not end.startswith(b"PK\5\6"):
        raise refusal(path, "must be a whole zip archive without a comment", "no end record where it would be")
    *_, length, start, comment = _END.unpack(end)
    if comment or start + length != size - _END.size or tail.startswith(b"PK\6\7"):
        raise refusal(path, "must be a zip archive and nothing else", "a directory that is not at its end")
    if length > _MAX_DIRECTORY:
        raise refusal(path, f"its directory must have at most {_MAX_DIRECTORY:,} bytes", f"{length:,}")
    return start


def _entry_problem(entry: zipfile.ZipInfo) -> str | None:
    name = reprlib.repr(entry.filename)
    if entry.flag_bits & _ENCRYPTED:
        return f"{name} encrypted"
    if entry.compress_type != zipfile.ZIP_STORED:
        return f"{name} compressed"
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG) or entry.external_attr & _DOS_FOLDER:
        return f"{name}, a link, folder or device"
    if entry.file_size != entry.compress_size:
        return f"{name} of {entry.file_size:,} bytes in {entry.compress_size:,}"
    return None


def _check_places(entries: Sequence[zipfile.ZipInfo], file: BinaryIO, directory: int, path: Path) -> None:
    """Refuse members that share bytes, by which a small archive would become a large folder, or that reach beyond."""
    free = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        data = entry.header_offset + _LOCAL_BYTES
        if entry.header_offset >= free and data <= directory:
            file.seek(data - _LENGTHS.size)
            free = data + sum(_LENGTHS.unpack(file.read(_LENGTHS.size))) + entry.compress_size
            if free <= directory:
                continue
        raise refusal(path, "members must lie one after another", f"{reprlib.repr(entry.filename)} elsewhere")


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except HybridError:
        raise
    except _ZIP_ERRORS as error:
        found = " ".join(str(error).split())[:200] or type(error).__name__
        raise refusal(path, "must be a sound zip archive", found) from error
