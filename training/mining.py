"""Hard negatives, mined with the model as it stands: the products most like each product, of another title."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from moon2_dataset import ProductQueries

from .encode import Encoder
from .items import ProductItems

CHUNK = 1024  # products compared with all others at a time
NONE = -1


def nearest_others(embeddings: Tensor, title_keys: Tensor, count: int) -> Tensor:
    """The products nearest to each product, those of its own title left out.

    Args:
        embeddings: (N, D) normalised.
        title_keys: (N,) int64; the same product has the same title.
        count: how many.

    Returns:
        (N, count) int64 rows, nearest first; -1 where there are no more.
    """
    nearest = torch.full((len(embeddings), count), NONE, dtype=torch.int64)
    for start in range(0, len(embeddings), CHUNK):
        rows = slice(start, start + CHUNK)
        similarities = embeddings[rows] @ embeddings.T  # (CHUNK, N)
        similarities.masked_fill_(title_keys[rows, None] == title_keys, -torch.inf)
        values, found = similarities.topk(min(count, len(embeddings)), dim=-1)
        nearest[rows, : found.shape[1]] = torch.where(values > -torch.inf, found, NONE).cpu()
    return nearest


def mine_negatives(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    data: ProductQueries,
    count: int,
    batch_size: int = 64,
    progress: bool = True,
) -> Tensor:
    """Encode the catalogue and find each product's hardest negatives; exact search, so quadratic in the catalogue.

    Args:
        model: a Moon2Model; its mode is kept.
        processor: its Moon2Processor.
        data: the catalogue.
        count: negatives of a product.
        batch_size: products per forward.
        progress: show a bar.

    Returns:
        (N, count) int64, see `nearest_others`.
    """
    embeddings = Encoder(model, processor, batch_size).encode(ProductItems(data.products), progress=progress)
    embeddings = torch.from_numpy(np.ascontiguousarray(embeddings)).to(model.device)
    return nearest_others(embeddings, torch.from_numpy(data.title_key).to(model.device), count)
