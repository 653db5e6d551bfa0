"""What `moon2 encode` wrote, for an index of the same encoder: vectors of products that have not changed since."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from .checksums import check_lance, sha256_of
from .encode import VIEWS
from .stored_vectors import StoredVectors
from .vector_columns import VECTOR_COLUMNS
from .vector_files import LANCE


class WrittenVectors:
    """Vectors of all three views, whole, by product.

    Args:
        out: what `moon2 encode` wrote.
        fingerprint: of the encoder that they must be of.
        dimension: of its vectors.
        dtype: of its weights.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are of another encoder, or of this one in another type, lack a view, are shortened or
            quantised, or a file is damaged.
    """

    def __init__(self, out: str | os.PathLike, fingerprint: str, dimension: int, dtype: torch.dtype) -> None:
        self.out = Path(out)
        manifest_path = self.out.with_name(self.out.name + ".json")
        if not (self.out.exists() and manifest_path.is_file()):
            raise FileNotFoundError(f"{out}: no vectors there with their {manifest_path.name}; see `moon2 encode`")
        try:
            manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{manifest_path}: damaged ({error}); encode again into another folder") from error
        self._check_identity(manifest, fingerprint, dimension, str(dtype).removeprefix("torch."))
        self._stored = None
        if self.out.suffix == LANCE:
            sums = {entry["file"]: entry["sha256"] for entry in manifest["files"]}
            check_lance(self.out, sums, "encode again, with --overwrite true")
        else:
            files = [(self.out / entry["file"], entry["sha256"]) for entry in manifest["files"]]
            for file, sha256 in files:
                if not file.is_file() or sha256_of(file) != sha256:
                    raise ValueError(f"{file}: damaged or gone; encode again")
            self._stored = StoredVectors([file for file, _ in files])

    def _check_identity(self, manifest: Mapping[str, Any], fingerprint: str, dimension: int, dtype: str) -> None:
        identity = manifest["identity"]
        wanted = {"views": list(VIEWS), "vector_dtype": "float32", "dimension": dimension, "quantization": "none"}
        way = f"--dtype {dtype} --overwrite true"
        for name, value in wanted.items():
            if identity[name] != value:
                raise ValueError(
                    f"{self.out}: {name} is {identity[name]!r}, the index needs {value!r}; encode again with --views "
                    f"{' '.join(VIEWS)} {way}, and otherwise as it is by default, with the encoder of the index"
                )
        if identity["fingerprint"] == fingerprint:
            return
        if (made_in := manifest.get("dtype", dtype)) != dtype:
            raise ValueError(
                f"{self.out}: made with weights in {made_in}, the index needs {dtype}; encode again with {way}"
            )
        raise ValueError(
            f"{self.out}: made with another encoder, {manifest['model']}; encode again with that of the index, {way}"
        )

    def get(self, ids: Sequence[str], digests: Sequence[str]) -> dict[str, dict[str, Any]]:
        """{vector column: numbers or None} of products by their id; one that is not there with its digest is left out.

        Args:
            ids: of products.
            digests: the `encoded_digest` of each, in hexadecimal.
        """
        digest_of = dict(zip(ids, digests, strict=True))
        rows = self._rows(ids, digests).to_pylist()
        return {
            row["product_id"]: {column: row[column] for column in VECTOR_COLUMNS}
            for row in rows
            if digest_of.get(row["product_id"]) == row["digest"]
        }

    def _rows(self, ids: Sequence[str], digests: Sequence[str]) -> pa.Table:
        if self._stored is not None:
            places = self._stored.find(ids, digests)
            places = places[places >= 0]
            return self._stored.take(places) if len(places) else pa.table({})
        import lancedb
        from lancedb.expr import col

        table = lancedb.connect(self.out.parent).open_table(self.out.stem)
        return table.search().where(col("product_id").isin(list(ids))).limit(None).to_arrow()
