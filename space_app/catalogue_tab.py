"""The tab that shows the catalogue and, to an administrator, changes it: add, replace, delete, another model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from .access import check_token
from .catalogue_source import RowError, errors_as_csv
from .live_catalogue import SHOWN_FINGERPRINT, Job, LiveCatalogue
from .product_cards import message
from .uploads import uploaded_file

SHOWN_ERRORS = 50
FORMATS_TOLD = (
    "A CSV, TSV, JSON Lines or Parquet file, or a ZIP of pictures, or of a table with its pictures. New products are "
    "added, changed ones replaced; only what changed is encoded again."
)
STEP = 0.4  # seconds between looks at a job


def build_catalogue_tab(catalogue: LiveCatalogue, token: str | None) -> gr.HTML:
    """Build the tab.

    Args:
        catalogue: to show and change.
        token: the administrator's; None: nothing can be changed.

    Returns:
        The component with the catalogue's state, for whoever opens the tab.
    """
    state = gr.HTML(elem_id="state", apply_default_css=False)
    if token is None:
        gr.HTML(message("This Space is read-only: start it with MOON2_ADMIN_TOKEN to change its catalogue."))
        return state
    given = gr.Textbox(
        label="Administrator's token", type="password", elem_id="token", placeholder="asked for by every change"
    )
    with gr.Row(elem_classes="m2-columns"):
        with gr.Column(scale=1, min_width=300):
            gr.HTML(f"<p class='m2-told'>{FORMATS_TOLD}</p>", apply_default_css=False)
            file = gr.File(label="Catalogue", type="filepath", height=150, elem_id="catalogue-file")
            hub_id = gr.Textbox(
                label="… or a data set on the Hub", placeholder="OWNER/NAME or OWNER/NAME:SPLIT", elem_id="hub-id"
            )
            replace_all = gr.Checkbox(
                False, label="Replace the whole catalogue", elem_id="replace-all",
                info="Delete products that the new one does not have",
            )  # fmt: skip
            with gr.Row():
                add = gr.Button("Add products", variant="primary", elem_id="add")
                cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
        with gr.Column(scale=1, min_width=300):
            ids = gr.Textbox(
                label="Delete products", lines=3, placeholder="one id a line", elem_id="delete-ids",
                info="As in the catalogue; one is in the address of “More like this”",
            )  # fmt: skip
            delete = gr.Button("Delete", elem_id="delete")
            model = gr.Dropdown(
                catalogue.models, label="Model", elem_id="model",
                value=catalogue.model,
                info="The old index answers until the new one is complete",
            )  # fmt: skip
            swap = gr.Button("Encode again with this model", elem_id="swap")
    progress = gr.HTML(elem_id="progress", apply_default_css=False)
    download = gr.DownloadButton("Download all row errors (CSV)", visible=False, elem_id="errors-csv")
    outputs = [progress, download, state]

    def guarded(start: Callable[..., Job | str]) -> Callable[..., Iterator[list[Any]]]:
        def follow(sent: Any, *values: Any) -> Iterator[list[Any]]:
            hidden = gr.DownloadButton(visible=False)
            try:
                check_token(token, sent)
                begun = start(*values)
            except (ValueError, PermissionError, FileNotFoundError) as error:
                yield [message(str(error), "error"), hidden, state_html(catalogue)]
                return
            if isinstance(begun, str):
                yield [message(begun), hidden, state_html(catalogue)]
                return
            while not begun.wait(STEP):
                yield [job_html(begun), hidden, gr.skip()]
            saved = save_errors(begun.errors) if begun.errors else None
            yield [
                job_html(begun), gr.DownloadButton(value=saved, visible=saved is not None), state_html(catalogue)
            ]  # fmt: skip

        return follow

    def start_add(upload: Mapping[str, Any] | None, name: str | None, all_of_it: bool) -> Job:
        return catalogue.start_add(source_of(upload, name), bool(all_of_it))

    def start_delete(text: str | None) -> str:
        wanted = [line.strip() for line in (text or "").splitlines() if line.strip()]
        if not wanted:
            raise ValueError("no ids given; write one a line")
        return f"{catalogue.delete(wanted):,} of {len(wanted):,} products deleted"

    def start_cancel() -> str:
        return cancel_job(catalogue)

    options = {"api_visibility": "private", "preprocess": False, "concurrency_limit": 2, "concurrency_id": "admin"}
    add.click(guarded(start_add), [given, file, hub_id, replace_all], outputs, show_progress="hidden", **options)
    delete.click(guarded(start_delete), [given, ids], outputs, show_progress="hidden", **options)
    swap.click(guarded(catalogue.start_swap), [given, model], outputs, show_progress="hidden", **options)
    stop = {"api_visibility": "private", "concurrency_limit": 2}
    cancel.click(lambda sent: _cancelled(catalogue, token, sent), given, state, show_progress="hidden", **stop)
    return state


def source_of(upload: Mapping[str, Any] | None, name: str | None) -> str | Path:
    """What a catalogue is read from: an upload, or the name of a data set.

    Raises:
        ValueError: there is neither or both, or the upload is none.
    """
    name = (name or "").strip()
    if bool(upload) == bool(name):
        raise ValueError("give a file or the name of a data set on the Hub, one of the two")
    if not upload:
        return name if name.startswith("hf:") else f"hf:{name}"
    return uploaded_file(upload)


def cancel_job(catalogue: LiveCatalogue) -> str:
    """Cancel the change that is under way; what there is to say.

    Raises:
        ValueError: there is none.
    """
    if catalogue.job is None or catalogue.job.state != "running":
        raise ValueError("no change is under way")
    catalogue.job.cancel()
    return "asked to stop; what is written stays"


def save_errors(errors: Sequence[RowError]) -> str:
    """Write row errors as CSV where downloads are served from; the path."""
    folder = Path(tempfile.mkdtemp(dir=_download_folder(), prefix="errors-"))
    file = folder / "row_errors.csv"
    file.write_text(errors_as_csv(errors), encoding="utf-8", newline="")
    return str(file)


def state_html(catalogue: LiveCatalogue) -> str:
    """What there is to know about the catalogue, as HTML."""
    index = catalogue.now.index
    manifest = index.manifest
    ann = manifest["ann"]
    search = "compares with every product"
    if ann is not None:
        lowest = min(ann["recall@10"].values(), default=1.0)
        search = f"approximate; finds {lowest:.1%} of the ten nearest"
    facets = index.facets()
    facts = {
        "Products": f"{len(index):,}",
        "Categories": f"{len(facets.categories):,}",
        "Attributes": f"{len(facets.attributes):,}",
        "Model": catalogue.model or "not named",
        "Fingerprint": manifest["fingerprint"][:SHOWN_FINGERPRINT],
        "Vectors": f"{manifest['dimension']} numbers",
        "Search": search,
    }
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    running = job_html(catalogue.job) if catalogue.job is not None and catalogue.job.state == "running" else ""
    return f'<dl class="m2-facts">{items}</dl>{running}'


def job_html(job: Job) -> str:
    """How far a change is, or what came of it, as HTML."""
    verb = {"add": "Adding products", "swap": "Encoding with the other model"}[job.kind]
    if job.state == "running":
        of = f" of {job.total:,}" if job.total else ""
        share = job.done / job.total if job.total else 0.0
        return (
            f'<section class="m2-panel"><div role="status">{verb}: {job.done:,}{of}</div>'
            f'<div class="m2-progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{share * 100:.0f}" aria-label="{verb}"><i style="width:{share:.1%}"></i></div></section>'
        )
    told = {"done": "Done", "cancelled": "Cancelled", "failed": "It failed"}[job.state]
    parts = message(f"{told}: {job.message}", "error" if job.state == "failed" else "note")
    return parts + (_errors_table(job.errors) if job.errors else "")


def _errors_table(errors: Sequence[RowError]) -> str:
    dropped = sum(error.dropped for error in errors)
    rows = "".join(
        f'<tr><td>{error.row:,}</td><td dir="auto">{escape(error.product_id)}</td>'
        f'<td dir="auto">{escape(error.message)}</td><td>{"left out" if error.dropped else "stays"}</td></tr>'
        for error in errors[:SHOWN_ERRORS]
    )
    more = f"<p>… and {len(errors) - SHOWN_ERRORS:,} more in the CSV.</p>" if len(errors) > SHOWN_ERRORS else ""
    return (
        f'<section class="m2-panel"><h3>{dropped:,} rows left out, {len(errors) - dropped:,} with a loss</h3>'
        '<div class="m2-table"><table><thead><tr><th>Row</th><th>Product</th><th>What is wrong</th><th>Outcome</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>{more}</section>"
    )


def _cancelled(catalogue: LiveCatalogue, token: str | None, sent: Any) -> str:
    try:
        check_token(token, sent)
        return message(cancel_job(catalogue)) + state_html(catalogue)
    except (ValueError, PermissionError) as error:
        return message(str(error), "error") + state_html(catalogue)


def _download_folder() -> Path:
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    return folder
