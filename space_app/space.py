"""The Gradio Space: its options, its page, and how it is served."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.util import find_spec
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware

from modeling_moon2.processing_moon2 import load_image

from .access import TokenForAgents
from .api import add_endpoints
from .balance_tab import build_balance_tab
from .bundled_model import BUNDLED_MODEL
from .catalogue_folder import DATA_DIR, CatalogueFolder, data_folder
from .catalogue_source import Limits
from .catalogue_tab import build_catalogue_tab, state_html
from .live_catalogue import LiveCatalogue
from .search import SearchQuery
from .search_tab import SHARE, Form, SearchTab, arrive, build_search_tab, found_like, fresh_choices
from .theme import STYLE_SHEET, moon_theme
from .understand_tab import Product, UnderstandTab, build_understand_tab, explained, product_of_catalogue
from .uploads import MAX_PICTURE, NoFetching, refuse_addresses, uploaded_picture

TOGGLE_DARK = """
element.addEventListener('click', (event) => {
  if (event.target.closest('button')) document.body.classList.toggle('dark');
});
"""
MOON = (
    '<svg viewBox="0 0 32 32" aria-hidden="true"><circle cx="16" cy="16" r="15" fill="#5b43dd"/>'
    '<path d="M21.5 20.6A8.6 8.6 0 0 1 11.2 8.9a8.8 8.8 0 1 0 10.3 11.7Z" fill="#fff"/>'
    '<circle cx="21" cy="11" r="1.6" fill="#fff"/></svg>'
)
QUIET = {"api_visibility": "private", "show_progress": "hidden"}
MIN_TOKEN = 12  # characters
WAITING_USERS = 256  # beyond them the queue says that it is full
EVENTS_TO_SUM_UP = "1000"  # for Gradio's own statistics, which else cost more after every event than a search
SESSIONS = 1000  # kept in memory, of about 100 kB each; a call with curl is one of its own
AT_ONCE = 8  # searches that run at once; the encoder takes them in turn


@dataclass(frozen=True)
class SpaceOptions:
    """How the Space is served.

    Args:
        data_dir: folder of the index; None: MOON2_DATA_DIR, or one for the user.
        model: folder or Hub id of the encoder for a new index; None: the one that comes with the package.
        models: further encoders that an administrator may swap to; no others are ever loaded.
        admin_token: what changes of the catalogue ask for; None: nobody may change it.
        host: address to listen on; None: this machine alone, or all addresses in a Space on Hugging Face.
        port: None: GRADIO_SERVER_PORT, or the first free one from 7860.
        mcp_server: serve the API to agents as well, to those who send the token; needs `gradio[mcp]`.
        title: of the page.
        limits: how much is read of a catalogue that an administrator gives.

    Raises:
        ValueError: too short a token, or an MCP server without one.
    """

    data_dir: str | os.PathLike | None = None
    model: str | None = None
    models: Sequence[str] = ()
    admin_token: str | None = field(default=None, repr=False)
    host: str | None = None
    port: int | None = None
    mcp_server: bool = False
    title: str = "MOON2.0 product search"
    limits: Limits = Limits()

    def __post_init__(self):
        if self.admin_token is not None and len(self.admin_token) < MIN_TOKEN:
            raise ValueError(f"admin_token has {len(self.admin_token)} characters; give {MIN_TOKEN} or more")
        if self.mcp_server and self.admin_token is None:
            raise ValueError("mcp_server needs an admin_token, which agents have to send; give one")

    @classmethod
    def from_environment(cls) -> SpaceOptions:
        """Options from MOON2_DATA_DIR, MOON2_MODEL, MOON2_MODELS (with commas), MOON2_ADMIN_TOKEN, MOON2_MCP (1)."""
        models = [name.strip() for name in os.environ.get("MOON2_MODELS", "").split(",")]
        return cls(
            data_dir=os.environ.get(DATA_DIR) or None,
            model=os.environ.get("MOON2_MODEL") or None,
            models=tuple(filter(None, models)),
            admin_token=os.environ.get("MOON2_ADMIN_TOKEN") or None,
            mcp_server=os.environ.get("MOON2_MCP") == "1",
        )


class SpaceBlocks(gr.Blocks):
    """Blocks that fetch nothing, where Gradio downloads a file that is given as a web address, however large."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *arguments: Any, **named: Any) -> list[Any]:
        """What Gradio makes of the inputs of an event.

        Raises:
            gr.Error: one of them is such an address.
        """
        try:
            refuse_addresses(inputs)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return await super().preprocess_data(block_fn, inputs, *arguments, **named)


def open_catalogue(options: SpaceOptions) -> LiveCatalogue:
    """Open the catalogue that options name, or make an empty one.

    Raises:
        FileNotFoundError: no such model.
    """
    folder = CatalogueFolder(data_folder(options.data_dir))
    return LiveCatalogue.open(folder, options.model or str(BUNDLED_MODEL), options.models, options.limits)


