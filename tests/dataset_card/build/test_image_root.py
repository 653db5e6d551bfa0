"""Which file of a folder a web address stands for, and which files it is not known of."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from moon2_dataset.build.builder import BuildArguments, build_dataset
from moon2_dataset.build.image_root import ImageRoot, is_address
from moon2_dataset.build.picture_addresses import picture_addresses
from moon2_dataset.build.sources import open_source

ADDRESS = "https://cdn.x/shop/1001/main.jpg"


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def found(root: ImageRoot, address: str) -> str | None:
    file, shared = root.find(address)
    return file and ("shared: " * shared + file.relative_to(root.folder).as_posix())


def test_the_longest_end_of_an_address_that_is_there_is_its_file(tmp_path):
    names = ["cdn.x/shop/1001/main.jpg", "shop/1001/main.jpg", "1001/main.jpg", "main.jpg"]
    files(tmp_path, *names)
    for name in names:
        assert found(ImageRoot(tmp_path, [ADDRESS, ADDRESS]), ADDRESS) == name
        (tmp_path / name).unlink()
    assert found(ImageRoot(tmp_path, [ADDRESS]), ADDRESS) is None


def test_a_file_that_several_addresses_end_in_stands_for_none_of_them(tmp_path):
    addresses = [f"https://cdn.x/{number}/main.jpg" for number in (1001, 1002, 1003)]
    files(tmp_path, "main.jpg", "alone.jpg")
    root = ImageRoot(tmp_path, [*addresses, "https://cdn.x/7/alone.jpg"])
    assert [found(root, address) for address in addresses] == ["shared: main.jpg"] * 3
    assert found(root, "https://cdn.x/7/alone.jpg") == "alone.jpg"
    files(tmp_path, "1001/main.jpg", "cdn.x/1003/main.jpg")
    root = ImageRoot(tmp_path, reversed(addresses))
    assert [found(root, address) for address in addresses] == [
        "1001/main.jpg", "shared: main.jpg", "cdn.x/1003/main.jpg"]  # fmt: skip


def test_an_end_of_several_levels_may_be_that_of_several_addresses_too(tmp_path):
    addresses = ["https://a.x/old/7/main.jpg", "https://b.x/new/7/main.jpg", "https://c.x/7/main.jpg"]
    root = ImageRoot(files(tmp_path, "7/main.jpg", "c.x/7/main.jpg"), addresses)
    assert [found(root, address) for address in addresses] == ["shared: 7/main.jpg"] * 2 + ["c.x/7/main.jpg"]


def test_sizes_and_versions_of_one_image_are_one_address_and_numbers_of_a_script_are_not(tmp_path):
    sizes = [f"{ADDRESS}?v=1&width={width}" for width in (80, 800)] + ["http://CDN.x/shop/1001/main.jpg#top", ADDRESS]
    root = ImageRoot(files(tmp_path, "main.jpg", "cdn.x/photo.php", "cdn.x/photo.php?id=3"), sizes)
    assert [found(root, address) for address in sizes] == ["main.jpg"] * 4
    numbers = [f"https://cdn.x/photo.php?id={number}" for number in (1, 2, 3)]
    root = ImageRoot(tmp_path, numbers)
    assert [found(root, address) for address in numbers] == ["shared: cdn.x/photo.php"] * 2 + ["cdn.x/photo.php?id=3"]


@pytest.mark.parametrize("address", [
    "https://../secret.jpg", "https://x/../secret.jpg", "https://x/%2e%2e/secret.jpg", "https://x/a/%2Fsecret.jpg",
    "s3:///../secret.jpg", "https://x/a?q=/../../secret.jpg", "https://[/secret.jpg", "https://x/%00.jpg",
    "https://x/" + 300 * "a" + "/secret.jpg", "https://x/", "data:image/png;base64,AAAA", "https://x/" + 5_000 * "a/",
])  # fmt: skip
def test_no_address_leads_out_of_the_folder_or_ends_reading(tmp_path, address):
    files(tmp_path, "secret.jpg", "inside/a.jpg", "inside/a?q=/b")
    assert is_address(address) and found(ImageRoot(tmp_path / "inside", [address]), address) is None


def test_addresses_are_read_in_every_form_that_cells_have(tmp_path):
    rows = [
        {
            "id": 1,
            "title": "a",
            "image": "https://x/1.jpg, https://x/2.jpg",
            "more_images": [{"src": "https://x/3.jpg"}],
        },
        {"id": 2, "title": "b", "image": "4.jpg", "more_images": ["https://x/5.jpg", "file:///6.jpg"]},
        {"id": 3, "title": "c", "image": None},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    source = open_source(tmp_path / "a.jsonl", {"images": "image,more_images"})
    assert list(picture_addresses(source, "images")) == [f"https://x/{number}.jpg" for number in (1, 2, 3, 5)]
    source = open_source(tmp_path / "a.jsonl", {"images": "https://x/{id}.png"})
    assert list(picture_addresses(source, "images")) == [f"https://x/{number}.png" for number in (1, 2, 3)]
    assert list(picture_addresses(open_source(tmp_path / "a.jsonl", {"images": ""}), "images")) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_a_build_names_the_pictures_that_it_cannot_tell_apart(tmp_path, workers):
    """What is shared is known before the first row: order, threads and what was done before change nothing."""
    numbers = list(range(60))
    random.Random(0).shuffle(numbers)
    photos = tmp_path / "photos"
    (photos / "7").mkdir(parents=True)
    for seed, name in enumerate(["main.jpg", "7/main.jpg", "back.jpg"]):
        Image.effect_noise((40, 40), 50 + seed).save(photos / name)
    rows = [f"{number},Mug {number},https://cdn.x/{number}/main.jpg" for number in numbers]
    (tmp_path / "shop.csv").write_text("\n".join(["id,title,image", *rows, "60,Mug 60,https://cdn.x/60/back.jpg\n"]))
    arguments = BuildArguments(
        str(tmp_path / "shop.csv"), str(tmp_path / "out"), image_root=str(photos), workers=workers
    )
    report = build_dataset(arguments, progress=False)
    assert sum(split["images"] for split in report["splits"].values()) == 2
    lost = report["catalogue"]["notes"]["image_file_of_several_addresses"]
    assert lost["rows"] == 59 and "main.jpg: https://cdn.x/" in lost["examples"][0]
    assert "lay the files out as HOST/PATH" in (tmp_path / "out" / "build_report.md").read_text()
