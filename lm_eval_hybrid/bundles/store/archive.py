"""A bundle as one file: a zip whose members are stored as they are, the same bytes on any machine.

They are not compressed: tensors hardly become smaller, and what is stored cannot unfold into more than it is. See
`stored_zip` for what is checked before an archive is believed; the bundle in it is checked before it appears.
"""

from __future__ import annotations

import io
import reprlib
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.bundles.bundle import check_target
from lm_eval_hybrid.bundles.contents import sha256
from lm_eval_hybrid.bundles.manifest import MANIFEST_FILE, Manifest, parse
from lm_eval_hybrid.bundles.store import stored_zip
from lm_eval_hybrid.common import strict_yaml
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import appearing, read_regular, write_file

MAX_BYTES = contents.MAX_BYTES + (1 << 21)  # of an archive: a bundle's files, its manifest, and what the zip adds

_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can name


def pack(folder: Path, target: Path, overwrite: bool = False) -> str:
    """Write the bundle in `folder` as the archive `target`, whole or not at all; returns the archive's sha256.

    Raises:
        HybridError: where the bundle is unsound, or what is at `target` may not be replaced.
    """
    if target.is_dir() or (target.exists() and not overwrite):
        found = "a folder" if target.is_dir() else "a file"
        raise HybridError(f"{target}: an archive needs a new file; found {found} there; choose another path")
    _, encoded = read_files(folder)
    if problem := stored_zip.names_problem(list(encoded)):
        raise HybridError(f"{folder}: an archive needs few, plain names; found {problem}; take files out of the bundle")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in encoded.items():
            archive.writestr(_entry(name), data)
    packed = buffer.getvalue()
    write_file(target, packed)
    return sha256(packed)


def unpack(archive: Path, target: Path, overwrite: bool = False) -> Path:
    """Unpack the bundle in the file `archive` as the folder `target`, and return that.

    Raises:
        HybridError: where the archive does not hold a sound bundle, or what is at `target` may not be replaced.
    """
    with _opened(archive) as (opened, manifest):
        return _extract(opened, manifest, archive, target, overwrite)


def unpack_into(archive: Path, folder: Path, overwrite: bool = False) -> Path:
    """Unpack the bundle in the file `archive` as `folder`/name/version, and return that. Raises as `unpack` does."""
    with _opened(archive) as (opened, manifest):
        return _extract(opened, manifest, archive, folder / manifest.name / manifest.version, overwrite)


def read_files(folder: Path) -> tuple[contents.Contents, dict[str, bytes]]:
    """A sound bundle and the bytes of its files by name, the manifest first; of other files in the folder, none.

    Raises:
        HybridError: where the bundle is unsound, or changes while it is read.
    """
    found = contents.read(folder)
    digests = {MANIFEST_FILE: found.manifest_sha256, **dict(sorted(found.manifest.files.items()))}
    encoded = {name: read_regular(folder / name, contents.MAX_BYTES) for name in digests}
    for name, data in encoded.items():
        if sha256(data) != digests[name]:
            raise HybridError(f"{folder / name}: must stay as it is; found it changed meanwhile; try again")
    return found, encoded


@contextmanager
def shown_as(path: Path, shown: object) -> Iterator[None]:
    """In what is raised inside, `shown` stands for `path`: a passing place that nobody but the program knows."""
    try:
        yield
    except HybridError as error:
        raise HybridError(str(error).replace(str(path), str(shown))) from error


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EARLIEST)
    entry.create_system = 3  # Unix, wherever it is made: it says how the next is read
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[zipfile.ZipFile, Manifest]]:
    with stored_zip.opened(archive, MAX_BYTES) as opened:
        names = opened.namelist()
        if MANIFEST_FILE not in names:
            raise stored_zip.refusal(archive, f"a bundle's archive must hold {MANIFEST_FILE}", reprlib.repr(names))
        if opened.getinfo(MANIFEST_FILE).file_size > strict_yaml.MAX_BYTES:
            raise stored_zip.refusal(archive, f"its {MANIFEST_FILE} must be small", "more than a mebibyte")
        data = b"".join(stored_zip.chunks(opened, MANIFEST_FILE, archive))
        manifest = parse(data, archive / MANIFEST_FILE)
        if set(names) != {MANIFEST_FILE, *manifest.files}:
            raise stored_zip.refusal(archive, "must hold exactly the files its manifest lists", reprlib.repr(names))
        yield opened, manifest


def _extract(opened: zipfile.ZipFile, manifest: Manifest, archive: Path, target: Path, overwrite: bool) -> Path:
    folder = target.resolve()
    check_target(folder, overwrite)
    with appearing(folder) as staging:
        for name in (MANIFEST_FILE, *manifest.files):
            with (staging / name).open("xb") as file:
                for chunk in stored_zip.chunks(opened, name, archive):
                    file.write(chunk)
        with shown_as(staging, archive):
            contents.read(staging)
    return folder
