"""The folder of a saved model as a repository on the Hub: what stands beside its weights, processor and code."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, ProcessorMixin

from .checksums import CHECKSUMS, write_checksums

PROVENANCE = "provenance.json"
SENTENCE_TRANSFORMERS = "6.2.0"  # the first that was tried; older ones say so when they load the folder
FORWARD = {"method": "forward", "method_output_name": "embeddings"}  # pooled and normalised, in float32


def sentence_transformers_files() -> dict[str, Any]:
    """Contents by file name of what sentence-transformers reads: one stock module, fed by messages.

    Its own pooling and normalisation would run in the weights' type: in bfloat16 vectors would be up to 0.3 % too
    long or short.
    """
    return {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            # with "message" every input becomes one, so that texts, images and both mix in a batch
            "modality_config": {"text": FORWARD, "image": FORWARD, "message": FORWARD | {"format": "structured"}},
            "module_output_name": "sentence_embedding",
            "unpad_inputs": False,
            # the template has no suffix that truncation could cut off
            "processing_kwargs": {"chat_template": {"restore_suffix": False}},
        },
        "config_sentence_transformers.json": {
            "__version__": {
                "sentence_transformers": SENTENCE_TRANSFORMERS,
                "transformers": transformers.__version__,
                "pytorch": torch.__version__.partition("+")[0],
            },
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }


def complete_hub_folder(folder: str | os.PathLike, provenance: dict[str, Any] | None = None) -> None:
    """Add to a saved model what makes its folder a repository: sentence-transformers' files, where it comes from, and
    last the checksums of what loading reads.

    Args:
        folder: of the saved model and processor.
        provenance: `base_model`, `base_license`, `conversion`, `training`, `run`, `datasets`, as the model card shows
            them, and `notes`, Markdown of the author that it shows as it is.
    """
    folder = Path(folder)
    files = sentence_transformers_files()
    if provenance:
        files[PROVENANCE] = provenance
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_checksums(folder)


def save_hub_folder(
    folder: str | os.PathLike,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Save a model and its processor as a complete repository folder.

    Args:
        folder: to write.
        model: a Moon2Model.
        processor: its Moon2Processor.
        provenance: see `complete_hub_folder`.
    """
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    complete_hub_folder(folder, provenance)


def replace_model(new: Path, folder: Path) -> None:
    """Move a saved model into a folder, over the one that is there; its checksums come last.

    Where that is interrupted, the earlier checksums refuse what is there, or there is no model yet.

    Args:
        new: folder of it, which goes.
        folder: where it shall be.
    """
    files = [path.relative_to(new) for path in sorted(new.rglob("*")) if path.is_file()]
    for name in sorted(files, key=lambda name: name.name == CHECKSUMS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.name == CHECKSUMS:  # weights in other parts would be loaded, or stand beside
            for path in {*folder.glob("model*.safetensors"), *folder.glob("model*.safetensors.index.json")}:
                if path.relative_to(folder) not in files:
                    path.unlink()
        (new / name).replace(folder / name)
    shutil.rmtree(new)


def changed_arguments(arguments: Any, defaults: Any) -> dict[str, Any]:
    """The options in which a run differs from the defaults, for its provenance: no folders and no secrets.

    Args:
        arguments: a dataclass.
        defaults: one of the same class.
    """
    plain = (bool, int, float, str, list, type(None))
    given = {option.name: getattr(arguments, option.name) for option in fields(arguments)}
    return {
        name: value
        for name, value in given.items()
        if value != getattr(defaults, name)
        and isinstance(value, plain)
        and not name.endswith(("_dir", "_token", "_checkpoint"))
        and not (isinstance(value, str) and os.path.isabs(value))
    }


def read_provenance(model_id: str | os.PathLike | None) -> dict[str, Any]:
    """Where a saved model comes from, as far as its folder says; a model of the Hub is a base of its own.

    Args:
        model_id: folder or Hub id that the model was loaded from; None or "" for one from scratch.
    """
    if not model_id:
        return {}
    if not Path(model_id).is_dir():
        return {"base_model": str(model_id)}
    file = Path(model_id) / PROVENANCE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
