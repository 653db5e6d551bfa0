"""Catalogues that somebody gave: their products, an error for every bad row, nothing read or written outside."""

from __future__ import annotations

import csv
import gzip
import io
import os
import socket
import struct
import zipfile
import zlib

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon2_space.catalogue_source import CatalogueSource, Limits, RowError, check_hub_name, errors_as_csv


def jpeg(make_image, seed):
    buffer = io.BytesIO()
    make_image(seed).save(buffer, "JPEG")
    return buffer.getvalue()


def png_bomb():
    """A real PNG of 30,000 x 30,000 grey pixels in under a megabyte."""
    row = zlib.compressobj(9)
    packed = b"".join([row.compress(bytes(30_001)) for _ in range(30_000)]) + row.flush()
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0), b"IDAT" + packed, b"IEND"]
    whole = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


@pytest.fixture
def upload(tmp_path):
    folder = tmp_path / "data" / "upload"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def scratch(tmp_path):
    return tmp_path / "data" / "scratch"


def read(path, scratch, **options):
    with CatalogueSource(path, scratch, **options) as source:
        products = list(source)
        assert list(source) == products  # it can be read again
    assert not list(scratch.iterdir())
    return products, source.errors


def test_a_csv_with_pictures_beside_it(upload, scratch, make_image):
    (upload / "mug.jpg").write_bytes(jpeg(make_image, 1))
    (upload / "shop.csv").write_text(
        "id,title,category,colour,image\n1,Red mug,Kitchen > Mugs,red,mug.jpg\n2,Blue mug,,,\n"
    )
    products, errors = read(upload / "shop.csv", scratch)
    assert [product["product_id"] for product in products] == ["1", "2"] and errors == []
    assert products[0]["category_path"] == ["Kitchen", "Mugs"] and products[0]["images"][0]["bytes"][:2] == b"\xff\xd8"
    assert products[0]["attributes"] == [{"name": "colour", "value": "red"}]


def test_bad_rows_are_told_and_the_others_read(upload, scratch):
    (upload / "shop.csv").write_text("id,title\n1,Red mug\n,No id\n3,\n1,Again\n5,Blue mug\n")
    products, errors = read(upload / "shop.csv", scratch)
    assert [product["title"] for product in products] == ["Red mug", "Blue mug"]
    assert [(error.row, error.product_id, error.dropped) for error in errors] == [
        (1, "", True),
        (2, "3", True),
        (3, "1", True),
    ]
    assert errors[0].message == "shop.csv line 3: no product id"
    assert (
        "neither a title nor a picture" in errors[1].message
        and "an earlier row has this product_id" in errors[2].message
    )


def test_a_products_table(saved_shop, scratch):
    products, errors = read(saved_shop / "products-test.parquet", scratch)
    assert len(products) == 8 and errors == [] and products[0]["images"][0]["bytes"]


def test_a_zip_of_pictures(upload, scratch, make_image):
    with zipfile.ZipFile(upload / "photos.zip", "w") as archive:
        archive.writestr("Shoes/red boots.jpg", jpeg(make_image, 1))
        archive.writestr("mug_42.jpg", jpeg(make_image, 2))
        archive.writestr("../../out.jpg", jpeg(make_image, 3))
    products, errors = read(upload / "photos.zip", scratch)
    assert [(p["product_id"], p["title"], p["category_path"]) for p in products] == [
        ("Shoes/red boots", "red boots", ["Shoes"]),
        ("mug_42", "mug 42", []),
    ]
    assert [error.message.split(": ")[1:] for error in errors] == [
        ["../../out.jpg", "its name leads out of the ZIP; pack the files with plain names"]
    ]


def test_a_zip_of_a_folder_with_a_table_and_pictures(upload, scratch, make_image):
    with zipfile.ZipFile(upload / "shop.zip", "w") as archive:
        archive.writestr(
            "shop/products.csv", "id,title,image\n1,Red mug,photos/a.jpg\n2,Blue mug,../../../../etc/hostname\n"
        )
        archive.writestr("shop/photos/a.jpg", jpeg(make_image, 1))
    products, errors = read(upload / "shop.zip", scratch)
    assert [len(product["images"]) for product in products] == [1, 0]
    assert errors[0].product_id == "2" and not errors[0].dropped and "outside the folder" in errors[0].message


