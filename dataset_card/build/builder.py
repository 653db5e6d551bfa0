"""`moon2 build-dataset`: a shop's catalogue and behaviour log become products and queries that can be trained on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..recipe import RecipeParser
from ..shards import EXAMPLES, write_text
from .catalogue import WORK_NAME as CATALOGUE_WORK
from .catalogue import clean_catalogue, read_aliases, read_category_paths, read_ids, read_keys, write_products
from .clean import MAX_SIDE
from .duplicates import MAX_DISTANCE, REASONS, check_installed, find_duplicates
from .image_root import ImageRoot
from .log import WORK_NAME as LOG_WORK
from .log import KnownProducts, read_log
from .log_columns import COUNT_FIELDS
from .mapping import parse_columns
from .named import NAMED, open_named
from .picture_addresses import picture_addresses
from .queries import POSITIVE_EVENTS, LogRules, positive_rows, write_queries
from .report import count_split, discrepancies, draw_sheet, hints, markdown
from .sources import Source, open_log, open_source
from .splits import LEFT_OUT, TRAIN, assign_splits, over_category_limit, parse_splits

FORMAT = 2  # of work files; a build that another version began is not gone on with
REPORT, PAGE, SHEET = "build_report.json", "build_report.md", "contact_sheet.png"
_SHARD = re.compile(r"(products|queries)-[a-z][a-z0-9_]*-\d{5}\.parquet")
NOT_COMPARED = (  # the files are, by their fingerprints
    "catalogue", "log", "output_dir", "workers", "overwrite", "push", "private", "license",
)  # fmt: skip


@dataclass
class BuildArguments:
    """Options of `moon2 build-dataset`.

    Raises:
        ValueError: an argument has no meaning; the message gives the allowed values.
    """

    catalogue: str = field(
        metadata={
            "help": "Products: a CSV, TSV, JSON Lines or Parquet file, a glob, a folder of tables or of images, a "
            f"folder that datasets saved, hf:OWNER/NAME[:SPLIT], or {' or '.join(NAMED)}[:SPLIT]."
        }
    )
    output_dir: str = field(metadata={"help": "Folder to write; a build that was interrupted goes on there."})
    log: str | None = field(
        default=None, metadata={"help": "Behaviour log, in the same formats; without it there are no queries."}
    )
    columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns of the catalogue that are guessed wrong, such as title=Name images=img1,img2; and "
            "aliases=COLUMN for other ids that the log names products by."
        },
    )
    log_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns of the log that are guessed wrong, such as text=q product_id=sku. A line is one event, "
            "named by event and repeated by count, or sums events up: purchases=orders clicks=n_clicks "
            "exposures=impressions. FIELD= leaves a field out."
        },
    )
    image_root: str | None = field(
        default=None,
        metadata={
            "help": "Folder where relative image paths start, beside the file if not given; and where the images of "
            "URLs lie: as HOST/PATH, PATH, an end of the path or its file name, if no other URL has that end."
        },
    )
    splits: list[str] = field(
        default_factory=lambda: ["train=0.8", "validation=0.1", "test=0.1"],
        metadata={"help": "Names and shares of the splits."},
    )
    max_per_category: int | None = field(
        default=None, metadata={"help": f"Products of a leaf category that stay in {TRAIN}; those with queries first."}
    )
    positive_events: list[str] = field(
        default_factory=lambda: ["purchase"], metadata={"help": "What makes a positive: purchase, click or both."}
    )
    min_purchases: int = field(
        default=1, metadata={"help": "Positive events of a query and a product that make it a positive."}
    )
    min_exposures: int = field(
        default=3, metadata={"help": "Times a product was shown for a query, and left alone, to be a negative of it."}
    )
    max_negatives: int = field(default=10, metadata={"help": "Negatives of a query; those shown most often stay."})
    image_hash_distance: int = field(
        default=4, metadata={"help": f"Bits of 64 in which nearly identical pictures may differ, 0 to {MAX_DISTANCE}."}
    )
    max_side: int = field(default=MAX_SIDE, metadata={"help": "Pixels; longer pictures are made smaller."})
    seed: int = field(default=0, metadata={"help": "Of the splits, and of what stays under max_per_category."})
    workers: int = field(
        default_factory=lambda: min(8, os.cpu_count() or 1), metadata={"help": "Threads that read and check pictures."}
    )
    shard_rows: int = field(default=20_000, metadata={"help": "Rows of an output file."})
    overwrite: bool = field(
        default=False, metadata={"help": "Delete the build that is in output_dir and begin again."}
    )
    push: str | None = field(
        default=None, metadata={"help": "Repository on the Hub, OWNER/NAME, to upload what was built to."}
    )
    private: bool = field(default=False, metadata={"help": "With push: make the repository private."})
    license: str | None = field(default=None, metadata={"help": "With push: the data's licence, such as cc-by-4.0."})

    def __post_init__(self):
        for name, least in (
            ("max_per_category", 1), ("min_purchases", 1), ("min_exposures", 1), ("max_negatives", 0),
            ("max_side", 32), ("workers", 1), ("shard_rows", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value}; give {least} or more")
        if not 0 <= self.image_hash_distance <= MAX_DISTANCE:
            raise ValueError(f"image_hash_distance={self.image_hash_distance}; give 0 to {MAX_DISTANCE} bits")
        wrong = [event for event in self.positive_events if event not in POSITIVE_EVENTS]
        if wrong or not self.positive_events or len(set(self.positive_events)) < len(self.positive_events):
            raise ValueError(f"positive_events={self.positive_events}; give {', '.join(POSITIVE_EVENTS)} or both")
        shares = parse_splits(self.splits)
        if self.max_per_category is not None and TRAIN not in shares:
            raise ValueError(f"max_per_category limits the split {TRAIN}, which splits does not have")
        if self.image_root is not None and not Path(self.image_root).is_dir():
            raise ValueError(f"image_root={self.image_root} is no folder")


def build_dataset(arguments: BuildArguments, progress: bool = True) -> dict[str, Any]:
    """Build products and queries from a shop's files, or go on with a build that was interrupted.

    Written into `output_dir`: `products-SPLIT-00000.parquet` …, `queries-SPLIT-00000.parquet` …, `build_report.json`,
    `build_report.md` and `contact_sheet.png`. Until it is done, its work files lie in `.build` there; a run that was
    killed at any point and is repeated ends with the same bytes as one that was not.

    Args:
        arguments: what to build.
        progress: show bars, and print how the columns were understood.

    Returns:
        The report, as in `build_report.json`.

    Raises:
        FileNotFoundError: there is no catalogue, or no log.
        ValueError: naming file, column or argument and the way out.
    """
    check_installed()
    source, log = _open(arguments)
    log_mapping = [] if log is None else log.explain()
    counted = [] if log is None else [field for field in COUNT_FIELDS if field in log.mapping]
    if counted:
        log_mapping.append(f"a line counts as its {', '.join(counted)}; with 0 of these, as one exposure")
    elif log is not None and "event" not in log.mapping:
        log_mapping.append(f"without a column for event, every line counts as a {arguments.positive_events[0]}")
    out = Path(arguments.output_dir)
    work = out / ".build"
    if progress:
        print(*source.explain(), "", *log_mapping, "", sep="\n")
    if _is_done(out, work, _identity(arguments, source, log), arguments.overwrite):
        return json.loads((out / REPORT).read_text(encoding="utf-8"))

    image_root = _image_root(arguments, source, log)
    counts = clean_catalogue(source, work, image_root, arguments.max_side, arguments.workers, progress)
    keys, num_images = read_keys(work)
    duplicates = find_duplicates(keys, arguments.image_hash_distance)
    shares = parse_splits(arguments.splits)
    member_keys = np.where(keys.title != 0, keys.title, keys.product_id)
    split_of = np.full(len(member_keys), LEFT_OUT, dtype=np.int64)
    kept = duplicates.kept
    split_of[kept] = assign_splits(duplicates.group[kept], member_keys[kept], shares, arguments.seed)

    rules = LogRules(
        arguments.positive_events, arguments.min_purchases, arguments.min_exposures, arguments.max_negatives
    )
    log_counts = None
    if log is not None:
        known = KnownProducts(keys.product_id, duplicates.kept_row, *read_aliases(work))
        log_counts = read_log(log, work, known, image_root, arguments.max_side, arguments.positive_events[0], progress)
    limited = np.zeros(len(split_of), dtype=bool)
    if arguments.max_per_category is not None:
        wanted = positive_rows(work, rules, len(split_of))
        train = np.flatnonzero(split_of == list(shares).index(TRAIN))
        limited[train] = over_category_limit(
            keys.leaf[train], wanted[train], keys.product_id[train], arguments.max_per_category, arguments.seed
        )
        split_of[limited] = LEFT_OUT

    write_products(work, out, split_of, list(shares), arguments.shard_rows, progress)
    ids, paths = read_ids(work), read_category_paths(work)
    splits = {
        split: count_split(split_of == number, keys.leaf, num_images, paths) for number, split in enumerate(shares)
    }
    log_report = None
    if log is not None and log_counts is not None:
        queries = write_queries(
            work, out, rules, split_of, duplicates.group, ids, list(shares), arguments.shard_rows, progress
        )
        for split, of_split in queries.pop("splits").items():
            splits[split] |= of_split
        log_report = {"mapping": log_mapping} | log_counts.as_json() | queries

    dropped = {}
    for reason, name in REASONS.items():
        rows = np.flatnonzero(duplicates.reason == reason)
        if len(rows):
            kept_rows = duplicates.kept_row[rows[:EXAMPLES]]
            pairs = zip(rows[:EXAMPLES].tolist(), kept_rows.tolist(), strict=True)
            examples = [" = ".join(dict.fromkeys([str(ids[row]), str(ids[kept_row])])) for row, kept_row in pairs]
            dropped[name] = {"rows": len(rows), "examples": examples}
    _, sizes = np.unique(duplicates.group[split_of >= 0], return_counts=True)
    report = {
        "arguments": _settings(arguments) | {"splits": shares, "image_root": image_root and image_root.folder.name},
        "catalogue": {"mapping": source.explain()} | counts.as_json(),
        "duplicates": dropped,
        "over_category_limit": int(limited.sum()),
        "products": int((split_of >= 0).sum()),
        "groups": {
            "groups": len(sizes),
            "of_several": int((sizes > 1).sum()),
            "largest": int(sizes.max(initial=0)),
            "placeholder_pictures": int(duplicates.placeholder.sum()),
        },
        "splits": splits,
        "log": log_report,
    }
    report["hints"] = hints(report)
    if wrong := discrepancies(report):
        raise RuntimeError(f"the report does not add up ({'; '.join(wrong)}); this is a fault of the program")
    draw_sheet(out / SHEET, work, split_of, list(shares), duplicates, keys.product_id, num_images, arguments.seed)
    write_text(out / REPORT, json.dumps(report, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    write_text(out / PAGE, markdown(report))
    _mark_done(out, work)
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 build-dataset`: build, and print the report."""
    parser = RecipeParser(
        BuildArguments,
        prog="moon2 build-dataset",
        description="Make products and queries of a shop's catalogue and behaviour log; an interrupted run goes on.",
    )
    (arguments,) = parser.parse_args_and_config(argv)
    report = build_dataset(arguments)
    print(summary(report, arguments.output_dir))
    if not report["products"]:
        raise ValueError(f"no product is left of {report['catalogue']['rows']:,} rows; {PAGE} says why")
    if arguments.push is not None:
        from ..publish import push_dataset

        print(push_dataset(arguments.output_dir, arguments.push, arguments.private, arguments.license))


