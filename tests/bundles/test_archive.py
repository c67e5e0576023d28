import hashlib
import io
import os
import secrets
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.store.archive import pack, unpack
from lm_eval_hybrid.common.errors import HybridError

Make = Callable[..., Bundle]
PLAIN = (stat.S_IFREG | 0o644) << 16


@pytest.fixture
def saved(make_bundle: Make, tmp_path: Path) -> Path:
    make_bundle().save(tmp_path / "tiny" / "1.2.0")
    return tmp_path / "tiny" / "1.2.0"


@pytest.fixture
def packed(saved: Path, tmp_path: Path) -> Path:
    pack(saved, tmp_path / "tiny.zip")
    return tmp_path / "tiny.zip"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def crafted(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def refused(archive: Path, message: str) -> None:
    """Unpacking raises a one-line error, and leaves nothing."""
    into = archive.parent / "out"
    with pytest.raises(HybridError, match=message) as caught:
        unpack(archive, into)
    assert "\n" not in str(caught.value)
    assert not into.exists() or not any((into / "tiny").iterdir())


def test_a_bundle_comes_back(saved: Path, packed: Path, tmp_path: Path) -> None:
    folder = unpack(packed, tmp_path / "shelf")
    assert folder == tmp_path / "shelf/tiny/1.2.0"
    assert files(folder) == files(saved)
    with pytest.raises(HybridError, match="a bundle is there already"):
        unpack(packed, tmp_path / "shelf")
    assert unpack(packed, tmp_path / "shelf", overwrite=True) == folder


def test_the_same_bundle_gives_the_same_bytes(make_bundle: Make, packed: Path, tmp_path: Path) -> None:
    make_bundle().save(tmp_path / "again")
    for number, path in enumerate((tmp_path / "again").iterdir()):
        path.chmod(0o600)
        os.utime(path, (number, number))
    (tmp_path / "again" / "notes.txt").write_text("not part of the bundle")
    digest = pack(tmp_path / "again", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    assert digest == hashlib.sha256(packed.read_bytes()).hexdigest()


def test_other_zips_without_compression_are_accepted(saved: Path, tmp_path: Path) -> None:
    archive = crafted(tmp_path / "a.zip", *reversed(sorted(files(saved).items())))
    assert files(unpack(archive, tmp_path / "out")) == files(saved)


def test_an_archive_is_overwritten_only_on_request(saved: Path, packed: Path, tmp_path: Path) -> None:
    packed.write_text("thesis")
    with pytest.raises(HybridError, match="exists already"):
        pack(saved, packed)
    assert packed.read_text() == "thesis"
    pack(saved, packed, overwrite=True)
    unpack(packed, tmp_path / "out")
    with pytest.raises(HybridError, match="exists already"):
        pack(saved, tmp_path, overwrite=True)


def test_an_unsound_bundle_is_not_packed(saved: Path, tmp_path: Path) -> None:
    (saved / "README.md").write_text("other")
    with pytest.raises(HybridError, match=r"README\.md: sha256 is"):
        pack(saved, tmp_path / "tiny.zip")
    assert not (tmp_path / "tiny.zip").exists()


def test_only_bundles_are_overwritten(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out/tiny/1.2.0"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(HybridError, match="exists and is not a bundle"):
        unpack(packed, tmp_path / "out", overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_other_files_are_refused(tmp_path: Path, saved: Path) -> None:
    refused(tmp_path / "none.zip", "no such file")
    refused(saved, "not a regular file")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.zip")
        refused(tmp_path / "pipe.zip", "not a regular file")
    for data in (b"", b"PK", b"thesis" * 100):
        (tmp_path / "a.zip").write_bytes(data)
        refused(tmp_path / "a.zip", "not a zip archive")


def test_huge_archives_are_not_opened(tmp_path: Path) -> None:
    with (tmp_path / "a.zip").open("wb") as file:
        file.truncate(1 << 33)
    refused(tmp_path / "a.zip", "larger than the limit")


def test_a_huge_directory_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.zip").open("wb") as file:
        file.truncate(1 << 28)
        file.seek(0, io.SEEK_END)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, 1 << 28, 0, 0))
    refused(tmp_path / "a.zip", "a zip archive of a few files")
    many = ((f"f{number}", b"") for number in range(5000))
    refused(crafted(tmp_path / "a.zip", *many), "a zip archive of a few files")


def test_64_bit_directories_and_comments_are_refused(packed: Path) -> None:
    data = packed.read_bytes()
    with zipfile.ZipFile(packed, "a") as archive:
        archive.comment = b"x" * 65_535
    refused(packed, "without a comment")
    packed.write_bytes(data + b"\0")
    refused(packed, "without a comment")
    # The locator would make zipfile read a directory of 4 GiB.
    start, length = struct.unpack_from("<L", data, len(data) - 6)[0], struct.unpack_from("<L", data, len(data) - 10)[0]
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, 1 << 32, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - 22, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, length + len(record + locator), start, 0)
    packed.write_bytes(data[:-22] + record + locator + end)
    refused(packed, "a zip archive of a few files")


def test_compressed_members_are_refused(tmp_path: Path, saved: Path) -> None:
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        refused(crafted(tmp_path / "a.zip", *files(saved).items(), compression=compression), "compressed")
    refused(crafted(tmp_path / "a.zip", ("a", bytes(1 << 24)), compression=zipfile.ZIP_DEFLATED), "compressed")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_folders_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    entry = zipfile.ZipInfo("behavior.yaml")
    entry.external_attr = (kind | 0o777) << 16
    refused(crafted(tmp_path / "a.zip", (entry, b"/etc/passwd")), "not a plain file")


@pytest.mark.parametrize(
    "name",
    ["../a", "/etc/passwd", "a/b", "a\\b", "..", ".hidden", "", "C:a", "folder/", "ä", "a\n", "-a", "a" * 300 + "/"],
)
def test_names_that_are_not_plain_are_refused(saved: Path, tmp_path: Path, name: str) -> None:
    """Even if the manifest lists them with their digest."""
    entry = zipfile.ZipInfo("placeholder")
    entry.filename = name  # past ZipInfo's own cleaning
    sound = files(saved)
    refused(crafted(tmp_path / "a.zip", *sound.items(), (entry, b"")), "exactly the files in its manifest|sound|twice")
    fields = yaml.safe_load(sound["behavior.yaml"])
    fields["files"][name] = hashlib.sha256(b"").hexdigest()
    sound["behavior.yaml"] = yaml.safe_dump(fields).encode()
    refused(crafted(tmp_path / "a.zip", *sound.items(), (entry, b"")), "files")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_must_be_exactly_the_bundles_files(tmp_path: Path, saved: Path) -> None:
    sound, archive = files(saved), tmp_path / "a.zip"
    refused(crafted(archive, ("README.md", sound["README.md"])), r"no behavior\.yaml")
    refused(crafted(archive, *sound.items(), *sound.items()), "a file twice")
    refused(crafted(archive, *sound.items(), ("run.sh", b"rm -rf /")), r"run\.sh.*exactly the files in its manifest")
    del sound["README.md"]
    refused(crafted(archive, *sound.items()), "exactly the files in its manifest")


def test_an_unsound_bundle_does_not_appear(tmp_path: Path, saved: Path) -> None:
    sound, archive = files(saved), tmp_path / "a.zip"
    refused(crafted(archive, *{**sound, "README.md": b"other"}.items()), r"a\.zip.README\.md: sha256 is")
    refused(crafted(archive, *{**sound, "behavior.yaml": b"\xff"}.items()), r"a\.zip.behavior\.yaml: .*plain YAML")
    refused(crafted(archive, *{**sound, "behavior.yaml": bytes(2 << 20)}.items()), "at most 1,048,576 are allowed")


def directory_entry(data: bytes, number: int = 0) -> int:
    """Where a member's entry in the directory starts."""
    at = struct.unpack_from("<L", data, len(data) - 6)[0]
    for _ in range(number):
        name, extra, comment = struct.unpack_from("<3H", data, at + 28)
        at += 46 + name + extra + comment
    return at


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (8, struct.pack("<H", 1)),  # encrypted
        (8, struct.pack("<H", 0x41)),
        (10, struct.pack("<H", 99)),  # compressed
        (6, struct.pack("<H", 99)),  # of a later version
        (20, struct.pack("<L", 5)),  # sizes differ
        (20, struct.pack("<2L", 1 << 31, 1 << 31)),  # sizes beyond the archive
        (20, struct.pack("<2L", 7, 7)),
        (42, struct.pack("<L", 1 << 31)),  # offsets
        (42, struct.pack("<L", 0xFFFFFFFF)),
        (28, struct.pack("<H", 0xFFFF)),  # the name's length
        (0, b"PK\0\0"),
        (16, struct.pack("<L", 1)),  # the checksum
        (46, b"\xff"),  # the name
    ],
)
def test_a_directory_that_lies_is_refused(packed: Path, offset: int, value: bytes) -> None:
    data = bytearray(packed.read_bytes())
    at = directory_entry(bytes(data)) + offset
    data[at : at + len(value)] = value
    packed.write_bytes(data)
    refused(packed, r"tiny\.zip: ")


