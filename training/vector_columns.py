"""The columns in which vectors of products are kept, in files and in an index, and digests of what they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from .encode import VIEWS

DIGEST_BYTES = 16


def vector_column(view: str) -> str:
    """The column with the vectors of a view.

    Raises:
        ValueError: no such view.
    """
    if view not in VIEWS:
        raise ValueError(f"view is {view!r}; choose one of {', '.join(VIEWS)}")
    return f"{view}_vector"


VECTOR_COLUMNS = tuple(vector_column(view) for view in VIEWS)


def picture_digest(picture: bytes) -> str:
    """Digest of a picture's file, in hexadecimal."""
    return hashlib.blake2b(picture, digest_size=DIGEST_BYTES).hexdigest()


def encoded_digest(title: str, pictures: Sequence[str]) -> bytes:
    """Digest of what a product's vectors depend on besides the encoder.

    Args:
        title: of the product; "" for none.
        pictures: the `picture_digest` of those that are encoded, in order.
    """
    return digest_of([title, list(pictures)])


def digest_of(parts: list) -> bytes:
    """Digest of texts and lists of texts."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=DIGEST_BYTES).digest()


def vector_array(vectors: np.ndarray, present: np.ndarray, dtype: pa.DataType | None = None) -> pa.FixedSizeListArray:
    """Vectors (N, D) as an Arrow array of fixed-size lists, null where not `present` (N,).

    Args:
        dtype: of the numbers, float32 if None.
    """
    dtype = dtype or pa.float32()
    flat = pa.array(np.ascontiguousarray(vectors, dtype=dtype.to_pandas_dtype()).reshape(-1))
    kind = pa.list_(dtype, vectors.shape[1])
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(~np.asarray(present, dtype=bool)))
