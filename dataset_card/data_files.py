"""Where the tables of a data set lie: the files of products and queries, and which split each is of."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path

KINDS = ("products", "queries")
USUAL_SPLITS = ("train", "validation", "test")
HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval", "held")

_FILE_NAME = re.compile(r"((?:products|queries)(?:-([^\W\d]\w*(?:\.\w+)*))?)(-\d+(?:-of-\d+)?)?\.parquet")

Paths = str | os.PathLike | Sequence[str | os.PathLike]
Splits = Mapping[str, Sequence[Path]]


def table_files(path: Paths, kind: str) -> list[Path]:
    """Find the files of a table, of all its splits.

    Args:
        path: a Parquet file, a glob, a folder, or a list of them. Of a folder, the files named KIND*.parquet are
            taken, or every Parquet file where none has such a name.
        kind: "products" or "queries".

    Raises:
        FileNotFoundError: no Parquet file there.
    """
    if not isinstance(path, str | os.PathLike):
        return [file for part in path for file in table_files(part, kind)]
    place = Path(path)
    if place.is_dir():
        files = sorted(place.glob(f"{kind}*.parquet")) or sorted(place.glob("*.parquet"))
    else:
        files = [place] if place.exists() else [Path(file) for file in sorted(glob(str(path), recursive=True))]
    if not files:
        raise FileNotFoundError(f"{path}: no Parquet file there; give a file, a glob or a folder that holds {kind}")
    return files


def split_files(path: Paths, kind: str, split: str | None = None) -> list[Path]:
    """Find the files of one split of a table, so that nobody learns from what they are judged on.

    Args:
        path: as for `table_files`. A file or a glob is meant as it stands, whatever its name; of a folder one split is
            taken, or all of it where no name tells a split.
        kind: "products" or "queries".
        split: of folders; "train" takes every split to learn from. Without it a folder may hold one split alone.

    Raises:
        FileNotFoundError: no Parquet file there.
        ValueError: a folder holds several splits, or not this one.
    """
    if not isinstance(path, str | os.PathLike):
        return [file for part in path for file in split_files(part, kind, split)]
    files = table_files(path, kind)
    if not Path(path).is_dir():
        return files
    names = {file: split_of(file) for file in files}
    splits = sorted({name or "train" for name in names.values()})
    if split is None:
        if len(splits) > 1:
            raise ValueError(
                f"{path}: holds {kind} of several splits, {', '.join(splits)}; give the split, or the files of one, "
                f"such as {Path(path) / kind}-{splits[0]}*.parquet"
            )
        return files
    if not any(names.values()):
        return files
    found = [file for file, name in names.items() if name == split or (split == "train" and not is_held_out(file))]
    if not found:
        raise ValueError(f"{path}: holds {kind} of {', '.join(splits)}, none of {split}; give another split, or files")
    return found


def data_files(folder: str | os.PathLike) -> dict[str, dict[str, list[Path]]]:
    """Find the files of a data set: products-SPLIT.parquet and queries-SPLIT.parquet, or numbered parts of them.

    Args:
        folder: to look in; sub-folders are not.

    Returns:
        {"products": {split: files}, "queries": {split: files}}; products.parquet without a split is "train". Queries
        may be missing.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no products, a file whose split its name does not say, or a split twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the folder of a data set")
    tables: dict[str, dict[str, list[Path]]] = {}
    for kind in KINDS:
        found: dict[str, list[Path]] = {}
        for file in sorted(folder.glob(f"{kind}*.parquet")):
            name = _FILE_NAME.fullmatch(file.name)
            if name is None:
                raise ValueError(f"{file}: of no known split; call it {kind}-SPLIT.parquet, or move it away")
            of_split = found.setdefault(name[2] or "train", [])
            if of_split and (name[3] is None or file_pattern(of_split) != f"{name[1]}-[0-9]*.parquet"):
                raise ValueError(f"{file} and {of_split[0].name} are both there; keep one of them")
            of_split.append(file)
        order = [split for split in USUAL_SPLITS if split in found]
        tables[kind] = {split: found[split] for split in dict.fromkeys([*order, *found])}
    if not tables["products"]:
        raise ValueError(f"{folder}: no products*.parquet there; `moon2 build-dataset` writes such a folder")
    return tables


def file_pattern(files: Sequence[Path]) -> str:
    """The name of a single file of a split, or a glob of its numbered parts."""
    stem, number = _FILE_NAME.fullmatch(files[0].name).group(1, 3)
    return files[0].name if number is None else f"{stem}-[0-9]*.parquet"


def split_of(file: Path) -> str | None:
    """The split that the name of a data file tells: products-SPLIT.parquet, or a word such as "test" in it."""
    name = _FILE_NAME.fullmatch(file.name)
    if name is not None and name[2]:
        return name[2]
    return next(iter(_held_out_words(file)), None)


def is_for_training(split: str) -> bool:
    """Whether a split is one to learn from; all others are held out to be judged on."""
    return split.startswith("train")


def is_held_out(file: Path) -> bool:
    """Whether the name of a data file says that models are judged on it."""
    return bool(_held_out_words(file)) or not is_for_training(split_of(file) or "train")


def _held_out_words(file: Path) -> list[str]:
    words = file.stem.lower().replace("_", "-").replace(".", "-").split("-")
    return [word for word in words if word in HELD_OUT]
