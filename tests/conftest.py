"""Fixtures: a tiny random model and processor, made in memory once a session; noise pictures; real data."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads it

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moon2_training.mini import MiniConfig, build_mini

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
