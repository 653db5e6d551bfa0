"""The Space's API: every action as a named endpoint with types, for gradio_client, curl and agents."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import gradio as gr

from .access import check_token
from .balance_tab import SAMPLE, measured_gap, measured_load
from .catalogue_source import RowError
from .catalogue_tab import cancel_job, source_of
from .filters import Filters
from .live_catalogue import Job, LiveCatalogue
from .product_cards import data_url
from .search import SearchHit, SearchQuery
from .understand_tab import drawn_map, mapped, understood
from .uploads import uploaded_picture

MAX_BATCH = 100  # texts
ARGUMENTS = {  # of all actions; the API page and agents are told
    "text": "what a shopper types",
    "texts": f"1 to {MAX_BATCH} of them",
    "image": "a picture: an upload, or its address data:image/…;base64,…",
    "k": "how many products",
    "category": 'only products of it, from the top: "Shoes" or "Shoes > Boots"; empty for all',
    "attributes": "only products with one of the values of each name, as {name: [values]}; filter_choices tells them",
    "hybrid": "rank by words and vectors together; false: by vectors alone",
    "balance": "0 is the words alone, 1 the picture alone",
    "product_id": "of the catalogue",
    "view": "what of the products is compared: multimodal, image or text",
    "title": "of the product",
    "max_duplicates": "most near-duplicates, 0 to 100",
    "query": "what was typed",
    "query_image": "the shopper's picture, with or instead of the words",
    "sample": "how many products to run through the model",
    "token": "the administrator's",
    "file": "a catalogue: CSV, TSV, JSON Lines, Parquet, or a ZIP of pictures or of a table and pictures",
    "hub_id": "instead of a file a data set of the Hub, OWNER/NAME",
    "replace_all": "delete the products that it lacks",
    "wait": "answer when it is done; false: at once, then status and catalogue_errors tell",
    "product_ids": "of the products to delete",
    "model": "one of the allowed; status lists them",
}


class Picture(TypedDict, total=False):
    """An upload, as Gradio's clients make it of a file, or an address "data:image/…;base64,…" as its url."""

    path: str
    url: str
    meta: dict[str, str]


class FoundProduct(TypedDict):
    """One product found."""

    product_id: str
    title: str
    score: float
    similarity: float | None
    ranks: dict[str, int]
    category_path: list[str]
    attributes: list[dict[str, str]]


class Label(TypedDict):
    """A label with its probability."""

    label: str
    score: float


class Meaning(TypedDict):
    """What a product is."""

    category_path: list[Label]
    attributes: dict[str, list[Label]]
    near_duplicates: list[FoundProduct]


class WordWeight(TypedDict):
    """A word of the title, and how much of the match it carries, 0 to 1."""

    word: str
    weight: float


class MatchMap(TypedDict):
    """What carries a match: cells over the picture, words, and the map drawn as a "data:" address."""

    similarity: float
    cells: list[list[float]] | None
    words: list[WordWeight]
    picture: str | None


class Load(TypedDict):
    """Each expert's share, by view, layer and expert."""

    load: dict[str, list[list[float]]]
    tokens: dict[str, int]
    layers: list[int]
    experts_per_token: int


class Gap(TypedDict):
    """Distances of the views' centres, and cosines of the views of one product and of two; "text-image" and so on."""

    distances: dict[str, float]
    own: dict[str, float]
    other: dict[str, float]
    points: dict[str, list[list[float]]]


class RowProblem(TypedDict):
    """What is wrong with a row of a catalogue."""

    row: int
    product_id: str
    message: str
    dropped: bool


class State(TypedDict):
    """The catalogue and the last change of it."""

    products: int
    model: str
    models: list[str]
    fingerprint: str
    dimension: int
    ann: dict[str, Any] | None
    job: dict[str, Any] | None


class Choices(TypedDict):
    """What can be filtered by, with numbers of products; categories as "A > B"."""

    categories: dict[str, int]
    attributes: dict[str, dict[str, int]]


