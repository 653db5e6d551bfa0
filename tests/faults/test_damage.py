"""Files with a flipped bit, or cut short, are refused by name; nothing is read from them that differs."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
import verbs

from moon2_dataset import load_products
from moon2_dataset.build.catalogue import PRODUCT_SCHEMA
from moon2_dataset.shards import ShardWriter
from moon2_space import catalogue_index
from moon2_space.index_command import main as index_command
from moon2_space.search_command import main as search_command
from moon2_training.checksums import CHECKSUMS
from moon2_training.encode import Encoder
from moon2_training.encode_catalogue import EncodeArguments, encode_catalogue
from moon2_training.push import check_folder
from moon2_training.saved_encoder import encoder_fingerprint, load_encoder
from moon2_training.train import main as train
from moon2_training.vector_columns import encoded_digest
from moon2_training.written_vectors import WrittenVectors

SEED = 0
FEW = pytest.mark.parametrize("number", [2, pytest.param(40, marks=pytest.mark.faults)])


def damaged(content: bytes, number: int) -> Iterator[tuple[str, bytes]]:
    """(what was done, content) so many times with one bit flipped, and half as often cut short."""
    chance = random.Random(SEED)
    for part in range(number):
        place = int(len(content) * (part + chance.random()) / number)
        flipped = bytearray(content)
        flipped[place] ^= 1 << chance.randrange(8)
        yield "bit flipped", bytes(flipped)
    for part in range(max(1, number // 2)):
        yield "cut short", content[: int(len(content) * (part + chance.random()) / max(1, number // 2))]


def try_damages(file: Path, on: str, read: Callable[[], bool], number: int, table) -> None:
    """Damage a file again and again and read it.

    Args:
        file: to damage; it is put back.
        on: what the table calls it.
        read: what reads it; whether that is as it was.
    """
    content, wrong = file.read_bytes(), []
    for kind, instead in damaged(content, number):
        file.write_bytes(instead)
        message, is_right = "", True
        try:
            is_right = read()
        except ValueError as error:
            message = str(error)
            is_right = file.name in message
        table.add(kind, on, 1, 0, not is_right, message.replace(str(file.parent), "…"))
        wrong += [f"{kind}: {message or 'read as if it were right'}"] * (not is_right)
    file.write_bytes(content)
    assert not wrong, "\n".join(wrong)


MODEL_FILES = ("model.safetensors", "config.json", "tokenizer.json", "processor_config.json", "modeling_moon2.py")


@pytest.fixture
def model(hub_folder, tmp_path) -> Path:
    """A copy of a whole model folder, with its checksums."""
    return shutil.copytree(hub_folder, tmp_path / "model")


@FEW
@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_damaged_model_is_not_loaded(name, number, model, table):
    def read() -> bool:
        load_encoder(model)
        return False  # whatever it answers: that it loads is wrong

    try_damages(model / name, f"model: {name}", read, number, table)
    load_encoder(model)


def test_a_damaged_model_is_not_pushed(model):
    check_folder(model)
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 16
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="model.safetensors: not as SHA256SUMS says: damaged"):
        check_folder(model)


def test_a_model_without_checksums_that_is_cut_short_is_named(model, table):
    (model / CHECKSUMS).unlink()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=f"{name}: damaged .*; save the model again, or download it again"):
            load_encoder(model)
        (model / name).write_bytes(content)


def test_one_flipped_bit_makes_another_encoder_of_a_model_without_checksums(model):
    (model / CHECKSUMS).unlink()
    before = encoder_fingerprint(*load_encoder(model))
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    assert encoder_fingerprint(*load_encoder(model)) != before


@pytest.fixture
def products_file(shop, tmp_path, monkeypatch) -> Path:
    """Products as the package writes them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "products.parquet"
    writer = ShardWriter(path, PRODUCT_SCHEMA)
    table = shop.products.with_format("arrow")[:]
    writer.write(table.select(PRODUCT_SCHEMA.names))
    writer.close()
    return path


@FEW
def test_a_damaged_table_of_products_is_not_read(number, products_file, table):
    def content() -> list[dict]:
        shutil.rmtree(datasets.config.HF_DATASETS_CACHE, ignore_errors=True)
        return load_products(products_file).to_list()

    expected = content()
    try_damages(products_file, "products", lambda: content() == expected, number, table)


