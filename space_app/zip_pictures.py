"""Unpack a ZIP that somebody sent: pictures and tables alone, inside one folder, within limits."""

from __future__ import annotations

import re
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Protocol

from moon2_dataset.build.column_sample import IMAGE_SUFFIXES

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
CHUNK = 1 << 20
RATIO_FROM = 1 << 20  # bytes; smaller files may be packed as tightly as they like
MAX_NAME = 200  # characters of one part of a path
MAX_DEPTH = 8
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may ask for any memory to unpack


class ZipLimits(Protocol):
    """What `unpack` asks of limits; see `Limits`."""

    files: int | None
    ratio: int
    unpacked_bytes: int | None


def unpack(archive: Path, folder: Path, limits: ZipLimits) -> list[tuple[int, str]]:
    """Unpack the pictures and tables of a ZIP.

    Args:
        archive: the file.
        folder: to unpack into; nothing is written elsewhere.
        limits: of the number of files, the ratio of unpacked to packed size, and the unpacked size.

    Returns:
        (number of the entry, message) of each that was left out.

    Raises:
        ValueError: it is no ZIP, or unpacks to more than the limits allow or the disk has room for.
    """
    refused: list[tuple[int, str]] = []
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            if limits.files is not None and len(entries) > limits.files:
                raise ValueError(f"{archive.name}: {len(entries):,} files; give a ZIP of at most {limits.files:,}")
            _refuse_bombs(archive.name, entries, limits)
            _refuse_what_has_no_room(archive.name, entries, folder)
            for number, entry in enumerate(entries):
                if entry.filename.endswith("/"):  # of a folder
                    continue
                if reason := _reason_against(entry):
                    refused.append((number, f"{archive.name}: {_shown(entry.filename)}: {reason}"))
                    continue
                target = folder / PurePosixPath(entry.filename)
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(entry) as source, open(target, "xb") as file:  # never over the size it names
                        shutil.copyfileobj(source, file, CHUNK)
                except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as error:
                    target.unlink(missing_ok=True)
                    refused.append((number, f"{archive.name}: {_shown(entry.filename)}: cannot be unpacked ({error})"))
    except (zipfile.BadZipFile, UnicodeDecodeError, struct.error, OSError, NotImplementedError) as error:
        raise ValueError(f"{archive.name}: cannot be read as a ZIP ({error}); pack it again") from error
    return refused


def _refuse_bombs(name: str, entries: list[zipfile.ZipInfo], limits: ZipLimits) -> None:
    most = limits.unpacked_bytes
    if most is not None and sum(entry.file_size for entry in entries) > most:
        raise ValueError(f"{name}: unpacks to over {most >> 20:,} MB; give several smaller ones")
    for entry in entries:
        if entry.file_size > RATIO_FROM and entry.file_size > limits.ratio * max(1, entry.compress_size):
            raise ValueError(
                f"{name}: {_shown(entry.filename)} unpacks to over {limits.ratio} times its packed size, as no "
                "picture does; leave it out"
            )


def _refuse_what_has_no_room(name: str, entries: list[zipfile.ZipInfo], folder: Path) -> None:
    unpacked, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
    if unpacked > free:
        raise ValueError(
            f"{name}: unpacks to {unpacked >> 20:,} MB, and the disk has {free >> 20:,} MB left; make room, or give "
            "several smaller ones"
        )


def _reason_against(entry: zipfile.ZipInfo) -> str:
    """Why an entry is not unpacked; "" where it may be."""
    name, parts = entry.filename, PurePosixPath(entry.filename).parts
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "a link or a device is not unpacked; put the file itself in"
    if name.startswith("/") or "\\" in name or ".." in parts or re.match(r"[a-zA-Z]:", name):
        return "its name leads out of the ZIP; pack the files with plain names"
    if len(parts) > MAX_DEPTH or any(len(part.encode()) > MAX_NAME for part in parts) or not name.isprintable():
        return f"over {MAX_DEPTH} folders deep, or a name that is too long or cannot be printed; rename it"
    if not parts:
        return "it has no name; give it one"
    if entry.flag_bits & 1:
        return "packed with a password; pack it without"
    if entry.compress_type not in PACKED:
        return "packed in an unusual way; pack it with Deflate"
    if parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts):
        return "a hidden file is left out"
    if not name.casefold().endswith((*IMAGE_SUFFIXES, *TABLE_SUFFIXES)):
        return f"neither a picture ({', '.join(IMAGE_SUFFIXES)}) nor a table; left out"
    return ""


def _shown(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name[:160])
