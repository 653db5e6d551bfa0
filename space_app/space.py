"""The Gradio Space: its options, its page, and how it is served."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from .catalogue_folder import DATA_DIR, CatalogueFolder, data_folder
from .live_catalogue import LiveCatalogue

BUNDLED_MODEL = Path(__file__).with_name("moon2-mini")
MIN_TOKEN = 12  # characters
WAITING_USERS = 256  # beyond them the queue says that it is full
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


def open_catalogue(options: SpaceOptions) -> LiveCatalogue:
    """Open the catalogue that options name, or make an empty one.

    Raises:
        FileNotFoundError: no such model.
    """
    folder = CatalogueFolder(data_folder(options.data_dir))
    return LiveCatalogue.open(folder, options.model or str(BUNDLED_MODEL), options.models)


def build_space(catalogue: LiveCatalogue, options: SpaceOptions) -> gr.Blocks:
    """Build the page and its API.

    Args:
        catalogue: what is searched.
        options: how it is served.
    """
    with gr.Blocks(title=options.title, analytics_enabled=False) as space:
        gr.Markdown(f"# {options.title}")
    return space


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
    """
    space = build_space(catalogue or open_catalogue(options), options)
    in_a_space = "SPACE_ID" in os.environ
    app, url, _ = space.launch(
        server_name=options.host or ("0.0.0.0" if in_a_space else "127.0.0.1"),
        server_port=options.port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        mcp_server=options.mcp_server,
    )
    if block:
        space.block_thread()
    return app, url
