"""The tab that explains: what a product is, what carries its match with a query, and what is nearly the same."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from PIL import Image

from modeling_moon2.processing_moon2 import load_image
from moon2_training.encode import Encoder

from .heatmap import Heatmap, draw_heatmap, match_heatmap
from .live_catalogue import Answering, LiveCatalogue
from .product_cards import ACTIONS, bar, category_text, data_url, hit_cards, message
from .search import SearchHit, SearchQuery
from .understand import Prediction, Understanding
from .uploads import Upload, uploaded_picture

DUPLICATES = 6
MAP_QUALITY = 88


class Product(NamedTuple):
    """A product to be understood, with what was asked for.

    Args:
        title: of it.
        image: upload of its picture.
        asked: words that it was found with.
        asked_image: upload of a picture that it was found with.
        product_id: of the catalogue, which is no duplicate of itself; None for one that somebody brought.
    """

    title: str | None = None
    image: Upload = None
    asked: str | None = None
    asked_image: Upload = None
    product_id: str | None = None


@dataclass(frozen=True)
class UnderstandTab:
    """The components of the tab that other parts of the page use."""

    title: gr.Textbox
    image: gr.Image
    asked: gr.Textbox
    asked_image: gr.Image
    product_id: gr.State
    meaning: gr.HTML
    match: gr.HTML
    duplicates: gr.HTML

    def product(self) -> list[Any]:
        """The components of `Product`, in its order."""
        return [getattr(self, name) for name in Product._fields]

    def shown(self) -> list[Any]:
        """The components that answers go to."""
        return [self.meaning, self.match, self.duplicates]


def build_understand_tab(catalogue: LiveCatalogue, limits: Mapping[str, Any]) -> UnderstandTab:
    """Build the tab.

    Args:
        catalogue: that products are compared with.
        limits: of its events, for Gradio's queue.
    """
    with gr.Row(elem_classes="m2-columns"):
        with gr.Column(scale=1, min_width=260):
            image = gr.Image(
                label="Picture of the product", type="filepath", sources=["upload", "clipboard", "webcam"],
                height=220, image_mode=None, elem_id="product-picture", buttons=[], alt_text="the product",
            )  # fmt: skip
            title = gr.Textbox(label="Title of the product", max_lines=2, elem_id="product-title")
            asked = gr.Textbox(
                label="What it is searched for with", max_lines=2, elem_id="product-asked",
                info="The map shows what carries this match. Without it, the match with the title.",
            )  # fmt: skip
            with gr.Accordion("Searched for with a picture", open=False):
                asked_image = gr.Image(
                    label="Picture that was searched for", type="filepath", sources=["upload", "clipboard"],
                    height=160, image_mode=None, buttons=[], alt_text="what was searched for", elem_id="asked-picture",
                )  # fmt: skip
            go = gr.Button("Understand", variant="primary", elem_id="understand")
        with gr.Column(scale=2, min_width=320):
            match = gr.HTML(
                message("Give a product, by a picture, a title or both; or choose “Why this?” on one that was found."),
                elem_id="match", apply_default_css=False,
            )  # fmt: skip
        with gr.Column(scale=2, min_width=320):
            meaning = gr.HTML(elem_id="meaning", apply_default_css=False)
    duplicates = gr.HTML(js_on_load=ACTIONS, elem_id="duplicates", apply_default_css=False)
    product_id = gr.State(None)
    tab = UnderstandTab(title, image, asked, asked_image, product_id, meaning, match, duplicates)
    options = {"api_visibility": "private", "preprocess": False, **limits}
    gr.on(
        [go.click, title.submit, asked.submit], lambda *values: explained(catalogue, Product(*values)),
        tab.product(), tab.shown(), show_progress_on=[match, meaning], **options,
    )  # fmt: skip
    gr.on([title.input, image.input], lambda: None, None, product_id, api_visibility="private", queue=False)
    return tab


def product_of_catalogue(catalogue: LiveCatalogue, product_id: str) -> tuple[str, Image.Image | None]:
    """Title and first picture of a product.

    Raises:
        ValueError: there is no such product.
    """
    row = catalogue.now.index.products([product_id], ["title", "images"]).get(product_id)
    if row is None:
        raise ValueError(f"product {product_id[:200]!r} is not in the catalogue")
    return row["title"], load_image(row["images"][0]["bytes"]) if row["images"] else None


def explained(catalogue: LiveCatalogue, product: Product) -> tuple[str, str, str]:
    """What a product is, what carries its match, and its near-duplicates, each as HTML."""
    try:
        item = SearchQuery(product.title, uploaded_picture(product.image))
        asked_image = uploaded_picture(product.asked_image)
        asked = None
        if asked_image is not None or (product.asked or "").strip():
            asked = SearchQuery(product.asked, asked_image)
        found, hits = understood(catalogue, item, DUPLICATES, product.product_id)
        return _meaning(found), _match(catalogue, item, asked or _default_query(item, found)), _duplicates(hits)
    except ValueError as error:
        return "", message(str(error), "error"), ""


def understood(
    catalogue: LiveCatalogue, item: SearchQuery, max_duplicates: int, leave_out: str | None = None
) -> tuple[Understanding, list[SearchHit]]:
    """What a product is, and the products of the catalogue that are nearly the same.

    Args:
        catalogue: to compare with.
        item: the product.
        max_duplicates: at most.
        leave_out: id of the product itself, where it is of the catalogue.
    """
    now = catalogue.now
    found = catalogue.labels().understand(as_item(item), partial(_near, now, leave_out), max_duplicates)
    rows = now.index.products([product_id for product_id, _ in found.duplicates])
    hits = [
        SearchHit(
            product_id, row["title"], similarity, similarity, {}, row["category_path"],
            [(attribute["name"], attribute["value"]) for attribute in row["attributes"]], row["thumbnail"],
        )
        for product_id, similarity in found.duplicates
        if (row := rows.get(product_id)) is not None
    ]  # fmt: skip
    return found, hits


def mapped(catalogue: LiveCatalogue, item: SearchQuery, asked: SearchQuery) -> Heatmap:
    """What carries the match of a product with a query."""
    average = catalogue.average()
    return catalogue.now.encoder.run(_map, as_item(asked), as_item(item), average)


def drawn_map(item: SearchQuery, heatmap: Heatmap) -> bytes | None:
    """The heat over the product's picture with its legend, as JPEG; None without a picture."""
    if heatmap.cells is None:
        return None
    buffer = io.BytesIO()
    draw_heatmap(load_image(item.image), heatmap).save(buffer, "JPEG", quality=MAP_QUALITY)
    return buffer.getvalue()


