from __future__ import annotations

import json
import re

import pytest
from datasets import Dataset
from huggingface_hub import DatasetCard, constants

from moon2_dataset.build.builder import main as build_main
from moon2_dataset.card import write_dataset_card
from moon2_dataset.publish import check_dataset_folder, push_dataset

DATA = {"products-train-00000.parquet", "products-train-00001.parquet", "products-test.parquet",
        "queries-train.parquet", "queries-test.parquet"}  # fmt: skip
BESIDE = {
    "README.md", "croissant.json", "contact_sheet.png", "augment_contact_sheet.png",
    "products-train-00001.parquet.contact.png",
}  # fmt: skip
REPO = "datasets/me/shop"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def change(file, **columns) -> None:
    """Write a table again with other columns, each given as a function of the row's number."""
    rows = Dataset.from_parquet(str(file)).to_list()
    for number, row in enumerate(rows):
        row |= {name: of_row(number, row) for name, of_row in columns.items()}
    Dataset.from_list(rows).to_parquet(file)


@pytest.mark.parametrize("lfs", [True, False], ids=["lfs", "streamed"])
def test_a_push_carries_the_data_and_nothing_else(lfs, hub, data_folder):
    hub.lfs = lfs
    for name in ("catalogue.csv", "products.csv", ".env", "model.safetensors", "notes.md", "lexicon.json", *BESIDE):
        (data_folder / name).touch()
    (data_folder / "README.md").unlink()
    (data_folder / ".build").mkdir()
    (data_folder / ".build" / "products-train-00000.parquet").touch()
    assert push_dataset(data_folder, "me/shop", license="mit") == f"{hub.url}/{REPO}"
    assert hub.files(REPO) == DATA | BESIDE
    pushed = hub.repos[REPO]["main"]
    assert all(pushed[name] == (data_folder / name).read_bytes() for name in hub.files(REPO))
    card = DatasetCard(pushed["README.md"].decode())
    assert card.data.license == "mit" and 'load_dataset("me/shop"' in card.text
    described = json.loads(pushed["croissant.json"])
    assert described["url"] == f"{hub.url}/{REPO}" and described["license"] == "mit"
    assert not hub.private[REPO] and hub.tokens == {"Bearer hf_fake"}


def test_a_second_push_sends_what_changed_and_removes_old_parts(hub, data_folder):
    push_dataset(data_folder, "me/shop")
    sent = len(hub.committed)
    push_dataset(data_folder, "me/shop")
    assert len(hub.committed) == sent
    (data_folder / "products-train-00001.parquet").unlink()
    change(data_folder / "queries-train.parquet", product_id=lambda n, _: f"p{n % 10}", negative_ids=lambda *_: [])
    push_dataset(data_folder, "me/shop")
    assert hub.files(REPO) == DATA - {"products-train-00001.parquet"} | {"README.md", "croissant.json"}


def test_the_card_names_the_repository_with_its_owner(hub, data_folder):
    assert push_dataset(data_folder, "shop").endswith("/datasets/somebody/shop")
    pushed = hub.repos["datasets/somebody/shop"]["main"]
    assert b'load_dataset("somebody/shop"' in pushed["README.md"] and b"somebody/shop" in pushed["croissant.json"]


def test_an_edited_card_is_pushed_as_it_is_written(hub, data_folder):
    card = write_dataset_card(data_folder)
    card.write_text(card.read_text().replace("## Known biases", "## What is wrong with it"))
    push_dataset(data_folder, "me/shop")
    assert b"## What is wrong with it" in hub.repos[REPO]["main"]["README.md"]


def test_private(hub, data_folder):
    push_dataset(data_folder, "me/shop", private=True)
    assert hub.private[REPO] and hub.files(REPO)
    hub.private[REPO] = False
    hub.repos[REPO] = {"main": {}}
    with pytest.raises(ValueError, match="me/shop is there and public; make it private"):
        push_dataset(data_folder, "me/shop", private=True)
    assert not hub.files(REPO)