def summary(report: Mapping[str, Any], output_dir: str) -> str:
    """A few lines on what was built and where to look."""
    catalogue, log = report["catalogue"], report["log"]
    duplicates = sum(entry["rows"] for entry in report["duplicates"].values())
    unusable = sum(entry["rows"] for entry in catalogue["dropped"].values())
    lines = [
        f"{catalogue['rows']:,} rows: {report['products']:,} products, {duplicates:,} duplicates, "
        f"{unusable:,} that are no products, {report['over_category_limit']:,} over the limit of their category"
    ]
    if log:
        written = log["positives"]["written"]
        lines.append(f"{log['lines']:,} log lines: {log['queries']:,} queries with {written:,} positives")
    lines += [f"note: {hint}" for hint in report["hints"]]
    sheet = f" and {SHEET}" * (Path(output_dir) / SHEET).exists()
    return "\n".join([*lines, f"look at {Path(output_dir) / PAGE}{sheet}"])


def _open(arguments: BuildArguments) -> tuple[Source, Source | None]:
    out = Path(arguments.output_dir).resolve()
    for given in (arguments.catalogue, arguments.log or ""):
        if given and out in (Path(given).resolve(), *Path(given).resolve().parents):
            raise ValueError(
                f"{given} lies in output_dir={arguments.output_dir}; give a folder of its own to write in"
            )
    columns = parse_columns("columns", arguments.columns)
    name, _, split = arguments.catalogue.partition(":")
    if name in NAMED:
        if arguments.log is not None or arguments.log_columns:
            raise ValueError(f"{name} brings its own log; leave log and log_columns out")
        return open_named(name, split or TRAIN, columns)
    if arguments.log is None and arguments.log_columns:
        raise ValueError("log_columns without a log; give log=FILE")
    source = open_source(arguments.catalogue, columns)
    if arguments.log is None:
        return source, None
    return source, open_log(arguments.log, parse_columns("log_columns", arguments.log_columns))