def add_endpoints(catalogue: LiveCatalogue, token: str | None, limits: Mapping[str, Any]) -> None:
    """Add all endpoints to the Blocks that is being built.

    Args:
        catalogue: what they ask and change.
        token: the administrator's; None: nothing can be changed.
        limits: of events that encode, for Gradio's queue.
    """

    def search_text(
        text: str, k: int = 10, category: str = "", attributes: dict[str, list[str]] | None = None, hybrid: bool = True
    ) -> list[FoundProduct]:
        """Search by words."""
        return _searched(catalogue, [SearchQuery(text, filters=_filters(category, attributes))], k, hybrid)[0]

    def search_image(
        image: Picture, k: int = 10, category: str = "", attributes: dict[str, list[str]] | None = None
    ) -> list[FoundProduct]:
        """Search by a picture."""
        query = SearchQuery(image=uploaded_picture(image), filters=_filters(category, attributes))
        return _searched(catalogue, [query], k)[0]

    def search_both(
        text: str, image: Picture, balance: float = 0.5, k: int = 10, category: str = "",
        attributes: dict[str, list[str]] | None = None,
    ) -> list[FoundProduct]:  # fmt: skip
        """Search by words and a picture."""
        query = SearchQuery(text, uploaded_picture(image), float(balance), _filters(category, attributes))
        return _searched(catalogue, [query], k)[0]

    def search_batch(
        texts: list[str], k: int = 10, category: str = "", attributes: dict[str, list[str]] | None = None,
        hybrid: bool = True,
    ) -> list[list[FoundProduct]]:  # fmt: skip
        """Search by several texts, which are encoded together; the answers in their order."""
        if not isinstance(texts, list) or not 1 <= len(texts) <= MAX_BATCH:
            raise ValueError(f"texts: give a list of 1 to {MAX_BATCH}")
        filters = _filters(category, attributes)
        return _searched(catalogue, [SearchQuery(text, filters=filters) for text in texts], k, hybrid)

    def more_like_this(
        product_id: str, k: int = 10, view: str = "multimodal", category: str = "",
        attributes: dict[str, list[str]] | None = None,
    ) -> list[FoundProduct]:  # fmt: skip
        """The products nearest to one of the catalogue."""
        hits = catalogue.now.hybrid.like(str(product_id), int(k), _filters(category, attributes), view)
        return list(map(_found, hits))

    def filter_choices() -> Choices:
        """What can be filtered by."""
        facets = catalogue.now.index.facets()
        return {
            "categories": {" > ".join(path): count for path, count in facets.categories.items()},
            "attributes": facets.attributes,
        }

    def understand(title: str = "", image: Picture | None = None, max_duplicates: int = 5) -> Meaning:
        """What a product is, by its title, its picture or both: category, attributes, near-duplicates."""
        if not 0 <= int(max_duplicates) <= 100:
            raise ValueError(f"max_duplicates={max_duplicates}; give 0 to 100")
        item = SearchQuery(title, uploaded_picture(image))
        found, hits = understood(catalogue, item, int(max_duplicates))
        return {
            "category_path": [{"label": level.label, "score": level.score} for level in found.categories],
            "attributes": {
                prediction.name: [{"label": label, "score": score} for label, score in prediction.choices]
                for prediction in found.attributes
            },
            "near_duplicates": list(map(_found, hits)),
        }

    def heatmap(
        query: str = "", title: str = "", image: Picture | None = None, query_image: Picture | None = None
    ) -> MatchMap:
        """What of a product, given by title, image or both, carries its match with a query."""
        item = SearchQuery(title, uploaded_picture(image))
        found = mapped(catalogue, item, SearchQuery(query, uploaded_picture(query_image)))
        drawn = drawn_map(item, found)
        return {
            "similarity": found.score,
            "cells": None if found.cells is None else found.cells.round(4).tolist(),
            "words": [{"word": word, "weight": weight} for word, weight in found.words],
            "picture": None if drawn is None else data_url(drawn, "jpeg"),
        }

    def expert_load(sample: int = SAMPLE) -> Load:
        """Each expert's share of the work, on a sample of the catalogue."""
        load = measured_load(catalogue, int(sample))
        views = ("text", "image", "multimodal")
        return {
            "load": dict(zip(views, load.load.tolist(), strict=True)),
            "tokens": dict(zip(views, load.tokens.tolist(), strict=True)),
            "layers": load.layers,
            "experts_per_token": load.experts_per_token,
        }

    def modality_gap() -> Gap:
        """How far apart the catalogue's texts and pictures lie, and where, in the plane."""
        gap = measured_gap(catalogue)
        told = {name: _by_pair(getattr(gap, name)) for name in ("distances", "own", "other")}
        return told | {"points": {view: points.tolist() for view, points in gap.points.items()}}

    def status() -> State:
        """The catalogue, its model, and the last change of it."""
        index = catalogue.now.index
        manifest = index.manifest
        return {
            "products": len(index),
            "model": catalogue.model,
            "models": catalogue.models,
            "fingerprint": manifest["fingerprint"],
            "dimension": manifest["dimension"],
            "ann": manifest["ann"],
            "job": None if catalogue.job is None else _told(catalogue.job),
        }

    def catalogue_add(
        token: str, file: dict[str, Any] | None = None, hub_id: str = "", replace_all: bool = False, wait: bool = True
    ) -> dict[str, Any]:
        """Add the products of a file or of a data set on the Hub."""
        job = catalogue.start_add(source_of(file, hub_id), bool(replace_all))
        return _followed(job, wait)

    def catalogue_delete(token: str, product_ids: list[str]) -> int:
        """Delete products; how many there were."""
        if not isinstance(product_ids, list) or not all(isinstance(name, str) for name in product_ids):
            raise ValueError("product_ids: give a list of texts")
        return catalogue.delete(product_ids)

    def catalogue_swap_model(token: str, model: str, wait: bool = False) -> dict[str, Any]:
        """Encode the catalogue with another of the allowed models; the old one answers until all is done."""
        return _followed(catalogue.start_swap(str(model)), wait)

    def catalogue_errors(token: str) -> list[RowProblem]:
        """What was wrong with rows of the last catalogue that was added."""
        return [] if catalogue.job is None else list(map(_problem, catalogue.job.errors))

    def catalogue_cancel(token: str) -> str:
        """Cancel the change that is under way."""
        return cancel_job(catalogue)

    for action in (search_text, search_image, search_both, search_batch, more_like_this, understand, heatmap):
        gr.api(_plainly(action), api_name=action.__name__, **limits)
    for action in (expert_load, modality_gap):
        gr.api(_plainly(action), api_name=action.__name__, concurrency_limit=1, concurrency_id="measure")
    for action in (filter_choices, status):
        gr.api(_plainly(action), api_name=action.__name__, concurrency_limit=4)
    for action in (catalogue_add, catalogue_delete, catalogue_swap_model, catalogue_errors, catalogue_cancel):
        limit = {"concurrency_limit": 4, "concurrency_id": "admin"}
        gr.api(_plainly(_for_administrators(action, token)), api_name=action.__name__, **limit)


