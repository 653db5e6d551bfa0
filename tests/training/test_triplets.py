from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset, Features
from PIL import Image

from modeling_moon2.processing_moon2 import load_image
from moon2_dataset import OPTIONAL_PRODUCT_FEATURES, join
from moon2_training.triplets import TripletDataset, TripletKey, item_text

BROKEN = {"bytes": b"no image", "path": None}
ROW_OF_QUERY = {"q0": 0, "q1": 2, "q2": 3, "q3": 4, "q4": 5}


def pixels(images):
    return [np.asarray(image).tobytes() for image in images]


def test_an_example_is_fixed_by_seed_epoch_and_index(shop):
    dataset, again = TripletDataset(shop, "explicit", seed=3), TripletDataset(shop, "explicit", seed=3)
    for index in range(len(dataset)):
        for epoch in (0, 5):
            one, other = dataset[TripletKey(index, epoch)], again[TripletKey(index, epoch)]
            assert pixels(one.query.images) == pixels(other.query.images)
            assert one.negative.product_key == other.negative.product_key
    index = 10
    photos = {tuple(pixels(dataset[TripletKey(index, epoch)].query.images)) for epoch in range(4)}
    photos.add(tuple(pixels(TripletDataset(shop, seed=4)[index].query.images)))
    assert len(photos) == 5


def test_the_query_photo_is_the_logs_own_or_made_from_the_product(shop):
    dataset = TripletDataset(shop)
    own = dataset[ROW_OF_QUERY["q1"]]
    assert pixels(own.query.images) == pixels(dataset[TripletKey(ROW_OF_QUERY["q1"], 9)].query.images)
    made = dataset[10]
    assert pixels(made.query.images) != pixels(made.positive.images) and len(made.query.images) == 1
    image_only = dataset[ROW_OF_QUERY["q2"]]
    assert image_only.query.text is None and len(image_only.query.images) == 1
    without_picture = dataset[ROW_OF_QUERY["q3"]]
    assert without_picture.query.images == [] and without_picture.positive.images == []


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(shop):
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 18, 3), dtype=np.uint8)).resize(
        (1800, 2400)
    )
    file = io.BytesIO()
    large.save(file, "JPEG")
    products = shop.products.select([0]).to_list()
    products[0] |= {"images": [{"bytes": file.getvalue(), "path": None}]}
    queries = Dataset.from_dict({"query_id": ["a"], "text": ["mug"], "image": [None], "product_id": ["p0"]})
    data = join(Dataset.from_list(products, features=shop.products.features), queries)
    (whole,), (small,) = (TripletDataset(data, pixel_budget=b)[0].positive.images for b in (None, 64 * 64))
    assert whole.size == (1800, 2400) and small.size == (450, 600)  # photos of 512 pixels are made from it
    again = whole.resize(small.size)
    assert np.abs(np.asarray(again, dtype=float) - np.asarray(small)).mean() < 2


def test_several_pictures_are_drawn_anew_and_the_photo_shows_another(shop, monkeypatch):
    queries = Dataset.from_dict({"query_id": ["a"], "text": ["mug"], "image": [None], "product_id": ["p2"]})
    data = join(shop.products, queries)
    monkeypatch.setattr("moon2_training.triplets.make_query_photo", lambda image, rng: image)
    dataset = TripletDataset(data)
    seen = set()
    for epoch in range(20):
        triplet = dataset[TripletKey(0, epoch)]
        assert len(triplet.positive.images) == 1
        assert pixels(triplet.query.images) != pixels(triplet.positive.images)
        seen.add(pixels(triplet.positive.images)[0])
    assert len(seen) == 3
    both = TripletDataset(data, max_images_per_item=2)[0]
    assert len(both.positive.images) == 2 and not set(pixels(both.query.images)) & set(pixels(both.positive.images))
    assert len(TripletDataset(data, max_images_per_item=9)[0].positive.images) == 3