def test_members_together_are_no_larger_than_the_archive(tmp_path: Path, saved: Path) -> None:
    """Overlapping members would let a small archive become a large folder."""
    data = bytearray(crafted(tmp_path / "a.zip", *files(saved).items(), ("big", bytes(1 << 16))).read_bytes())
    big = directory_entry(bytes(data), 3)
    for number in range(3):
        at = directory_entry(bytes(data), number)
        data[at + 20 : at + 28] = data[big + 20 : big + 28]
    (tmp_path / "a.zip").write_bytes(data)
    refused(tmp_path / "a.zip", "larger than itself")


def test_every_truncation_is_refused(packed: Path) -> None:
    data = packed.read_bytes()
    for length in range(0, len(data), 97):
        packed.write_bytes(data[:length])
        refused(packed, "a packed bundle is needed")


@st.composite
def alterations(draw: st.DrawFn, sound: bytes) -> bytes:
    """An archive with some bytes changed, most of them in its directory, or with parts removed or repeated."""
    altered, directory = bytearray(sound), directory_entry(sound)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(sound) - 1) | st.integers(directory, len(sound) - 1))
        piece = draw(
            st.binary(max_size=4) | st.sampled_from([b"\xff" * 4, b"\xff" * 8, bytes(8), b"PK\1\2", b"PK\6\7"])
        )
        altered[at : at + len(piece)] = piece
    if draw(st.integers(0, 3)) == 0:
        first, last = sorted(draw(st.tuples(st.integers(0, len(altered)), st.integers(0, len(altered)))))
        altered[first:last] = bytes(altered[first:last]) * draw(st.sampled_from([0, 2, 3]))
    return bytes(altered)


