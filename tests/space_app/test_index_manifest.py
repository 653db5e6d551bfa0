from __future__ import annotations

import json
from pathlib import Path

import pytest

from moon2_space.index_manifest import OtherEncoderError, check_encoder, new_manifest, read_manifest, write_json


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path):
    manifest = new_manifest("runs/größe", "ab" * 16, 256)
    write_json(tmp_path / "manifest.json", manifest)
    assert read_manifest(tmp_path) == manifest
    write_json(tmp_path / "manifest.json", manifest | {"ann": {"products": 3}})
    assert read_manifest(tmp_path)["ann"] == {"products": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_write_that_breaks_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    manifest = new_manifest("model", "ab" * 16, 256)
    write_json(tmp_path / "manifest.json", manifest)

    def broken(self, target):
        assert target.read_text() == before
        raise OSError("the machine went down")

    before = (tmp_path / "manifest.json").read_text()
    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="the machine went down"):
        write_json(tmp_path / "manifest.json", manifest | {"model": "other"})
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize(
    ("content", "told"),
    [("", "damaged"), ("[]", "damaged"), ("{}", "damaged"), ('{"format": 1}', "damaged .no ann, dimension"),
     (json.dumps(new_manifest("", "", 1) | {"format": 99}), "format 99, this version reads 1")],
)  # fmt: skip
def test_a_damaged_manifest_is_told(tmp_path, content, told):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=rf"manifest.json: {told}.*index the catalogue again"):
        read_manifest(tmp_path)


def test_another_encoder_or_width_is_refused(tmp_path):
    manifest = new_manifest("runs/mini", "ab" * 16, 256)
    check_encoder(tmp_path, manifest, "ab" * 16, 256)
    for fingerprint, dimension in (("cd" * 16, 256), ("ab" * 16, 128)):
        with pytest.raises(
            OtherEncoderError, match=r"made with runs/mini \(abababababab\); this encoder is another one"
        ):
            check_encoder(tmp_path, manifest, fingerprint, dimension)
