"""The files of a run of `moon2 augment`: where results go, what is finished, and what they were made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from ..schema import OPTIONAL_PRODUCT_FEATURES
from ..shards import ShardWriter, numbered, read_notes, write_text
from .arguments import AugmentArguments
from .report import PAGE, REPORT, SHEET, join_notes
from .source_files import find_products, open_products

ADDED = tuple(OPTIONAL_PRODUCT_FEATURES)
MANIFEST = "manifest.json"
WITHOUT_EFFECT = ("input", "output", "workers", "device", "overwrite", "allow_held_out")  # on what comes out


@dataclass(frozen=True)
class RunFiles:
    """Where a run writes. An output that ends in .parquet is one file; any other is a folder with a file for each.

    Attributes:
        out: what was asked for.
        targets: files to write, one for each source.
        work: folder of what is not finished.
        report, page, sheet: what people look at.
    """

    out: Path
    targets: list[Path]
    work: Path
    report: Path
    page: Path
    sheet: Path

    @classmethod
    def of(cls, output: str, sources: Sequence[Path]) -> RunFiles:
        """Lay out the files of a run.

        Args:
            output: as given.
            sources: files to augment.

        Raises:
            ValueError: the output is one of the sources, one file for several sources, or a file instead of a folder.
        """
        out = Path(output)
        if out.suffix == ".parquet" and not out.is_dir():
            if len(sources) > 1:
                raise ValueError(f"output={out} is one file, but {len(sources)} are to be augmented; give a folder")
            names = (f"{out.name}{end}" for end in (".parts", ".report.json", ".report.md", ".contact.png"))
            files = cls(out, [out], *(out.with_name(name) for name in names))
        elif out.is_file():
            raise ValueError(f"output={out} is a file; give a folder, or a Parquet file")
        else:
            names = (".augment", REPORT, PAGE, SHEET)
            files = cls(out, [out / source.name for source in sources], *(out / name for name in names))
        there = {source.resolve() for source in sources}
        if any(target.resolve() in there for target in files.targets):
            kind = "Parquet file" if files.targets == [out] else "folder"
            raise ValueError(f"output={out}; give a {kind} other than the input")
        return files

    def finished_report(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """The report of a finished run, if there is one.

        Args:
            identity: of this run.

        Raises:
            ValueError: it was made from something else, or a file of it is missing.
        """
        if not self.report.is_file() or not any(target.is_file() for target in self.targets):
            return None
        report = json.loads(self.report.read_text(encoding="utf-8"))
        _refuse_other(report["made_from"], identity, self.report)
        if missing := [target for target in self.targets[: len(report["files"])] if not target.is_file()]:
            raise ValueError(f"{missing[0]} of a finished run is missing; make it again with --overwrite true")
        return report

    def begin(self, identity: Mapping[str, Any], overwrite: bool) -> None:
        """Go on with an unfinished run, or begin one.

        Args:
            identity: of this run.
            overwrite: replace results that are there.

        Raises:
            ValueError: what is there is of another run.
        """
        manifest = self.work / MANIFEST
        if manifest.is_file():
            _refuse_other(json.loads(manifest.read_text(encoding="utf-8")), identity, self.work)
            return
        if not overwrite and (there := [target for target in self.targets if target.exists()]):
            raise ValueError(f"{there[0]} is there and no report says what it was made from; give --overwrite true")
        if self.out.is_dir() and (strange := self._strange()):
            raise ValueError(
                f"{self.out} holds {strange[0].name}, which would be read with what is made; give another output, or "
                "move it away"
            )
        self.work.mkdir(parents=True, exist_ok=True)
        write_text(manifest, json.dumps(identity, indent=2))

    def forget(self) -> None:
        """Delete what says that there is a run, finished or not; its results stay until they are replaced."""
        self.delete_work()
        self.report.unlink(missing_ok=True)

    def delete_work(self) -> None:
        """Delete what is not finished; the manifest goes last, for parts without one would be taken for another's."""
        if self.work.is_dir():
            for path in self.work.iterdir():
                if path.name != MANIFEST:
                    path.unlink()
            shutil.rmtree(self.work)

    def _strange(self) -> list[Path]:
        try:
            found, _ = find_products([str(self.out)])
        except (FileNotFoundError, ValueError):  # nothing to learn from lies there
            return []
        return [file for file in found if file not in self.targets]


