"""Mistakes put into a catalogue and its click log on purpose, and written down: wrong pictures, titles and clicks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from datasets import Dataset, Features, Value

from .schema import normalise_title


def add_noise(
    products: Dataset,
    queries: Dataset,
    *,
    wrong_images: float = 0.0,
    wrong_titles: float = 0.0,
    wrong_clicks: float = 0.0,
    seed: int = 0,
) -> tuple[Dataset, Dataset]:
    """Give some products the pictures or the title of another, and let some query rows point at a wrong product.

    Pictures and titles are exchanged among the products chosen for it, so that none is lost and none comes twice. A
    wrong click goes to any product of another title that is not right for the query. Rows that are wrong at a low
    share are also wrong at a higher one.

    Args:
        products: the catalogue; all of it is held in memory.
        queries: the click log.
        wrong_images: share of the products with the pictures of another; of two products at least, if it is not 0.
        wrong_titles: share of the products with the title of another; likewise.
        wrong_clicks: share of the query rows.
        seed: of the choice.

    Returns:
        Both tables with what was done in boolean columns: `image_noise` and `title_noise` of products, `label_noise`
        of queries. Training never reads them.

    Raises:
        ValueError: a share is none, there is noise already, or no product is wrong for a query.
    """
    for name, share in {"images": wrong_images, "titles": wrong_titles, "clicks": wrong_clicks}.items():
        if not 0 <= share <= 1:
            raise ValueError(f"wrong_{name}={share}; give a share from 0 to 1")
    catalogue, log = products.to_list(), queries.to_list()
    _prepare(catalogue, {"image_noise": wrong_images, "title_noise": wrong_titles})
    _prepare(log, {"label_noise": wrong_clicks})
    _point_elsewhere(log, catalogue, wrong_clicks, np.random.default_rng([seed, 2]))  # titles are still right
    _exchange(catalogue, "images", "image_noise", wrong_images, np.random.default_rng([seed, 0]))
    _exchange(catalogue, "title", "title_noise", wrong_titles, np.random.default_rng([seed, 1]))
    flag = Value("bool")
    return (
        Dataset.from_list(catalogue, Features(products.features | {"image_noise": flag, "title_noise": flag})),
        Dataset.from_list(log, Features(queries.features | {"label_noise": flag})),
    )


def _prepare(rows: list[dict], shares: Mapping[str, float]) -> None:
    """Record that nothing is wrong yet."""
    for record, share in shares.items():
        for number, row in enumerate(rows):
            if share and row.get(record):
                raise ValueError(f"row {number} has {record} already; give tables without it")
            row.setdefault(record, False)


def _exchange(rows: list[dict], column: str, record: str, share: float, rng: np.random.Generator) -> None:
    """Pass a column on from each chosen row to the next of them."""
    order = rng.permutation(len(rows)).tolist()
    chosen = order[: max(round(share * len(rows)), 2) if share and len(rows) > 1 else 0]
    values = [rows[number][column] for number in chosen]
    for number, value in zip(chosen, values[-1:] + values[:-1], strict=True):
        rows[number] |= {column: value, record: True}


def _point_elsewhere(log: list[dict], catalogue: list[dict], share: float, rng: np.random.Generator) -> None:
    """Let the chosen query rows point at a wrong product."""
    title_of = {product["product_id"]: normalise_title(product["title"]) for product in catalogue}
    ids, num_titles = list(title_of), len(set(title_of.values()))
    right: dict[str, set[str]] = {}
    for row in log:
        right.setdefault(row["query_id"], set()).add(title_of[row["product_id"]])
    for number in rng.permutation(len(log))[: round(share * len(log))].tolist():
        titles = right[log[number]["query_id"]]
        if len(titles) == num_titles:
            raise ValueError(f"query_id {log[number]['query_id']}: no product is wrong for it; give more products")
        wrong = ids[rng.integers(len(ids))]
        while title_of[wrong] in titles:
            wrong = ids[rng.integers(len(ids))]
        titles.add(title_of[wrong])  # so that no other row of this query points there too
        log[number] |= {"product_id": wrong, "label_noise": True}
