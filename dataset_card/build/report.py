"""The build report: where every row went, what the splits hold, and a sheet of pictures to look at."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..contact_sheet import SheetRow, contact_sheet
from .catalogue import read_products
from .clean import DROP_REASONS, NOTE_REASONS
from .duplicates import REASONS, Duplicates
from .log import LOG_REASONS
from .queries import QUERY_REASONS
from .splits import draw

PER_LINE = 8  # pictures
KEPT_LINES = 3
LISTED_CATEGORIES = 15
MEANINGS = {
    **LOG_REASONS,
    **QUERY_REASONS,
    **DROP_REASONS,
    **NOTE_REASONS,
    "same_product_id": "an earlier row has that id",
    "same_title_and_image": "an earlier product of the category has that title and nearly the same picture",
    "same_text_and_no_image": "an earlier product has the same text throughout, and neither has a picture",
    "over_category_limit": "its category has max_per_category products to train on without it",
    "unknown_product_shown": "some products that were shown are not in the catalogue, or an alias of several",
}


def count_split(
    chosen: np.ndarray, leaf: np.ndarray, num_images: np.ndarray, paths: Mapping[int, Sequence[str]]
) -> dict[str, Any]:
    """Count what a split holds.

    Args:
        chosen: (N,) bool, its products.
        leaf: (N,) uint64 key of the category path.
        num_images: (N,) pictures of each product.
        paths: key of a category path -> its levels.

    Returns:
        `products`, `with_image`, `images`, `without_category`, and `categories`: for each level, from the coarsest,
        the path down to there -> products, the largest first.
    """
    levels: list[Counter[str]] = []
    leaves, counts = np.unique(leaf[chosen], return_counts=True)
    for key, count in zip(leaves.tolist(), counts.tolist(), strict=True):
        path = paths[key]
        levels.extend(Counter() for _ in range(len(path) - len(levels)))
        for depth in range(len(path)):
            levels[depth][" > ".join(path[: depth + 1])] += count
    ranked = [sorted(level.items(), key=lambda entry: (-entry[1], entry[0])) for level in levels]
    return {
        "products": int(chosen.sum()),
        "with_image": int((num_images[chosen] > 0).sum()),
        "images": int(num_images[chosen].sum()),
        "without_category": int((leaf[chosen] == 0).sum()),
        "categories": [dict(level) for level in ranked],
    }


def discrepancies(report: Mapping[str, Any]) -> list[str]:
    """Numbers of a report that do not add up, as one line each; none if all is well."""

    def rows(table: Mapping[str, Mapping[str, Any]]) -> int:
        return sum(entry["rows"] for entry in table.values())

    catalogue, splits = report["catalogue"], report["splits"]
    in_splits = sum(split["products"] for split in splits.values())
    sums = [
        ("rows of the catalogue", catalogue["rows"], catalogue["cleaned"] + rows(catalogue["dropped"])),
        (
            "cleaned products",
            catalogue["cleaned"],
            in_splits + rows(report["duplicates"]) + report["over_category_limit"],
        ),
        ("products", report["products"], in_splits),
    ]
    for name, split in splits.items():
        top = sum(split["categories"][0].values()) if split["categories"] else 0
        sums.append((f"products of {name}", split["products"], top + split["without_category"]))
    if log := report["log"]:
        sums.append(("lines of the log", log["lines"], log["used"] + rows(log["dropped"])))
        for kind in ("positives", "negatives"):
            pairs = dict(log[kind])
            sums.append((kind, pairs.pop("pairs"), sum(pairs.values())))
        query_rows = sum(split["query_rows"] for split in splits.values())
        sums.append(("positives written", log["positives"]["written"], query_rows))
    return [f"{what}: {whole:,}, but the parts make {parts:,}" for what, whole, parts in sums if whole != parts]


def hints(report: Mapping[str, Any]) -> list[str]:
    """What looks wrong in a build, each with the way out."""
    found = []
    catalogue, log, arguments = report["catalogue"], report["log"], report["arguments"]
    for name, split in report["splits"].items():
        if not split["products"]:
            found.append(f"{name} has no products: the catalogue is small; give it a larger share")
    products = report["products"]
    largest = report["groups"]["largest"]
    if largest > max(20, products // 20):
        found.append(
            f"{largest:,} products hang together through titles and pictures and cannot be parted: "
            "look at the sheet; a smaller image_hash_distance joins less"
        )
    if "image_url_not_fetched" in catalogue["notes"]:
        found.append("image URLs were not fetched: download them and give their folder as image_root")
    if log is None:
        found.append("no log was given, so there are no queries: give log=FILE for those")
        return found
    unknown = log["dropped"].get("unknown_product", {"rows": 0})["rows"]
    if unknown > log["lines"] // 2:
        found.append(
            f"{unknown:,} of {log['lines']:,} log lines name a product that is not in the catalogue: "
            "look whether product_id is the same column in both (columns, log_columns); "
            "a column of other ids that the log has is given as columns aliases=COLUMN"
        )
    positive = sum(log["events"][event] for event in arguments["positive_events"])
    if not positive and log["events"]["click"] and "click" not in arguments["positive_events"]:
        found.append("the log has clicks and no purchases: give --positive_events purchase click")
    elif not log["positives"].get("written"):
        found.append("no line of the log made a positive, so there are no queries")
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page for people."""
    catalogue, log, splits = report["catalogue"], report["log"], report["splits"]
    lines = ["# Build report", ""]
    lines += [f"- **{hint}**" for hint in report["hints"]] + [""] * bool(report["hints"])
    lines += ["## Catalogue", "", "```", *catalogue["mapping"], "```", ""]
    fate = {
        "rows read": {"rows": catalogue["rows"], "examples": []},
        **catalogue["dropped"],
        **report["duplicates"],
        "over_category_limit": {"rows": report["over_category_limit"], "examples": []},
        "products kept": {"rows": report["products"], "examples": []},
    }
    lines += _reasons(fate, "rows")
    if catalogue["notes"]:
        lines += ["Kept, but something was lost:", "", *_reasons(catalogue["notes"], "times")]
    lines += ["## Splits", "", *_split_table(splits, report["arguments"]["splits"]), ""]
    groups = report["groups"]
    lines += [
        f"{groups['groups']:,} groups, {groups['of_several']:,} of them with several products, the largest with "
        f"{groups['largest']:,}: products with one title or nearly one picture, which no split parts. "
        f"{groups['placeholder_pictures']:,} products begin with a picture that stands under so many titles that it "
        "shows none of them; it joins nothing.",
        "",
    ]
    if log:
        lines += ["## Log", "", "```", *log["mapping"], "```", ""]
        fate = {
            "lines read": {"rows": log["lines"], "examples": []},
            **log["dropped"],
            "lines used": {"rows": log["used"], "examples": []},
        }
        lines += _reasons(fate, "lines", MEANINGS | LOG_REASONS)
        if log["notes"]:
            lines += ["Used, but something was lost:", "", *_reasons(log["notes"], "times", MEANINGS | LOG_REASONS)]
        lines += [", ".join(f"{count:,} {event}s" for event, count in log["events"].items()) + ".", ""]
        for kind in ("positives", "negatives"):
            found = {f"{kind} found" if name == "pairs" else name: count for name, count in log[kind].items()}
            lines += _reasons({name: {"rows": count, "examples": []} for name, count in found.items()}, "pairs")
        lines += [
            "A pair is a query and a product. "
            f"{log['queries']:,} queries; {log['queries_in_several_splits']:,} of them led to products of several "
            "splits and stand in each with those.",
            "",
        ]
    return "\n".join(lines + _category_tables(splits))


