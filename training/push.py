"""`moon2 push`: put a saved model on the Hub, if its folder is whole, and nothing else that lies in it."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, constants
from safetensors import SafetensorError, safe_open

from moon2_dataset.hub_errors import one_line_errors
from moon2_dataset.recipe import RecipeParser

from .checksums import CHECKSUMS, check_checksums
from .model_card import write_model_card

INDEX, SINGLE = constants.SAFETENSORS_INDEX_FILE, constants.SAFETENSORS_SINGLE_FILE
NEEDED = ("config.json", "configuration_moon2.py", "layout_moon2.py", "modeling_moon2.py", "patches_moon2.py",
          "processing_moon2.py", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
          "chat_template.jinja", "modules.json", "sentence_bert_config.json")  # fmt: skip
# What a model repository is made of. Pickles, which can run any code where they are loaded, are not among it.
ALLOWED = ["*.safetensors", "*.json", "*.py", "*.jinja", "*.txt", "*.model", "*.md", "*.png", "*.jpg", "*.webp",
           "LICENSE", "NOTICE", CHECKSUMS]  # fmt: skip
# Hidden files, what names folders of this machine, and the evaluation, whose scores stand in the card.
IGNORED = [".*", "evaluation.*", "trainer_state.json"]
WEIGHTS = ["model*.safetensors", INDEX]


@dataclass
class PushArguments:
    """Options of `moon2 push DIR REPO`."""

    dir: str = field(metadata={"help": "Folder of a saved model."})
    repo: str = field(metadata={"help": "Repository on the Hub, OWNER/NAME or NAME; made if it is not there."})
    private: bool = field(
        default=False, metadata={"help": "Make the repository private; one that is there and public is refused."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch to push to; made if it is not there."})
    commit_message: str = field(default="Upload MOON2.0 model", metadata={"help": "First line of the commit."})


def push(arguments: PushArguments) -> str:
    """Check a folder, bring its card up to date and upload it. Weights that the folder no longer has are removed.

    Returns:
        Address of the repository.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is not whole, which shows before anything is sent, or the Hub refuses.
    """
    folder, revision = Path(arguments.dir), arguments.revision
    check_folder(folder)
    write_model_card(folder, arguments.repo)
    with one_line_errors(arguments.repo):
        api = HfApi(token=True)
        url = api.create_repo(arguments.repo, private=arguments.private or None, exist_ok=True)
        if arguments.private and not api.model_info(url.repo_id).private:
            raise ValueError(f"{url} is there and public; make it private in its settings, or drop --private")
        if url.repo_id != arguments.repo:  # the Hub has put the owner before a bare NAME
            write_model_card(folder, url.repo_id)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(url.repo_id, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            commit_message=arguments.commit_message,
            revision=revision,
            allow_patterns=ALLOWED,
            ignore_patterns=IGNORED + _foreign_folders(folder),
            delete_patterns=WEIGHTS,  # an old model.safetensors would be loaded instead of new shards
        )
    return str(url) if revision is None else f"{url}/tree/{revision}"


def check_folder(folder: Path) -> None:
    """Check that a folder holds all that loading its model takes; the card is written when it is pushed.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: something is missing or damaged; names it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the folder of a saved model")
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
        missing.append(SINGLE)
    missing += [name for name in _module_configs(folder) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}; `moon2 train` and `moon2 convert` write whole folders")
    for file, classes in (("config.json", ("AutoConfig", "AutoModel")), ("processor_config.json", ("AutoProcessor",))):
        auto_map = _json(folder / file).get("auto_map", {})
        if lacking := [name for name in classes if name not in auto_map]:
            raise ValueError(
                f"{folder / file}: no {' and '.join(lacking)} in auto_map, so it would not load with its own code; "
                "save model and processor again"
            )
    _check_weights(folder)
    check_checksums(folder)


def _check_weights(folder: Path) -> None:
    """Open what `from_pretrained` would: the single file, or else every shard of the index."""
    names_in: dict[str, set[str]] = {}
    if (folder / SINGLE).is_file():
        names_in[SINGLE] = set()
    else:
        for name, shard in _json(folder / INDEX).get("weight_map", {}).items():
            names_in.setdefault(shard, set()).add(name)
    if absent := sorted(shard for shard in names_in if not (folder / shard).is_file()):
        raise ValueError(f"{folder} lacks {', '.join(absent)}, which {INDEX} names; save the model again")
    for shard, names in names_in.items():
        try:
            with safe_open(folder / shard, framework="pt") as tensors:
                lacking = names - set(tensors.keys())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / shard}: damaged ({error}); save the model again") from error
        if lacking:
            raise ValueError(f"{folder / shard}: lacks {min(lacking)}, which {INDEX} puts there; save the model again")


def _json(path: Path) -> dict | list:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no readable JSON ({error}); save the model again") from error


def _module_configs(folder: Path) -> list[str]:
    """Configurations of the modules of sentence-transformers that have a folder of their own."""
    if not (folder / "modules.json").is_file():
        return []
    return [f"{module['path']}/config.json" for module in _json(folder / "modules.json") if module["path"]]


def _foreign_folders(folder: Path) -> list[str]:
    """Patterns of the other sub-folders: checkpoints, logs, data."""
    modules = {Path(config).parent.name for config in _module_configs(folder)}
    return [f"{glob.escape(path.name)}/*" for path in folder.iterdir() if path.is_dir() and path.name not in modules]


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 push DIR REPO`."""
    argv = list(argv or ())
    if len(argv) > 1 and not argv[0].startswith("-") and not argv[1].startswith("-"):
        argv[:2] = ["--dir", argv[0], "--repo", argv[1]]
    parser = RecipeParser(PushArguments, prog="moon2 push", description="Put a saved model on the Hub.")
    (arguments,) = parser.parse_args_and_config(argv)
    print(push(arguments))