DAMAGES = {
    "no products": (lambda f: [p.unlink() for p in f.glob("products*")], "no products"),
    "cut": (
        lambda f: (f / "products-train-00001.parquet").write_bytes(b"PAR1"),
        r"products-train-00001.parquet: cannot be read as Parquet",
    ),
    "row": (
        lambda f: change(f / "queries-test.parquet", product_id=lambda n, row: "p99" if n == 3 else row["product_id"]),
        r"queries-test.parquet row 3: product_id p99 is not in the catalogue",
    ),
    "double": (
        lambda f: change(f / "products-train-00001.parquet", product_id=lambda n, _: f"p{n}"),
        r"products-train-00001.parquet row 0: product_id p0 is already in products-train-00000.parquet row 0",
    ),
    "title": (
        lambda f: change(f / "products-test.parquet", enriched_title=lambda n, _: "x" if n == 5 else " "),
        r"products-test.parquet row 5: enriched_title is filled, but test is held out .*; drop the column there",
    ),
    "pictures": (
        lambda f: change(f / "products-test.parquet", expanded_images=lambda n, row: row["images"] if n > 5 else []),
        r"products-test.parquet row 6: expanded_images is filled, but test .* and 1 more row",
    ),
    "split": (
        lambda f: (f / "products-test.parquet").unlink(),
        r"queries-test.parquet: queries of split test, but no",
    ),
    "picture": (
        lambda f: change(
            f / "products-test.parquet", images=lambda *_: [{"bytes": None, "path": "/home/alice/1.jpg"}]
        ),
        r"products-test.parquet row 0: images\[0\] is a path without bytes, and 7 more rows; put the picture's bytes",
    ),
    "photo": (
        lambda f: change(f / "queries-test.parquet", image=lambda *_: {"bytes": None, "path": "1.jpg"}),
        r"queries-test.parquet row 0: image is a path without bytes",
    ),
    "header": (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), "README.md: its header cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_folder_that_is_not_sound_is_refused_before_anything_is_sent(kind, hub, data_folder):
    damage, message = DAMAGES[kind]
    damage(data_folder)
    with pytest.raises(ValueError, match=message) as refused:
        push_dataset(data_folder, "me/shop")
    assert "\n" not in str(refused.value) and not hub.asked


def test_no_folder(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        push_dataset(tmp_path / "nowhere", "me/shop")


def test_columns_that_are_there_and_empty_are_no_augmentation(data_folder):
    """As concatenating splits leaves them; and a box says where a product is, it changes nothing."""
    change(
        data_folder / "products-test.parquet",
        enriched_title=lambda *_: "",
        expanded_images=lambda *_: [],
        core_region=lambda *_: [0.0, 0.0, 1.0, 1.0],
    )
    assert {file.name for file in check_dataset_folder(data_folder)} == DATA


def test_queries_may_be_missing(hub, data_folder):
    for file in data_folder.glob("queries*"):
        file.unlink()
    push_dataset(data_folder, "me/shop")
    assert hub.files(REPO) == {name for name in DATA if name[0] == "p"} | {"README.md", "croissant.json"}


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "log in with `hf auth login`"), (403, "the token may not write there"), (404, "not found"), (418, "(418)")],
)
def test_a_refusal_is_one_line_that_says_the_way_out(status, message, hub, data_folder):
    hub.refusal = status
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        push_dataset(data_folder, "me/shop")
    assert "\n" not in str(refused.value)


def test_no_token_no_name_no_hub(hub, data_folder, tmp_path, monkeypatch):
    def error_of(repo: str = "me/shop") -> str:
        with pytest.raises(ValueError) as refused:
            push_dataset(data_folder, repo)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "me/sh/op is no name of a repository" in error_of("me/sh/op")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert "http://127.0.0.1:9 cannot be reached" in error_of()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in error_of()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert "log in with `hf auth login`" in error_of()
    assert not hub.asked


def test_real_tables(shared_data):
    assert len(check_dataset_folder(shared_data / "sportswear")) == 2


def test_what_was_built_is_pushed_by_the_same_command(hub, tmp_path, capsys):
    lines = ["sku,title,category"] + [f"a{n},Lumo mug number {n},Home > Mugs" for n in range(60)]
    (tmp_path / "shop.csv").write_text("\n".join(lines), encoding="utf-8")
    command = ["--catalogue", str(tmp_path / "shop.csv"), "--output_dir", str(tmp_path / "shop")]
    build_main(command)
    assert not hub.repos
    build_main([*command, "--push", "me/shop", "--private", "true", "--license", "mit"])  # nothing is built again
    assert capsys.readouterr().out.endswith(f"{hub.url}/{REPO}\n")
    assert hub.private[REPO] and {"README.md", "croissant.json", "build_report.json"} <= hub.files(REPO)
    assert sum(name.startswith("products-") for name in hub.files(REPO)) == 3