def _plainly(action: Callable[..., Any]) -> Callable[..., Any]:
    """Tell what is wrong with a request as a message, and nothing of where in the code."""

    @functools.wraps(action)
    def told(*arguments: Any, **named: Any) -> Any:
        try:
            return action(*arguments, **named)
        except (ValueError, TypeError, OverflowError, PermissionError, FileNotFoundError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    # Gradio reads the types of answers from the signature, and what arguments mean from the docstring
    told.__signature__ = inspect.signature(action, eval_str=True)
    meanings = [f"    {name}: {ARGUMENTS[name]}" for name in told.__signature__.parameters]
    told.__doc__ = "\n".join([inspect.getdoc(action), "", "Args:", *meanings])
    return told


def _for_administrators(action: Callable[..., Any], token: str | None) -> Callable[..., Any]:
    signature = inspect.signature(action)

    @functools.wraps(action)
    def guarded(*arguments: Any, **named: Any) -> Any:
        check_token(token, signature.bind(*arguments, **named).arguments["token"])
        return action(*arguments, **named)

    return guarded


def _searched(
    catalogue: LiveCatalogue, queries: list[SearchQuery], k: int, hybrid: bool = True
) -> list[list[FoundProduct]]:
    now = catalogue.now
    answers = (now.hybrid if hybrid else now.vectors).many(queries, int(k))
    return [list(map(_found, hits)) for hits in answers]


def _filters(category: str, attributes: Mapping[str, list[str]] | None) -> Filters:
    if not isinstance(attributes or {}, Mapping):
        raise ValueError("attributes: give an object of names and lists of values")
    if not isinstance(category or "", str):
        raise ValueError('category: give a text, such as "Shoes > Boots"')
    return Filters([level.strip() for level in category.split(">")] if category else [], attributes or {})


def _found(hit: SearchHit) -> FoundProduct:
    told = hit._asdict() | {"attributes": [{"name": name, "value": value} for name, value in hit.attributes]}
    del told["thumbnail"]
    return told


def _by_pair(values: Mapping[tuple[str, str], float]) -> dict[str, float]:
    return {"-".join(pair): value for pair, value in values.items()}


def _followed(job: Job, wait: bool) -> dict[str, Any]:
    if wait:
        job.wait()
        if job.state == "failed":
            raise ValueError(job.message)
    return _told(job) | {"errors": list(map(_problem, job.errors))}


def _told(job: Job) -> dict[str, Any]:
    changes = job.changes
    counts = {} if changes is None else {name: getattr(changes, name) for name in ("added", "replaced", "unchanged")}
    return {
        "kind": job.kind,
        "state": job.state,
        "done": job.done,
        "total": job.total,
        "message": job.message,
        **counts,
    }


def _problem(error: RowError) -> RowProblem:
    return {"row": error.row, "product_id": error.product_id, "message": error.message, "dropped": error.dropped}
