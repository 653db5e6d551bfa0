"""Catalogues that somebody sends to the Space: products and errors, nothing written elsewhere, nothing left behind."""

from __future__ import annotations

import pytest
from hostile_tables import parquet_bytes, table_bytes, zip_bytes
from hypothesis import strategies as st
from watched import fuzzed, watched

from moon2_dataset.row_errors import errors_as_csv
from moon2_space.catalogue_source import CatalogueSource, Limits
from moon2_space.zip_pictures import unpack

LIMITS = Limits(rows=20, file_bytes=1 << 20, unpacked_bytes=4 << 20, files=10, pixels=1_000_000)
catalogues = st.one_of(
    table_bytes(), zip_bytes().map(lambda data: (".zip", data)), parquet_bytes().map(lambda data: (".parquet", data))
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root") / "data"
    for name in ("upload", "scratch", "inside"):
        (folder / name).mkdir(parents=True)
    return folder


def everything(root):
    return sorted(path for path in root.parent.rglob("*") if path.parent != root / "upload")


@fuzzed(0.07, given=catalogues)
def test_an_upload(given, root):
    suffix, data = given
    file = root / "upload" / f"shop{suffix}"
    file.write_bytes(data)
    before = everything(root)
    with watched("CatalogueSource", ValueError):
        with CatalogueSource(file, root / "scratch", limits=LIMITS) as source:
            products = list(source)
            assert len({product["product_id"] for product in products}) == len(products) <= LIMITS.rows
            errors_as_csv(source.errors).encode()
    file.unlink()
    assert everything(root) == before


@fuzzed(0.05, data=zip_bytes())
def test_a_zip(data, root):
    file = root / "upload" / "shop.zip"
    file.write_bytes(data)
    before = everything(root)
    with watched("unpack", ValueError):
        unpack(file, root / "inside", LIMITS)
    for path in sorted((root / "inside").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert everything(root) == before
