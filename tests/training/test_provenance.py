"""What a run was made with is written into its checkpoints, and told apart when it is resumed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field

import pytest
from huggingface_hub.file_download import repo_folder_name

from moon2_training import provenance
from moon2_training.provenance import LIBRARIES, changed_data, data_record, git_state, given_options, run_record
from moon2_training.trainer_config import Moon2TrainingArguments


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_revision_and_whether_tracked_files_have_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    git(tmp_path, "init")
    assert git_state(tmp_path) is None  # it has no commit
    (tmp_path / "recipe.yaml").write_text("seed: 1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "Add a recipe")
    state = git_state(tmp_path)
    assert state == {"revision": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    assert re.fullmatch("[0-9a-f]{40}", state["revision"])
    (tmp_path / "out.bin").write_text("an output, not tracked")
    assert git_state(tmp_path) == state
    (tmp_path / "recipe.yaml").write_text("seed: 2")
    assert git_state(tmp_path) == state | {"dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


def test_a_run_tells_seed_versions_and_machine_without_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = run_record(Moon2TrainingArguments("out", seed=7, use_cpu=True))
    assert record["seed"] == 7 and record["processes"] == 1 and record["device"] == "cpu"
    assert record["versions"].keys() == {*LIBRARIES, "python"}
    assert all(re.match(r"\d+\.\d+", number) for number in record["versions"].values())
    assert json.loads(json.dumps(record)) == record


@dataclass
class Options:
    products: list[str]
    model: str | None = None
    hub_token: str | None = None
    layers: list[int] = field(default_factory=lambda: [1, 2])
    rate: float = 0.5
    whole: bool = True
    other: dict | None = None


def test_options_are_those_that_were_given_without_places_and_secrets():
    assert given_options(Options(["/home/alice/products.parquet", "mine/*.parquet"])) == {
        "products": ["products", "mine/*.parquet"]
    }
    given = Options([], "/home/alice/runs/mini", "hf_secret", [3], 0.25, False, {"a": 1})
    assert given_options(given, Options(["a"], rate=0.1)) == {
        "products": ["a"], "model": "mini", "layers": [3], "rate": 0.1, "whole": False
    }  # fmt: skip


@pytest.fixture
def tables(shop, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    products = [tmp_path / "products-0.parquet", tmp_path / "products-1.parquet"]
    for number, file in enumerate(products):
        shop.products.select(range(10 * number, 10 * number + 10)).to_parquet(file)
    queries = tmp_path / "queries.parquet"
    shop.queries.to_parquet(queries)
    return {"products": products, "queries": [queries], "eval_queries": [queries]}


def test_files_are_told_by_name_size_rows_and_digest(tables, monkeypatch, capsys):
    monkeypatch.setattr("moon2_training.provenance.READ_BYTES", 1000)
    record = data_record(tables)
    assert "hash data" in capsys.readouterr().err
    assert [(file["table"], file["name"], file["rows"]) for file in record] == [
        ("products", "products-0.parquet", 10), ("products", "products-1.parquet", 10),
        ("queries", "queries.parquet", 24), ("eval_queries", "queries.parquet", 24),
    ]  # fmt: skip
    for file, path in zip(record, [*tables["products"], *tables["queries"] * 2], strict=True):
        content = path.read_bytes()
        assert file["bytes"] == len(content)
        assert file["blake2b"] == hashlib.blake2b(content, digest_size=16).hexdigest()
    assert str(tables["queries"][0].parent) not in json.dumps(record)


def test_a_file_is_hashed_once_for_each_state_of_it(tables, monkeypatch, capsys):
    hashed = []

    def watched(file, advance):
        hashed.append(file)
        return digest(file, advance)

    digest = provenance._digest
    monkeypatch.setattr(provenance, "_digest", watched)
    files = [*tables["products"], *tables["queries"]]
    record = data_record(tables, progress=False)
    assert sorted(hashed) == sorted(files) and not capsys.readouterr().err
    assert data_record(tables) == record and len(hashed) == 3
    assert not capsys.readouterr().err  # there is nothing to show
    content = files[1].read_bytes()
    files[1].write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    os.utime(files[1], ns=(1, 1))
    again = data_record(tables, progress=False)
    assert hashed[3:] == [files[1]]
    assert [file["blake2b"] for file in again] == [
        hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest() for file in (*files, files[2])
    ]
    assert again[1] != record[1] and again[0] == record[0]


def test_a_file_that_cannot_be_hashed_is_an_error(tables, monkeypatch):
    monkeypatch.setattr(provenance, "_digest", lambda file, advance: open(file.with_name("gone")).read())
    with pytest.raises(FileNotFoundError, match="gone"):
        data_record(tables, progress=False)


def test_a_file_of_the_hub_names_its_repository_and_revision(tables, tmp_path):
    folder = tmp_path / repo_folder_name(repo_id="shop/click-log", repo_type="dataset") / "snapshots" / ("ab" * 20)
    folder.mkdir(parents=True)
    file = shutil.copy(tables["queries"][0], folder / "queries.parquet")
    (told,) = data_record({"queries": [file]}, progress=False)
    assert (told["repository"], told["revision"]) == ("shop/click-log", "ab" * 20)


def test_changes_of_the_data_are_named(tables, shop, tmp_path):
    before = data_record(tables, progress=False)
    assert changed_data(before, before) == []
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    elsewhere = {name: [shutil.copy(file, moved) for file in files] for name, files in tables.items()}
    assert changed_data(before, data_record(elsewhere, progress=False)) == []
    shop.products.select(range(9)).to_parquet(tables["products"][0])
    tables["products"][1] = shutil.copy(tables["products"][1], tmp_path / "products-2.parquet")
    now = data_record(tables, progress=False)
    assert changed_data(before, now) == [
        f"products-0.parquet (products) has other content: blake2b {now[0]['blake2b']}, it was {before[0]['blake2b']}",
        "products-1.parquet (products) is not among the files any more",
        "products-2.parquet (products) was not among the files",
    ]
