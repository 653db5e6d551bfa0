"""Searching by words, pictures, both and products, against vectors compared by hand; and real products found."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from moon2_dataset import load_product_queries
from moon2_space.catalogue_index import CatalogueIndex
from moon2_space.filters import Filters
from moon2_space.search import CatalogueSearch, SearchQuery, fused_score, mix_views
from moon2_training.encode import Encoder, Views


@pytest.fixture(scope="module")
def index(tiny, shop, tmp_path_factory):
    index = CatalogueIndex.create(tmp_path_factory.mktemp("search") / "index", Encoder(*tiny))
    index.add(shop.products.to_list())
    return index


@pytest.fixture
def search(index):
    return CatalogueSearch(index.encoder, index)


def by_hand(index, vector, k):
    ids, vectors = index.vectors()
    return [ids[row] for row in np.argsort(-(vectors @ vector), kind="stable")[:k]]


def ids(hits):
    return [hit.product_id for hit in hits]


def test_vectors_alone_are_the_nearest_multimodal_vectors(index, make_image):
    search = CatalogueSearch(index.encoder, index, words_weight=0)
    picture = make_image(5)
    cases = [("red mug", [], "text", search.by_text(" red  mug ", 5)),
             (None, [picture], "image", search.by_image(picture, 5)),
             ("red mug", [picture], "multimodal", search.by_both("red mug", picture, k=5))]  # fmt: skip
    for text, images, view, hits in cases:
        item = {"text": text, "images": images}
        assert ids(hits) == by_hand(index, index.encoder.encode([item], view, progress=False)[0], 5)
        assert [hit.ranks for hit in hits] == [{"vectors": rank} for rank in range(1, 6)]
        assert all(hit.score == hit.similarity for hit in hits)


def test_a_hit_tells_of_its_product(search, shop):
    (hit,) = (hit for hit in search.by_text("Lumo navy blue handbag 2", 24) if hit.product_id == "p2")
    assert hit.title == shop.products[2]["title"]
    assert hit.category_path == ["Shop", "handbag"] and hit.attributes == [("colour", "navy blue")]
    assert Image.open(io.BytesIO(hit.thumbnail)).format == "WEBP"
    assert hit.ranks["words"] == 1 and hit.ranks["vectors"] >= 1 and 0 < hit.score <= 1


def test_words_and_vectors_are_fused_by_their_ranks(search, index):
    words = [product for product, _ in index.with_words("red mug", 100)]
    vectors = [product for product, _ in index.nearest(search.encode([SearchQuery("red mug")]), 100)[0]]
    weights = {"words": search.words_weight, "vectors": 1 - search.words_weight}
    expected = {}
    for product in {*words, *vectors}:
        ranks = {
            name: found.index(product) + 1
            for name, found in (("words", words), ("vectors", vectors))
            if product in found
        }
        expected[product] = fused_score(ranks, weights, search.rank_offset)
    hits = search.by_text("red mug", 24)
    assert {hit.product_id: hit.score for hit in hits} == expected
    assert [hit.score for hit in hits] == sorted(expected.values(), reverse=True)


def test_a_text_without_a_known_word_is_found_by_its_vector(search, index):
    hits = search.by_text("xylophone", 5)
    assert ids(hits) == by_hand(index, search.encode([SearchQuery("xylophone")])[0], 5)


def test_words_alone(index):
    search = CatalogueSearch(index.encoder, index, words_weight=1)
    hits = search.by_text("handbag 5", 24)
    assert ids(hits) == [product for product, _ in index.with_words("handbag 5", 24)]
    assert 0 < len(hits) < 24 and hits[0].product_id == "p5"


def test_filters_hold_in_every_kind_of_search(search, make_image):
    filters = Filters(["Shop", "mug"], {"colour": "red"})
    allowed = {"p3", "p9", "p15", "p21"}
    picture = make_image(1)
    for hits in (search.by_text("handbag", 10, filters), search.by_image(picture, 10, filters),
                 search.by_both("handbag", picture, 0.2, 10, filters), search.like("p2", 10, filters)):  # fmt: skip
        assert set(ids(hits)) == allowed


def test_more_like_a_product_leaves_it_out(search, index):
    vector = index.vectors()[1][index.vectors()[0].index("p5")]
    assert ids(search.like("p5", 6)) == [product for product in by_hand(index, vector, 7) if product != "p5"][:6]
    assert len(search.like("p5", 6, view="image")) == 6
    with pytest.raises(ValueError, match="product 'p3' has no image"):
        search.like("p3", view="image")
    with pytest.raises(ValueError, match='product "\' OR 1=1" is not in the catalogue'):
        search.like("' OR 1=1")


def test_many_queries_are_answered_as_each_alone(search, make_image):
    queries = [SearchQuery("red mug"), SearchQuery(image=make_image(3)), SearchQuery("shoes", make_image(4), 0.8),
               SearchQuery("navy", filters=Filters(["Shop", "shoes"]))]  # fmt: skip
    together = search.many(queries, 4)
    alone = [search.many([query], 4)[0] for query in queries]
    assert [ids(hits) for hits in together] == [ids(hits) for hits in alone]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose([hit.score for hit in a], [hit.score for hit in b], atol=1e-5)
    assert search.many([], 4) == []


def test_balance_goes_from_the_words_over_both_to_the_picture():
    rng = np.random.default_rng(0)
    around = rng.normal(size=(3, 5, 8)) + 2 * rng.normal(size=(5, 8))  # the three views of five queries are alike
    text, both, image = (views / np.linalg.norm(views, axis=1, keepdims=True) for views in around)
    for balance, view in ((0, text), (0.5, both), (1, image)):
        np.testing.assert_allclose(mix_views(text, both, image, np.full(5, balance)), view, atol=1e-6)
    steps = np.linspace(0, 1, 21)
    mixed = [mix_views(text, both, image, np.full(5, balance)) for balance in steps]
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=-1), 1, atol=1e-6)
    assert max(np.linalg.norm(a - b, axis=1).max() for a, b in zip(mixed, mixed[1:], strict=False)) < 0.2  # no leap


def test_balance_decides_what_is_found(search, index, shop):
    picture, text = shop.products[7]["images"][0]["bytes"], "Lumo navy blue mug 0"
    image_only = index.encoder.encode([{"text": None, "images": [picture]}], "image", progress=False)[0]
    assert ids(search.by_both(text, picture, 1.0, 5)) == by_hand(index, image_only, 5)
    text_only = index.encoder.encode([{"text": text, "images": []}], "text", progress=False)[0]
    assert ids(search.by_both(text, picture, 0.0, 5)) == by_hand(index, text_only, 5)


def test_a_full_score_is_one():
    assert fused_score({"words": 1, "vectors": 1}, {"words": 0.3, "vectors": 0.7}, 5) == pytest.approx(1)
    assert fused_score({"vectors": 1}, {"words": 0.3, "vectors": 0.7}, 5) == pytest.approx(0.7)


def test_wrong_queries_are_refused(search, index, make_image):
    for wrong, told in (({}, "neither text nor image"), ({"text": " \n"}, "neither text nor image"),
                        ({"text": "a" * 1001}, "1,001 characters; give at most 1,000"),
                        ({"image": "/etc/passwd"}, "image is a str; give a PIL image or the bytes"),
                        ({"image": b"<svg/>"}, "an SVG drawing"), ({"image": b"<html>"}, "a web page"),
                        ({"text": "a", "balance": 1.5}, "balance=1.5"),
                        ({"text": "a", "balance": float("nan")}, "balance=nan")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            SearchQuery(**wrong)
    for k in (0, 1001):
        with pytest.raises(ValueError, match=f"k={k}; give 1 to 1,000"):
            search.by_text("mug", k)
        with pytest.raises(ValueError, match=f"k={k}"):
            search.like("p0", k)
    with pytest.raises(ValueError, match="words_weight=2"):
        CatalogueSearch(index.encoder, index, words_weight=2)


class LetterEncoder:
    """Texts as their groups of three letters, which needs no training and forgives misspelt words."""

    width = 512

    def encode(self, items, view="multimodal", progress=True):
        vectors = np.zeros((len(items), self.width), dtype=np.float32)
        for row, item in enumerate(items):
            letters = f" {(item['text'] or '').casefold()} "
            for start in range(len(letters) - 2):
                digest = hashlib.blake2b(letters[start : start + 3].encode(), digest_size=4).digest()
                vectors[row, int.from_bytes(digest, "little") % self.width] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)

    def encode_views(self, items, progress=True):
        vectors, there = self.encode(items), np.ones(len(items), dtype=bool)
        return Views(vectors, np.zeros_like(vectors), vectors, there, ~there)


def test_on_real_products_fusing_finds_no_less_than_either_alone(shared_data, tmp_path):
    folder = shared_data / "fashion"
    data = load_product_queries(folder / "products-validation.parquet", folder / "queries-validation.parquet")
    encoder = LetterEncoder()
    index = CatalogueIndex.create(tmp_path / "index", encoder, fingerprint="letters")
    index.add({**product, "images": []} for product in data.products.to_list())
    queries = [query for query in data.queries.select_columns(["query_id", "text"]) if query["text"]]
    asked = [SearchQuery(query["text"]) for query in queries]

    def recall(**options):
        answers = CatalogueSearch(encoder, index, **options).many(asked, 10)
        right = [data.positives[query["query_id"]] for query in queries]
        return np.mean(
            [any(hit.product_id in wanted for hit in hits) for hits, wanted in zip(answers, right, strict=True)]
        )

    fused, words, vectors = recall(), recall(words_weight=1), recall(words_weight=0)
    assert fused >= words > 0.85 and fused >= vectors > 0.5