class Shard:
    """One file of the catalogue on its way: batches become parts, parts become the result.

    Args:
        number: among the files of the run.
        source: the file.
        target: what becomes of it.
        work: folder for the parts.
        rows: how many of its rows are wanted, from the first.
    """

    def __init__(self, number: int, source: Path, target: Path, work: Path, rows: int) -> None:
        self.source, self.target, self.rows = source, target, rows
        self.parquet = open_products(source)
        self.replaced = sorted(set(ADDED) & set(self.parquet.schema_arrow.names))
        self._parts = lambda: numbered(work, f"part-{number:05d}")
        self._notes = work / f"shard-{number:05d}.json"

    @property
    def is_finished(self) -> bool:
        """Whether the result is there, made by this run."""
        return self._notes.is_file() and self.target.is_file()

    def missing(self, batch_rows: int) -> Iterator[tuple[Path, pa.Table]]:
        """The batches that no finished part holds, with the path of their part.

        Args:
            batch_rows: of a batch.
        """
        seen, paths = 0, self._parts()
        for batch in self.parquet.iter_batches(batch_rows):
            table = pa.Table.from_batches([batch]).slice(0, self.rows - seen)
            if not len(table):
                return
            seen += len(table)
            if not (path := next(paths)).is_file():
                yield path, table

    def finish(self) -> None:
        """Put the parts together as the result; they go when it is there."""
        parts = []
        for path in self._parts():
            if not path.is_file():
                break
            parts.append(path)
        writer = ShardWriter(self.target, augmented_schema(self.parquet.schema_arrow))
        for path in parts:
            part = pq.ParquetFile(path, page_checksum_verification=True)
            for group in range(part.num_row_groups):
                writer.write(part.read_row_group(group))
        writer.close()
        write_text(self._notes, json.dumps(join_notes([read_notes(path) for path in parts])))
        for path in reversed(parts):
            path.unlink()

    def notes(self) -> dict[str, Any]:
        """What was counted over the whole file, once it is finished."""
        return json.loads(self._notes.read_text(encoding="utf-8"))


def write_part(path: Path, table: pa.Table, added: Mapping[str, list], notes: Mapping[str, Any]) -> None:
    """Write a batch with what was made of it.

    Args:
        path: of the part.
        table: the batch.
        added: the columns that are added.
        notes: what was counted.
    """
    schema = augmented_schema(table.schema)
    columns = [
        pa.array(added[field.name], field.type) if field.name in added else table[field.name] for field in schema
    ]
    writer = ShardWriter(path, schema)
    writer.write(pa.table(columns, schema=schema))
    writer.close(notes)


def augmented_schema(schema: pa.Schema) -> pa.Schema:
    """The input's schema with the added columns, in the features of `datasets` too where it has them."""
    kept = pa.schema([field for field in schema if field.name not in ADDED], schema.metadata)
    added = OPTIONAL_PRODUCT_FEATURES.arrow_schema
    if kept.metadata and b"huggingface" in kept.metadata:
        return Features(Features.from_arrow_schema(kept) | OPTIONAL_PRODUCT_FEATURES).arrow_schema
    return pa.schema([*kept, *added], kept.metadata)


def identity_of(arguments: AugmentArguments, sources: Sequence[Path]) -> dict[str, Any]:
    """What decides what comes out.

    Args:
        arguments: of the run.
        sources: files to augment.
    """
    states = [source.stat() for source in sources]
    files = {
        "input": [source.name for source in sources],
        "input_bytes": [state.st_size for state in states],
        "input_changed": [state.st_mtime_ns for state in states],
    }
    options = {name: value for name, value in asdict(arguments).items() if name not in WITHOUT_EFFECT}
    return {
        **{name: values[0] if len(values) == 1 else values for name, values in files.items()},
        **options,
        "moon2": version("moon2"),
    }


def _refuse_other(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    differing = [name for name in now if before.get(name) != now[name]]
    changed = ["other files, or they have changed since"] * any(name.startswith("input") for name in differing)
    changed += [f"{n}={before.get(n)!r}, now {now[n]!r}" for n in differing if not n.startswith("input")]
    if changed:
        raise ValueError(
            f"{where} was begun with {'; '.join(changed)}; give the same again, another output, or --overwrite true"
        )
