"""What the benchmark of hybrid search computes is what the search gives."""

from __future__ import annotations

import hybrid_search
import pytest

from moon2_space.catalogue_index import CatalogueIndex
from moon2_space.search import CatalogueSearch
from moon2_training.encode import Encoder


def test_recalls_are_those_of_searching(tiny, shop, tmp_path):
    encoder = Encoder(*tiny)
    results = hybrid_search.measure(encoder, shop, tmp_path / "index", offsets=(10,))
    index = CatalogueIndex.open(tmp_path / "index", encoder, "of the benchmark")
    texts = {query["query_id"]: query["text"] for query in shop.queries if query["text"]}
    for weight in (0.0, 0.3, 1.0):
        search = CatalogueSearch(encoder, index, words_weight=weight, rank_offset=10)
        found = [
            not set(shop.positives[query_id]).isdisjoint(hit.product_id for hit in search.by_text(text, 10))
            for query_id, text in texts.items()
        ]
        assert results[weight, 10] == pytest.approx(sum(found) / len(found))
    assert len(texts) == 22 and results[1.0, 10] > results[0.0, 10]  # random weights find little
