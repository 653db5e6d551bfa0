from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard
from PIL.Image import Image as Picture

from moon2_dataset import PRODUCT_FEATURES, load_product_queries, render_command
from moon2_dataset.card import MEANINGS, TASKS, size_category, write_dataset_card
from moon2_dataset.data_files import data_files


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def header(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_header_is_what_the_hub_reads(data_folder):
    path = write_dataset_card(data_folder, "me/my-shop", license="cc-by-4.0")
    assert path == data_folder / "README.md" and not list(data_folder.glob(".*"))
    head = header(path.read_text())
    assert head["license"] == "cc-by-4.0" and head["pretty_name"] == "my-shop" and head["task_categories"] == TASKS
    assert head["size_categories"] == "n<1K" and "moon2" in head["tags"]
    assert head["configs"] == [
        {
            "config_name": "products",
            "data_files": [
                {"split": "train", "path": "products-train-[0-9]*.parquet"},
                {"split": "test", "path": "products-test.parquet"},
            ],
            "default": True,
        },
        {
            "config_name": "queries",
            "data_files": [
                {"split": "train", "path": "queries-train.parquet"},
                {"split": "test", "path": "queries-test.parquet"},
            ],
        },
    ]
    products, queries = head["dataset_info"]
    assert [split["num_examples"] for split in products["splits"]] == [16, 8]
    assert sum(split["num_examples"] for split in queries["splits"]) == 24
    assert {"name": "images", "list": "image"} in products["features"]
    assert {"name": "image", "dtype": "image"} in queries["features"]
    assert products["download_size"] == sum(file.stat().st_size for file in data_folder.glob("products*"))


@pytest.mark.parametrize("streaming", [False, True])
def test_it_loads_by_its_card(streaming, data_folder, own_cache):
    """Also where a split lacks the columns that another has, and without a network."""
    write_dataset_card(data_folder)
    files = data_files(data_folder)
    for split in ("train", "test"):
        data = load_product_queries(files["products"][split], files["queries"][split])
        products = list(load_dataset(str(data_folder), "products", split=split, streaming=streaming))
        queries = list(load_dataset(str(data_folder), "queries", split=split, streaming=streaming))
        assert [row["product_id"] for row in products] == data.products["product_id"][:]
        assert [row["query_id"] for row in queries] == data.queries["query_id"][:]
        assert all(isinstance(image, Picture) for row in products for image in row["images"])
        assert all(row["image"] is None or isinstance(row["image"], Picture) for row in queries)
        assert any(row["image"] for row in queries) == (split == "train")
        made = [row["enriched_title"] for row in products]
        assert made == (data.products["enriched_title"][:] if split == "train" else [None] * 8)
    assert list(load_dataset(str(data_folder))) == ["train", "test"]  # the config by default: the products


def test_the_code_of_the_card_runs(data_folder, own_cache, capsys):
    text = write_dataset_card(data_folder, "me/shop").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(code.replace('"me/shop"', repr(str(data_folder))), {})
    printed = capsys.readouterr().out
    assert "Lumo navy blue mug 0" in printed and "JpegImageFile" in printed and "mug 0 p0" in printed


def test_what_it_tells(data_folder):
    text = write_dataset_card(data_folder, "me/my_shop_").read_text()
    assert "# me/my_shop\\_\n" in text and "24 products, 23 queries with 24 pairs" in text
    assert "from `train`; judging them on `test`" in text
    assert "The columns `enriched_title`, `expanded_images`, `core_region` were made by a machine" in text
    assert f"| `enriched_title` | string | {MEANINGS['enriched_title']}; not in test |" in text
    assert "| `attributes` | list of \\{name, value\\} |" in text and "| `images` | list of image |" in text
    assert "| products | 16 | 8 |" in text and "| enriched titles | 31.2 % | – |" in text
    assert "| attributes: share of products | colour 100.0 % | colour 100.0 % |" in text
    assert "| queries with several right products | 6.2 % | 0.0 % |" in text
    assert "None has been chosen yet: `license:`" in text and "how the tables were made is not recorded" in text
    assert "--products 'data/products-train-[0-9]*.parquet' --queries data/queries-train.parquet" in text
    assert "moon2 evaluate --model runs/mine --products data/products-test.parquet" in text
    assert "## Privacy\n\nQuery texts come from a click log." in text
    assert "\n\n\n" not in text and "![" not in text
    (data_folder / "contact_sheet.png").touch()
    assert "](contact_sheet.png)" in write_dataset_card(data_folder).read_text()


def test_every_field_of_the_schema_has_a_meaning(data_folder):
    text = write_dataset_card(data_folder).read_text()
    described = set(re.findall(r"^\| `(\w+)` \| ", text, flags=re.MULTILINE))
    assert set(PRODUCT_FEATURES) <= described | {"description"} and "not part of the schema" not in text


def test_an_augmented_test_split_is_not_passed_over(data_folder):
    assert "Titles and pictures that are judged on are never augmented." in write_dataset_card(data_folder).read_text()
    (data_folder / "products-train-00000.parquet").rename(data_folder / "products-zoo.parquet")
    text = write_dataset_card(data_folder).read_text()
    assert "**`zoo`, held out to be judged on, is augmented too" in text and "never augmented" not in text


def test_products_alone(data_folder, own_cache):
    for file in [*data_folder.glob("queries*"), *data_folder.glob("products-t*-*")]:
        file.unlink()
    text = write_dataset_card(data_folder).read_text()
    assert [config["config_name"] for config in header(text)["configs"]] == ["products"]
    assert "queries" not in text.split("## Statistics")[1].split("## Tasks")[0]
    assert (
        "There are no queries in this folder" in text and "moon2 train" not in text and "come from a click" not in text
    )
    assert load_dataset(str(data_folder), "products")["test"].num_rows == 8
    assert "\n\n\n" not in text


def test_columns_of_others_are_told_and_do_not_break_the_table(data_folder):
    nasty = "my|col`umn_"
    queries = Dataset.from_parquet(str(data_folder / "queries-test.parquet"))
    queries = queries.add_column(nasty, [True] * 3 + [False] * 4).add_column("slice", ["a|b"] * 7)
    queries.to_parquet(data_folder / "queries-test.parquet")
    text = write_dataset_card(data_folder).read_text()
    assert r"| my\|col\`umn\_ | bool | not part of the schema" in text
    assert r"| my\|col\`umn\_ | – | true 42.9 % |" in text and r"| slice | – | a\|b 100.0 % |" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_an_untouched_card_is_brought_up_to_date(data_folder):
    first = write_dataset_card(data_folder, "me/shop", license="mit").read_text()
    assert write_dataset_card(data_folder, "me/shop").read_text() == first  # the licence is not forgotten
    for file in data_folder.glob("products-train-00001.parquet"):
        file.unlink()
    text = write_dataset_card(data_folder, "me/shop").read_text()
    assert "| products | 10 | 8 |" in text and header(text)["dataset_info"][0]["splits"][0]["num_examples"] == 10


def test_an_edited_card_keeps_its_text_and_its_files_are_brought_up_to_date(data_folder, own_cache):
    path = write_dataset_card(data_folder, "me/shop")
    card = DatasetCard.load(path)
    card.data.language, card.data.pretty_name, card.data.tags = ["de"], "Mein Laden", ["mine"]
    card.data.configs.append({"config_name": "own", "data_files": "own.parquet"})
    card.text = card.text.replace("## Privacy", "## Privacy, looked into")
    card.save(path)
    edited = DatasetCard.load(path)
    (data_folder / "products-train-00001.parquet").unlink()
    Dataset.from_dict({"a": [1]}).to_parquet(data_folder / "own.parquet")
    again = DatasetCard.load(write_dataset_card(data_folder, "me/other", license="mit"))
    assert again.text == edited.text and "## Privacy, looked into" in again.text
    assert (again.data.language, again.data.pretty_name, again.data.tags) == (["de"], "Mein Laden", ["mine"])
    assert again.data.license == "mit"
    assert {config["config_name"] for config in again.data.configs} == {"products", "queries", "own"}
    assert load_dataset(str(data_folder), "products", split="train").num_rows == 10
    assert load_dataset(str(data_folder), "own", split="train").num_rows == 1
    assert DatasetCard.load(write_dataset_card(data_folder)).data.license == "mit"


def test_a_card_without_header_keeps_its_text(data_folder):
    (data_folder / "README.md").write_bytes(b"# Mine\r\n\r\nBy hand.\r\n")
    content = write_dataset_card(data_folder).read_bytes().decode()
    assert content.endswith("# Mine\r\n\r\nBy hand.\r\n")
    assert DatasetCard(content).data.task_categories == TASKS


def test_an_unreadable_header_is_named(data_folder):
    (data_folder / "README.md").write_text("---\n- a\n---\n")
    with pytest.raises(ValueError, match="README.md: its header cannot be read"):
        write_dataset_card(data_folder)


def test_no_place_on_the_machine_gets_into_the_card(data_folder):
    text = write_dataset_card(data_folder, str(data_folder)).read_text()
    assert str(data_folder.parent) not in text and 'load_dataset("noise-shop"' in text


@pytest.mark.parametrize(
    ("rows", "category"), [(999, "n<1K"), (1000, "1K<n<10K"), (10**9 - 1, "100M<n<1B"), (10**9, "1B<n<10B")]
)
def test_size_categories(rows, category):
    assert size_category(rows) == category


OWN = Path(__file__).parents[2] / "dataset_card/README.md"


def render(folder: Path, **options: str) -> Path:
    """Run the command of the repository's own card, with some options changed; its card is in the folder."""
    (command,) = re.findall(r"^moon2 render (.*)$", OWN.read_text(encoding="utf-8"), flags=re.MULTILINE)
    words = shlex.split(command)
    for name, value in options.items():
        words[words.index(f"--{name}") + 1] = value
    render_command.main([str(folder), *words[1:]])
    shutil.copy(OWN, folder)
    return folder


def test_the_card_of_the_rendered_shop_fits_what_is_rendered(tmp_path, own_cache):
    folder = render(tmp_path / "rendered-shop", products="12")
    text = write_dataset_card(folder).read_text()
    assert text.partition("\n# ")[2] == OWN.read_text(encoding="utf-8").partition("\n# ")[2]
    before, after = header(OWN.read_text(encoding="utf-8")), header(text)
    changed = [key for key in after if before.get(key) != after[key]]
    assert set(changed) == {"dataset_info", "size_categories"}  # of fewer products
    for told, found in zip(before["dataset_info"], after["dataset_info"], strict=True):
        assert told["features"] == found["features"]
        assert set(re.findall(r"^\| `(\w+)` \| [a-z]", text, flags=re.MULTILINE)) >= {
            f["name"] for f in found["features"]
        }
    assert load_dataset(str(folder), "products", split="train").num_rows == 10


@pytest.mark.slow
def test_the_numbers_of_the_rendered_shop_are_those_of_its_command(tmp_path):
    folder = render(tmp_path / "rendered-shop")
    (folder / "README.md").unlink()
    fresh = write_dataset_card(folder).read_text()
    for heading in ("Fields", "Statistics"):
        (section,) = re.findall(rf"^## {heading}\n(.*?)^## ", fresh, flags=re.MULTILINE | re.DOTALL)
        assert section in OWN.read_text(encoding="utf-8"), (
            f"dataset_card/README.md: put this under {heading}:\n{section}"
        )