def test_hostile_pictures_cost_only_themselves(upload, scratch, tmp_path, make_image):
    outside = tmp_path / "secret.jpg"
    outside.write_bytes(jpeg(make_image, 1))
    files = {"bomb.png": png_bomb(), "page.jpg": b"<!DOCTYPE html><script>alert(1)</script>", "drawing.png": b"<svg/>"}
    for name, data in files.items():
        (upload / name).write_bytes(data)
    os.symlink(outside, upload / "link.jpg")
    names = [*files, "link.jpg", "../../secret.jpg", str(outside), f"file://{outside}", "https://shop.example/a.jpg",
             "/dev/zero"]  # fmt: skip
    (upload / "shop.csv").write_text("id,title,image\n" + "".join(f"{i},Mug,{name}\n" for i, name in enumerate(names)))
    products, errors = read(upload / "shop.csv", scratch)
    assert len(products) == len(names) and all(product["images"] == [] for product in products)
    told = [error.message for error in errors]
    wanted = ["over 50,000,000 pixels", "a web page", "an SVG drawing", *["outside the folder"] * 4]
    wanted += ["URLs are not fetched", "outside the folder"]
    assert len(told) == len(wanted)
    for message, part in zip(told, wanted, strict=True):
        assert part in message and message.endswith("; the product stays")


def test_pictures_may_lie_in_a_folder_that_is_named(upload, scratch, tmp_path, make_image):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(jpeg(make_image, 1))
    (upload / "shop.csv").write_text("id,title,image\n1,Mug,a.jpg\n2,Mug,../data/upload/shop.csv\n")
    products, errors = read(upload / "shop.csv", scratch, image_root=photos)
    assert [len(product["images"]) for product in products] == [1, 0] and "outside the folder" in errors[0].message


def test_formulas_and_scripts_are_texts(upload, scratch):
    (upload / "shop.csv").write_text(
        'id,title\n=1+1,"=HYPERLINK(""http://x"")"\n2,<script>alert(1)</script>Red <b>mug</b>\n@x,\n'
    )
    products, errors = read(upload / "shop.csv", scratch)
    assert [product["title"] for product in products] == ['=HYPERLINK("http://x")', "Red mug"]
    (row,) = list(csv.DictReader(io.StringIO(errors_as_csv(errors))))
    assert row["product_id"] == "'@x" and row["dropped"] == "yes"


def test_limits(upload, scratch, make_image):
    (upload / "shop.csv").write_text("id,title\n" + "".join(f"{i},Mug {i}\n" for i in range(50)))
    products, errors = read(upload / "shop.csv", scratch, limits=Limits(rows=10))
    assert len(products) == 10
    assert errors == [RowError(10, "", "over 10 rows; the rest is left out: give the catalogue in parts")]
    with pytest.raises(ValueError, match=r"shop.csv: 0 MB; give a file of at most 0 MB"):
        CatalogueSource(upload / "shop.csv", scratch, limits=Limits(file_bytes=100))
    with gzip.open(upload / "bomb.csv.gz", "wb") as file:
        file.write(b"id,title\n" + bytes(8 << 20))
    with pytest.raises(ValueError, match=r"bomb.csv.gz: unpacks to over 4 MB"):
        CatalogueSource(upload / "bomb.csv.gz", scratch, limits=Limits(unpacked_bytes=4 << 20))
    pq.write_table(
        pa.table({"id": range(100), "title": ["a" * 1000 + str(i) for i in range(100)]}), upload / "a.parquet"
    )
    with pytest.raises(ValueError, match=r"a.parquet: unpacks to over 0 MB"):
        CatalogueSource(upload / "a.parquet", scratch, limits=Limits(unpacked_bytes=10_000))
    for name, products in (("shop.csv", 50), ("bomb.csv.gz", 0), ("a.parquet", 100)):
        without = Limits(rows=None, file_bytes=None, unpacked_bytes=None)
        assert len(read(upload / name, scratch, limits=without)[0]) == products
    (upload / "a.jpg").write_bytes(jpeg(make_image, 1))
    (upload / "b.csv").write_text("id,title,image\n1,Mug,a.jpg\n")
    assert read(upload / "b.csv", scratch, limits=Limits(pixels=1000))[0][0]["images"] == []


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("shop.xlsx", b"PK", "no known format; give .csv"),
        ("shop", b"id,title\n", "no known format"),
        ("page.csv", b"<!DOCTYPE html>\n<html></html>\n", "page.csv"),
        ("shop.parquet", b"id,title\n", "cannot be read as Parquet"),
        ("shop.zip", b"id,title\n", "cannot be read as a ZIP"),
        ("empty.csv", b"", "empty.csv"),
    ],
)
def test_what_is_no_catalogue_is_refused(upload, scratch, name, content, told):
    (upload / name).write_bytes(content)
    with pytest.raises(ValueError, match=told):
        CatalogueSource(upload / name, scratch)
    assert not list(scratch.iterdir())