@pytest.fixture
def vectors(saved_model, inputs, tmp_path) -> Path:
    """What `moon2 encode` wrote."""
    encode_catalogue(arguments(saved_model, inputs, tmp_path / "vectors"), progress=False)
    return tmp_path / "vectors"


def arguments(model: Path, inputs: Path, out: Path) -> EncodeArguments:
    products = [str(inputs / "products" / "products.parquet")]
    return EncodeArguments(str(model), products, str(out), views=list(verbs.VIEWS), shard_rows=10, batch_size=4)


@FEW
def test_damaged_vectors_are_not_taken(number, vectors, tiny, table):
    encoder = encoder_fingerprint(*tiny), Encoder(*tiny).width, tiny[0].dtype
    ids, digests = ["p2"], [encoded_digest("nothing", []).hex()]

    def read() -> bool:
        WrittenVectors(vectors, *encoder).get(ids, digests)
        return False

    WrittenVectors(vectors, *encoder)
    for name in ("vectors-00000.parquet", "vectors-00001.parquet"):
        try_damages(vectors / name, "encoded vectors", read, number, table)


def test_a_damaged_manifest_of_vectors_is_named(vectors, saved_model, inputs, tiny):
    manifest = vectors.with_name("vectors.json")
    manifest.write_text(manifest.read_text()[:-30])
    with pytest.raises(ValueError, match="vectors.json: damaged"):
        encode_catalogue(arguments(saved_model, inputs, vectors), progress=False)
    with pytest.raises(ValueError, match="vectors.json: damaged"):
        WrittenVectors(vectors, encoder_fingerprint(*tiny), Encoder(*tiny).width, tiny[0].dtype)


@pytest.mark.faults
def test_a_run_does_not_go_on_from_a_damaged_checkpoint(saved_shop, tmp_path):
    argv = verbs.train(saved_shop, tmp_path, "--resume_from_checkpoint", "last").argv[1:]
    train([*argv, "--max_steps", "2"])
    weights = tmp_path / "run" / "checkpoint-2" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint-2/model.safetensors: not as SHA256SUMS says"):
        train(argv)


@FEW
def test_damaged_vectors_in_a_lance_table_are_not_taken(number, saved_model, inputs, tiny, tmp_path, table):
    encode_catalogue(arguments(saved_model, inputs, tmp_path / "vectors.lance"), progress=False)
    encoder = encoder_fingerprint(*tiny), Encoder(*tiny).width, tiny[0].dtype

    def read() -> bool:
        WrittenVectors(tmp_path / "vectors.lance", *encoder)
        return False

    WrittenVectors(tmp_path / "vectors.lance", *encoder)
    (file,) = (tmp_path / "vectors.lance" / "data").glob("*.lance")
    try_damages(file, "encoded vectors, Lance", read, number, table)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file.name}: damaged; encode all products again, with --overwrite true"):
        encode_catalogue(arguments(saved_model, inputs, tmp_path / "vectors.lance"), progress=False)


@pytest.fixture
def index(saved_model, inputs, tmp_path) -> Path:
    """The file with the rows of an index."""
    products, data = inputs / "products" / "products.parquet", tmp_path / "data"
    index_command([str(products), "--model", str(saved_model), "--data_dir", str(data)])
    (file,) = data.glob("index-*/products.lance/data/*.lance")
    return file


@FEW
def test_a_damaged_index_is_not_searched(number, index, tmp_path, table):
    def read() -> bool:
        search_command(["red mug", "--data_dir", str(tmp_path / "data")])
        return False

    try_damages(index, "index", read, number, table)
    search_command(["red mug", "--data_dir", str(tmp_path / "data")])


def test_of_a_large_index_that_is_not_compared_what_cannot_be_read_is_named(index, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue_index, "CHECKED_BYTES", 0)
    content = index.read_bytes()
    index.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{index.name}: damaged; index the catalogue again"):
        search_command(["red mug", "--data_dir", str(tmp_path / "data")])
    index.unlink()
    with pytest.raises(ValueError, match="cannot be read .*; index the catalogue again"):
        search_command(["red mug", "--data_dir", str(tmp_path / "data")])
