"""`moon2 render`: a drawn shop as Parquet, with noise on purpose."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from .data_files import KINDS
from .demo_catalogue import render_demo_catalogue, split_demo_catalogue
from .demo_noise import add_noise
from .disk_errors import naming
from .shards import GROUP_ROWS, ShardWriter, read_notes

DRAWN = "drawn"  # what is noted in a file, so that a later call may replace it


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 render`: write a drawn shop as Parquet and say what is in it."""
    parser = argparse.ArgumentParser(
        prog="moon2 render",
        description="Draw a shop whose truth is known, as products and queries in Parquet: where each attribute can "
        "be seen, what each query needs, and what is wrong on purpose. All shares are from 0 to 1. A shop that was "
        "drawn into the folder before is replaced.",
    )
    parser.add_argument("folder", type=Path, help="where to write; made if it is not there")
    parser.add_argument("--products", type=int, default=600, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: %(default)s)")
    parser.add_argument(
        "--held_out", type=float, default=0.2,
        help="share of the products written to files of their own, without noise, to be judged on; 0 for one pair of "
        "files with everything (default: %(default)s)",
    )  # fmt: skip
    shares = {
        "only_in_picture": "share of colours, patterns and materials that titles leave out",
        "only_in_text": "share of colours, patterns and materials that pictures do not show",
        "wrong_images": "share of the products with the pictures of another",
        "wrong_titles": "share of the products with the title of another",
        "wrong_clicks": "share of the queries that point at a product which was not meant",
    }
    for name, meaning in shares.items():
        parser.add_argument(f"--{name}", type=float, default=0.0, help=f"{meaning} (default: 0)")
    options = parser.parse_args(argv)
    if options.products < 1 or not 0 <= options.held_out < 1:
        raise ValueError(
            f"products={options.products}, held_out={options.held_out}; give 1 product or more and a share under 1"
        )
    earlier = _drawn_before(options.folder)
    noise = {name: getattr(options, name) for name in ("wrong_images", "wrong_titles", "wrong_clicks")}
    shop = render_demo_catalogue(
        options.products,
        options.seed,
        only_in_picture=options.only_in_picture,
        only_in_text=options.only_in_text,
        progress=True,
    )
    parts = {"": shop}
    if round(options.held_out * options.products):
        split = split_demo_catalogue(*shop, options.held_out, options.seed)
        parts = {name: (part.products, part.queries) for name, part in zip(("-train", "-test"), split, strict=True)}
    written = []
    for name, part in parts.items():
        if name != "-test":
            part = add_noise(*part, **noise, seed=options.seed)
        for kind, table in zip(("products", "queries"), part, strict=True):
            path = options.folder / f"{kind}{name}.parquet"
            _write(table, path)
            written.append(path)
            print(f"{path}: {_summary(table)}")
    for path in earlier:
        if path not in written:
            path.unlink()


def _drawn_before(folder: Path) -> list[Path]:
    """Make a folder, or find the tables in it that an earlier call has drawn.

    Raises:
        ValueError: there are others, which this one would replace, or which would be read with what it draws.
    """
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    found = [path for kind in KINDS for path in sorted(folder.glob(f"{kind}*.parquet"))]
    for path in found:
        if not _is_drawn(path):
            raise ValueError(
                f"{folder} holds {path.name}, which `moon2 render` did not draw; give another folder, or move it away"
            )
    return found


def _is_drawn(path: Path) -> bool:
    try:
        return DRAWN in read_notes(path)
    except (KeyError, TypeError, ValueError):  # no notes, no metadata, no Parquet
        return False


def _write(table: Dataset, path: Path) -> None:
    """Write a table whole or not at all, with a note that it is drawn."""
    writer = ShardWriter(path, table.features.arrow_schema)
    for rows in table.with_format("arrow").iter(GROUP_ROWS):
        writer.write(rows)
    writer.close({DRAWN: True})


def _summary(table: Dataset) -> str:
    """Rows, slices and noise of a table in a line."""
    parts = [f"{len(table):,} rows"]
    if "slice" in table.column_names:
        parts += [f"{count:,} need {name}" for name, count in sorted(Counter(table["slice"]).items())]
    parts += [f"{sum(table[name]):,} {name}" for name in table.column_names if name.endswith("_noise")]
    return ", ".join(parts)


if __name__ == "__main__":
    main()
