"""Embeddings of a catalogue by a strong encoder, computed once and kept in Parquet, for a small model to learn from.

Example:
    python -m moon2_training.teacher_features --teacher sentence-transformers/all-MiniLM-L6-v2 \
        --products shop/products-train.parquet --output teacher.parquet
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from moon2_dataset import ProductQueries, load_products
from moon2_dataset.recipe import RecipeParser

from .evaluate import AnyEncoder
from .items import ProductItems
from .peer_encoders import load_any_encoder

TAUGHT_VIEWS = ("text", "image")
ROWS_PER_GROUP = 512  # products that are encoded and written at a time


@dataclass
class TeacherFeaturesArguments:
    """Arguments of `python -m moon2_training.teacher_features`."""

    teacher: str = field(
        metadata={
            "help": "Folder or Hub id of the encoder: MOON2.0, sentence-transformers or a dual encoder like CLIP."
        }
    )
    products: list[str] = field(
        metadata={"help": "Catalogue: Parquet files, globs or folders; of a folder the training split is taken."}
    )
    output: str = field(metadata={"help": "Parquet file to write."})
    batch_size: int = field(default=64, metadata={"help": "Products per forward."})

    def __post_init__(self):
        if isinstance(self.products, str):  # as a recipe may give it
            self.products = [self.products]


def write_teacher_features(
    encoder: AnyEncoder, products: Dataset, path: str | os.PathLike, progress: bool = True
) -> None:
    """Encode title and pictures of every product apart, and write the vectors to a Parquet file.

    The file has the columns product_id, text and image, the latter two lists of D float16, normalised; null where the
    product or the teacher lacks the view. It is there only when it is whole. As in evaluation, the text is the title
    and the pictures are the originals, at most four. What is in memory at a time does not grow with the catalogue.

    Args:
        encoder: the teacher.
        products: N products, in the products schema.
        path: of the file; an older one of the kind is replaced.
        progress: show a bar.

    Raises:
        ValueError: a picture cannot be read; the message names the product. Or there is another table at `path`.
    """
    path = Path(path)
    if path.exists() and set(pq.read_schema(path).names) != {"product_id", *TAUGHT_VIEWS}:
        raise ValueError(f"{path}: holds another table; give a file of its own for what the teacher says")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=path.parent) as scratch,
        tqdm(total=len(products), unit="product", disable=not progress) as bar,
    ):
        part = Path(scratch) / path.name
        writer = None
        try:
            for start in range(0, len(products), ROWS_PER_GROUP):
                group = products.select(range(start, min(start + ROWS_PER_GROUP, len(products))))
                table = _encoded(encoder, group)
                writer = writer or pq.ParquetWriter(part, table.schema, write_page_checksum=True)
                writer.write_table(table)
                bar.update(len(group))
        finally:
            if writer is not None:
                writer.close()
        part.replace(path)


def _encoded(encoder: AnyEncoder, products: Dataset) -> pa.Table:
    views = encoder.encode_views(ProductItems(products), progress=False)
    columns = {"product_id": pa.array(products["product_id"], pa.string())}
    for name, present in zip(TAUGHT_VIEWS, (views.has_text, views.has_image), strict=True):
        vectors = getattr(views, name).astype(np.float16)  # (n, D)
        values = pa.array(vectors.reshape(-1), pa.float16())
        mask = pa.array(~present)
        columns[name] = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1], mask=mask)
    return pa.table(columns)


class Taught(NamedTuple):
    """What one teacher says of one view of N products."""

    view: str  # "text" or "image"
    vectors: Tensor  # (N, D') float32, normalised, zeros where the teacher has none; D' is the teacher's
    present: Tensor  # (N,) bool


class TeacherFeatures(torch.nn.Module):
    """Vectors of a catalogue's products by one or several teachers, looked up by product key without a wait.

    A module for its buffers' sake: they follow a device. They take 2·D' bytes for each product, teacher and view.

    Args:
        product_keys: (P,) int64 of all products, as `ProductQueries` has them.
        tables: view and vectors (P, D') float16 of each teacher and view, zeros where a product has none.
    """

    def __init__(self, product_keys: Tensor, tables: Sequence[tuple[str, Tensor]]) -> None:
        super().__init__()
        keys, rows = product_keys.sort()
        self.register_buffer("keys", keys)  # (P,), ascending
        self.register_buffer("rows", rows)  # (P,), of the tables
        self.views = [view for view, _ in tables]
        for number, (_, vectors) in enumerate(tables):
            self.register_buffer(f"table_{number}", vectors)

    def look_up(self, product_keys: Tensor) -> list[Taught]:
        """What each teacher says of each of its views.

        Args:
            product_keys: (N,) int64, of the catalogue.
        """
        rows = self.rows[torch.searchsorted(self.keys, product_keys)]  # (N,)
        taught = []
        for number, view in enumerate(self.views):
            vectors = self.get_buffer(f"table_{number}")[rows].float()  # (N, D')
            taught.append(Taught(view, vectors, vectors.any(dim=-1)))
        return taught


def load_teacher_features(sources: Sequence[str], data: ProductQueries) -> tuple[TeacherFeatures, list[str]]:
    """Read what `write_teacher_features` has written, as far as it is of a catalogue's products.

    Args:
        sources: a file or a glob for each teacher, whose vectors may be in several files.
        data: the catalogue.

    Returns:
        The vectors, and a message for each teacher that does not know all products.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is of another form, names a product twice, or no product is in the catalogue.
    """
    tables, messages = [], []
    for source in sources:
        of_teacher, known = _read(source, data)
        tables += ((view, of_teacher[view]) for view in TAUGHT_VIEWS if view in of_teacher)
        missing = np.flatnonzero(~known)
        if len(missing):
            example = data.products[int(missing[0])]["product_id"]
            messages.append(
                f"{source}: {len(missing):,} of {len(known):,} products are missing, for example {example}; they "
                "are trained on without this teacher"
            )
    return TeacherFeatures(torch.from_numpy(data.product_key), tables), messages


def teacher_files(source: str) -> list[str]:
    """The files of a teacher: the one of that name, or those of a glob."""
    return [source] if Path(source).is_file() else sorted(glob(source, recursive=True))


def _read(source: str, data: ProductQueries) -> tuple[dict[str, Tensor], np.ndarray]:
    """Vectors (P, D') by view, and which products (P,) the files of one teacher name."""
    files = teacher_files(source)
    if not files:
        raise FileNotFoundError(
            f"{source}: no such file; write it with python -m moon2_training.teacher_features --output"
        )
    known = np.zeros(len(data.products), dtype=bool)
    vectors: dict[str, Tensor] = {}
    for file in files:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            views = _views(file, parquet.schema_arrow)
            for batch in parquet.iter_batches(ROWS_PER_GROUP, columns=["product_id", *views]):
                ids = batch.column("product_id").to_pylist()
                rows = np.array([data.product_index.get(product_id, -1) for product_id in ids])  # -1: not ours
                for view in views:
                    name = f"{file}: column {view}"
                    given, found = _unit_vectors(batch.column(view), rows >= 0, ids, name)
                    if not len(given):
                        continue
                    if view not in vectors:
                        vectors[view] = torch.zeros(known.size, found.shape[1], dtype=torch.float16)
                    if vectors[view].shape[1] != found.shape[1]:
                        raise ValueError(
                            f"{name} has {found.shape[1]} numbers, an earlier file {vectors[view].shape[1]}; name the "
                            "files of each teacher apart"
                        )
                    vectors[view][torch.from_numpy(rows[given])] = torch.from_numpy(found).half()
                ours = rows[rows >= 0]
                repeated = _first_repeat(ours, known)
                if repeated is not None:
                    product_id = data.products[repeated]["product_id"]
                    raise ValueError(f"{source}: product {product_id} is there twice; give it one row")
                known[ours] = True
    if not known.any():
        raise ValueError(
            f"{source}: has none of the {known.size:,} products of the catalogue, whose first is "
            f"{data.products[0]['product_id']}; give the file that was written for these products"
        )
    if not vectors:
        raise ValueError(f"{source}: has no vector for any product of the catalogue; write it with another teacher")
    return vectors, known


def _views(file: str, schema: pa.Schema) -> list[str]:
    """The views that a file has; those of which the teacher knows nothing are null throughout."""
    views = [view for view in TAUGHT_VIEWS if view in schema.names]
    for view in views:
        kind = schema.field(view).type
        if not (pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)):
            raise ValueError(f"{file}: column {view} is {kind}; give fixed-size lists of float16")
    if "product_id" not in schema.names or not views:
        raise ValueError(f"{file}: has the columns {', '.join(schema.names)}; give product_id, and text or image")
    return views


def _unit_vectors(
    column: pa.FixedSizeListArray, wanted: np.ndarray, ids: list[str], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which wanted entries of a column are not null (n,), and their vectors (n, D') float32, normalised."""
    given = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    values = column.flatten().to_numpy(zero_copy_only=False)  # of what is not null
    vectors = values.reshape(len(given), column.type.list_size).astype(np.float32)[wanted[given]]
    given = given[wanted[given]]
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # (n, 1)
    unusable = np.flatnonzero(~((norms > 0) & np.isfinite(norms)))
    if unusable.size:
        raise ValueError(
            f"{name}, product {ids[given[unusable[0]]]}: is zero or not finite; give null where there is no vector"
        )
    return given, vectors / norms


def _first_repeat(rows: np.ndarray, known: np.ndarray) -> int | None:
    """A row that is known already or stands in `rows` twice."""
    values, counts = np.unique(rows, return_counts=True)
    repeated = values[(counts > 1) | known[values]]
    return int(repeated[0]) if repeated.size else None


def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m moon2_training.teacher_features`."""
    parser = RecipeParser(
        TeacherFeaturesArguments,
        prog="python -m moon2_training.teacher_features",
        description="Encode a catalogue with a strong encoder, for moon2 train --teacher_features.",
    )
    (arguments,) = parser.parse_args_and_config(argv)
    products = load_products(arguments.products, "train")
    write_teacher_features(load_any_encoder(arguments.teacher, arguments.batch_size), products, arguments.output)
    print(f"{len(products):,} products written to {arguments.output}")


if __name__ == "__main__":
    main()