def test_what_is_not_there_or_elsewhere_is_refused(scratch):
    with pytest.raises(FileNotFoundError, match="no such file"):
        CatalogueSource("nowhere.csv", scratch)
    with pytest.raises(ValueError, match="addresses are not fetched"):
        CatalogueSource("https://shop.example/shop.csv", scratch)


@pytest.mark.parametrize(
    "name",
    ["hf:", "hf:owner", "hf:owner/name; rm -rf /", "hf:owner/$(id)", "hf:../secret", "hf:owner/../name",
     "hf:/etc/passwd", "hf:owner/name:a:b:c", "hf:owner/name:../x", "hf:a/b/c", "hf:owner/na|me", "hf:owner/name:",
     "hf:owner/.."],
)  # fmt: skip
def test_hub_names_that_are_none_are_refused(name, scratch):
    with pytest.raises(ValueError, match="no name of a data set on the Hub; give hf:OWNER/NAME"):
        CatalogueSource(name, scratch)


def test_a_hub_name_is_no_folder_of_this_machine(tmp_path, monkeypatch):
    check_hub_name("hf:owner/name")
    check_hub_name("hf:owner/name:config:train")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a folder of this machine has that name"):
        check_hub_name("hf:owner/name")


def test_rows_of_the_hub_name_no_files_of_this_machine(tmp_path, scratch, make_image, monkeypatch):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(make_image, 1))
    folder = tmp_path / "far" / "set"
    folder.mkdir(parents=True)
    paths = [str(secret), f"file://{secret}", f"zip://a.jpg::file://{secret}"]
    images = [{"bytes": None, "path": path} for path in paths] + [{"bytes": secret.read_bytes(), "path": "a.jpg"}]
    text, data = datasets.Value("string"), datasets.Value("binary")
    features = datasets.Features({"id": text, "title": text, "image": {"bytes": data, "path": text}})
    rows = {"id": list("abcd"), "title": ["Mug"] * 4, "image": images}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    monkeypatch.setattr("moon2_space.catalogue_source.check_hub_name", lambda name: None)  # so that a folder stands in
    products, errors = read(f"hf:{folder}", scratch)
    assert [len(product["images"]) for product in products] == [0, 0, 0, 1]
    assert len(errors) == 3 and not any(error.dropped for error in errors)


def test_a_damaged_gzip_file_is_told(upload, scratch):
    data = bytearray(gzip.compress(b"id,title\n" + os.urandom(3000).hex().encode()))
    data[200:220] = bytes(20)
    (upload / "shop.csv.gz").write_bytes(data)
    with pytest.raises(ValueError, match="shop.csv.gz: cannot be read"):
        CatalogueSource(upload / "shop.csv.gz", scratch)


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "＝1", "＋1", "－1", "＠x"])
def test_what_a_spreadsheet_would_compute_is_a_text(start):
    text = errors_as_csv([RowError(3, start, f"{start} is wrong")])
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert row["product_id"] == f"'{start}" and row["message"].startswith(f"'{start}")


ADDRESSES = ("http://169.254.169.254/latest/meta-data", "https://127.0.0.1/a.jpg", "HTTP://shop.example/a.jpg",
             "ftp://10.0.0.1/a.jpg", "//10.0.0.1/a.jpg", "\\\\10.0.0.1\\a.jpg", "file://10.0.0.1/a.jpg")  # fmt: skip


@pytest.fixture
def connections(monkeypatch):
    """What was asked for over the network, which nothing is."""
    asked = []

    def refuse(*place, **options):
        asked.append(place)
        raise OSError("no network in a test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def test_no_connection_is_opened_for_a_row(upload, scratch, connections):
    rows = "".join(f"{n},Mug,{address}\n" for n, address in enumerate(ADDRESSES))
    (upload / "shop.csv").write_text("id,title,image_url\n" + rows)
    products, errors = read(upload / "shop.csv", scratch, columns={"images": "image_url"})
    assert len(products) == len(errors) == len(ADDRESSES) and not any(product["images"] for product in products)
    assert sum("URLs are not fetched" in error.message for error in errors) == 4
    assert connections == []
