"""Search a catalogue by words, by a picture, by both, or by one of its products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from moon2_dataset.build.pictures import PICTURE_REASONS, check_picture
from moon2_training.evaluate import AnyEncoder
from moon2_training.vector_columns import vector_column

from .catalogue_index import CatalogueIndex
from .catalogue_source import MAX_SIDE
from .filters import Filters, whole_characters

DEPTH = 100  # candidates of each ranking that are fused
RANK_OFFSET = 10  # c of reciprocal rank fusion: how little the first places stand out
WORDS_WEIGHT = 0.5  # of full text against vectors; both as tests/benchmarks/hybrid_search.py finds them best
MAX_QUERY = 1000  # characters
MAX_K = 1000

Picture = Image.Image | bytes


class SearchHit(NamedTuple):
    """One product found.

    Args:
        product_id: of it.
        title: of it.
        score: what hits are ordered by: 0 to 1 where rankings are fused, else the cosine similarity.
        similarity: cosine similarity of its vector to the query's; None where only its words were near.
        ranks: place, from 1, in each ranking it is in: "words" and "vectors".
        category_path: coarse to fine.
        attributes: (name, value) pairs.
        thumbnail: WebP bytes, or None for a product without picture.
    """

    product_id: str
    title: str
    score: float
    similarity: float | None
    ranks: dict[str, int]
    category_path: list[str]
    attributes: list[tuple[str, str]]
    thumbnail: bytes | None


@dataclass(frozen=True)
class SearchQuery:
    """What is asked for: words, a picture, or both.

    Args:
        text: words.
        image: a PIL image or the bytes of a file.
        balance: with both, from 0, the words alone, to 1, the picture alone; see `mix_views`.
        filters: that products must pass.

    Raises:
        ValueError: neither words nor picture, no text or too long a one, a picture that cannot be read, or no such
            balance.
    """

    text: str | None = None
    image: Picture | None = None
    balance: float = 0.5
    filters: Filters | None = None

    def __post_init__(self):
        if not isinstance(self.text, str | None):
            raise ValueError(f"text is a {type(self.text).__name__}; give words")
        text = " ".join(whole_characters(self.text or "").split()) or None
        if text is not None and len(text) > MAX_QUERY:
            raise ValueError(f"text has {len(text):,} characters; give at most {MAX_QUERY:,}")
        object.__setattr__(self, "text", text)
        if isinstance(self.image, bytes):
            data, _, problem = check_picture(self.image, "the picture", MAX_SIDE)
            if problem is not None:
                reason, detail = problem
                raise ValueError(f"{detail}: {PICTURE_REASONS[reason]}; give another one")
            object.__setattr__(self, "image", data)
        elif not isinstance(self.image, Image.Image | None):  # a path might name any file of this machine
            raise ValueError(f"image is a {type(self.image).__name__}; give a PIL image or the bytes of a file")
        if text is None and self.image is None:
            raise ValueError("neither text nor image to search for; give at least one")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance={self.balance}; give 0 (the words alone) to 1 (the picture alone)")


class CatalogueSearch:
    """Search an index with the encoder that made it. Safe to use from several threads.

    The vector of a query is compared with the multimodal vector of every product. Where a query is words alone, the
    ranking by vectors is fused with the one of full text (BM25) over titles: a product counts
    w / (c + rank) of its place among the words and (1 − w) / (c + rank) of its place among the vectors.

    Args:
        encoder: of the queries.
        index: to search.
        words_weight: w, 0 for vectors alone, 1 for words alone.
        rank_offset: c.

    Raises:
        ValueError: no such weight.

    Reference:
        Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
        Methods", SIGIR 2009.

    Example:
        >>> search = CatalogueSearch(index.encoder, index)
        >>> [hit.title for hit in search.by_text("red running shoes", k=3)]
        ['Nordvik running shoes red', 'Lumo running shoes red', 'Nordvik trail shoes red']
    """

    def __init__(
        self,
        encoder: AnyEncoder,
        index: CatalogueIndex,
        words_weight: float = WORDS_WEIGHT,
        rank_offset: float = RANK_OFFSET,
    ) -> None:
        if not 0 <= words_weight <= 1:
            raise ValueError(f"words_weight={words_weight}; give 0 (vectors alone) to 1 (words alone)")
        self.encoder = encoder
        self.index = index
        self.words_weight = words_weight
        self.rank_offset = rank_offset

    def by_text(self, text: str, k: int = 10, filters: Filters | None = None) -> list[SearchHit]:
        """The products nearest to words, best first.

        Raises:
            ValueError: no words, too many, or no such k.
        """
        return self.many([SearchQuery(text=text, filters=filters)], k)[0]

    def by_image(self, image: Picture, k: int = 10, filters: Filters | None = None) -> list[SearchHit]:
        """The products nearest to a picture, best first.

        Raises:
            ValueError: the picture cannot be read, or no such k.
        """
        return self.many([SearchQuery(image=image, filters=filters)], k)[0]

    def by_both(
        self, text: str, image: Picture, balance: float = 0.5, k: int = 10, filters: Filters | None = None
    ) -> list[SearchHit]:
        """The products nearest to words and a picture, best first; for the balance see `mix_views`.

        Raises:
            ValueError: as `by_text` and `by_image`, or no such balance.
        """
        return self.many([SearchQuery(text, image, balance, filters)], k)[0]

    def like(
        self, product_id: str, k: int = 10, filters: Filters | None = None, view: str = "multimodal"
    ) -> list[SearchHit]:
        """The products nearest to one of the catalogue, without itself, best first.

        Args:
            product_id: of the catalogue.
            k: products.
            filters: that they must pass.
            view: of all products, by which they are compared: "multimodal", or "image" or "text" alone.

        Raises:
            ValueError: there is no such product, or it lacks the view.
        """
        _check_k(k)
        column, product_id = vector_column(view), whole_characters(product_id)
        product = self.index.products([product_id], [column]).get(product_id)
        if product is None:
            raise ValueError(f"product {product_id!r} is not in the catalogue")
        if product[column] is None:
            raise ValueError(f"product {product_id!r} has no {view}; compare it by another view")
        vector = np.array(product[column], dtype=np.float32)[None]  # (1, D)
        near = self.index.nearest(vector, k + 1, filters, view)[0]
        return self._hits([_Ranking.of_vectors([found for found in near if found[0] != product_id][:k])], k)

    def many(self, queries: Sequence[SearchQuery], k: int = 10) -> list[list[SearchHit]]:
        """Answer many queries, which are encoded together.

        Args:
            queries: Q of them.
            k: products of each.

        Returns:
            For every query, its hits, best first.

        Raises:
            ValueError: no such k.
        """
        _check_k(k)
        vectors = self.encode(queries)  # (Q, D)
        answers = []
        for query, vector in zip(queries, vectors, strict=True):
            is_hybrid = query.image is None and self.words_weight > 0
            near = self.index.nearest(vector[None], max(k, DEPTH) if is_hybrid else k, query.filters)[0]
            rankings = [_Ranking.of_vectors(near)]
            if is_hybrid:
                found = self.index.with_words(query.text, max(k, DEPTH), query.filters)
                rankings.append(_Ranking("words", [product_id for product_id, _ in found], {}))
            answers.append(self._hits(rankings, k))
        return answers

    def encode(self, queries: Sequence[SearchQuery]) -> np.ndarray:
        """The vectors (Q, D) of queries, float32 and normalised."""
        items = [
            {"name": f"query {number}", "text": query.text, "images": [] if query.image is None else [query.image]}
            for number, query in enumerate(queries)
        ]
        vectors = np.empty((len(queries), self.index.manifest["dimension"]), dtype=np.float32)
        texts, images, both = (
            [row for row, query in enumerate(queries) if (query.text is not None, query.image is not None) == has]
            for has in ((True, False), (False, True), (True, True))
        )
        for view, rows in (("text", texts), ("image", images)):
            if rows:
                vectors[rows] = self.encoder.encode([items[row] for row in rows], view=view, progress=False)
        if both:
            views = self.encoder.encode_views([items[row] for row in both], progress=False)
            balance = np.array([queries[row].balance for row in both], dtype=np.float32)
            vectors[both] = mix_views(views.text, views.multimodal, views.image, balance)
        return vectors

    def _hits(self, rankings: Sequence[_Ranking], k: int) -> list[SearchHit]:
        ranks: dict[str, dict[str, int]] = {}
        for ranking in rankings:
            for rank, product_id in enumerate(ranking.ids, start=1):
                ranks.setdefault(product_id, {})[ranking.name] = rank
        similarities = rankings[0].similarities
        if len(rankings) == 1:
            scores = dict(similarities)
        else:
            weights = {"words": self.words_weight, "vectors": 1 - self.words_weight}
            scores = {
                product_id: fused_score(of_product, weights, self.rank_offset)
                for product_id, of_product in ranks.items()
            }
            scores = {product_id: score for product_id, score in scores.items() if score > 0}
        best = sorted(scores, key=lambda product_id: (-scores[product_id], product_id))[:k]
        rows = self.index.products(best)
        return [
            SearchHit(
                product_id,
                rows[product_id]["title"],
                scores[product_id],
                similarities.get(product_id),
                ranks[product_id],
                rows[product_id]["category_path"],
                [(attribute["name"], attribute["value"]) for attribute in rows[product_id]["attributes"]],
                rows[product_id]["thumbnail"],
            )
            for product_id in best
            if product_id in rows  # not deleted meanwhile
        ]


class _Ranking(NamedTuple):
    name: str
    ids: list[str]
    similarities: dict[str, float]

    @classmethod
    def of_vectors(cls, found: Sequence[tuple[str, float]]) -> _Ranking:
        return cls("vectors", [product_id for product_id, _ in found], dict(found))


def fused_score(ranks: dict[str, int], weights: dict[str, float], offset: float) -> float:
    """Σ_s w_s · (c + 1) / (c + rank_s) over the rankings s that a product is in: 1 for the first of all of them.

    Args:
        ranks: ranking -> place from 1.
        weights: ranking -> w, with a sum of 1.
        offset: c.
    """
    return sum(weights[name] * (offset + 1) / (offset + rank) for name, rank in ranks.items())


def mix_views(text: np.ndarray, multimodal: np.ndarray, image: np.ndarray, balance: np.ndarray) -> np.ndarray:
    """Mix the views of queries: r^t at balance 0, r^mm, which the model itself makes of both, at 0.5, r^i at 1.

    Between them the vector goes straight from one to the next, and is normalised:
    (1 − 2b) r^t + 2b r^mm for b ≤ 0.5, (2 − 2b) r^mm + (2b − 1) r^i above.

    Args:
        text: (Q, D) float32, normalised.
        multimodal: (Q, D) float32, normalised.
        image: (Q, D) float32, normalised.
        balance: (Q,) b, 0 to 1.

    Returns:
        (Q, D) float32, normalised.
    """
    b = 2 * balance[:, None]  # (Q, 1)
    mixed = np.where(b <= 1, (1 - b) * text + b * multimodal, (2 - b) * multimodal + (b - 1) * image)
    return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)


def _check_k(k: int) -> None:
    if not 1 <= k <= MAX_K:
        raise ValueError(f"k={k}; give 1 to {MAX_K:,}")