def build_space(catalogue: LiveCatalogue, options: SpaceOptions) -> gr.Blocks:
    """Build the page and its API.

    Args:
        catalogue: what is searched.
        options: how it is served.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", EVENTS_TO_SUM_UP)
    with SpaceBlocks(title=options.title, analytics_enabled=False, delete_cache=(600, 3600)) as space:
        gr.HTML(_head(options.title), js_on_load=TOGGLE_DARK, apply_default_css=False)
        searching = {"concurrency_limit": AT_ONCE, "concurrency_id": "search"}
        with gr.Tabs() as tabs:
            with gr.Tab("Search", id="search") as first_tab:
                search = build_search_tab(catalogue, searching)
            with gr.Tab("Understand", id="understand"):
                understand = build_understand_tab(catalogue, searching)
            with gr.Tab("Balance", id="balance"):
                build_balance_tab(catalogue, {"concurrency_limit": 1, "concurrency_id": "measure"})
            with gr.Tab("Catalogue", id="catalogue") as catalogue_tab:
                state = build_catalogue_tab(catalogue, options.admin_token)
        filters = [search.category, search.colours, search.attributes]
        first_tab.select(lambda: fresh_choices(catalogue), None, filters, **QUIET)
        catalogue_tab.select(lambda: state_html(catalogue), None, state, **QUIET)
        _wire(space, catalogue, tabs, search, understand, searching)
        add_endpoints(catalogue, options.admin_token, searching)
    return space.queue(max_size=WAITING_USERS, default_concurrency_limit=AT_ONCE)


def _wire(
    space: gr.Blocks,
    catalogue: LiveCatalogue,
    tabs: gr.Tabs,
    search: SearchTab,
    understand: UnderstandTab,
    limits: Mapping[str, Any],
) -> None:
    """Connect the tabs with each other and with the address of the page."""
    width = gr.Number(0, visible=False)

    def opened(request: gr.Request, window: float) -> dict[Any, Any]:
        return arrive(catalogue, search, str(request.query_params), window or 0)

    def explain(event: gr.EventData, *values: Any) -> list[Any]:
        form, product_id = Form(*values), str(event.value)
        try:
            title, picture = product_of_catalogue(catalogue, product_id)
            asked = uploaded_picture(form.image)
            asked = asked and load_image(SearchQuery(image=asked).image)
        except ValueError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error  # Gradio shows it as HTML
        return [gr.Tabs(selected="understand"), title, picture, form.text, asked, product_id]

    def similar(event: gr.EventData, *values: Any) -> list[Any]:
        product_id = str(event.value)
        return [gr.Tabs(selected="search"), found_like(catalogue, product_id, Form(*values)), product_id]

    def explained_now(*values: Any) -> tuple[str, str, str]:
        return explained(catalogue, Product(*values))

    page = [*search.form(), search.filters, search.like, search.results]
    space.load(opened, width, page, js="() => [window.innerWidth]", **QUIET)
    raw = {"api_visibility": "private", "preprocess": False, **limits}
    search.results.explain(explain, search.form(), [tabs, *understand.product()], show_progress="hidden", **raw).then(
        explained_now, understand.product(), understand.shown(), scroll_to_output=True, **raw
    )
    understand.duplicates.similar(
        similar, search.form(), [tabs, search.results, search.like], show_progress="hidden", **raw
    ).then(fn=None, inputs=search.shared(), js=SHARE)


def launch_space(
    options: SpaceOptions, *, catalogue: LiveCatalogue | None = None, block: bool = True
) -> tuple[FastAPI, str]:
    """Build the Space and serve it.

    Args:
        options: how it is served.
        catalogue: what is searched; None: what the options name.
        block: until it is interrupted; else it is served by a thread, and closed with `app.get_blocks().close()`.

    Returns:
        (app, address).

    Raises:
        ImportError: there shall be an MCP server, and its package is not installed.
    """
    if options.mcp_server and find_spec("mcp") is None:
        raise ImportError("mcp_server needs a package more; pip install 'gradio[mcp]'")
    os.environ.setdefault("GRADIO_TEMP_DIR", str(data_folder(options.data_dir).resolve() / "served"))
    space = build_space(catalogue or open_catalogue(options), options)
    in_a_space = "SPACE_ID" in os.environ
    guards = [Middleware(NoFetching)]
    if options.mcp_server:
        guards.append(Middleware(TokenForAgents, token=options.admin_token))
    app, url, _ = space.launch(
        server_name=options.host or ("0.0.0.0" if in_a_space else "127.0.0.1"),
        server_port=options.port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        mcp_server=options.mcp_server,
        state_session_capacity=SESSIONS,
        theme=moon_theme(),
        css=STYLE_SHEET.read_text(encoding="utf-8"),
        footer_links=["api"],
        app_kwargs={"middleware": guards},
        max_file_size=options.limits.file_bytes if options.admin_token else MAX_PICTURE,
    )
    if block:
        print(f"{options.title}: {url}", flush=True)
        space.block_thread()
    return app, url


def _head(title: str) -> str:
    told = "Search by words, by a photo, or by both, and see why"
    return (
        f'<header class="m2-head">{MOON}<div><h1>{escape(title)}</h1><p>{escape(told)}</p></div>'
        '<button type="button" aria-label="Switch between light and dark">◐</button></header>'
    )