def refused_or_the_same(data: bytes, packed: Path, saved: Path) -> None:
    into, altered = packed.parent / "out" / secrets.token_hex(8), packed.with_name("altered.zip")
    altered.write_bytes(data)
    before = sorted(packed.parent.iterdir())
    try:
        folder = unpack(altered, into)
    except HybridError as error:
        assert "\n" not in str(error)
        assert not any(into.rglob("*.yaml"))
    else:
        assert files(folder) == files(saved)
    assert set(packed.parent.iterdir()) - set(before) <= {into.parent}


QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)


@QUICK
@given(data=st.data())
def test_an_altered_archive_is_refused_or_gives_the_same(packed: Path, saved: Path, data: st.DataObject) -> None:
    refused_or_the_same(data.draw(alterations(packed.read_bytes())), packed, saved)


@pytest.mark.slow
@settings(QUICK, max_examples=2000)
@given(data=st.data())
def test_thousands_of_altered_archives(packed: Path, saved: Path, data: st.DataObject) -> None:
    refused_or_the_same(data.draw(alterations(packed.read_bytes())), packed, saved)


def test_a_full_disk_leaves_nothing(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="no space"):
        unpack(packed, tmp_path / "shelf")
    assert list((tmp_path / "shelf" / "tiny").iterdir()) == []


def test_the_bytes_do_not_depend_on_the_library(saved: Path, packed: Path) -> None:
    """The format written out by hand: if zipfile ever writes another, digests change, and this test fails."""
    expected, directory = io.BytesIO(), io.BytesIO()
    names = ["behavior.yaml", "README.md", "tensors.safetensors"]
    for name in names:
        data = (saved / name).read_bytes()
        common = struct.pack("<5H3L2H", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0)
        directory.write(b"PK\1\2" + bytes([20, 3]) + common + struct.pack("<3H2L", 0, 0, 0, PLAIN, expected.tell()))
        directory.write(name.encode())
        expected.write(b"PK\3\4" + common + name.encode() + data)
    start, length = expected.tell(), len(directory.getvalue())
    expected.write(directory.getvalue() + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, length, start, 0))
    assert packed.read_bytes() == expected.getvalue()