def test_all_right_products_of_a_query_are_known(shop):
    keys = {int(shop.product_key[0]), int(shop.product_key[8])}
    for row in (0, 1):
        assert set(TripletDataset(shop)[row].positive_keys) == keys
    assert TripletDataset(shop)[10].positive_keys == (int(shop.product_key[shop.positive_row[10]]),)


def test_in_batch_mode_has_no_negative_and_explicit_never_a_right_one(shop):
    assert TripletDataset(shop)[0].negative is None
    dataset = TripletDataset(shop, "explicit")
    row_of_key = {int(key): row for row, key in enumerate(shop.product_key)}
    for index in range(len(dataset)):
        positive_row = shop.positive_row[index]
        negatives = set()
        for epoch in range(25):
            triplet = dataset[TripletKey(index, epoch)]
            row = row_of_key[triplet.negative.product_key]
            negatives.add(row)
            assert triplet.negative.product_key not in triplet.positive_keys
            assert shop.title_key[row] != shop.title_key[positive_row]
        if index == ROW_OF_QUERY["q4"]:
            assert negatives == {9, 10}
        else:
            assert {int(shop.leaf[row]) for row in negatives} == {int(shop.leaf[positive_row])}
            assert len(negatives) > 2


def test_a_leaf_with_nothing_else_falls_back_to_the_catalogue(shop):
    leaf = shop.leaf.copy()
    leaf[5] = 77
    data = replace(shop, leaf=leaf)
    index = int(np.flatnonzero(data.positive_row == 5)[0])
    keys = {TripletDataset(data, "explicit")[TripletKey(index, e)].negative.product_key for e in range(20)}
    assert len(keys) > 5 and int(data.product_key[5]) not in keys


def test_a_catalogue_of_right_products_only_has_no_negative(shop):
    products = shop.products.select([0, 1])
    queries = Dataset.from_dict({"query_id": ["a"], "text": ["mug"], "image": [None], "product_id": ["p0"]})
    with pytest.raises(ValueError, match="query a: .* no negative exists"):
        TripletDataset(join(products, queries), "explicit")[0]


def test_item_text_holds_the_chosen_fields(shop):
    product = shop.products[6]
    assert item_text(product) == "Lumo navy blue mug 6"
    assert item_text(product, ("title", "category", "attributes")) == {
        "title": "Lumo navy blue mug 6",
        "category": ["Shop", "mug"],
        "attributes": [{"name": "colour", "value": "navy blue"}],
    }
    assert item_text(product | {"category_path": []}, ("title", "category")) == "Lumo navy blue mug 6"
    assert item_text(shop.products[4]) is None and "title" not in item_text(shop.products[4], ("title", "category"))
    dataset = TripletDataset(shop, item_text_fields=("title", "category"))
    category = shop.products[int(shop.positive_row[10])]["category_path"][1]
    assert dataset[10].positive.text["category"] == ["Shop", category]


def test_an_unreadable_picture_names_product_or_query(shop):
    products = shop.products.map(lambda row: {"images": [BROKEN]} if row["product_id"] == "p9" else {})
    index = int(np.flatnonzero(shop.positive_row == 9)[0])
    with pytest.raises(ValueError, match="product p9, image 0: unreadable image"):
        TripletDataset(replace(shop, products=products))[index]
    queries = shop.queries.map(lambda row: {"image": BROKEN} if row["query_id"] == "q1" else {})
    with pytest.raises(ValueError, match="query q1: unreadable image"):
        TripletDataset(replace(shop, queries=queries))[ROW_OF_QUERY["q1"]]


def broken(shop, queries=(), products=()):
    """The shop with unreadable pictures, all that these queries and products then have."""
    return join(
        shop.products.map(lambda row: {"title": "", "images": [BROKEN]} if row["product_id"] in products else {}),
        shop.queries.map(lambda row: {"text": None, "image": BROKEN} if row["query_id"] in queries else {}),
    )


def shown(triplet):
    """All that is learnt from a triplet, of pictures the pixels."""
    items = [item and (item.text, pixels(item.images), item.product_key, item.title_key) for item in triplet[:3]]
    return items, triplet.positive_keys, triplet.made_photo


