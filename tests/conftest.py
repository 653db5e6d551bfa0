"""Fixtures: a tiny random model and processor, made in memory once a session; noise pictures; real data."""

from __future__ import annotations

import io
import os
import shutil
import threading
from importlib.util import module_from_spec, spec_from_file_location

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads it

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from huggingface_hub import constants
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from moon2_dataset import (
    OPTIONAL_PRODUCT_FEATURES,
    OPTIONAL_QUERY_FEATURES,
    PRODUCT_FEATURES,
    QUERY_FEATURES,
    join,
)
from moon2_training.mini import MiniConfig, build_mini

_stand_in = spec_from_file_location("hub_stand_in", Path(__file__).with_name("hub_stand_in.py"))
hub_stand_in = module_from_spec(_stand_in)  # tests are no package, and this folder is on no path
_stand_in.loader.exec_module(hub_stand_in)

TINY = MiniConfig(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    moe_intermediate_size=32,
    dense_intermediate_size=64,
    vision_hidden_size=48,
    vision_depth=2,
    image_size=48,
    vocab_size=400,
    max_text_length=64,
)
TITLES = [f"{brand} {colour} {noun}" for brand in ("Nordvik", "Lumo") for colour in ("red", "navy blue")
          for noun in ("running shoes", "mug", "leather handbag")]  # fmt: skip


def noise_image(seed: int, width: int = 60, height: int = 80) -> Image.Image:
    """A picture of random pixels: no two alike, none constant."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def tiny_config() -> MiniConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny():
    """(model, processor): random weights, evaluation mode. Do not train it; take a copy."""
    torch.manual_seed(0)
    model, processor = build_mini(TINY, TITLES * 20)
    return model.eval(), processor


@pytest.fixture(scope="session")
def tiny_model(tiny):
    return tiny[0]


@pytest.fixture(scope="session")
def tiny_processor(tiny):
    return tiny[1]


WORDS = ["<pad>", "<unk>", "<s>", "</s>", "red", "navy", "blue", "mug", "shoes", "handbag", "lumo"]
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
                                   eos_token="</s>", model_max_length=12)  # fmt: skip


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Of eleven words, for models of other makes; reads twelve tokens."""
    return word_tokenizer()


