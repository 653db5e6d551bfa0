"""Drawn shops in no time."""

from __future__ import annotations

import pytest

from moon2_dataset import demo_catalogue


@pytest.fixture
def described(monkeypatch):
    """Pictures as words: how the product looks and how it is seen, in no time."""
    monkeypatch.setattr(
        demo_catalogue,
        "photograph",
        lambda look, camera, backdrop, rng, **of_phone: f"{look} {camera} {backdrop} {rng.random()}".encode(),
    )
