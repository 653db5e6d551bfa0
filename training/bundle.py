"""A trained run as a small folder to hand on: bfloat16 weights in one file, the package's own code, card and metadata.

Example:
    python -m moon2_training.bundle runs/mini moon2-mini        # make it
    python -m moon2_training.bundle moon2-mini                  # after a change of the package, bring it up to date
    python -m moon2_training.bundle moon2-mini --notes notes.md # say in its card what only you know
    python -m moon2_training.bundle moon2-mini --scores evaluation.json # of `moon2 evaluate`, in place of the earlier
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import modeling_moon2
from moon2_dataset.hub_card import base_name

from .evaluate import write_json
from .hub_folder import complete_hub_folder, read_provenance, save_hub_folder
from .model_card import newest_scores, write_model_card
from .saved_encoder import load_encoder

RESULTS = "results.json"
CODE = "*_moon2.py"


def make_bundle(
    run: str | os.PathLike,
    folder: str | os.PathLike,
    dtype: torch.dtype = torch.bfloat16,
    notes: str | None = None,
) -> None:
    """Write the model of a run as a folder of its own; checkpoints, logs and optimizer states stay behind.

    Its newest scores and what is told of its training go into one `results.json`, which names no folder: the times of
    two files would not say which is the newer, once they have been copied.

    Args:
        run: folder of a saved model, with `results.json` or `evaluation.json` where it was scored.
        folder: to write; must be empty or absent.
        dtype: of the weights.
        notes: see `refresh_bundle`.

    Raises:
        FileNotFoundError: there is no model in `run`.
        ValueError: there is something in `folder`.
    """
    run, folder = Path(run), Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give another folder, or no run to bring this one up to date")
    model, processor = load_encoder(run)
    save_hub_folder(folder, model.to("cpu", dtype), processor, read_provenance(run))
    if results := _results(run):
        write_json(results, folder / RESULTS)
    refresh_bundle(folder, notes)


def refresh_bundle(
    folder: str | os.PathLike, notes: str | None = None, scores: str | os.PathLike | None = None
) -> None:
    """Bring a folder's code, card and metadata up to date with the package; its weights are not touched.

    Args:
        folder: as `make_bundle` wrote it.
        notes: Markdown for the card, such as where the training data are from; None leaves those that are there.
        scores: `evaluation.json` of the model, to take the place of the scores that are there.

    Raises:
        FileNotFoundError: there is no model in it, or no file with scores.
    """
    folder = Path(folder)
    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{folder}: no config.json there; give the folder of a saved model")
    for source in Path(modeling_moon2.__file__).parent.glob(CODE):
        shutil.copyfile(source, folder / source.name)
    provenance = read_provenance(folder)
    if notes is not None:
        provenance["notes"] = notes.strip()
    complete_hub_folder(folder, provenance)
    if scores is not None:
        read = json.loads(Path(scores).read_text(encoding="utf-8"))
        write_json(_without_folders(read, _training(folder)), folder / RESULTS)
    write_model_card(folder)


def _results(run: Path) -> dict:
    """The newest scores of a run, with names for files in place of paths, and its training."""
    return _without_folders(newest_scores(run), _training(run))


def _training(run: Path) -> dict | None:
    """What the results of a run tell of its training."""
    file = run / RESULTS
    return json.loads(file.read_text(encoding="utf-8")).get("training") if file.is_file() else None


def _without_folders(scores: Mapping[str, Any], training: dict | None) -> dict:
    """Scores with names for files in place of paths, and with the training that they are of."""
    results = {name: value for name, value in scores.items() if name != "model"}
    for table in {"products", "queries"} & results.keys():
        paths = results[table]
        results[table] = base_name(paths) if isinstance(paths, str) else [base_name(path) for path in paths]
    return results | ({"training": training} if training else {})


def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m moon2_training.bundle`."""
    parser = argparse.ArgumentParser(
        prog="python -m moon2_training.bundle",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", type=Path, help="folder of a trained model; none to bring FOLDER up to date")
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--notes", type=Path, help='Markdown file that the card shows under "How it was made"')
    parser.add_argument("--scores", type=Path, help="evaluation.json to bring FOLDER's scores up to date with")
    arguments = parser.parse_args(argv)
    if arguments.scores and arguments.run:
        parser.error("--scores is for a folder that is there; a run brings its own")
    notes = None if arguments.notes is None else arguments.notes.read_text(encoding="utf-8")
    if arguments.run is None:
        refresh_bundle(arguments.folder, notes, arguments.scores)
    else:
        make_bundle(arguments.run, arguments.folder, notes=notes)


if __name__ == "__main__":
    main()
