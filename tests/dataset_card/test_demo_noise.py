from __future__ import annotations

from collections import Counter

import pytest
from datasets import Dataset, Features, Value

from moon2_dataset import PRODUCT_FEATURES, QUERY_FEATURES, join
from moon2_dataset.demo_noise import add_noise

TRUTH = Features({"slice": Value("string")})


@pytest.fixture(scope="module")
def tables():
    """Twenty products, the last two of one title, and forty queries, two of which have two rows."""
    products = [
        {
            "product_id": f"p{row}",
            "title": f"Mug {min(row, 18)}",
            "description": f"of p{row}",
            "category_path": ["Shop"],
            "attributes": [],
            "images": [{"bytes": bytes([row, number]), "path": None} for number in range(1 + row % 2)],
        }
        for row in range(20)
    ]
    queries = [
        {"query_id": f"q{row // 2 if row < 4 else row}", "text": f"mug {row // 2 if row < 4 else row}", "image": None,
         "product_id": f"p{row % 20}", "slice": "text"}
        for row in range(40)
    ]  # fmt: skip
    return (
        Dataset.from_list(products, features=PRODUCT_FEATURES),
        Dataset.from_list(queries, features=Features(QUERY_FEATURES | TRUTH)),
    )


def test_without_noise_nothing_changes_and_that_is_recorded(tables):
    products, queries = add_noise(*tables)
    assert products.select_columns(list(PRODUCT_FEATURES)).to_list() == tables[0].to_list()
    assert queries.select_columns([*QUERY_FEATURES, "slice"]).to_list() == tables[1].to_list()
    assert products.features == PRODUCT_FEATURES | {"image_noise": Value("bool"), "title_noise": Value("bool")}
    assert queries.features == QUERY_FEATURES | TRUTH | {"label_noise": Value("bool")}
    assert not any([*products["image_noise"], *products["title_noise"], *queries["label_noise"]])


@pytest.mark.parametrize(("column", "record", "share"), [("images", "image_noise", "wrong_images"),
                                                         ("title", "title_noise", "wrong_titles")])  # fmt: skip
def test_pictures_and_titles_are_exchanged_among_the_chosen(tables, column, record, share):
    products, queries = add_noise(*tables, **{share: 0.25})
    assert sum(products[record]) == 5
    for before, after in zip(tables[0], products, strict=True):
        differs = {name for name in PRODUCT_FEATURES if before[name] != after[name]}
        assert differs <= {column} and (after[record] or not differs)
    moved = [number for number, row in enumerate(products) if row[record]]
    assert Counter(map(str, products[column])) == Counter(map(str, tables[0][column]))
    assert sum(products[row][column] != tables[0][row][column] for row in moved) >= 4  # two products share a title
    assert not any(queries["label_noise"])
    assert sum(add_noise(*tables, **{share: 0.01})[0][record]) == 2
    assert sum(add_noise(*tables, **{share: 1.0})[0][record]) == 20


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_wrong_click_is_on_a_product_of_another_title(tables, share):
    products, queries = add_noise(*tables, wrong_clicks=share, wrong_titles=0.5)
    title_of = dict(zip(tables[0]["product_id"], tables[0]["title"], strict=True))
    right = {}
    for query in tables[1]:
        right.setdefault(query["query_id"], set()).add(title_of[query["product_id"]])
    for before, after in zip(tables[1], queries, strict=True):
        assert before | {"product_id": None} == {n: after[n] for n in before} | {"product_id": None}
        if after["label_noise"]:
            assert title_of[after["product_id"]] not in right[after["query_id"]]
        else:
            assert after["product_id"] == before["product_id"]
    assert sum(queries["label_noise"]) == 40 * share
    join(products, queries)  # no pair comes twice


def test_it_is_fixed_by_the_seed_and_what_is_wrong_at_a_low_share_is_at_a_higher_one(tables):
    shares = {"wrong_images": 0.2, "wrong_titles": 0.2, "wrong_clicks": 0.2}
    low, again, other = (add_noise(*tables, **shares, seed=seed) for seed in (0, 0, 1))
    high = add_noise(*tables, **{name: 0.6 for name in shares})
    for table, names in enumerate((("image_noise", "title_noise"), ("label_noise",))):
        assert low[table].to_list() == again[table].to_list() != other[table].to_list()
        for name in names:
            assert all(more or not less for less, more in zip(low[table][name], high[table][name], strict=True))
    assert low[0]["image_noise"] != low[0]["title_noise"]


def test_what_cannot_be_done_is_refused(tables):
    with pytest.raises(ValueError, match="wrong_clicks=1.5; give a share from 0 to 1"):
        add_noise(*tables, wrong_clicks=1.5)
    with pytest.raises(ValueError, match="wrong_images=nan; give a share"):
        add_noise(*tables, wrong_images=float("nan"))
    noisy = add_noise(*tables, wrong_titles=0.2)
    with pytest.raises(ValueError, match="row .* has title_noise already"):
        add_noise(*noisy, wrong_titles=0.2)
    again, _ = add_noise(*noisy, wrong_images=0.2)
    assert again["title_noise"] == noisy[0]["title_noise"]
    one = tables[0].select([0]), tables[1].select([0])
    with pytest.raises(ValueError, match="query_id q0: no product is wrong for it"):
        add_noise(*one, wrong_clicks=1.0)
    assert add_noise(*one, wrong_images=1.0)[0]["image_noise"] == [False]
