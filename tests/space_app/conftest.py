"""An encoder that has learnt something: the one the package carries, else one trained here on a drawn shop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import moon2_space
from moon2_dataset.demo_catalogue import render_demo_catalogue
from moon2_dataset.reader import join
from moon2_training.encode import Encoder, load_encoder
from moon2_training.mini import MiniConfig, build_mini
from moon2_training.train import fit, product_texts
from moon2_training.trainer_config import Moon2TrainingArguments


@pytest.fixture(scope="session")
def trained_encoder(tmp_path_factory) -> Encoder:
    bundled = Path(moon2_space.__file__).parent / "moon2-mini"
    if bundled.is_dir():
        return Encoder(*load_encoder(bundled))
    data = join(*render_demo_catalogue(240, seed=5))
    torch.manual_seed(0)
    model, processor = build_mini(
        MiniConfig(
            hidden_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            moe_intermediate_size=96,
            vision_hidden_size=64,
            vision_depth=2,
            image_size=48,
            vocab_size=600,
        ),
        product_texts(data),
    )
    arguments = Moon2TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("trained")),
        num_train_epochs=6,
        per_device_train_batch_size=48,
        learning_rate=2e-3,
        warmup_steps=0.05,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    fit(model, processor, arguments, data)
    return Encoder(model.eval(), processor)