def _image_root(arguments: BuildArguments, source: Source, log: Source | None) -> ImageRoot | None:
    if arguments.image_root is None:
        return None
    addresses = chain(picture_addresses(source, "images"), picture_addresses(log, "image") if log else ())
    return ImageRoot(Path(arguments.image_root), addresses)


def _settings(arguments: BuildArguments) -> dict[str, Any]:
    """The arguments that decide what comes out."""
    return {name: value for name, value in asdict(arguments).items() if name not in NOT_COMPARED}


def _identity(arguments: BuildArguments, source: Source, log: Source | None) -> dict[str, Any]:
    """What a build must share with an earlier one to go on with it."""
    return {
        "format": FORMAT,
        "catalogue": source.fingerprint,
        "log": None if log is None else log.fingerprint,
        **_settings(arguments),
    }


def _is_done(out: Path, work: Path, identity: Mapping[str, Any], overwrite: bool) -> bool:
    """Prepare the folder; whether a build that is the same lies there, complete."""
    manifest = work / "manifest.json"
    if overwrite:
        _delete_work(work)
        for path in _outputs(out):
            path.unlink()
        manifest.unlink(missing_ok=True)
    if not manifest.exists():
        if strange := [*out.glob("products*.parquet"), *out.glob("queries*.parquet")]:
            raise ValueError(
                f"{out} holds {strange[0].name}, which would be read with what is built; give another output_dir"
            )
        work.mkdir(parents=True, exist_ok=True)
        write_text(manifest, json.dumps({"identity": identity, "files": None}))
    found = json.loads(manifest.read_text(encoding="utf-8"))
    changed = [name for name in identity if found["identity"].get(name) != identity[name]]
    if changed:
        told = {
            "format": "was begun by another version of moon2",
            "catalogue": "is of another catalogue, or the catalogue has changed since",
            "log": "is of another log, or the log has changed since",
        }
        reasons = [
            told.get(name, f"has {name}={found['identity'].get(name)!r}, not {identity[name]!r}") for name in changed
        ]
        raise ValueError(
            f"the build in {out} {', and '.join(reasons)}; give a new output_dir, or --overwrite true to begin again"
        )
    if found["files"] is not None:
        if missing := [name for name in found["files"] if not (out / name).exists()]:
            raise ValueError(f"{out} lacks {missing[0]} of a finished build; build it again with --overwrite true")
        _delete_work(work)
        return True
    for part in (*out.glob(".*.part"), *work.glob(".*.part")):
        part.unlink()
    return False


def _mark_done(out: Path, work: Path) -> None:
    manifest = work / "manifest.json"
    found = json.loads(manifest.read_text(encoding="utf-8"))
    names = [path.name for path in _outputs(out)]
    write_text(manifest, json.dumps(found | {"files": names}))
    _delete_work(work)


def _outputs(out: Path) -> list[Path]:
    """The files in a folder that a build writes."""
    shards = [path for path in sorted(out.glob("*.parquet")) if _SHARD.fullmatch(path.name)]
    return shards + [out / name for name in (REPORT, PAGE, SHEET) if (out / name).exists()]


def _delete_work(work: Path) -> None:
    for name in (CATALOGUE_WORK, LOG_WORK):
        for path in (*work.glob(f"{name}-*.parquet"), *work.glob(f".{name}-*.part")):
            path.unlink()
