"""ZIPs that somebody sent: what is unpacked, and that nothing else is written anywhere."""

from __future__ import annotations

import stat
import struct
import zipfile
from types import SimpleNamespace

import pytest

from moon2_space.catalogue_source import Limits
from moon2_space.zip_pictures import unpack


def packed(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def inside(tmp_path):
    folder = tmp_path / "data" / "inside"
    folder.mkdir(parents=True)
    return folder


def test_pictures_and_tables_are_unpacked_and_the_rest_told(tmp_path, inside):
    names = ["a.jpg", "Shoes/b.PNG", "shop.csv", "run.exe", "__MACOSX/a.jpg", ".hidden.jpg", "empty/"]
    archive = packed(tmp_path / "shop.zip", [(name, b"x" * (name[-1] != "/")) for name in names])
    refused = unpack(archive, inside, Limits())
    assert everything(inside) == ["Shoes/b.PNG", "a.jpg", "shop.csv"]
    assert [number for number, _ in refused] == [3, 4, 5]
    assert "run.exe: neither a picture" in refused[0][1] and "a hidden file" in refused[1][1]


@pytest.mark.parametrize(
    "name",
    ["../out.jpg", "a/../../out.jpg", "/tmp/out.jpg", "..\\out.jpg", "C:\\out.jpg", "C:out.jpg", "a\nb.jpg",
     "/".join("abcdefghi") + ".jpg", "ü" * 101 + ".jpg"],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_left_out(tmp_path, inside, name):
    archive = packed(tmp_path / "shop.zip", [(name, b"x"), ("good.jpg", b"y")])
    before = everything(tmp_path)
    ((number, message),) = unpack(archive, inside, Limits())
    assert number == 0 and message.startswith("shop.zip: ")
    assert everything(tmp_path) == sorted([*before, "data/inside/good.jpg"])


def test_links_are_left_out(tmp_path, inside):
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = packed(tmp_path / "shop.zip", [(link, b"/etc/passwd")])
    assert "a link or a device" in unpack(archive, inside, Limits())[0][1]
    assert everything(inside) == [] and not list(inside.iterdir())


def test_a_bomb_is_refused_before_anything_is_written(tmp_path, inside):
    archive = packed(tmp_path / "bomb.zip", [("zeros.jpg", bytes(20 << 20))])
    with pytest.raises(ValueError, match=r"bomb.zip: zeros.jpg unpacks to over 200 times its packed size"):
        unpack(archive, inside, Limits())
    with pytest.raises(ValueError, match=r"bomb.zip: unpacks to over 4 MB; give several smaller ones"):
        unpack(archive, inside, Limits(unpacked_bytes=4 << 20))
    with pytest.raises(ValueError, match="2 files; give a ZIP of at most 1"):
        unpack(packed(tmp_path / "two.zip", [("a.jpg", b"1"), ("b.jpg", b"2")]), inside, Limits(files=1))
    assert everything(inside) == []


def test_what_the_disk_has_no_room_for_is_not_begun(tmp_path, inside, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2 << 20))
    archive = packed(tmp_path / "shop.zip", [("a.jpg", bytes(1 << 20)), ("b.jpg", bytes((1 << 20) + 1))])
    no_limits = Limits(files=None, unpacked_bytes=None, ratio=2000)
    with pytest.raises(ValueError, match=r"shop.zip: unpacks to 2 MB, and the disk has 2 MB left; make room"):
        unpack(archive, inside, no_limits)
    assert everything(inside) == []
    assert unpack(packed(tmp_path / "less.zip", [("a.jpg", bytes(1 << 20))]), inside, no_limits) == []


def test_a_size_that_lies_is_not_believed(tmp_path, inside):
    archive = packed(tmp_path / "liar.zip", [("zeros.jpg", bytes(3 << 20))])
    data = bytearray(archive.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 10)  # the unpacked size in the directory
    archive.write_bytes(data)
    ((_, message),) = unpack(archive, inside, Limits(unpacked_bytes=1 << 20))
    assert "cannot be unpacked" in message and everything(inside) == []


def test_what_is_no_zip_is_told(tmp_path, inside):
    (tmp_path / "page.zip").write_text("<html>")
    with pytest.raises(ValueError, match=r"page.zip: cannot be read as a ZIP"):
        unpack(tmp_path / "page.zip", inside, Limits())


def test_a_broken_picture_costs_only_itself(tmp_path, inside):
    archive = packed(tmp_path / "shop.zip", [("a.jpg", b"a" * 1000), ("b.jpg", b"b" * 1000)], zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    data[data.index(b"a" * 100) + 50] ^= 255
    archive.write_bytes(data)
    ((_, message),) = unpack(archive, inside, Limits())
    assert "a.jpg: cannot be unpacked" in message and everything(inside) == ["b.jpg"]


@pytest.mark.parametrize("name", ["", ".", "./"])
def test_entries_without_a_name_are_left_out(tmp_path, inside, name):
    entry = zipfile.ZipInfo("x")
    entry.filename = name
    archive = packed(tmp_path / "shop.zip", [(entry, b"x"), ("good.jpg", b"y")])
    refused = unpack(archive, inside, Limits())
    assert [message.rpartition(": ")[2] for _, message in refused] == ["it has no name; give it one"] * (name != "./")
    assert everything(inside) == ["good.jpg"]


@pytest.mark.parametrize("way", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_may_ask_for_any_memory_is_not_unpacked(tmp_path, inside, way):
    ((_, message),) = unpack(packed(tmp_path / "shop.zip", [("a.jpg", b"x" * 100)], way), inside, Limits())
    assert "pack it with Deflate" in message and everything(inside) == []


def test_a_name_that_is_no_text_is_told(tmp_path, inside):
    archive = packed(tmp_path / "shop.zip", [("é.jpg", b"x")])
    archive.write_bytes(archive.read_bytes().replace("é".encode(), b"\xff\xff"))
    with pytest.raises(ValueError, match="shop.zip: cannot be read as a ZIP"):
        unpack(archive, inside, Limits())
