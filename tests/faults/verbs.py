"""Verbs of `moon2` that write, on small inputs: the command, what is there before, and what must be there after."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from PIL import Image

from moon2_dataset.demo_catalogue import render_demo_catalogue
from moon2_dataset.schema import PRODUCT_FEATURES

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "moe_intermediate_size": 16,
         "vision_hidden_size": 32, "vision_depth": 2, "image_size": 32, "vocab_size": 300}  # fmt: skip
VIEWS = ["text", "image", "multimodal"]
# Of the process, not of the run: times, and the Trainer's mean loss over the steps since it was started.
OF_PROCESS = {"seconds", "triplets_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second",
              "train_loss"}  # fmt: skip
# What is not compared: of runs of training, which are told of in times and on plots of them, and pickled arguments.
NOT_COMPARED = {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training.png", ".lock"}


class Verb(NamedTuple):
    """A verb on small inputs.

    Args:
        argv: the command.
        outcome: name -> bytes or numbers of what is there when it is done; half of it must nowhere be taken for whole.
        before: lays out what is there before.
        halfway: looks, after a kill, at what others would take for whole; given the folder and the outcome expected.
        stays: files that a run which fails leaves as they were before, or has all put in place.
        patches: see `faulty_runs.run`.
    """

    argv: list[str]
    outcome: Callable[[Path], dict[str, Any]]
    before: Callable[[Path], Any] = lambda place: None
    halfway: Callable[[Path, Mapping[str, Any]], None] = lambda place, expected: None
    stays: tuple[str, ...] = ()
    patches: Mapping[str, Any] = {}


def all_files(place: Path) -> dict[str, Any]:
    """Path -> content of everything below a folder; of JSON what it says, without times."""
    found: dict[str, Any] = {}
    for path in sorted(place.rglob("*")):
        if path.is_file() and path.name not in NOT_COMPARED:
            content: Any = path.read_bytes()
            if path.suffix == ".json":
                try:
                    content = without_times(json.loads(content))
                except ValueError:  # half of it
                    pass
            elif path.name.endswith("report.md"):
                content = re.sub(rb" in [\d.,]+ s\.", b"", content)
            found[str(path.relative_to(place))] = content
    return found


def without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: without_times(value) for name, value in content.items() if name not in OF_PROCESS}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def whole_or_absent(folder: str) -> Callable[[Path, Mapping[str, Any]], None]:
    """A look at a folder that is as expected if it is there at all; something more may be in it."""

    def look(place: Path, expected: Mapping[str, Any]) -> None:
        if (place / folder).exists():
            found = all_files(place)
            assert all(found.get(name) == content for name, content in expected.items()), f"{folder} is not whole"

    return look


# convert


def convert(source: Path, place: Path) -> Verb:
    argv = ["convert", str(source), str(place / "out"), "--max_shard_gb", "1e-4", "--expert_noise", "0.1"]
    return Verb(argv, all_files, halfway=whole_or_absent("out"))


# train


def train(data: Path, place: Path, *options: str) -> Verb:
    argv = ["train", "--products", f"{data}/products-train-*.parquet", "--queries", f"{data}/queries-train.parquet",
            "--output_dir", str(place / "run"), "--max_steps", "6", "--per_device_train_batch_size", "4",
            "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "2", "--logging_steps", "1",
            "--memory_size", "8", "--use_cpu", "true", "--report_to", "none", *options]  # fmt: skip
    argv += [text for name, size in SHAPE.items() for text in (f"--{name}", str(size))]
    # a kill must find the data unread now and then
    patches = {"datasets.config:HF_DATASETS_CACHE": place / "cache"}
    stays = tuple(f"run/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "SHA256SUMS"))
    return Verb(argv, run_folder, stays=stays, patches=patches)


def run_folder(place: Path) -> dict[str, Any]:
    found = {
        name: content
        for name, content in all_files(place).items()
        if re.fullmatch(r"run/(?!.*\.(md|png)$)[^/]*", name)
    }
    if isinstance(log := found.get("run/trainer_state.json"), dict):  # the last line tells of the process alone
        log["log_history"] = [line for line in log["log_history"] if "loss" in line]
    return found


# augment


def write_catalogue(folder: Path) -> Path:
    """A drawn catalogue in two files to learn from, with a broken picture."""
    folder.mkdir()
    drawn = render_demo_catalogue(14, seed=3)[0]
    rows = drawn.to_list()
    rows[9]["images"] = [{"bytes": b"no picture", "path": None}]
    for number, part in enumerate((rows[:9], rows[9:])):
        path = folder / f"products-train-{number:05d}.parquet"
        Dataset.from_list(part, features=drawn.features).to_parquet(path)
    return folder


def augment(catalogue: Path, place: Path) -> Verb:
    argv = ["augment", str(catalogue), str(place / "out"), "--workers", "1", "--batch_rows", "4", "--variants", "1",
            "--max_side", "64"]  # fmt: skip
    return Verb(argv, all_files, halfway=parquet_files_are_whole("out/products-*.parquet"))


def parquet_files_are_whole(pattern: str) -> Callable[[Path, Mapping[str, Any]], None]:
    """A look at Parquet files that have their final names."""

    def look(place: Path, expected: Mapping[str, Any]) -> None:
        for path in place.glob(pattern):
            assert path.read_bytes() == expected[str(path.relative_to(place))], f"{path.name} is there and not whole"

    return look


# build-dataset


def write_shop(folder: Path) -> Path:
    """A shop's own files: a CSV with pictures beside it, some of them twice or broken, and a click log."""
    (folder / "images").mkdir(parents=True)
    products, queries = render_demo_catalogue(24, seed=5)
    with open(folder / "shop.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sku", "name", "category", "image"])
        for row, product in enumerate(products):
            name = f"images/{row if row % 7 else max(row - 7, 0)}.jpg"
            Image.open(io.BytesIO(product["images"][0]["bytes"])).convert("RGB").resize((64, 64)).save(folder / name)
            category = " > ".join(product["category_path"])
            writer.writerow([product["product_id"], product["title"], category, name])
    (folder / "images" / "3.jpg").write_bytes(b"no picture")
    with open(folder / "clicks.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "product_id", "event"])
        for row, query in enumerate(queries):
            writer.writerow([query["text"] or "thing", query["product_id"], ("purchase", "click")[row % 2]])
    return folder


def build_dataset(shop: Path, place: Path) -> Verb:
    argv = ["build-dataset", "--catalogue", str(shop / "shop.csv"), "--log", str(shop / "clicks.csv"),
            "--output_dir", str(place / "out"), "--splits", "train=0.7", "test=0.3", "--shard_rows", "8",
            "--workers", "1"]  # fmt: skip
    patches = {"moon2_dataset.build.catalogue:WORK_ROWS": 10, "moon2_dataset.build.log:WORK_LINES": 20}
    return Verb(argv, all_files, halfway=parquet_files_are_whole("out/*.parquet"), patches=patches)


# encode


def write_products(products: Dataset, folder: Path) -> tuple[Path, Path]:
    """A catalogue with a picture that cannot be read, and the same after a change: one gone, one new, one renamed."""
    rows = products.to_list()
    rows[6]["images"] += [{"bytes": b"no picture", "path": None}]
    changed = [dict(row) for row in rows[1:]] + [rows[0] | {"product_id": "new", "title": "Lumo teapot"}]
    changed[11]["title"] = "Nordvik mug"
    files = folder / "products.parquet", folder / "changed.parquet"
    folder.mkdir()
    for path, part in zip(files, (rows, changed), strict=True):
        Dataset.from_list(part, features=PRODUCT_FEATURES).to_parquet(path)
    return files


def encode(model: Path, products: Path, place: Path, name: str = "vectors", *options: str) -> Verb:
    """Into a folder of Parquet files; an update where something is there before."""
    argv = ["encode", "--model", str(model), "--products", str(products), "--output", str(place / name),
            "--shard_rows", "7", "--batch_size", "4", "--views", *VIEWS, *options]  # fmt: skip
    return Verb(argv, all_files, halfway=shards_are_whole)


def shards_are_whole(place: Path, expected: Mapping[str, Any]) -> None:
    """Readers of OUT see all of what was there before, or all of what comes."""
    files = {str(path.relative_to(place)): path.read_bytes() for path in (place / "vectors").glob("*")}
    before = {f"vectors/{path.name}": path.read_bytes() for path in (place.parent / "before" / "vectors").glob("*")}
    after = {name: content for name, content in expected.items() if name.startswith("vectors/")}
    assert files in ({}, before, after), "vectors are there and neither those before nor those expected"


def encode_lance(model: Path, products: Path, place: Path) -> Verb:
    return encode(model, products, place, "vectors.lance")._replace(outcome=lance_rows, halfway=ids_are_unique)


def lance_rows(place: Path) -> dict[str, Any]:
    """product_id -> the row of a Lance table, and what stands beside it."""
    import lancedb

    table = lancedb.connect(place).open_table("vectors").search().limit(None).to_arrow()
    rows = {row["product_id"]: row for row in table.to_pylist()}
    assert len(rows) == len(table), "products are doubled"
    beside = {name: content for name, content in all_files(place).items() if not name.startswith("vectors.lance/")}
    beside.get("vectors.lance.json", {}).pop("files", None)  # have random names
    return rows | beside


def ids_are_unique(place: Path, expected: Mapping[str, Any]) -> None:
    if (place / "vectors.lance").exists():
        lance_rows(place)


# index


def index(model: Path, products: Path, place: Path, *options: str) -> Verb:
    argv = ["index", str(products), "--model", str(model), "--data_dir", str(place), *options]
    # several batches, and an index for approximate search too
    patches = {"moon2_space.ann_index:ANN_FROM": 10, "moon2_space.catalogue_index:BATCH_PRODUCTS": 6}
    return Verb(argv, index_rows, halfway=index_is_sound, patches=patches)


def open_index(place: Path) -> Any:
    from moon2_space.catalogue_folder import CatalogueFolder
    from moon2_space.product_table import ProductTable

    current = CatalogueFolder(place).current()
    return None if current is None else ProductTable(current)


def index_rows(place: Path) -> dict[str, Any]:
    """product_id -> all that is kept of a product; what words find, which indexes there are, and the manifest."""
    from lancedb.query import MatchQuery

    from moon2_space.product_table import check_files

    table = open_index(place)
    rows = table._scan(table._table.schema.names).to_pylist()
    found = {row["product_id"]: row for row in rows}
    assert len(found) == len(rows), "products are doubled"
    hits = table._table.search(MatchQuery("mug", "title"), query_type="fts").limit(50).to_arrow()
    found["words"] = sorted(hits["product_id"].to_pylist())
    found["indexes"] = sorted(column for index in table._table.list_indices() for column in index.columns)
    ann = table.manifest["ann"]
    found["manifest"] = table.manifest | {
        "ann": ann and {"products": ann["products"]},
        "files": check_files(table.folder) > 0,
    }
    found["folders"] = sorted(path.name for path in place.glob("index-*"))
    return found


def index_is_sound(place: Path, expected: Mapping[str, Any]) -> None:
    """What is in the index is there once, with the vectors that it has before or after."""
    table = open_index(place)
    if table is None:
        return
    ids, vectors = table.vectors()
    assert len(set(ids)) == len(ids), "products are doubled"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    if table.manifest["fingerprint"] != expected["manifest"]["fingerprint"]:
        return  # the old model answers until all is encoded by the new one
    for product_id, vector in zip(ids, vectors, strict=True):
        if product_id in expected and product_id != "p12":  # which is renamed by the update
            np.testing.assert_allclose(vector, expected[product_id]["multimodal_vector"], atol=1e-5)


# push


def push(model: Path, place: Path) -> Verb:
    """Of a copy, for the card is written into the folder; the Hub is looked at by the caller."""
    argv = ["push", str(place / "model"), "me/encoder"]
    return Verb(argv, all_files, before=lambda place: shutil.copytree(model, place / "model"))
