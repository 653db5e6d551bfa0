"""`moon2 push`: put a saved model on the Hub, if its folder is whole, and nothing else that lies in it."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from huggingface_hub import HfApi, constants
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files

from moon2_dataset.hub_errors import one_line_errors
from moon2_dataset.recipe import RecipeParser

from .checksums import CHECKSUMS, check_checksums
from .model_card import write_model_card

INDEX, SINGLE = constants.SAFETENSORS_INDEX_FILE, constants.SAFETENSORS_SINGLE_FILE
NEEDED = ("config.json", "configuration_moon2.py", "layout_moon2.py", "modeling_moon2.py", "patches_moon2.py",
          "processing_moon2.py", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
          "chat_template.jinja", "modules.json", "sentence_bert_config.json")  # fmt: skip
# What else a model repository may hold, beside what its index, modules, code and card name.
KNOWN = ("generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "tokenizer.model",
         "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.json",
         "config_sentence_transformers.json", "README.md", "LICENSE", "NOTICE", "provenance.json", "results.json",
         "training_report.png", "searches.png", CHECKSUMS)  # fmt: skip
WITH_CODE = ("config.json", "processor_config.json", "tokenizer_config.json")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg")
LINK = re.compile(r"""\]\(<?([^\s)>]+)|\b(?:src|href)=["']([^"']+)""")
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
    """Check a folder, bring its card up to date and upload the model. Weights that it no longer has are removed.

    What else lies in the folder stays there; its names are printed.

    Returns:
        Address of the repository.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is not whole, which shows before anything is sent, or the Hub refuses.
    """
    folder, revision = Path(arguments.dir), arguments.revision
    check_folder(folder)
    write_model_card(folder, arguments.repo)
    files = model_files(folder)
    if others := _others(folder, files):
        print(f"stays at home: {', '.join(others)}")
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
            allow_patterns=[glob.escape(name) for name in files],
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
    missing += [f"{path}/config.json" for path in _modules(folder) if not (folder / path / "config.json").is_file()]
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


def model_files(folder: Path) -> list[str]:
    """The files of a folder that make up its model: those of known names, and those that the model's own files name.

    Raises:
        ValueError: the code imports a file that is not there, or the checksums are of one that is not the model's.
    """
    weights = {*_shards(folder)}
    modules = {f"{path}/{name}" for path in _modules(folder) for name in ("config.json", SINGLE)}
    named = {*NEEDED, *KNOWN, *weights, *modules, *_code(folder), *_linked_pictures(folder)}
    if SINGLE not in weights:
        named.add(INDEX)
    files = sorted(named & _files(folder))
    if CHECKSUMS in files:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        if foreign := sorted({line.partition("  ")[2] for line in lines} - set(files)):
            raise ValueError(
                f"{folder / CHECKSUMS} names {', '.join(foreign)}, which is no part of the model; take it out of the "
                f"folder and the line out of {CHECKSUMS}"
            )
    return files


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _others(folder: Path, files: Sequence[str]) -> list[str]:
    """What is not among the files of the model; of a sub-folder without any of them its name alone."""
    shared = {PurePosixPath(name).parts[0] for name in files}
    others = set()
    for name in _files(folder).difference(files):
        top = PurePosixPath(name).parts[0]
        others.add(name if top in shared or name == top else f"{top}/")
    return sorted(others)


def _shards(folder: Path) -> dict[str, set[str]]:
    """What `from_pretrained` reads: the single file, or every shard with the tensors that the index puts there."""
    if (folder / SINGLE).is_file():
        return {SINGLE: set()}
    shards: dict[str, set[str]] = {}
    for name, shard in _json(folder / INDEX).get("weight_map", {}).items():
        shards.setdefault(shard, set()).add(name)
    return shards


def _check_weights(folder: Path) -> None:
    names_in = _shards(folder)
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


def _modules(folder: Path) -> list[str]:
    """Folders of the modules of sentence-transformers that have one of their own."""
    if not (folder / "modules.json").is_file():
        return []
    return [module["path"] for module in _json(folder / "modules.json") if module["path"]]


def _code(folder: Path) -> set[str]:
    """Files of the classes that an auto_map names, and of all that they import from beside them."""
    files: set[str] = set()
    for name in WITH_CODE:
        for classes in _json(folder / name).get("auto_map", {}).values():
            for reference in [classes] if isinstance(classes, str) else filter(None, classes):  # slow and fast
                if "--" not in reference:  # that is code of another repository
                    files.add(f"{reference.partition('.')[0]}.py")
    try:
        imported = {Path(path).name for file in files for path in get_relative_import_files(folder / file)}
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} lacks {Path(error.filename).name}, which its code imports; put it there"
        ) from error
    return files | imported


def _linked_pictures(folder: Path) -> set[str]:
    links = LINK.findall((folder / "README.md").read_text(encoding="utf-8"))
    names = {PurePosixPath(unquote(markdown or html)) for markdown, html in links}
    return {str(name) for name in names if name.suffix.lower() in PICTURES}


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 push DIR REPO`."""
    argv = list(argv or ())
    if len(argv) > 1 and not argv[0].startswith("-") and not argv[1].startswith("-"):
        argv[:2] = ["--dir", argv[0], "--repo", argv[1]]
    parser = RecipeParser(PushArguments, prog="moon2 push", description="Put a saved model on the Hub.")
    (arguments,) = parser.parse_args_and_config(argv)
    print(push(arguments))