def as_item(query: SearchQuery) -> dict[str, Any]:
    """A product or a query as an item to encode."""
    return {"name": "the product", "text": query.text, "images": [] if query.image is None else [query.image]}


def _map(encoder: Encoder, query: dict[str, Any], item: dict[str, Any], average: np.ndarray) -> Heatmap:
    return match_heatmap(encoder, query, item, average if average.any() else None)


def _near(now: Answering, leave_out: str | None, vector: np.ndarray, count: int) -> list[tuple[str, float]]:
    near = now.index.nearest(vector[None], count + 1)[0]
    return [found for found in near if found[0] != leave_out][:count]


def _default_query(item: SearchQuery, found: Understanding) -> SearchQuery:
    """The title; without one the likeliest category, else the picture itself."""
    if item.text is not None:
        return SearchQuery(item.text)
    return SearchQuery(found.category_path[-1]) if found.categories else SearchQuery(image=item.image)


def _meaning(found: Understanding) -> str:
    if not found.categories and not found.attributes:
        return message("The catalogue names no categories and no attributes yet, so there is nothing to tell them by.")
    parts = []
    if found.categories:
        path = category_text(found.category_path)
        levels = "".join(_prediction(f"Level {depth}", level) for depth, level in enumerate(found.categories, start=1))
        parts.append(f'<h3>Category</h3><div class="m2-path-large" dir="auto">{path}</div>{levels}')
    if found.attributes:
        rows = "".join(_prediction(prediction.name, prediction) for prediction in found.attributes)
        parts.append(f"<h3>Attributes</h3>{rows}")
    told = "Told by the catalogue's own labels, without training on them; the shares are the model's, not promises."
    return f'<section class="m2-panel">{"".join(parts)}<p>{told}</p></section>'


def _prediction(name: str, prediction: Prediction, shown: int = 2) -> str:
    choices = "".join(
        f'<div class="m2-choice"><{tag} dir="auto">{escape(label)}</{tag}>{bar(share)}<i>{share:.0%}</i></div>'
        for (label, share), tag in zip(prediction.choices[:shown], ("b", "em"), strict=False)
    )
    return f'<div class="m2-row"><span dir="auto">{escape(name)}</span><div>{choices}</div></div>'


def _match(catalogue: LiveCatalogue, item: SearchQuery, asked: SearchQuery) -> str:
    heatmap = mapped(catalogue, item, asked)
    told = " and ".join([f"“{asked.text}”"] * (asked.text is not None) + ["the picture"] * (asked.image is not None))
    parts = [f"<h3>What carries the match with {escape(told)}: similarity {heatmap.score:.2f}</h3>"]
    drawn = drawn_map(item, heatmap)
    if drawn is not None:
        alt = f"Heat map over the product's picture: where it carries the match with {told}, from dark to light"
        parts.append(f'<img class="m2-map" src="{data_url(drawn, "jpeg")}" alt="{escape(alt)}">')
    if heatmap.words:
        parts.append(f"<h3>Words of the title</h3>{shaded_words(heatmap.words)}")
    parts.append("<p>Grad-CAM of the similarity at the language model's input (Selvaraju et al., 2017).</p>")
    return f'<section class="m2-panel">{"".join(parts)}</section>'


def shaded_words(words: Sequence[tuple[str, float]]) -> str:
    """Words as HTML, the more of the match one carries, the darker its ground; the weight is also its tooltip."""
    marks = " ".join(
        f'<mark style="background:rgb(243 119 26 / {0.75 * weight:.2f})" title="{weight:.2f}">{escape(word)}</mark>'
        for word, weight in words
    )
    return f'<p class="m2-words" dir="auto">{marks}</p>'


def _duplicates(hits: Sequence[SearchHit]) -> str:
    if not hits:
        return message("Nothing in the catalogue is nearly the same.")
    return f'<h2 class="m2-over">Nearly the same in the catalogue</h2>{hit_cards(hits, can_explain=False)}'
