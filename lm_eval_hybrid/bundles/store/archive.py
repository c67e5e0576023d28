"""A bundle as one zip archive, stored uncompressed, the same bytes on any machine.

A stranger's archive is not trusted: its directory is bounded before zipfile reads it, its members must be plain files,
together no larger than the archive, and the bundle in it is checked before it appears.
"""

import io
import stat
import zipfile
from pathlib import Path

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.bundles.bundle import check_target
from lm_eval_hybrid.bundles.manifest import MANIFEST_FILE, parse
from lm_eval_hybrid.common import files
from lm_eval_hybrid.common.errors import HybridError, brief

_MAX_BYTES = contents.MAX_BYTES + (1 << 21)  # a bundle's files, its manifest, and what the zip adds
_MAX_DIRECTORY = 1 << 16


def pack(folder: Path, target: Path, overwrite: bool = False) -> str:
    """Write the bundle in `folder` as the archive `target`, atomically; returns the archive's sha256.

    Raises HybridError if the bundle is unsound, or `target` exists and may not be replaced.
    """
    if target.is_dir() or (target.exists() and not overwrite):
        raise HybridError(f"{target}: exists already; an archive needs a new file; choose another path")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in contents.read_files(folder)[1].items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # the first date that a zip can hold
            entry.create_system = 3  # Unix, whatever the system
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, data)
    files.write_file(target, buffer.getvalue())
    return contents.sha256(buffer.getvalue())


def unpack(archive: Path, into: Path, overwrite: bool = False) -> Path:
    """Unpack the bundle in `archive` as `into`/name/version, and return that folder.

    Raises HybridError if the archive holds no sound bundle, or the folder exists and may not be replaced.
    """
    files.check_regular(archive, _MAX_BYTES)
    try:
        members = _read(archive)
    except Exception as error:  # zipfile has many kinds for damaged archives
        raise HybridError(f"{archive}: {brief(error)}; a packed bundle is needed; pack it again") from error
    manifest = parse(members[MANIFEST_FILE], archive / MANIFEST_FILE)
    if members.keys() != {MANIFEST_FILE, *manifest.files}:
        found = brief(sorted(members))
        raise HybridError(f"{archive}: holds {found}; it must hold exactly the files in its manifest; pack it again")
    folder = (into / manifest.name / manifest.version).resolve()
    check_target(folder, overwrite)
    with files.atomic_folder(folder) as staging:
        files.write_files(staging, members)
        try:
            contents.read(staging)
        except HybridError as error:
            raise HybridError(str(error).replace(str(staging), str(archive))) from error
    return folder


def _read(path: Path) -> dict[str, bytes]:
    """The archive's members by name, the manifest among them. Raises errors of many kinds."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 42))
        locator, end = file.read(20), file.read(22)  # the first only in 64-bit zips
        directory = int.from_bytes(end[12:16], "little")
        if locator[:4] == b"PK\6\7" or end[:4] + end[20:] != b"PK\5\6\0\0" or directory > _MAX_DIRECTORY:
            raise ValueError("not a zip archive of a few files without a comment")
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(stat.S_IFMT(entry.external_attr >> 16) & ~stat.S_IFREG or entry.compress_type for entry in entries):
                raise ValueError("something in it is compressed, or not a plain file")
            if sum(entry.file_size for entry in entries) > size:
                raise ValueError("its files are larger than itself")
            if len(archive.NameToInfo) < len(entries) or MANIFEST_FILE not in archive.NameToInfo:
                raise ValueError(f"no {MANIFEST_FILE}, or a file twice")
            return {entry.filename: archive.read(entry) for entry in entries}
