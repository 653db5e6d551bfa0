"""Checksums of a saved model and of Lance tables: what is read is as it was written, or it is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from moon2_dataset.shards import write_text

CHECKSUMS = "SHA256SUMS"  # in the form that `sha256sum --check SHA256SUMS` takes
LOADED = ("*.safetensors", "*.safetensors.index.json", "config.json", "processor_config.json", "tokenizer.json",
          "tokenizer_config.json", "chat_template.jinja", "*_moon2.py")  # fmt: skip


def sha256_of(path: Path) -> str:
    """The checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: str | os.PathLike) -> None:
    """Write down the checksums of what loading a model reads; after all of it, for it says that the folder is whole.

    Args:
        folder: of a saved model.
    """
    folder = Path(folder)
    names = sorted({path.name for pattern in LOADED for path in folder.glob(pattern)})
    write_text(folder / CHECKSUMS, "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names))


def check_checksums(folder: str | os.PathLike) -> None:
    """Compare a saved model with its checksums; one that has none is taken as it is.

    Args:
        folder: of a saved model.

    Raises:
        ValueError: a file is not as it was written, or gone; names it.
    """
    listed = Path(folder) / CHECKSUMS
    if not listed.is_file():
        return
    for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if Path(name).name != name or not name:
            raise ValueError(f"{listed}: damaged; remove it, and save the model again")
        file = listed.with_name(name)
        if not file.is_file() or sha256_of(file) != digest:
            raise ValueError(
                f"{file}: not as {CHECKSUMS} says: damaged, gone, or changed by hand; save the model again, or remove "
                f"{CHECKSUMS} if you changed it"
            )


def lance_files(table: Path) -> dict[str, Path]:
    """The files with the rows of a Lance table, by their path in its folder."""
    return {str(path.relative_to(table)): path for path in sorted(table.glob("data/*.lance"))}


def lance_checksums(table: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Checksums of the files with the rows of a Lance table, which keeps none itself.

    Args:
        table: its folder.
        known: checksums of an earlier time; those files are not read again, for Lance changes none.

    Returns:
        Path in the table's folder -> checksum.
    """
    return {name: (known or {}).get(name) or sha256_of(path) for name, path in lance_files(table).items()}


def check_lance(table: Path, checksums: Mapping[str, str], way_out: str) -> None:
    """Compare the files of a Lance table with their checksums; files that it has put together since are passed over.

    Args:
        table: its folder.
        checksums: as `lance_checksums` gave them.
        way_out: for the message.

    Raises:
        ValueError: a file is damaged; names it.
    """
    for name, sha256 in checksums.items():
        file = table / name
        if file.is_file() and sha256_of(file) != sha256:
            raise ValueError(f"{file}: damaged; {way_out}")


def find_unreadable(folder: str | os.PathLike) -> tuple[Path, str] | None:
    """Find the file because of which a model does not load, and what is wrong with it.

    Args:
        folder: of a saved model.
    """
    for path in sorted(Path(folder).iterdir()):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
            elif path.name == "tokenizer.json":
                Tokenizer.from_file(str(path))
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
        except (SafetensorError, ValueError, OSError) as error:
            return path, str(error)
        except Exception as error:  # tokenizers has no class of its own
            if path.name != "tokenizer.json":
                raise
            return path, str(error)
    return None
