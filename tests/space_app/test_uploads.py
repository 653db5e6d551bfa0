"""Uploads are read in their folder alone."""

from __future__ import annotations

import base64

import pytest

from moon2_space.uploads import MAX_PICTURE, refuse_addresses, uploaded_file, uploaded_picture


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    (tmp_path / "served" / "a").mkdir(parents=True)
    return tmp_path / "served"


def test_what_was_uploaded_is_read(folder):
    (folder / "a" / "shoe.png").write_bytes(b"pixels")
    assert uploaded_picture({"path": str(folder / "a" / "shoe.png"), "url": None}) == b"pixels"
    assert uploaded_picture(None) is None and uploaded_picture({}) is None and uploaded_picture("") is None


def test_nothing_else_is(folder, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (folder / "a" / "link.png").symlink_to(secret)
    for path in (str(secret), "/etc/passwd", str(folder / ".." / "secret.txt"), str(folder / "a" / "link.png"),
                 str(folder), str(folder / "a" / "absent.png"), "", None, 3, "\ud800", "a\0b",
                 str(folder / ("x" * 300))):  # fmt: skip
        with pytest.raises(ValueError, match="the file was not uploaded here"):
            uploaded_file({"path": path})
    for wrong in (True, 5, ["a.png"]):
        with pytest.raises(ValueError, match="give an upload"):
            uploaded_picture(wrong)
    with pytest.raises(ValueError, match="the file was not uploaded here"):
        uploaded_picture({"url": ["data:"]})
    with pytest.raises(ValueError, match="paths and links are not followed"):
        uploaded_picture("/etc/passwd")
    with pytest.raises(ValueError, match="paths and links are not followed"):
        uploaded_picture("http://127.0.0.1/internal.png")


def test_addresses_that_hold_their_picture(folder):
    body = base64.b64encode(b"pixels").decode()
    for given in (f"data:image/png;base64,{body}", {"url": f"data:image/png;base64,{body}"}):
        assert uploaded_picture(given) == b"pixels"
    with pytest.raises(ValueError, match="not in base64"):
        uploaded_picture("data:image/svg+xml,<svg/>")
    with pytest.raises(ValueError, match="damaged"):
        uploaded_picture("data:image/png;base64,!!")


def test_large_ones_are_refused(folder):
    with open(folder / "a" / "large.png", "wb") as file:
        file.truncate(MAX_PICTURE + 1)
    with pytest.raises(ValueError, match="at most 20 MB"):
        uploaded_picture({"path": str(folder / "a" / "large.png")})
    with pytest.raises(ValueError, match="at most 20 MB"):
        uploaded_picture("data:image/png;base64," + "A" * (MAX_PICTURE * 4 // 3 + 8))


def test_files_that_are_addresses_are_found_wherever_they_stand():
    refuse_addresses([{"path": "/tmp/a.jpg", "url": "http://127.0.0.1:7860/file=/tmp/a.jpg"}, None, "http://x", 3])
    for path in ("http://169.254.169.254/latest/meta-data", "https://shop.example/a.jpg", " HTTP://x/a.jpg"):
        for sent in ({"path": path}, [[{"value": {"path": path, "meta": {"_type": "gradio.FileData"}}}]]):
            with pytest.raises(ValueError, match="addresses are not fetched; download the file and upload it"):
                refuse_addresses(sent)
