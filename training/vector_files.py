"""Where the vectors of a catalogue are written: built beside their place, shard by shard, and put there when whole."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import compress, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from moon2_dataset.disk_errors import naming
from moon2_dataset.shards import write_text

from .checksums import check_lance, lance_checksums, sha256_of
from .lance_versions import compact
from .stored_vectors import NOWHERE, Places, keys_of, lance_keys
from .vector_columns import vector_column

FORMAT = 1
LANCE = ".lance"
PARTIAL = ".partial"  # OUT is built in OUT.partial
NUMBER_TYPES = {"float32": pa.float32(), "float16": pa.float16()}
IDS_AT_ONCE = 1000
TOLD = {
    "format": "were made by another version of moon2",
    "fingerprint": "were made with another encoder",
}


def vectors_schema(views: Sequence[str], dimension: int, dtype: str) -> pa.Schema:
    """The columns of vectors: product_id, digest, and the vectors of each view or null.

    Args:
        views: some of text, image, multimodal.
        dimension: of a vector.
        dtype: float32 or float16.
    """
    vector = pa.list_(NUMBER_TYPES[dtype], dimension)
    columns = [pa.field(vector_column(view), vector) for view in views]
    names = [pa.field(name, pa.string(), nullable=False) for name in ("product_id", "digest")]
    return pa.schema([*names, *columns])


@dataclass
class ShardRecord:
    """What became of the products of one shard.

    Args:
        number: of the shard.
        rows: that were written.
        encoded: of them, those whose vectors were made anew.
        unchanged: products whose vectors were there.
        linked: products with pictures in files of their own, which may change without the catalogue.
        sha256: of the file.
        errors: [row in the catalogue, product_id, message, whether it cost the product].
        kept: the same of products that keep their vectors, for a picture cannot be opened now.
    """

    number: int
    rows: int = 0
    encoded: int = 0
    unchanged: int = 0
    linked: int = 0
    sha256: str = ""
    errors: list[list[Any]] = field(default_factory=list)
    kept: list[list[Any]] = field(default_factory=list)


class ShardFiles:
    """The shards of OUT.partial and their records; a shard counts once its record is there and its checksum is right.

    Args:
        folder: OUT.partial.
    """

    def __init__(self, folder: Path) -> None:
        self.vectors, self.records = folder / "vectors", folder / "records"

    def path(self, number: int) -> Path:
        """Of a shard."""
        return self.vectors / f"vectors-{number:05d}.parquet"

    def unfinished(self) -> Path:
        """A path for a shard that is being written, which no other process has."""
        return self.vectors / f".{uuid.uuid4().hex}.parquet"

    def finish(self, record: ShardRecord, written: Path) -> None:
        """Give a shard its name, and record it."""
        record.sha256 = sha256_of(written)
        written.replace(self.path(record.number))
        write_text(self.records / f"{record.number:05d}.json", json.dumps(record.__dict__))

    def record(self, number: int) -> ShardRecord | None:
        """Of a shard that is done; None of one that is not."""
        path, file = self.records / f"{number:05d}.json", self.path(number)
        if not (path.exists() and file.exists()):
            return None
        record = ShardRecord(**json.loads(path.read_text(encoding="utf-8")))
        return record if sha256_of(file) == record.sha256 else None

    def finished(self) -> dict[int, ShardRecord]:
        """The shards that are done."""
        records = (self.record(int(path.stem)) for path in sorted(self.records.glob("*.json")))
        return {record.number: record for record in records if record is not None}


class VectorsOutput:
    """OUT, a folder of Parquet shards or a Lance table, and OUT.json, which tells of it.

    A run builds shards in OUT.partial, `begin` to `commit`. Killed at any point, the next one goes on behind the last
    finished shard, or finishes the commit.

    Args:
        out: NAME or NAME.parquet for a folder, NAME.lance for a Lance table.
        identity: what the vectors must share with those that are there: encoder and options.
        overwrite: vectors that are there are neither compared nor taken over.

    Attributes:
        partial: OUT.partial.
        manifest_path: OUT.json.
        shards: those of OUT.partial.

    Raises:
        ValueError: a Lance table is to be written, and lancedb is not installed.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], overwrite: bool = False) -> None:
        self.out, self.identity, self.overwrite = out, dict(identity), overwrite
        self.is_lance = out.suffix == LANCE
        if self.is_lance and find_spec("lancedb") is None:
            raise ValueError(f'{out}: to write a Lance table, pip install "lancedb>=0.40"')
        self.partial = out.with_name(out.name + PARTIAL)
        self.manifest_path = out.with_name(out.name + ".json")
        self.shards = ShardFiles(self.partial)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes out.

        Raises:
            ValueError: one is at work.
        """
        self.partial.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.partial / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise ValueError(f"{self.out}: another process is encoding into it; wait until it is done") from error
        try:
            yield
        finally:
            if not (self.partial / "plan.json").exists():  # nothing to go on with
                shutil.rmtree(self.partial)
            lock.release()

    def manifest(self) -> dict[str, Any] | None:
        """What OUT.json says, None if OUT is not there.

        Raises:
            ValueError: OUT is there without it, or it is damaged.
        """
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return None
        if not self.manifest_path.is_file():
            raise ValueError(
                f"{self.out} is there, but not {self.manifest_path.name}, which would tell whether it holds vectors; "
                "give another output, or remove it"
            )
        try:
            found = json.loads(self.manifest_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.manifest_path}: damaged ({error}); remove it and {self.out.name}") from error
        return found

    def begin(self, source: Mapping[str, Any]) -> dict[str, Any] | None:
        """Prepare OUT.partial, new or as an earlier run left it.

        Args:
            source: the catalogue's fingerprint, and how it is divided into shards. Where it differs from the earlier
                run's, what that one has made is kept for `stored_files`.

        Returns:
            The manifest of OUT, None if there is none or it is to be overwritten.

        Raises:
            ValueError: what is there was made by another encoder or with other options.
        """
        plan_path = self.partial / "plan.json"
        self._finish_commit()
        plan = json.loads(plan_path.read_text(encoding="utf-8")) if plan_path.exists() else None
        if plan is not None and self.overwrite and plan["identity"] != self.identity:
            self.clear()
            plan = None
        if plan is not None and not self.shards.vectors.exists():  # what a finished commit left
            self.clear()
            plan = None
        manifest = self.manifest()
        if self.overwrite or (plan and plan["overwrite"]):
            manifest = None
        if plan is not None:
            self._refuse_other(plan["identity"], f"{self.partial}, which a run that was interrupted left,")
        elif manifest is not None:
            self._refuse_other(manifest["identity"], str(self.out))
        if manifest is not None and self.is_lance:
            check_lance(self.out, _sums(manifest), "encode all products again, with --overwrite true")
        wanted = {"identity": self.identity, "source": dict(source), "overwrite": self.overwrite}
        if plan is not None:
            wanted["overwrite"] |= plan["overwrite"]
            if plan["source"] != wanted["source"]:
                self._set_aside()
        for folder in (self.shards.vectors, self.shards.records):
            folder.mkdir(exist_ok=True)
            for part in folder.glob(".*"):
                part.unlink()
        write_text(plan_path, json.dumps(wanted))
        return manifest

    def stored_files(self, manifest: Mapping[str, Any] | None) -> list[Path]:
        """Parquet files with vectors that need not be made again: those of OUT that are undamaged, those set aside."""
        aside = sorted((self.partial / "aside").glob("*/vectors-*.parquet"))
        if manifest is None or self.is_lance:
            return aside
        files = [(self.out / entry["file"], entry["sha256"]) for entry in manifest["files"]]
        return [file for file, sha256 in files if file.is_file() and sha256_of(file) == sha256] + aside

    def is_whole(self, manifest: Mapping[str, Any], stored: Sequence[Path]) -> bool:
        """Whether no file of OUT is damaged; a Lance table that is was refused.

        Args:
            manifest: of OUT.
            stored: what `stored_files` gave.
        """
        return self.is_lance or sum(file.parent == self.out for file in stored) == len(manifest["files"])

    def stored_errors(self, manifest: Mapping[str, Any] | None) -> dict[str, list[str]]:
        """Product id -> what its stored vectors lack."""
        lists = [] if manifest is None else [manifest["errors"]]
        lists += [json.loads(path.read_text())["errors"] for path in (self.partial / "aside").glob("*/*.json")]
        found: dict[str, list[str]] = {}
        for _, product_id, message, dropped in (error for errors in lists for error in errors):
            if not dropped and message not in found.setdefault(product_id, []):
                found[product_id].append(message)
        return found

    def commit(
        self, records: Mapping[int, ShardRecord], manifest: Mapping[str, Any], ids: Iterable[str]
    ) -> dict[str, Any]:
        """Put the shards in the place of OUT, or into the Lance table.

        Args:
            records: of all shards.
            manifest: what OUT.json shall say besides the files.
            ids: of all products of the catalogue that have vectors; asked for only if a Lance table is there.

        Returns:
            What OUT.json says.
        """
        files = []
        kept = {number for number, record in records.items() if record.rows} or {0}
        for number, record in sorted(records.items()):
            path = self.shards.path(number)
            if number in kept:
                files.append({"file": path.name, "rows": record.rows, "sha256": record.sha256})
            else:
                path.unlink()
        if self.is_lance:
            overwrite = json.loads((self.partial / "plan.json").read_text(encoding="utf-8"))["overwrite"]
            change: dict[str, Any] = {"create": overwrite or self.manifest() is None, "gone": []}
            if not change["create"]:
                change["gone"] = list(_not_among(ids, (product_id for product_id, _ in lance_keys(self.out))))
            write_text(self.partial / "change.json", json.dumps(change))
            files = []
        for path in self.shards.vectors.glob(".*"):  # of workers that died
            path.unlink()
        told = {"format": FORMAT, "identity": self.identity, **manifest, "files": files}
        write_text(self.partial / "manifest.json", json.dumps(told, ensure_ascii=False, indent=1) + "\n")
        self._finish_commit()
        return json.loads(self.manifest_path.read_text(encoding="utf-8"))

    def _finish_commit(self) -> None:
        """Do what is left of a commit; nothing if there is none."""
        ready, vectors = self.partial / "manifest.json", self.shards.vectors
        if not ready.exists():
            return
        if self.is_lance:
            with naming(self.out):
                self._write_lance()
            told = json.loads(ready.read_text(encoding="utf-8"))
            sums = lance_checksums(self.out, _sums(self.manifest() if self.manifest_path.is_file() else None))
            told["files"] = [{"file": name, "sha256": sha256} for name, sha256 in sums.items()]
            write_text(ready, json.dumps(told, ensure_ascii=False, indent=1) + "\n")
        elif vectors.exists():
            self._put_in_place(vectors)
        ready.rename(self.manifest_path)
        self.clear()

    def _write_lance(self) -> None:
        import lancedb
        from lancedb.expr import col

        change = json.loads((self.partial / "change.json").read_text(encoding="utf-8"))
        files = sorted(self.shards.vectors.glob("vectors-*.parquet"))
        new, whole = self.partial / "new" / self.out.name, self.partial / "new.json"
        if change["create"]:
            if not whole.exists():
                shutil.rmtree(new.parent, ignore_errors=True)
                batches = (
                    batch
                    for file in files
                    for batch in pq.ParquetFile(file, page_checksum_verification=True).iter_batches()
                )
                reader = pa.RecordBatchReader.from_batches(pq.read_schema(files[0]), batches)
                lancedb.connect(new.parent).create_table(self.out.stem, data=reader, on_bad_vectors="null")
                write_text(whole, "{}")
            if new.exists():
                self._put_in_place(new)
            return
        table = lancedb.connect(self.out.parent).open_table(self.out.stem)
        for start in range(0, len(change["gone"]), IDS_AT_ONCE):
            table.delete(col("product_id").isin(change["gone"][start : start + IDS_AT_ONCE]))
        for file in files:
            changed = pq.read_table(file, page_checksum_verification=True)
            if len(changed):
                merge = table.merge_insert("product_id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(changed, on_bad_vectors="null")
        compact(table)

    def _put_in_place(self, new: Path) -> None:
        """Rename a folder to OUT; what is there is moved into OUT.partial."""
        replaced = self.partial / "replaced"
        if self.out.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            self.out.rename(replaced)
        new.rename(self.out)

    def _set_aside(self) -> None:
        """Keep the finished shards of a run over another catalogue, and begin anew."""
        finished = self.shards.finished()
        place = self.partial / "aside" / f"{len(list((self.partial / 'aside').glob('*'))):05d}"
        place.mkdir(parents=True)
        for number in finished:
            record = self.shards.records / f"{number:05d}.json"
            self.shards.path(number).rename(place / self.shards.path(number).name)
            record.rename(place / record.name)
        for folder in (self.shards.vectors, self.shards.records):
            for path in folder.iterdir():
                path.unlink()

    def clear(self) -> None:
        """Delete OUT.partial but for the lock: the shards at once, the plan last, so that nothing half deleted is gone
        on with.
        """
        if self.shards.vectors.exists():
            self.shards.vectors.rename(self.partial / "cleared")
        for path in sorted(self.partial.iterdir(), key=lambda path: path.name == "plan.json"):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != ".lock":
                path.unlink()

    def _refuse_other(self, found: Mapping[str, Any], place: str) -> None:
        changed = [name for name in self.identity if found.get(name) != self.identity[name]]
        if changed:
            reasons = [
                TOLD.get(name, f"have {name}={found.get(name)!r}, not {self.identity[name]!r}") for name in changed
            ]
            raise ValueError(
                f"the vectors in {place} {', and '.join(reasons)}; give another output, or --overwrite true to encode "
                "all of them again"
            )


def _sums(manifest: Mapping[str, Any] | None) -> dict[str, str]:
    return {} if manifest is None else {entry["file"]: entry["sha256"] for entry in manifest["files"]}


def _not_among(ids: Iterable[str], others: Iterable[str]) -> Iterator[str]:
    """Those of the others that are none of the ids, of which sixteen bytes each are held."""
    there = Places(keys_of((product_id, "") for product_id in ids))
    others = iter(others)
    while some := list(islice(others, IDS_AT_ONCE)):
        places = there.find(keys_of((product_id, "") for product_id in some))
        yield from compress(some, places == NOWHERE)
