from __future__ import annotations

import pickle

import pytest
import torch

from moon2_training.cached_loss import KEYS
from moon2_training.collator import Moon2Collator
from moon2_training.triplets import TripletDataset


def test_rows_are_queries_then_positives_then_negatives(shop, tiny):
    model, processor = tiny
    triplets = [TripletDataset(shop, "explicit")[i] for i in (0, 2, 3, 4, 10)]
    batch = Moon2Collator(processor)(triplets)
    items = [t.query for t in triplets] + [t.positive for t in triplets] + [t.negative for t in triplets]
    assert batch["input_ids"].shape[0] == 15
    keys = ("packing", *KEYS)
    inputs = {name: value for name, value in batch.items() if name not in keys}
    with torch.no_grad():
        together = model(**inputs).embeddings
        for row, item in enumerate(items):
            alone = model(**processor(text=[item.text], images=[item.images])).embeddings[0]
            torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)
            assert batch["attention_mask"][row].any()


def test_keys_name_every_item_and_every_right_product(shop, tiny_processor):
    dataset = TripletDataset(shop, "explicit")
    rows = [0, 1, 10]
    triplets = [dataset[i] for i in rows]
    batch = Moon2Collator(tiny_processor)(triplets)
    positives = [int(shop.positive_row[i]) for i in rows]
    assert batch["product_keys"][:3].tolist() == shop.product_key[positives].tolist()
    assert batch["title_keys"][:3].tolist() == shop.title_key[positives].tolist()
    assert batch["product_keys"][3:].tolist() == [t.negative.product_key for t in triplets]
    both = {int(shop.product_key[0]), int(shop.product_key[8])}
    assert set(batch["positive_keys"][0].tolist()) == set(batch["positive_keys"][1].tolist()) == both
    assert sorted(batch["positive_keys"][2].tolist()) == sorted([0, int(shop.product_key[positives[2]])])
    assert all(batch[name].dtype == torch.int64 for name in ("product_keys", "title_keys", "positive_keys"))


@pytest.mark.parametrize("rows", [(0, 2, 10), (4,), (3, 4)])
def test_packing_holds_every_token_and_no_padding(shop, tiny, rows):
    model, processor = tiny
    batch = Moon2Collator(processor)([TripletDataset(shop)[i] for i in rows])
    inputs = {name: value for name, value in batch.items() if name not in KEYS}
    packing = inputs.pop("packing")
    with torch.no_grad():
        given, found = model.encode_views(**inputs, packing=packing), model.encode_views(**inputs)
    assert torch.equal(given.text_embeddings, found.text_embeddings)
    of_texts = found.routing.token_counts[0]
    sequences = int(batch["attention_mask"].sum())
    counts = [sequences, int(of_texts.sum())] if "pixel_values" in batch else [sequences]
    assert [len(slots) for slots in packing["slots"]] == counts and packing["lengths"][-1] == max(of_texts)


def test_what_was_left_out_is_named_if_anything_was(shop, tiny_processor):
    whole = TripletDataset(shop)[10]
    poor = whole._replace(unreadable=("query q", "product p, image 0"), emptied=("query q",))
    batch = Moon2Collator(tiny_processor)([whole, poor, poor])
    assert batch["unreadable"] == 2 * ["query q", "product p, image 0"] and batch["emptied"] == 2 * ["query q"]
    assert not {"unreadable", "emptied"} & Moon2Collator(tiny_processor)([whole]).keys()


def test_it_travels_to_a_worker(tiny_processor, shop):
    collator = pickle.loads(pickle.dumps(Moon2Collator(tiny_processor)))
    assert collator([TripletDataset(shop)[5]])["input_ids"].shape[0] == 2
