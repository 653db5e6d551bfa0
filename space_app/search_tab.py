"""The tab that searches: by words, by a picture, by both; filters; more like this; an address that can be shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import gradio as gr

from .filters import Filters
from .live_catalogue import Answering, LiveCatalogue
from .product_cards import ACTIONS, hit_cards, hits_header, message, welcome
from .product_table import Facets
from .search import SearchHit, SearchQuery
from .search_command import parse_filters
from .uploads import Upload, uploaded_picture

COLOUR_NAMES = ("colour", "color", "farbe", "couleur", "kleur", "colore", "couleurs", "色", "颜色")
MAX_CHOICES = 500  # of a filter
EXAMPLES, SHOWN_PRODUCTS = 6, 6
WIDE = 900  # pixels, from where on the filters lie open
K, MAX_SHOWN = 12, 60

Choices = list[tuple[str, str]]  # label, value

# What was asked for goes into the address, without another entry in the browser's history.
SHARE = """(text, balance, category, colours, attributes, k, hybrid, like) => {
  const asked = new URLSearchParams();
  if (like) asked.set('like', like); else if (text) asked.set('q', text);
  if (balance !== 0.5) asked.set('balance', balance);
  if (category) asked.set('category', category);
  for (const pair of [...(colours || []), ...(attributes || [])]) asked.append('filter', pair);
  if (k !== 12) asked.set('k', k);
  if (!hybrid) asked.set('hybrid', '0');
  const before = new URLSearchParams(location.search);
  for (const name of ['__theme', 'view', '__sign']) if (before.has(name)) asked.set(name, before.get(name));
  history.replaceState(null, '', asked.size ? '?' + asked : location.pathname);
}"""


class Form(NamedTuple):
    """What the form holds.

    Args:
        text: words.
        image: upload.
        balance: 0 for the words alone to 1 for the picture alone.
        category: "A > B", or None.
        colours: "colour=red"s.
        attributes: "name=value"s.
        k: products to find.
        hybrid: fuse full text and vectors, where words alone are asked for.
    """

    text: str | None = None
    image: Upload = None
    balance: float = 0.5
    category: str | None = None
    colours: Sequence[str] | None = None
    attributes: Sequence[str] | None = None
    k: float = K
    hybrid: bool = True

    def filters(self) -> Filters:
        """What products must be."""
        return parse_filters(self.category, [*(self.colours or ()), *(self.attributes or ())])


@dataclass(frozen=True)
class SearchTab:
    """The components of the tab that other parts of the page use."""

    text: gr.Textbox
    image: gr.Image
    balance: gr.Slider
    category: gr.Dropdown
    colours: gr.Dropdown
    attributes: gr.Dropdown
    k: gr.Slider
    hybrid: gr.Checkbox
    filters: gr.Accordion
    like: gr.Textbox
    results: gr.HTML

    def form(self) -> list[Any]:
        """The components of `Form`, in its order."""
        return [getattr(self, name) for name in Form._fields]

    def shared(self) -> list[Any]:
        """The components that `SHARE` takes."""
        return [component for name, component in zip(Form._fields, self.form(), strict=True) if name != "image"] + [
            self.like
        ]


def build_search_tab(catalogue: LiveCatalogue, limits: Mapping[str, Any]) -> SearchTab:
    """Build the tab.

    Args:
        catalogue: what is searched.
        limits: of its events, for Gradio's queue.
    """
    with gr.Row(elem_classes="m2-ask"):
        text = gr.Textbox(
            label="Words", placeholder="red running shoes", show_label=False, container=False, max_lines=1, scale=6,
            min_width=200, autofocus=True, elem_id="words",
            html_attributes=gr.InputHTMLAttributes(enterkeyhint="search"),
        )  # fmt: skip
        go = gr.Button("Search", variant="primary", scale=1, min_width=110, elem_id="go")
    with gr.Row(elem_classes="m2-columns"):
        with gr.Column(scale=1, min_width=260, elem_classes="m2-side"):
            image = gr.Image(
                label="Picture", type="filepath", sources=["upload", "clipboard", "webcam"], height=190,
                image_mode=None, elem_id="picture", buttons=[], alt_text="the picture to search for",
            )  # fmt: skip
            balance = gr.Slider(
                0, 1, 0.5, step=0.05, label="Balance", elem_id="balance",
                info="With both: 0 words, 1 picture",
            )  # fmt: skip
            with gr.Accordion("Filters and options", open=False, elem_id="filters") as filters:
                category = gr.Dropdown([], value=None, label="Category", elem_id="category")
                colours = gr.Dropdown([], value=[], multiselect=True, label="Colour", elem_id="colour")
                attributes = gr.Dropdown([], value=[], multiselect=True, label="Attributes", elem_id="attributes")
                k = gr.Slider(1, MAX_SHOWN, K, step=1, label="Products", elem_id="k")
                hybrid = gr.Checkbox(
                    True, label="Hybrid", elem_id="hybrid",
                    info="Fuse full text with vectors where you search by words alone",
                )  # fmt: skip
            clear = gr.Button("Clear", size="sm", elem_id="clear")
        with gr.Column(scale=4, min_width=320):
            results = gr.HTML(welcome(0, [], []), js_on_load=ACTIONS, elem_id="results", apply_default_css=False)
    like = gr.Textbox(visible="hidden", elem_id="like")  # the product that others shall be like
    tab = SearchTab(text, image, balance, category, colours, attributes, k, hybrid, filters, like, results)

    def search(*values: Any) -> tuple[str, str]:
        return found(catalogue, Form(*values)), ""

    def ask(event: gr.EventData, *values: Any) -> tuple[str, str, str]:
        form = Form(*values)._replace(text=str(event.value), image=None)
        return form.text, found(catalogue, form), ""

    def similar(event: gr.EventData, *values: Any) -> tuple[str, str]:
        return found_like(catalogue, str(event.value), Form(*values)), str(event.value)

    def cleared() -> list[Any]:
        form = Form()
        empty = [form.text, None, form.balance, None, [], [], form.k, form.hybrid]
        return [*empty, start(catalogue), ""]

    options = {"api_visibility": "private", "preprocess": False, "trigger_mode": "always_last", **limits}
    share = {"fn": None, "inputs": tab.shared(), "js": SHARE}
    changed = [category.input, colours.input, attributes.input, k.release, hybrid.input, balance.release]
    gr.on(
        [text.submit, go.click, image.upload, *changed], search, tab.form(), [results, like],
        show_progress="minimal", show_progress_on=results, **options,
    ).then(**share)  # fmt: skip
    results.ask(
        ask, tab.form(), [text, results, like], show_progress="minimal", show_progress_on=results, **options
    ).then(**share)
    results.similar(
        similar, tab.form(), [results, like], show_progress="minimal", show_progress_on=results, **options
    ).then(**share)
    clear.click(cleared, None, [*tab.form(), results, like], **options).then(**share)
    return tab


def arrive(catalogue: LiveCatalogue, tab: SearchTab, query: str, width: float) -> dict[Any, Any]:
    """What the tab shows to who opens the page.

    Args:
        catalogue: what is searched.
        tab: the tab.
        query: of the address, such as "q=red+mug&filter=colour%3Dred"; what has no meaning is passed over.
        width: of the window, in pixels.

    Returns:
        Updates of components.
    """
    categories, colours, attributes = filter_choices(catalogue.now.index.facets())
    form, like = _asked(query, categories, colours, attributes)
    is_filtered = bool(form.category or form.colours or form.attributes)
    updates: dict[Any, Any] = {
        tab.text: form.text,
        tab.balance: form.balance,
        tab.category: gr.Dropdown(choices=categories, value=form.category),
        tab.colours: gr.Dropdown(choices=colours, value=form.colours, visible=bool(colours)),
        tab.attributes: gr.Dropdown(choices=attributes, value=form.attributes, visible=bool(attributes)),
        tab.k: form.k,
        tab.hybrid: form.hybrid,
        tab.filters: gr.Accordion(open=width >= WIDE or is_filtered),
        tab.like: like or "",
    }
    if like:
        updates[tab.results] = found_like(catalogue, like, form)
    elif form.text:
        updates[tab.results] = found(catalogue, form)
    else:
        updates[tab.results] = start(catalogue)
    return updates


def fresh_choices(catalogue: LiveCatalogue) -> list[gr.Dropdown]:
    """The choices of the three filters, for a catalogue that may have changed since the page was opened."""
    kinds = filter_choices(catalogue.now.index.facets())
    return [gr.Dropdown(choices=kind, visible=number == 0 or bool(kind)) for number, kind in enumerate(kinds)]


def found(catalogue: LiveCatalogue, form: Form) -> str:
    """What the form finds, as HTML; what is wrong with it, too."""
    try:
        picture = uploaded_picture(form.image)
        if picture is None and not (form.text or "").strip():
            return start(catalogue)
        query = SearchQuery(form.text, picture, form.balance, form.filters())
        now = catalogue.now
        search = now.hybrid if form.hybrid else now.vectors
        hits = search.many([query], round(form.k))[0]
    except ValueError as error:
        return message(str(error), "error")
    asked = " + ".join([f"“{query.text}”"] * (query.text is not None) + ["your picture"] * (picture is not None))
    return _shown(hits, asked, can_share=picture is None)


def found_like(catalogue: LiveCatalogue, product_id: str, form: Form) -> str:
    """What is like a product, as HTML."""
    try:
        now = catalogue.now
        hits = now.hybrid.like(product_id, round(form.k), form.filters())
        title = now.index.products([product_id], ["title"])[product_id]["title"]
    except ValueError as error:
        return message(str(error), "error")
    return _shown(hits, f"products like “{title or product_id}”", can_share=True)


def start(catalogue: LiveCatalogue) -> str:
    """What stands where nothing has been asked for."""
    index = catalogue.now.index
    ids = index.ids()
    step = max(1, len(ids) // SHOWN_PRODUCTS)
    some = list(index.products(ids[::step][:SHOWN_PRODUCTS]).values())
    return welcome(len(ids), example_queries(catalogue.now), some)


def example_queries(now: Answering) -> list[str]:
    """Texts that the catalogue has an answer to, made of its own words: a colour and a category, or a title."""
    ids = now.index.ids()
    step = max(1, len(ids) // (3 * EXAMPLES))
    columns = ["title", "category_path", "attributes"]
    texts: dict[str, str] = {}  # category -> text, so that no two are of one
    for row in now.index.products(ids[step // 2 :: step][: 3 * EXAMPLES], columns).values():
        leaf = row["category_path"][-1].casefold() if row["category_path"] else ""
        colour = next((a["value"] for a in row["attributes"] if a["name"].casefold() in COLOUR_NAMES), "")
        text = f"{colour} {leaf}" if colour and leaf else " ".join(row["title"].split()[:4])
        if text:
            texts.setdefault(leaf or text, text)
    return list(texts.values())[:EXAMPLES]


def filter_choices(facets: Facets) -> tuple[Choices, Choices, Choices]:
    """(label, value) of categories, of colours and of other attributes, as `parse_filters` takes the values."""
    categories = [(f"{' › '.join(path)} ({count:,})", " > ".join(path)) for path, count in facets.categories.items()]
    colours, others = [], []
    for name, values in facets.attributes.items():
        is_colour = name.casefold() in COLOUR_NAMES
        for value, count in values.items():
            label = f"{value} ({count:,})" if is_colour else f"{name}: {value} ({count:,})"
            (colours if is_colour else others).append((label, f"{name}={value}"))
    return categories[:MAX_CHOICES], colours[:MAX_CHOICES], others[:MAX_CHOICES]


def _asked(query: str, *choices: Choices) -> tuple[Form, str | None]:
    """The form that an address describes, and the product that others shall be like."""
    try:
        values = parse_qs(query[:5000], max_num_fields=100)
    except ValueError:
        values = {}
    first = {name: of_name[0] for name, of_name in values.items()}
    categories, colours, attributes = ({value for _, value in of_kind} for of_kind in choices)
    pairs = values.get("filter", [])
    form = Form(
        text=first.get("q"),
        balance=_number(first.get("balance"), 0.5, 0, 1),
        category=category if (category := first.get("category")) in categories else None,
        colours=[pair for pair in pairs if pair in colours],
        attributes=[pair for pair in pairs if pair in attributes],
        k=round(_number(first.get("k"), K, 1, MAX_SHOWN)),
        hybrid=first.get("hybrid") != "0",
    )
    return form, first.get("like")


def _number(text: str | None, default: float, low: float, high: float) -> float:
    try:
        return min(high, max(low, float(text)))
    except (TypeError, ValueError):
        return default


def _shown(hits: Sequence[SearchHit], asked: str, can_share: bool) -> str:
    if not hits:
        return message(f"Nothing found for {asked} with these filters; take some of them off.")
    return hits_header(f"{len(hits)} products for {asked}", can_share) + hit_cards(hits)
