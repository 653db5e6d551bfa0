"""croissant.json: the two tables described for machines, as Croissant 1.0 (JSON-LD)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Features, Image, List, Value
from huggingface_hub import DatasetCard, constants

from .card import MEANINGS
from .data_files import data_files, file_pattern
from .hub_card import CARD, load_card, without_path
from .shards import write_text
from .table_statistics import table_features

CROISSANT = "croissant.json"
PARQUET = "application/x-parquet"
REPOSITORY = "repo"  # the node that stands for the folder
DESCRIPTION = (
    "Products of a shop with titles, categories, attributes and pictures, and the searches that led to them, to train "
    "and judge encoders of products."
)
IMAGE = "sc:ImageObject"
DATA_TYPES = {
    "string": "sc:Text",
    "bool": "sc:Boolean",
    "float": "sc:Float",
    "int": "sc:Integer",
    "uint": "sc:Integer",
}
KEYS = {"products": ["product_id"], "queries": ["query_id", "product_id"]}
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
} | {
    name: f"cr:{name}"
    for name in (
        "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet",
        "format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet",
        "references", "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
    )
}  # fmt: skip


def write_croissant(folder: str | os.PathLike, dataset_id: str | None = None) -> Path:
    """Write croissant.json of a data set folder.

    Licence and name are those of the card that lies there (see `write_dataset_card`).

    Args:
        folder: with products*.parquet and queries*.parquet.
        dataset_id: `OWNER/NAME` on the Hub, where the files are then said to be; beside the file if not given.

    Returns:
        The file.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file of the folder cannot be read, or is not named after its split.
    """
    folder = Path(folder)
    path = folder / CROISSANT
    write_text(path, json.dumps(croissant(folder, dataset_id), indent=2, ensure_ascii=False) + "\n")
    return path


def croissant(folder: Path, dataset_id: str | None = None) -> dict[str, Any]:
    """Compose the description of a data set folder; see `write_croissant`."""
    url = f"{constants.ENDPOINT}/datasets/{dataset_id}" if dataset_id else ""
    license = load_card(folder / CARD, DatasetCard).data.get("license") if (folder / CARD).is_file() else None
    tables = data_files(folder)
    distribution: list[dict[str, Any]] = [_repository(url)] if url else []
    record_sets = []
    for kind, splits in tables.items():
        for split, files in splits.items():
            distribution += [_file_object(file, url) for file in files]
            distribution.append(_file_set(kind, split, files, inside_repository=bool(url)))
            features, _ = table_features(kind, {split: files})
            record_sets.append(_record_set(kind, split, features, asks_for=split in tables["products"]))
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": without_path(dataset_id or folder.resolve().name).rpartition("/")[2],
        "description": DESCRIPTION,
        **({"url": url} if url else {}),
        **({"license": license} if license else {}),
        "keywords": ["e-commerce", "product search", "multimodal retrieval"],
        "citeAs": "https://arxiv.org/abs/2511.12449",
        "distribution": distribution,
        "recordSet": record_sets,
    }


def _repository(url: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": REPOSITORY,
        "name": REPOSITORY,
        "description": "The repository that holds all files.",
        "contentUrl": url,
        "encodingFormat": "git+https",
        # The format asks for a checksum, a repository has none, and this is what the Hub writes in its place.
        "sha256": "https://github.com/mlcommons/croissant/issues/80",
    }


def _file_object(file: Path, url: str) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "@type": "cr:FileObject",
        "@id": file.name,
        "name": file.name,
        "contentUrl": f"{url}/resolve/main/{file.name}" if url else file.name,
        "contentSize": f"{file.stat().st_size} B",
        "encodingFormat": PARQUET,
        "sha256": digest,
    }


def _file_set(kind: str, split: str, files: Sequence[Path], inside_repository: bool) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{kind}-{split}-files",
        "name": f"{kind}-{split}-files",
        **({"containedIn": {"@id": REPOSITORY}} if inside_repository else {}),
        "encodingFormat": PARQUET,
        "includes": file_pattern(files),
    }


def _record_set(kind: str, split: str, features: Features, asks_for: bool) -> dict[str, Any]:
    """One table of one split: splits differ in their columns, and a record must have all that is described."""
    name = f"{kind}-{split}"
    fields = [
        described
        for column, feature in features.items()
        if (described := _field(f"{name}/{column}", column, feature, f"{name}-files"))
    ]
    for described in fields:
        if meaning := MEANINGS.get(described["name"]):
            described["description"] = meaning
        if kind == "queries" and asks_for and described["name"] == "product_id":
            described["references"] = {"field": {"@id": f"products-{split}/product_id"}}
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"{'One row for each product' if kind == 'products' else 'Queries'} of the split {split}.",
        "key": [{"@id": f"{name}/{column}"} for column in KEYS[kind]],
        "field": fields,
    }


def _field(field_id: str, column: str, feature: Any, file_set: str, part: str | None = None) -> dict[str, Any] | None:
    """A column, or a part of each entry of one; None for what the format cannot say."""
    described: dict[str, Any] = {"@type": "cr:Field", "@id": field_id, "name": part or column}
    if isinstance(feature, List):
        described["repeated"] = True
        feature = feature.feature
    if isinstance(feature, dict) and part is None:
        parts = [_field(f"{field_id}/{name}", column, of, file_set, name) for name, of in feature.items()]
        return described | {"subField": parts} if all(parts) else None
    data_type = _data_type(feature)
    if data_type is None or (part is not None and "repeated" in described):
        return None
    source: dict[str, Any] = {"fileSet": {"@id": file_set}, "extract": {"column": column}}
    if part is not None or data_type == IMAGE:
        source["transform"] = {"jsonPath": part or "bytes"}
    return described | {"dataType": data_type, "source": source}


def _data_type(feature: Any) -> str | None:
    if isinstance(feature, Image):
        return IMAGE
    dtype = feature.dtype if isinstance(feature, Value) else ""
    return next((name for start, name in DATA_TYPES.items() if dtype.startswith(start)), None)
