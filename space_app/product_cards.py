"""Products as HTML: every word of a catalogue or a visitor is escaped, whatever it holds."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .search import SearchHit

MAX_ATTRIBUTES = 4  # shown on a card
# One listener for whatever the HTML of the moment holds; the buttons carry what they mean.
ACTIONS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (!button) return;
  const { action, value } = button.dataset;
  if (action === 'ask') trigger('ask', { value });
  if (action === 'similar') trigger('similar', { value });
  if (action === 'explain') trigger('explain', { value });
  if (action === 'link') {
    navigator.clipboard?.writeText(window.location.href);
    button.textContent = 'Copied';
  }
});
"""


def data_url(picture: bytes, kind: str = "webp") -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def hit_cards(hits: Sequence[SearchHit], can_explain: bool = True) -> str:
    """Products found, as a grid of cards.

    Args:
        hits: best first.
        can_explain: offer to show what carries the match.
    """
    return f'<div class="m2-grid" role="list">{"".join(_card(hit, can_explain) for hit in hits)}</div>'


def picture_of(title: str, thumbnail: bytes | None) -> str:
    """The picture of a product, or a place that says there is none."""
    if thumbnail is None:
        return '<div class="m2-photo m2-none"><span>no picture</span></div>'
    alt = escape(title or "product without a title")
    return f'<div class="m2-photo"><img src="{data_url(thumbnail)}" alt="{alt}" loading="lazy"></div>'


def action_button(action: str, value: str, label: str, style: str = "", told: str = "") -> str:
    """A button of `ACTIONS`.

    Args:
        action: "ask", "similar", "explain" or "link".
        value: what it is about.
        label: that it shows.
        style: classes.
        told: name for those who do not see what it stands on.
    """
    name = f' aria-label="{escape(told)}"' if told else ""
    return (
        f'<button type="button" class="{style}" data-action="{action}" data-value="{escape(value)}"{name} dir="auto">'
        f"{escape(label)}</button>"
    )


def message(text: str, kind: str = "note") -> str:
    """A sentence for the visitor; kind "note" or "error"."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="m2-message m2-{kind}" role="{role}" dir="auto">{escape(text)}</div>'


def bar(share: float, label: str = "") -> str:
    """A share of 0 to 1 as a bar."""
    width = max(0.0, min(1.0, share))
    return f'<span class="m2-bar" aria-hidden="true"><i style="width:{width:.1%}"></i></span>{escape(label)}'


def category_text(path: Sequence[str]) -> str:
    """A category path as one line, escaped."""
    return " › ".join(map(escape, path))


def hits_header(told: str, can_share: bool) -> str:
    """The line over what was found, escaped, with a button that copies its address."""
    link = action_button("link", "", "Copy link", "m2-quiet") if can_share else ""
    return f'<div class="m2-header"><p role="status" dir="auto">{escape(told)}</p>{link}</div>'


def welcome(products: int, examples: Sequence[str], some: Sequence[Mapping[str, Any]]) -> str:
    """What stands where nothing has been asked for: what could be.

    Args:
        products: in the catalogue.
        examples: texts to ask for.
        some: rows of products to show, with product_id, title, thumbnail and category_path.
    """
    if not products:
        return message("The catalogue is empty. Add products under “Catalogue”, or with `moon2 index`.")
    asks = "".join(action_button("ask", text, text, "m2-chip") for text in examples)
    shown = "".join(
        f'<div class="m2-card m2-small" role="listitem">{picture_of(row["title"], row["thumbnail"])}'
        f'<div class="m2-body"><h3 dir="auto">{escape(row["title"])}</h3><div class="m2-actions">'
        + action_button(
            "similar", row["product_id"], "More like this", "m2-action", f"More products like {row['title']}"
        )
        + "</div></div></div>"
        for row in some
    )
    return (
        f'<section class="m2-welcome"><h2>Search {products:,} products by words, by a picture, or by both</h2>'
        f'<p>Try one of these, or paste a picture.</p><div class="m2-chips">{asks}</div>'
        f'<h2 class="m2-over">From the catalogue</h2><div class="m2-grid" role="list">{shown}</div></section>'
    )


def _card(hit: SearchHit, can_explain: bool) -> str:
    title = hit.title or hit.product_id
    ranks = " · ".join(f"{name} #{rank}" for name, rank in hit.ranks.items())
    attributes = "".join(
        f'<li dir="auto"><span>{escape(name)}</span> {escape(value)}</li>'
        for name, value in hit.attributes[:MAX_ATTRIBUTES]
    )
    buttons = action_button("similar", hit.product_id, "More like this", "m2-action", f"More products like {title}")
    if can_explain:
        buttons += action_button("explain", hit.product_id, "Why this?", "m2-action", f"Why {title} was found")
    return (
        f'<div class="m2-card" role="listitem">{picture_of(title, hit.thumbnail)}<div class="m2-body">'
        f'<h3 dir="auto" title="{escape(title)}">{escape(title)}</h3>'
        f'<p class="m2-path" dir="auto">{category_text(hit.category_path)}</p>'
        f'<p class="m2-score">{bar(hit.score)}<b>{hit.score:.2f}</b><span>{escape(ranks)}</span></p>'
        f'<ul class="m2-attributes">{attributes}</ul><div class="m2-actions">{buttons}</div></div></div>'
    )
