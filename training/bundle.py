"""A trained run as a small folder to hand on: bfloat16 weights in one file, the package's own code, card and metadata.

Example:
    python -m moon2_training.bundle runs/mini moon2-mini        # make it
    python -m moon2_training.bundle moon2-mini                  # after a change of the package, bring it up to date
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

import modeling_moon2

from .encode import load_encoder
from .hub_folder import complete_hub_folder, read_provenance, save_hub_folder
from .model_card import write_model_card

SCORES = ("results.json", "evaluation.json")  # of a run, for the card
CODE = "*_moon2.py"


def make_bundle(run: str | os.PathLike, folder: str | os.PathLike, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the model of a run as a folder of its own; checkpoints, logs and optimizer states stay behind.

    Args:
        run: folder of a saved model, with `results.json` or `evaluation.json` where it was scored.
        folder: to write; must be empty or absent.
        dtype: of the weights.

    Raises:
        FileNotFoundError: there is no model in `run`.
        ValueError: there is something in `folder`.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give another folder, or no run to bring this one up to date")
    model, processor = load_encoder(run)
    save_hub_folder(folder, model.to("cpu", dtype), processor, read_provenance(run))
    for name in SCORES:
        if (Path(run) / name).is_file():
            shutil.copyfile(Path(run) / name, folder / name)
    refresh_bundle(folder)


def refresh_bundle(folder: str | os.PathLike) -> None:
    """Bring a folder's code, card and metadata up to date with the package; its weights are not touched.

    Args:
        folder: as `make_bundle` wrote it.

    Raises:
        FileNotFoundError: there is no model in it.
    """
    folder = Path(folder)
    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{folder}: no config.json there; give the folder of a saved model")
    for source in Path(modeling_moon2.__file__).parent.glob(CODE):
        shutil.copyfile(source, folder / source.name)
    width = modeling_moon2.Moon2Config.from_pretrained(folder).get_text_config().hidden_size
    complete_hub_folder(folder, width, read_provenance(folder))
    write_model_card(folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m moon2_training.bundle`."""
    parser = argparse.ArgumentParser(
        prog="python -m moon2_training.bundle",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", type=Path, help="folder of a trained model; none to bring FOLDER up to date")
    parser.add_argument("folder", type=Path, help="folder to write")
    arguments = parser.parse_args(argv)
    if arguments.run is None:
        refresh_bundle(arguments.folder)
    else:
        make_bundle(arguments.run, arguments.folder)


if __name__ == "__main__":
    main()
