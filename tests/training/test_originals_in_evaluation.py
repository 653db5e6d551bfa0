"""What co-augmentation adds to a catalogue reaches training items only: every way to judge a model sees originals."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
from datasets import Dataset, Features

from moon2_dataset import OPTIONAL_PRODUCT_FEATURES, join
from moon2_training.encode import Encoder
from moon2_training.evaluate import evaluate
from moon2_training.items import ProductItems
from moon2_training.mining import mine_negatives
from moon2_training.trainer import Moon2Trainer
from moon2_training.trainer_config import Moon2TrainingArguments
from moon2_training.triplets import TripletDataset

MEASURED = ("seconds", "items_per_second")


@pytest.fixture(scope="module")
def poisoned(shop, make_image):
    """The shop with the three columns filled so that each of them, if it were read, would change what is found.

    The enriched title is the title of the product after next, the variants are pictures of noise, and the core region
    is a corner of the first picture.
    """

    def picture(seed: int) -> dict:
        file = io.BytesIO()
        make_image(seed, 50, 50).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    rows = shop.products.to_list()
    titles = [row["title"] for row in rows]
    for number, row in enumerate(rows):
        row["enriched_title"] = titles[number - 2] or "poison"
        row["expanded_images"] = [picture(7000 + number)]
        row["core_region"] = [0.0, 0.0, 0.3, 0.3] if row["images"] else []
    features = Features(shop.products.features | OPTIONAL_PRODUCT_FEATURES)
    return join(Dataset.from_list(rows, features=features), shop.queries)


def scores(results: dict) -> dict:
    return {name: value for name, value in results.items() if name not in MEASURED}


def test_the_poison_works(tiny, shop, poisoned):
    """Each of the columns, put where a model reads, changes retrieval: the tests below can fail."""
    clean = scores(evaluate(*tiny, shop.products, shop.queries, progress=False))
    for read, instead in (("title", "enriched_title"), ("images", "expanded_images")):
        swapped = poisoned.products.remove_columns(read).rename_column(instead, read)
        assert scores(evaluate(*tiny, swapped, shop.queries, progress=False)) != clean
    training = TripletDataset(poisoned, enriched_title_share=1.0, expanded_image_share=1.0)
    plain = TripletDataset(shop)
    for index in (7, 10, 15):
        assert training[index].positive.text != plain[index].positive.text
        assert training[index].positive.images != plain[index].positive.images


def test_evaluation_is_the_same_with_and_without(tiny, shop, poisoned):
    clean, found = (evaluate(*tiny, data.products, data.queries, progress=False) for data in (shop, poisoned))
    assert scores(found) == scores(clean)
    assert found["attributes"]["tasks"] and found["classification"]["tasks"]


def test_the_trainer_judges_by_originals(tiny, shop, poisoned, tmp_path):
    arguments = Moon2TrainingArguments(
        tmp_path, enriched_title_share=1.0, expanded_image_share=1.0, use_cpu=True, report_to="none", disable_tqdm=True
    )
    clean, found = (
        Moon2Trainer(copy.deepcopy(tiny[0]), arguments, eval_dataset=data, processing_class=tiny[1]).evaluate()
        for data in (shop, poisoned)
    )
    assert found == clean and len(found) > 10


def test_products_are_encoded_and_mined_from_originals(tiny, shop, poisoned):
    items = [ProductItems(data.products) for data in (shop, poisoned)]
    assert list(items[0]) == list(items[1])
    clean, found = (Encoder(*tiny).encode(of_data, progress=False) for of_data in items)
    assert np.array_equal(clean, found)
    assert np.array_equal(*(mine_negatives(*tiny, data, 3, progress=False).numpy() for data in (shop, poisoned)))


def test_the_tasks_of_mteb_hold_originals(shop, poisoned):
    pytest.importorskip("mteb", reason="mteb is an extra")
    from moon2_training.mteb_task import retrieval_tasks

    for clean, found in zip(*(retrieval_tasks(data, "shop") for data in (shop, poisoned)), strict=True):
        clean, found = (task.dataset["default"]["test"] for task in (clean, found))
        for table in ("corpus", "queries"):
            assert found[table].column_names == clean[table].column_names
            assert found[table].with_format("arrow")[:].equals(clean[table].with_format("arrow")[:])
        assert found["relevant_docs"] == clean["relevant_docs"]


def test_queries_and_their_photos_are_never_augmented(shop, poisoned):
    clean = TripletDataset(shop, "explicit", seed=1)
    found = TripletDataset(poisoned, "explicit", seed=1, enriched_title_share=1.0, expanded_image_share=1.0)
    for index in range(len(shop)):
        one, other = clean[index].query, found[index].query
        assert one.text == other.text and len(one.images) == len(other.images)
        for image, same in zip(one.images, other.images, strict=True):
            assert np.array_equal(image, same)