@pytest.fixture(scope="session")
def tiny_dual_encoder():
    """Makes (model, processor) of a "clip" or a "siglip": random weights, evaluation mode, twelve tokens of text."""

    def make(kind: str):
        torch.manual_seed(0)
        text = SHAPE | {"vocab_size": len(WORDS), "max_position_embeddings": 12}
        vision = SHAPE | {"image_size": 32, "patch_size": 8}
        size = {"height": 32, "width": 32}
        if kind == "clip":
            text |= {"eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
            model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
            return model.eval(), CLIPProcessor(CLIPImageProcessorPil(size=size, crop_size=size), word_tokenizer())
        model = SiglipModel(SiglipConfig(text_config=text | {"projection_size": 32}, vision_config=vision))
        return model.eval(), SiglipProcessor(SiglipImageProcessorPil(size=size), word_tokenizer())

    return make


@pytest.fixture(scope="session")
def make_image():
    return noise_image


@pytest.fixture(scope="session")
def mixed_items():
    """Texts and images of six items: text, image, both, several images, unequal lengths and shapes."""
    texts = ["red mug", None, "Lumo navy blue leather handbag with a long title", "mug", None, "Nordvik shoes"]
    images = [None, noise_image(1), noise_image(2, 90, 50), [noise_image(3), noise_image(4, 40, 100)],
              [noise_image(5, 64, 64), noise_image(6)], noise_image(7)]  # fmt: skip
    return texts, images


@pytest.fixture(scope="session")
def complete_items():
    """Texts and images of five items that have both, two of them with several images."""
    texts = ["red mug", "Lumo navy blue leather handbag with a long title", "mug", "Nordvik running shoes", "navy"]
    images = [noise_image(1), noise_image(2, 90, 50), [noise_image(3), noise_image(4, 40, 100)], noise_image(7),
              [noise_image(8), noise_image(9), noise_image(10, 100, 60)]]  # fmt: skip
    return texts, images


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real product data kept beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real product data is not beside this repository")
    return folder


def jpeg(seed: int, width: int = 60, height: int = 80) -> dict[str, bytes | None]:
    """A noise picture as a table holds it."""
    buffer = io.BytesIO()
    noise_image(seed, width, height).save(buffer, "JPEG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="session")
def shop():
    """A catalogue of 24 noise products in three leaf categories, with a click log of 24 queries.

    Products 0 and 1 share a title, product 2 has three pictures, product 3 none, product 4 no title. Query q0 has
    two right products (0 and 8), q1 its own picture, q2 a picture but no text, q3 is for the product without picture,
    q4 lists its negatives.
    """
    nouns = ("mug", "shoes", "handbag")
    titles = [f"Lumo {'red' if i % 2 else 'navy blue'} {nouns[i % 3]} {i}" for i in range(24)]
    titles[1], titles[4] = f" {titles[0].upper()}! ", None
    products = Dataset.from_dict(
        {
            "product_id": [f"p{i}" for i in range(24)],
            "title": titles,
            "category_path": [["Shop", nouns[i % 3]] for i in range(24)],
            "attributes": [[{"name": "colour", "value": "red" if i % 2 else "navy blue"}] for i in range(24)],
            "images": [[jpeg(100 * i + n, 40 + i) for n in range({2: 3, 3: 0}.get(i, 1))] for i in range(24)],
        },
        features=Features({name: f for name, f in PRODUCT_FEATURES.items() if name != "description"}),
    )
    asked = [0, 8, *range(1, 23)]  # product of every query row
    queries = Dataset.from_dict(
        {
            "query_id": ["q0", "q0", *(f"q{i}" for i in range(1, 23))],
            "text": [None if i == 3 else "mug 0" if i < 2 else f"{nouns[p % 3]} {p}" for i, p in enumerate(asked)],
            "image": [jpeg(9000 + i) if i in (2, 3) else None for i in range(24)],
            "product_id": [f"p{p}" for p in asked],
            "negative_ids": [["p9", "p10"] if i == 5 else None for i in range(24)],
        },
        features=Features(QUERY_FEATURES | {"negative_ids": OPTIONAL_QUERY_FEATURES["negative_ids"]}),
    )
    return join(products, queries)


@pytest.fixture(scope="session")
def saved_model(tiny, tmp_path_factory) -> Path:
    """Folder of an encoder with random weights."""
    folder = tmp_path_factory.mktemp("model")
    for part in tiny:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def save_dense(tiny, tmp_path_factory):
    """Saves a random dense Qwen3-VL with the tiny processor's tokenizer; returns its folder and its bare model."""

    def save(kind=Qwen3VLForConditionalGeneration, tied=False):
        moon2, processor = tiny
        text, vision = moon2.config.text_config.to_dict(), moon2.config.vision_config.to_dict()
        text, vision = ({n: v for n, v in part.items() if n != "model_type"} for part in (text, vision))
        names = ("image_token_id", "vision_start_token_id", "vision_end_token_id")
        config = Qwen3VLConfig(text_config=text | {"tie_word_embeddings": tied}, vision_config=vision,
                               tie_word_embeddings=tied, **{n: getattr(processor, n) for n in names})  # fmt: skip
        torch.manual_seed(3)
        model = kind(config).eval()
        folder = tmp_path_factory.mktemp("source")
        model.save_pretrained(folder, max_shard_size="100KB")
        processor.image_processor.save_pretrained(folder)
        processor.tokenizer.save_pretrained(folder)
        return folder, getattr(model, "model", model)

    return save


@pytest.fixture(scope="session")
def saved_shop(shop, tmp_path_factory) -> Path:
    """A data set folder of `shop`, not to be changed: 16 products in two numbered files and co-augmented to learn
    from, 8 held out; of each split the queries for its products, q0 with two right ones in train.
    """
    folder = tmp_path_factory.mktemp("data") / "noise-shop"
    folder.mkdir()
    made = Features(PRODUCT_FEATURES | OPTIONAL_PRODUCT_FEATURES)
    for name, rows in (("train-00000", range(10)), ("train-00001", range(10, 16)), ("test", range(16, 24))):
        products = shop.products.select(rows).to_list()
        if name != "test":
            for row, product in zip(rows, products, strict=True):
                product |= {"enriched_title": ("", f"{product['title']} of clay", product["title"])[row % 3]}
                product |= {"expanded_images": [jpeg(row)] * (row % 3), "core_region": [0.1, 0.1, 0.9, 0.8]}
        features = made if name != "test" else PRODUCT_FEATURES
        Dataset.from_list(products, features=features).to_parquet(folder / f"products-{name}.parquet")
    for name, rows in (("train", range(16)), ("test", range(16, 24))):
        asked = [row for row, product in enumerate(shop.positive_row) if product in rows]
        shop.queries.select(asked).to_parquet(folder / f"queries-{name}.parquet")
    return folder


@pytest.fixture
def catalogue(shop, tmp_path) -> Path:
    """A file with the products of `shop`, to be changed at will."""
    path = tmp_path / "products.parquet"
    shop.products.to_parquet(path)
    return path


@pytest.fixture
def data_folder(saved_shop, tmp_path) -> Path:
    """A copy of `saved_shop`."""
    return Path(shutil.copytree(saved_shop, tmp_path / saved_shop.name))


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the Hub on this machine, which huggingface_hub takes for it."""
    server = hub_stand_in.Hub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    monkeypatch.delenv("MOON2_TRACEBACK", raising=False)
    yield server
    server.shutdown()
    server.server_close()
