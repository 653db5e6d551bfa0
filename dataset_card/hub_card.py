"""README.md of a repository on the Hub: written anew while nobody has edited it, completed once somebody has."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import yaml
from huggingface_hub import CardData, RepoCard

from .shards import write_bytes

CARD = "README.md"
MARKER = "<!-- moon2 card "  # followed by the digest of all that stands above: a card that differs was edited


def write_card(path: Path, card: RepoCard, renew: Callable[[CardData, CardData], None] | None = None) -> None:
    """Write a card, or bring it up to date.

    A card that a person wrote or edited keeps its text and what its header says; entries that the header lacks are
    added.

    Args:
        path: of the file; it is written whole or not at all.
        card: as composed from what lies beside it.
        renew: called with the header of an edited card and that of `card`, to change entries that must keep up with
            the files.

    Raises:
        ValueError: the header of the card that is there cannot be read.
    """
    if path.is_file() and not _is_generated(path):
        edited = load_card(path, type(card))
        for key in card.data.__dict__:
            if edited.data.get(key) is None:
                edited.data[key] = card.data[key]
        if renew is not None:
            renew(edited.data, card.data)
        content = str(edited)
    else:
        content = f"{card}\n"
        content += f"{MARKER}{_digest(content)} -->\n"
    write_bytes(path, content.encode())  # as bytes, so that the line ends of an edited card stay as they are


def load_card(path: Path, kind: type[RepoCard]) -> RepoCard:
    """Read a card.

    Args:
        path: of the file.
        kind: ModelCard or DatasetCard.

    Raises:
        ValueError: its header cannot be read.
    """
    try:
        return kind.load(path)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: its header cannot be read ({reason}); mend or remove it") from error


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; cells from outside go through `plain_text` first."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain_text(text: str) -> str:
    """Text that Markdown shows as it is, also within a table."""
    return re.sub(r"[\\`*{}\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", " ".join(text.split()))


def base_name(path: str) -> str:
    """The last part of a path of any system, without ".parquet"."""
    return PureWindowsPath(path).name.removesuffix(".parquet")  # knows the separators of every system


def without_path(value: str) -> str:
    """The value, or its last part if it is a place on somebody's machine."""
    absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    return base_name(value) if absolute or value.startswith(("~", "file:")) else value


def _is_generated(path: Path) -> bool:
    content, _, digest = path.read_text(encoding="utf-8", errors="replace").rpartition(MARKER)
    return digest == f"{_digest(content)} -->\n"


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]