@pytest.mark.parametrize("negatives", ["in_batch", "explicit"])
def test_for_a_query_of_which_nothing_is_left_the_next_row_is_taken(shop, negatives):
    index = ROW_OF_QUERY["q2"]
    dataset = TripletDataset(broken(shop, queries=["q2"]), negatives, on_bad_image="skip")
    for epoch in (0, 3):
        triplet, following = dataset[TripletKey(index, epoch, mined=(11,))], dataset[TripletKey(index + 1, epoch)]
        assert shown(triplet) == shown(following)
        assert triplet.unreadable == triplet.emptied == ("query q2",) and following.emptied == ()
    with pytest.raises(ValueError, match="query q2: unreadable image"):
        TripletDataset(dataset.data, negatives)[index]


def test_after_the_last_row_comes_the_first(shop):
    last = shop.queries[len(shop) - 1]["query_id"]
    dataset = TripletDataset(broken(shop, queries=[last]), on_bad_image="skip")
    triplet = dataset[len(shop) - 1]
    assert shown(triplet) == shown(dataset[0]) and triplet.emptied == (f"query {last}",)


def test_for_a_product_of_which_nothing_is_left_another_row_or_negative_is_taken(shop):
    dataset = TripletDataset(broken(shop, products=["p9"]), "explicit", on_bad_image="skip")
    index = int(np.flatnonzero(shop.positive_row == 9)[0])
    triplet = dataset[index]
    assert triplet.positive.product_key == shop.product_key[shop.positive_row[index + 1]]
    assert "product p9" in triplet.emptied and "product p9, image 0" in triplet.unreadable
    draws = [dataset[TripletKey(ROW_OF_QUERY["q4"], epoch)] for epoch in range(20)]  # p9 and p10 are its negatives
    assert {triplet.negative.product_key for triplet in draws} == {int(shop.product_key[10])}
    assert {triplet.emptied for triplet in draws} == {(), ("product p9",)}


def test_no_id_is_ever_a_text(shop):
    data = broken(shop, queries=["q0", "q2"], products=["p3", "p9", "p10"])
    ids = {*shop.queries["query_id"], *shop.products["product_id"]}
    dataset = TripletDataset(data, "explicit", on_bad_image="skip", item_text_fields=("title",))
    for index in range(len(dataset)):
        triplet = dataset[index]
        assert all(item.text or item.images for item in triplet[:3])
        assert not {item.text for item in triplet[:3]} & ids
        assert triplet.positive.product_key in triplet.positive_keys


def test_a_log_of_which_nothing_is_left_is_refused(shop):
    data = broken(shop, queries=shop.queries["query_id"])
    with pytest.raises(ValueError, match="query q4 and all other rows: nothing is left"):
        TripletDataset(data, on_bad_image="skip")[ROW_OF_QUERY["q4"]]


def test_what_is_known_of_noise_is_never_read(shop):
    noisy = shop.queries.add_column("label_noise", [True] * len(shop.queries)).add_column("slice", ["text"] * 24)
    products = shop.products
    for column in ("image_noise", "title_noise"):
        products = products.add_column(column, [True] * len(products))
    one = TripletDataset(shop)[7]
    other = TripletDataset(join(products, noisy))[7]
    assert pixels(one.query.images) == pixels(other.query.images) and one.positive_keys == other.positive_keys
    assert pixels(one.positive.images) == pixels(other.positive.images) and one.positive.text == other.positive.text


@pytest.fixture(scope="module")
def augmented(shop, make_image):
    """The shop with T⁺ for every third product, two variants of every second, a core region of p5."""

    def variant(seed: int) -> dict:
        file = io.BytesIO()
        make_image(seed, 30, 30).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": f"light-{seed}.png"}

    rows = shop.products.to_list()
    for number, row in enumerate(rows):
        row["enriched_title"] = f"{row['title']} in full" if number % 3 == 0 else ""
        row["expanded_images"] = [variant(5000 + number), variant(6000 + number)] if number % 2 == 0 else []
        row["core_region"] = [0.0, 0.0, 0.5, 1.0] if number == 5 else []
    features = Features(shop.products.features | OPTIONAL_PRODUCT_FEATURES)
    return join(Dataset.from_list(rows, features=features), shop.queries)


