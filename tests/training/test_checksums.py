from __future__ import annotations

import shutil
import subprocess

import pytest

from moon2_training.checksums import (
    CHECKSUMS,
    check_checksums,
    check_lance,
    find_unreadable,
    lance_checksums,
    write_checksums,
)


@pytest.fixture
def folder(saved_model, tmp_path):
    folder = shutil.copytree(saved_model, tmp_path / "model")
    write_checksums(folder)
    return folder


def test_what_loading_reads_has_a_checksum_that_sha256sum_takes(folder):
    names = {line.partition("  ")[2] for line in (folder / CHECKSUMS).read_text().splitlines()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "processor_config.json"}
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", CHECKSUMS], cwd=folder, check=True)
    check_checksums(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "modeling_moon2.py"])
def test_what_is_changed_or_gone_is_named(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: not as SHA256SUMS says: damaged, gone, or changed by hand; save"):
        check_checksums(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: not as SHA256SUMS says"):
        check_checksums(folder)


@pytest.mark.parametrize("line", ["", "0123  ../../etc/passwd", "0123"])
def test_a_list_that_is_none_is_damaged(folder, line):
    (folder / CHECKSUMS).write_text(f"{line}\n")
    with pytest.raises(ValueError, match="SHA256SUMS: damaged"):
        check_checksums(folder)


def test_a_folder_without_a_list_is_taken_as_it_is(saved_model):
    check_checksums(saved_model)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_the_file_that_cannot_be_read_is_found(folder, name):
    assert find_unreadable(folder) is None
    (folder / name).write_bytes((folder / name).read_bytes()[:50])
    assert find_unreadable(folder)[0] == folder / name


def test_the_files_of_a_lance_table_are_compared_and_those_that_are_known_not_read_again(tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="lancedb is not installed")
    made = lancedb.connect(tmp_path).create_table("shop", data=[{"product_id": f"p{row}"} for row in range(9)])
    table = tmp_path / "shop.lance"
    before = lance_checksums(table)
    made.add([{"product_id": "new"}])
    (name,) = before
    assert lance_checksums(table, {name: "known"})[name] == "known" and len(lance_checksums(table)) == 2
    check_lance(table, before | {"data/gone.lance": "0"}, "make it again")
    (table / name).write_bytes((table / name).read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=f"{name}: damaged; make it again"):
        check_lance(table, before, "make it again")
