"""What `moon2 augment` did: counts by reason, mean scores, and pictures and titles before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..contact_sheet import contact_sheet
from ..shards import Tally
from .expansion import read_first

REPORT, PAGE, SHEET = "augment_report.json", "augment_report.md", "augment_contact_sheet.png"  # of a folder
SHEET_ROWS = 12
GROUPS = {
    "title": ("Titles", "title: "),
    "rejected": ("Titles that the guard rejected, the original stays", "title rejected: "),
    "subject": ("How the product was found in its picture", "subject: "),
    "made": ("Variants made", "made: "),
    "dropped": ("Variants dropped", "dropped: "),
    "box": ("Boxes asked of the model", "box: "),
    "failed": ("What models failed at", "failed: "),
}


def join_notes(notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One `tally` and `numbers` out of those of several parts, in their order."""
    tally, sums = Tally(), {}
    for note in notes:
        tally.merge(note["tally"])
        for name, value in note["numbers"].items():
            sums[name] = sums.get(name, 0) + value
    return {"tally": tally.as_json(), "numbers": sums}


def counts_of(notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts and mean scores over a run, as they stand in its report.

    Args:
        notes: of each file, its `tally` and `numbers`.
    """
    counts, sums = join_notes(notes).values()
    report: dict[str, Any] = {
        name: {key.removeprefix(prefix): value for key, value in counts.items() if key.startswith(prefix)}
        for name, (_, prefix) in GROUPS.items()
    }
    report["core_regions"] = counts.get("core region", {"rows": 0})["rows"]
    report["unreadable_images"] = counts.get("unreadable image", {"rows": 0, "examples": []})
    report["mean_score"] = {
        of: sums[f"score_of_{of}"] / sums[f"scored_{of}"] if sums.get(f"scored_{of}") else None
        for of in ("originals", "variants")
    }
    return report


def hints(report: Mapping[str, Any]) -> list[str]:
    """What looks wrong in a run, each with the way out."""
    found = []
    made, dropped = _rows(report, "made"), _rows(report, "dropped")
    if dropped > made / 2:
        found.append(
            f"{dropped:,} of {made:,} variants were dropped: look at them and at the mean scores; a larger "
            "--score_margin, or a lower --score_threshold where one is given, keeps more"
        )
    for group, what in (("title", "titles"), ("box", "boxes")):
        cut = report[group].get("the answer was cut", {"rows": 0})["rows"]
        if cut > _rows(report, group) / 10:
            found.append(
                f"{cut:,} answers of the model about {what} were cut before their end and left out: where it thinks "
                "first, give it room with --thinking_tokens, such as 1024"
            )
    return found


def markdown(report: Mapping[str, Any], name: str) -> str:
    """The report for people.

    Args:
        report: as `augment` returns it.
        name: of the file or folder that was written.
    """
    lines = [f"# {name}", "", f"{report['products']:,} products in {report['seconds']:,} s.", ""]
    lines += [line for hint in hints(report) for line in (f"- **{hint}**", "")]
    if len(report["files"]) > 1 or report["left_out"]:
        lines += ["## Files", "", "| | rows |", "|---|---|"]
        lines += [f"| {_cell(file)} | {rows:,} |" for file, rows in report["files"].items()]
        lines += [f"| {_cell(file)} | held out to be judged on: left out |" for file in report["left_out"]] + [""]
    for key, (heading, _) in GROUPS.items():
        if report[key]:
            lines += [f"## {heading}", "", "| | rows | for example |", "|---|---|---|"]
            for reason, found in report[key].items():
                example = _cell(found["examples"][0]) if found["examples"] else ""
                lines.append(f"| {_cell(reason)} | {found['rows']:,} | {example} |")
            lines.append("")
    lines += [f"Boxes of products found: {report['core_regions']:,}.", ""]
    if (unreadable := report["unreadable_images"])["rows"]:
        lines += [f"Pictures that cannot be read: {unreadable['rows']:,}."]
        lines += [f"- {_cell(example)}" for example in unreadable["examples"]] + [""]
    scores = report["mean_score"]
    if scores["originals"] is not None:
        variants = "–" if scores["variants"] is None else f"{scores['variants']:.3f}"
        lines += [f"Mean score against the title: originals {scores['originals']:.3f}, variants {variants}.", ""]
    if report["replaced_columns"]:
        lines += [f"The input had {', '.join(report['replaced_columns'])} already; they were replaced.", ""]
    lines += ["## Made from", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in report["made_from"].items()]
    return "\n".join(lines) + "\n"


def summary(report: Mapping[str, Any], page: Path, sheet: Path) -> str:
    """A few lines on what was done and where to look."""
    enriched = report["title"].get("enriched", {"rows": 0})["rows"]
    made, dropped, rejected = (f"{_rows(report, group):,}" for group in ("made", "dropped", "rejected"))
    lines = [
        f"{report['products']:,} products: {enriched:,} titles enriched, {rejected} rejected; "
        f"{made} variants made, {dropped} dropped; {report['core_regions']:,} boxes"
    ]
    if unreadable := report["unreadable_images"]["rows"]:
        lines.append(f"note: {unreadable:,} pictures cannot be read; their products came out without variants")
    if failed := _rows(report, "failed"):
        lines.append(f"note: models failed {failed:,} times; the report says at what, and why")
    lines += [f"note: {hint}" for hint in hints(report)]
    return "\n".join([*lines, f"look at {page} and {sheet.name}"])


def _rows(report: Mapping[str, Any], group: str) -> int:
    return sum(found["rows"] for found in report[group].values())


def draw_sheet(files: Sequence[Path], path: Path, name: str, max_side: int) -> None:
    """A contact sheet of some products, from the whole length of the catalogue: before, then what was made of it.

    Args:
        files: the augmented catalogue.
        path: PNG file to write.
        name: of the catalogue.
        max_side: pixels, of pictures as they are read.
    """
    parquets = [pq.ParquetFile(file, page_checksum_verification=True) for file in files]
    last = sum(parquet.metadata.num_rows for parquet in parquets) - 1
    wanted = np.unique(np.linspace(0, last, SHEET_ROWS).astype(int))
    sheet, start = [], 0
    for file, parquet in zip(files, parquets, strict=True):
        columns = [name for name in ("product_id", "title", "enriched_title", "images", "expanded_images")
                   if name in parquet.schema_arrow.names]  # fmt: skip
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            here = wanted[(wanted >= start) & (wanted < start + rows)] - start
            if len(here):
                for product in parquet.read_row_group(group, columns).take(here).to_pylist():
                    sheet.append(_sheet_row(product, file.parent, max_side))
            start += rows
    contact_sheet(sheet, path, f"{name}: each product before and after")


def _sheet_row(product: Mapping[str, Any], folder: Path, max_side: int) -> tuple[list, list[str]]:
    title, enriched = product["title"] or "", product["enriched_title"]
    pictures = [read_first(product.get("images") or (), folder, max_side)[1]]
    captions = [f"{title}\n{'now: ' + enriched if enriched and enriched != title else '(title unchanged)'}"]
    for image in product["expanded_images"]:
        pictures.append(read_first([image], folder, max_side)[1])
        captions.append(str(image["path"]).rpartition(".")[0])
    return pictures, captions


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return " ".join(text.replace("|", "\\|").split())