@pytest.fixture
def drawn(monkeypatch):
    """Examples as (row of n, number that the stream gives at the photo); the photo is what it is made from."""
    numbers = []

    def photo(image, rng):
        numbers.append(int(rng.integers(256)))
        return image

    monkeypatch.setattr("moon2_training.triplets.make_query_photo", photo)

    def example(dataset: TripletDataset, key: TripletKey) -> tuple:
        numbers.clear()
        row_of_key = {int(key): row for row, key in enumerate(dataset.data.product_key)}
        triplet = dataset[key]
        return (row_of_key[triplet.negative.product_key], *numbers), triplet

    return example


# as they were before there was co-augmentation
DRAWN = {4: (6,), 6: (11, 208), 8: (19, 126), 10: (18, 138), 12: (5, 182), 14: (19, 95), 16: (0, 217), 18: (14, 187)}


@pytest.mark.parametrize("kind", ["columns absent", "shares 0", "augmented"])
def test_co_augmentation_moves_no_other_draw(shop, augmented, drawn, kind):
    shares = {"enriched_title_share": 0.0, "expanded_image_share": 0.0} if kind == "shares 0" else {}
    dataset = TripletDataset(shop if kind == "columns absent" else augmented, "explicit", seed=3, **shares)
    plain = TripletDataset(shop, "explicit", seed=3)
    differs = 0
    for index, draws in DRAWN.items():
        found, triplet = drawn(dataset, TripletKey(index, 1))
        assert found == draws
        _, original = drawn(plain, TripletKey(index, 1))
        assert pixels(triplet.query.images) == pixels(original.query.images)
        assert triplet.query.text == original.query.text and triplet.positive_keys == original.positive_keys
        for item, other in ((triplet.positive, original.positive), (triplet.negative, original.negative)):
            assert (item.product_key, item.title_key) == (other.product_key, other.title_key)
            differs += (item.text, pixels(item.images)) != (other.text, pixels(other.images))
    assert (differs > 0) == (kind == "augmented")


def test_of_several_pictures_the_same_are_chosen_as_before(shop, augmented, drawn):
    queries = Dataset.from_dict({"query_id": ["a"], "text": ["mug"], "image": [None], "product_id": ["p2"]})
    own = [pixels([load_image(image)])[0] for image in shop.products[2]["images"]]
    before = [(2, 45, 5), (2, 148, 11), (2, 144, 17), (0, 76, 8), (0, 149, 11), (0, 14, 23)]
    for products, share in ((shop.products, 0.5), (augmented.products, 0.0), (augmented.products, 1.0)):
        dataset = TripletDataset(join(products, queries), "explicit", seed=3, expanded_image_share=share)
        for epoch, (shown, number, negative) in enumerate(before):
            found, triplet = drawn(dataset, TripletKey(0, epoch))
            assert found == (negative, number)
            photo, picture = pixels(triplet.query.images)[0], pixels(triplet.positive.images)[0]
            assert photo in own and photo != own[shown]
            assert (picture == own[shown]) == (share < 1 or products is shop.products)


