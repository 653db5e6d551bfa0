"""How a data set was built and augmented, told from the reports that lie beside it, for its card."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .augment.report import REPORT as AUGMENT_REPORT
from .build.clean import DROP_REASONS
from .build.report import MEANINGS
from .hub_card import base_name, markdown_table, plain_text, without_path

REPORT = "build_report.json"
COUNTED = {
    "under_min_purchases": "the query has too few purchases of it",
    "over_category_limit": "the product is over the limit of its category",
    "variant_of_a_clicked_product": "a variant or copy of what was clicked or bought",
    "in_another_split": "the product is in another split than what was bought",
    "over_max_negatives": "shown less often than max_negatives others",
}
AUGMENTED = {
    "title": "titles: {}",
    "rejected": "– titles rejected by the guard: {}",
    "made": "pictures made: {}",
    "dropped": "– pictures dropped: {}",
}
OPTIONS = (
    "enricher", "vlm", "spacy", "variants", "segmenter", "editor", "scorer", "score_threshold", "score_margin",
    "core_region", "seed",
)  # fmt: skip


def read_construction(folder: Path) -> tuple[str, str] | None:
    """Tell how a folder was built.

    Args:
        folder: of a data set; its build_report.json is read.

    Returns:
        (a part of the card in Markdown, the command without the shop's own files), None where there is no report.

    Raises:
        ValueError: the report cannot be read.
    """
    path = folder / REPORT
    if not path.is_file():
        return None
    with _readable(path):
        report = json.loads(path.read_text(encoding="utf-8"))
        return "\n\n".join(_paragraphs(report)), _command(report["arguments"], with_log=bool(report["log"]))


def read_augmentation(files: Sequence[Path]) -> str | None:
    """Tell how products were augmented.

    Args:
        files: of products; the reports that `moon2 augment` leaves beside each, or in a folder, are read.

    Returns:
        A part of the card in Markdown, None where there is no report.

    Raises:
        ValueError: a report cannot be read.
    """
    counts: Counter[str] = Counter()
    options: dict[str, str] = {}
    reports = [file.with_name(f"{file.name}.report.json") for file in files]
    reports += sorted({file.with_name(AUGMENT_REPORT) for file in files})
    for path in reports:
        if path.is_file():
            with _readable(path):
                report = json.loads(path.read_text(encoding="utf-8"))
                counts["products"] += report["products"]
                for name, told in AUGMENTED.items():
                    counts.update({told.format(reason): found["rows"] for reason, found in report[name].items()})
                counts["**boxes of products found**"] += report["core_regions"]
                options |= {name: _shown(value) for name, value in report["made_from"].items() if name in OPTIONS}
    if not counts:
        return None
    given = ", ".join(f"{name} {plain_text(options[name])}" for name in OPTIONS if options.get(name))
    return f"{_table('', [(name, count, '') for name, count in counts.items()])}\n\nMade with {given}."


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise ValueError(f"{path}: no report that can be read ({reason}); make it anew, or remove it") from error


def _paragraphs(report: Mapping[str, Any]) -> Iterator[str]:
    catalogue, log, groups = report["catalogue"], report["log"], report["groups"]
    yield "By `moon2 build-dataset`, out of a catalogue" + (" and a behaviour log." if log else "; there was no log.")
    rows = [("rows of the catalogue", catalogue["rows"], ""), *_reasons(catalogue["dropped"], DROP_REASONS)]
    rows += _reasons(report["duplicates"])
    limited = {"over_category_limit": {"rows": report["over_category_limit"]}}
    yield _table("rows", [*rows, *_reasons(limited), ("**products**", report["products"], "")])
    if catalogue["notes"]:
        yield "Kept, but something was lost:"
        yield _table("times", _reasons(catalogue["notes"]))
    yield (
        f"Products with one title or nearly one picture are a group, and no split parts a group: {groups['groups']:,} "
        f"groups, {groups['of_several']:,} of them with several products, the largest with {groups['largest']:,}."
    )
    if not log:
        return
    rows = [("lines of the log", log["lines"], ""), *_reasons(log["dropped"])]
    yield _table("lines", [*rows, ("**lines used**", log["used"], _events(log["events"]))])
    for kind, what in (
        ("positives", "bought or clicked for a query"),
        ("negatives", "shown for a query, and left alone"),
    ):
        counts = dict(log[kind])
        rows = [(f"products {what}", counts.pop("pairs"), ""), *_reasons(_counted(counts), COUNTED)]
        yield _table("pairs", [*rows, (f"**{kind}**", counts["written"], "")])
    yield (
        "The grade of a positive is 1 + log2 of the number of its events. Queries of one normalised text and picture "
        f"are one query; {log['queries_in_several_splits']:,} of {log['queries']:,} led to products of several splits "
        "and stand in each with those."
    )


def _counted(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    return {name: {"rows": count} for name, count in counts.items() if name != "written"}


def _reasons(
    found: Mapping[str, Mapping[str, Any]], meanings: Mapping[str, str] = MEANINGS
) -> list[tuple[str, int, str]]:
    """Rows of a table, without the examples: they may quote a shopper."""
    return [
        (f"– {plain_text(name)}", entry["rows"], plain_text(meanings.get(name, "")))
        for name, entry in found.items()
        if entry["rows"]
    ]


def _table(unit: str, rows: list[tuple[str, int, str]]) -> str:
    width = 3 if any(told for _, _, told in rows) else 2
    return markdown_table(("", unit, "")[:width], [(name, f"{count:,}", told)[:width] for name, count, told in rows])


def _shown(value: Any) -> str:
    return without_path(value) if isinstance(value, str) else "" if value is None else f"{value}"


def _events(events: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {event}s" for event, count in events.items() if count)


def _command(arguments: Mapping[str, Any], with_log: bool) -> str:
    words = ["moon2", "build-dataset", "--catalogue", "CATALOGUE", *(["--log", "LOG"] if with_log else [])]
    words += ["--output_dir", "FOLDER"]
    for name, value in arguments.items():
        if name == "splits":
            value = [f"{split}={share:g}" for split, share in value.items()]
        if name == "image_root" and value:
            value = base_name(value)
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)