def draw_sheet(
    path: Path,
    work: Path,
    split_of: np.ndarray,
    splits: Sequence[str],
    duplicates: Duplicates,
    id_keys: np.ndarray,
    num_images: np.ndarray,
    seed: int,
) -> bool:
    """Draw some products that were kept, then pairs that were found alike, one line for each way to be alike.

    Args:
        path: PNG to write.
        work: folder of the work files.
        split_of: (N,) of every cleaned product, the split's place in `splits`; less than 0 for none.
        splits: names.
        duplicates: of the products.
        id_keys: (N,) uint64.
        num_images: (N,) pictures of each product.
        seed: of the choice.

    Returns:
        False, and nothing is drawn, if no product has a picture.
    """
    pictured = num_images > 0
    if not pictured.any():
        return False
    luck = draw(id_keys, seed, "contact sheet")

    def some(rows: np.ndarray, number: int) -> np.ndarray:
        return rows[np.argsort(luck[rows], kind="stable")][:number]

    kept = some(np.flatnonzero((split_of >= 0) & pictured), KEPT_LINES * PER_LINE)
    pairs: list[tuple[str, list[tuple[int, int]]]] = []
    for reason, name in REASONS.items():
        rows = some(np.flatnonzero((duplicates.reason == reason) & pictured), PER_LINE // 2)
        pairs.append(
            (f"dropped: {name.replace('_', ' ')}", [(int(duplicates.kept_row[row]), int(row)) for row in rows])
        )
    pairs.append(("kept in one group", _group_pairs(duplicates, pictured, luck)))

    products = read_products(work, {*kept.tolist(), *(row for _, found in pairs for pair in found for row in pair)})
    lines: list[SheetRow] = []
    for first in range(0, len(kept), PER_LINE):
        chosen = kept[first : first + PER_LINE].tolist()
        captions = [f"{products[row]['title'] or '(no title)'}\n{splits[split_of[row]]}" for row in chosen]
        lines.append(([_picture(products[row]) for row in chosen], captions))
    for name, found in pairs:
        pictures, captions = [], []
        for one, other in found:
            pictures += [_picture(products[one]), _picture(products[other])]
            captions += [f"{products[one]['product_id']}: {products[one]['title']}"]
            captions += [f"{name}\n{products[other]['product_id']}: {products[other]['title']}"]
        if found:
            lines.append((pictures, captions))
    contact_sheet(lines, path, "Products of the new data set, and below them pairs that were found alike")
    return True


def _group_pairs(duplicates: Duplicates, pictured: np.ndarray, luck: np.ndarray) -> list[tuple[int, int]]:
    """Two products each of some groups."""
    rows = np.flatnonzero(duplicates.kept & pictured)
    rows = rows[np.lexsort((rows, duplicates.group[rows]))]
    groups = duplicates.group[rows]
    second = np.flatnonzero(groups[1:] == groups[:-1])
    _, first = np.unique(groups[second], return_index=True)
    second = second[first]
    second = second[np.argsort(luck[rows[second]], kind="stable")][: PER_LINE // 2]
    return [(int(rows[place]), int(rows[place + 1])) for place in second]


def _picture(product: Mapping[str, Any]) -> Image.Image | None:
    if not product["images"]:
        return None
    try:
        picture = Image.open(io.BytesIO(product["images"][0]["bytes"]))
        picture.load()
    except Exception:  # damage that only shows when it is drawn ends in every kind of error
        return None
    return picture


def _reasons(table: Mapping[str, Mapping[str, Any]], unit: str, meanings: Mapping[str, str] = MEANINGS) -> list[str]:
    lines = [f"| | {unit} | |", "|---|---:|---|"]
    for number, (reason, entry) in enumerate(table.items()):
        if number and not entry["rows"]:
            continue
        told = meanings.get(reason, "")
        examples = "; ".join(_cell(example) for example in entry["examples"])
        lines.append(f"| {reason} | {entry['rows']:,} | {told}{' – ' * bool(told and examples)}{examples} |")
    return [*lines, ""]


def _split_table(splits: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, float]) -> list[str]:
    total = max(1, sum(split["products"] for split in splits.values()))
    first = next(iter(splits))
    lines = [
        "| | wanted | share | products | with image | images each | query rows | queries | positives each "
        f"| with negatives | also in {first} |",
        "|---|" + 10 * "---:|",
    ]
    for name, split in splits.items():
        products = split["products"]
        cells = [f"{100 * wanted[name]:.1f} %", f"{100 * products / total:.1f} %", f"{products:,}"]
        cells.append(f"{100 * split['with_image'] / max(1, products):.1f} %")
        cells.append(f"{split['images'] / max(1, products):.2f}")
        if "queries" in split:
            cells += [f"{split['query_rows']:,}", f"{split['queries']:,}", f"{split['mean_positives']:.2f}"]
            cells += [f"{split['queries_with_negatives']:,}", f"{split.get(f'queries_also_in_{first}', 0):,}"]
        else:
            cells += 5 * ["–"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _category_tables(splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for depth in range(max(len(split["categories"]) for split in splits.values())):
        counts = {name: (split["categories"][depth : depth + 1] or [{}])[0] for name, split in splits.items()}
        total = sum((Counter(of_split) for of_split in counts.values()), Counter())
        ranked = sorted(total.items(), key=lambda entry: (-entry[1], entry[0]))
        lines += [f"## Categories, level {depth + 1}: {len(ranked):,}", ""]
        lines += [f"| | {' | '.join(splits)} |", "|---|" + len(splits) * "---:|"]
        for path, _ in ranked[:LISTED_CATEGORIES]:
            lines.append(f"| {_cell(path)} | {' | '.join(f'{counts[name].get(path, 0):,}' for name in splits)} |")
        if len(ranked) > LISTED_CATEGORIES:
            rest = [sum(counts[name].get(path, 0) for path, _ in ranked[LISTED_CATEGORIES:]) for name in splits]
            lines.append(f"| {len(ranked) - LISTED_CATEGORIES:,} more | {' | '.join(f'{n:,}' for n in rest)} |")
        lines.append("")
    return lines


def _cell(text: str) -> str:
    """Text that stays within a cell of a table."""
    return text[:120].replace("|", "\\|").replace("\n", " ")