def test_items_show_enriched_titles_and_variants_as_often_as_asked(augmented):
    queries = Dataset.from_dict({"query_id": ["a"], "text": ["mug"], "image": [None], "product_id": ["p6"]})
    data = join(augmented.products, queries)
    product = data.products[6]
    original, *variants = (
        pixels([load_image(image)])[0] for image in (*product["images"], *product["expanded_images"])
    )
    for share in (0.0, 0.25, 1.0):
        dataset = TripletDataset(data, enriched_title_share=share, expanded_image_share=1 - share)
        items = [dataset[TripletKey(0, epoch)].positive for epoch in range(200)]
        enriched = np.mean([item.text == product["enriched_title"] for item in items])
        assert {item.text for item in items} <= {product["title"], product["enriched_title"]}
        pictures = [pixels(item.images)[0] for item in items]
        assert enriched == pytest.approx(share, abs=0.1)
        assert pictures.count(original) / 200 == pytest.approx(share, abs=0.1)
        for variant in variants:
            assert pictures.count(variant) / 200 == pytest.approx((1 - share) / 2, abs=0.1)
    again = TripletDataset(data, enriched_title_share=share)
    assert [again[TripletKey(0, epoch)].positive.text for epoch in range(9)] == [item.text for item in items[:9]]


def test_negatives_are_augmented_too_and_enriched_titles_go_with_the_other_fields(augmented):
    dataset = TripletDataset(augmented, "explicit", item_text_fields=("title", "category"), enriched_title_share=1.0)
    titles = [dataset[index].negative.text for index in range(len(augmented))]
    assert any(text["title"].endswith(" in full") for text in titles)
    assert all(text["category"][0] == "Shop" for text in titles)


def test_no_variant_comes_twice_in_an_item_and_what_they_are_too_few_for_stays(shop, augmented):
    queries = Dataset.from_dict({"query_id": ["a"], "text": ["mug"], "image": [None], "product_id": ["p2"]})
    data = join(augmented.products, queries)
    product = data.products[2]
    dataset = TripletDataset(data, max_images_per_item=3, expanded_image_share=1.0)
    pictures = pixels(dataset[0].positive.images)
    originals = pixels(map(load_image, product["images"]))
    assert len(set(pictures)) == 3
    assert set(pixels(map(load_image, product["expanded_images"]))) == set(pictures[:2])
    assert pictures[2] == originals[2]


def test_the_core_region_is_a_crop_of_the_first_picture(augmented):
    index = int(np.flatnonzero(augmented.positive_row == 5)[0])
    shown = TripletDataset(augmented, expanded_image_share=1.0)[index].positive.images
    (original,) = augmented.products[5]["images"]
    original = load_image(original)
    assert pixels(shown) == pixels([original.crop((0, 0, -(-original.width // 2), original.height))])
    assert shown[0].width == 23 and original.width == 45  # half a pixel is a pixel


def test_an_unreadable_variant_is_named_and_the_original_shown(augmented):
    products = augmented.products.map(lambda row: {"expanded_images": [BROKEN]} if row["product_id"] == "p6" else {})
    data = replace(augmented, products=products)
    index = int(np.flatnonzero(data.positive_row == 6)[0])
    with pytest.raises(ValueError, match="product p6, expanded image 0: unreadable image"):
        TripletDataset(data, expanded_image_share=1.0)[index]
    skipping = TripletDataset(data, expanded_image_share=1.0, on_bad_image="skip")[index]
    assert skipping.unreadable == ("product p6, expanded image 0",)
    assert pixels(skipping.positive.images) == pixels(map(load_image, products[6]["images"]))
    assert len(skipping.query.images) == 1


def test_word_dropout_thins_queries_and_titles_and_moves_no_other_draw(shop, augmented, drawn):
    plain = TripletDataset(augmented, "explicit", seed=3)
    thinned = TripletDataset(augmented, "explicit", seed=3, word_dropout=0.5)
    before, after = 0, 0
    for index in DRAWN:
        for epoch in (1, 2):
            found, triplet = drawn(thinned, TripletKey(index, epoch))
            wanted, original = drawn(plain, TripletKey(index, epoch))
            assert found == wanted
            for role in ("query", "positive", "negative"):
                item, whole = getattr(triplet, role), getattr(original, role)
                assert pixels(item.images) == pixels(whole.images)
                assert item.title_key == whole.title_key  # what counts as the same title is the catalogue's
                if whole.text:
                    before += len(whole.text.split())
                    after += len(item.text.split())
                    assert item.text and set(item.text.split()) <= set(whole.text.split())
    assert 0.4 * before < after < 0.7 * before
