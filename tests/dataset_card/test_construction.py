from __future__ import annotations

import csv
import json
import re

import pytest

from moon2_dataset.augment.arguments import AugmentArguments
from moon2_dataset.augment.pipeline import augment
from moon2_dataset.build.builder import BuildArguments, build_dataset
from moon2_dataset.card import write_dataset_card
from moon2_dataset.construction import read_augmentation, read_construction


@pytest.fixture(scope="module")
def built(tmp_path_factory, make_image):
    """What the builder makes of a catalogue with a double, a row without id and a picture that is not there."""
    folder = tmp_path_factory.mktemp("alice")
    (folder / "pictures").mkdir()
    for number in range(30):
        make_image(number).save(folder / "pictures" / f"{number}.jpg")
    rows = [[f"p{n}", f"{('mug', 'shoes', 'bag')[n % 3]} {n}", "Shop > All", f"{n}.jpg"] for n in range(30)]
    rows += [["p0", "again", "Shop > All", "1.jpg"], ["", "of no id", "", ""], ["p31", "no picture", "", "no.jpg"]]
    with open(folder / "catalogue.csv", "w", newline="") as file:
        csv.writer(file).writerows([["sku", "name", "category", "image"], *rows])
    log = [[f"find {n % 20}", "purchase", f"p{n % 20}", "p21 p22 p23"] for n in range(60)]
    log += [["my address is Elm Street 5", "purchase", "nowhere", ""]]
    with open(folder / "log.csv", "w", newline="") as file:
        csv.writer(file).writerows([["query", "event", "product_id", "shown"], *log])
    arguments = BuildArguments(
        catalogue=str(folder / "catalogue.csv"),
        log=str(folder / "log.csv"),
        output_dir=str(folder / "built"),
        image_root=str(folder / "pictures"),
        splits=["train=0.7", "test=0.3"],
    )
    report = build_dataset(arguments, progress=False)
    return folder / "built", report


def test_the_numbers_are_those_of_the_report(built):
    folder, report = built
    told, command = read_construction(folder)
    tables = {
        row[0].strip("* –"): int(row[1].replace(",", ""))
        for row in (line.strip("| ").split(" | ") for line in told.splitlines() if line.startswith("| "))
        if len(row) >= 2 and re.fullmatch(r"[\d,]+", row[1])
    }
    assert tables["rows of the catalogue"] == report["catalogue"]["rows"] == 33
    assert tables["no_product_id"] == 1 and tables["same_product_id"] == 1 and tables["image_missing"] == 1
    assert tables["products"] == report["products"]
    assert (tables["lines of the log"], tables["unknown_product"], tables["lines used"]) == (61, 1, 60)
    assert tables["positives"] == report["log"]["positives"]["written"] == 20
    assert tables["negatives"] == report["log"]["negatives"]["written"]
    assert command.startswith("moon2 build-dataset --catalogue CATALOGUE --log LOG --output_dir FOLDER ")
    assert "--splits train=0.7 test=0.3" in command and "--image_root pictures" in command


def test_the_card_tells_it_without_a_place_or_a_shopper(built):
    folder, _ = built
    text = write_dataset_card(folder, "me/shop").read_text()
    assert "By `moon2 build-dataset`, out of a catalogue and a behaviour log." in text
    assert "![Some of the products](contact_sheet.png)" in text and "moon2 build-dataset --catalogue CATALOGUE" in text
    assert not re.search("alice|/tmp|Elm Street|no.jpg|nowhere", text)
    assert "\n\n\n" not in text


def test_without_a_log(built, tmp_path):
    report = json.loads((built[0] / "build_report.json").read_text())
    (tmp_path / "build_report.json").write_text(json.dumps(report | {"log": None}))
    told, command = read_construction(tmp_path)
    assert "there was no log" in told and "--log" not in command and "positives" not in told


def test_augmentation_is_told_of_all_parts_together(data_folder):
    files = sorted(data_folder.glob("products-train-*.parquet"))
    assert read_augmentation(files) is None
    made_from = {"enricher": "vlm", "vlm": "/home/alice/qwen", "spacy": None, "variants": 3, "input": "/home/alice/x"}
    for file in files:
        report = {
            "products": 10, "title": {"enriched": {"rows": 7, "examples": ["p1"]}},
            "rejected": {"colour": {"rows": 2, "examples": ["p2: red"]}}, "dropped": {},
            "made": {"light": {"rows": 30, "examples": []}}, "core_regions": 9, "made_from": made_from,
        }  # fmt: skip
        file.with_name(f"{file.name}.report.json").write_text(json.dumps(report))
    (data_folder / "products-train-00001.parquet.contact.png").touch()
    text = write_dataset_card(data_folder).read_text()
    assert "](products-train-00001.parquet.contact.png)" in text
    assert "| products | 20 |" in text and "| titles: enriched | 14 |" in text
    assert "| – titles rejected by the guard: colour | 4 |" in text and "| pictures made: light | 60 |" in text
    assert "Made with enricher vlm, vlm qwen, variants 3." in text and "alice" not in text
    file.with_name(f"{file.name}.report.json").write_text("{}")
    with pytest.raises(ValueError, match=r"products-train-00001.parquet.report.json: no report that can be read"):
        read_augmentation(files)


def test_augmentation_of_a_folder_is_told(data_folder, tmp_path):
    for file in data_folder.glob("*-test*"):
        file.unlink()
    arguments = AugmentArguments(input=str(data_folder), output=str(tmp_path / "augmented"), workers=1, variants=1)
    report = augment(arguments, progress=False)
    text = write_dataset_card(tmp_path / "augmented").read_text()
    assert report["products"] == 16 and "| products | 16 |" in text
    assert f"| **boxes of products found** | {report['core_regions']} |" in text
    assert "Made with enricher template, variants 1" in text and "](augment_contact_sheet.png)" in text


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"arguments": 1, "catalogue": 2}'])
def test_another_file_of_that_name_is_named(content, tmp_path):
    assert read_construction(tmp_path) is None
    (tmp_path / "build_report.json").write_text(content)
    with pytest.raises(
        ValueError, match="build_report.json: no report that can be read .*; make it anew, or remove it"
    ):
        read_construction(tmp_path)
