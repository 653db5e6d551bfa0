"""`moon2 convert`: a dense Qwen3-VL becomes MOON2.0, shard by shard, and answers as before until it is trained."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import AutoConfig
from transformers.dynamic_module_utils import custom_object_save

from modeling_moon2 import GUIDED_FIELDS, Moon2Config, Moon2Model
from modeling_moon2.modeling_moon2 import INITIAL_TEMPERATURE
from moon2_dataset.disk_errors import naming
from moon2_dataset.recipe import RecipeParser
from moon2_dataset.shards import part_of, put_in_place, write_text

from .hub_folder import complete_hub_folder
from .model_card import write_model_card
from .source_checkpoint import INDEX, MAX_PIXELS, SOURCE_TYPE, SourceWeights, load_source_processor, resolve_source

PARTIAL = ".partial"  # OUT is built under OUT.partial and renamed when it is whole
PLAN = "conversion.json"
EXPERT_INITS = ("copy", "split")
NEW_WEIGHT_STD = 0.02


@dataclass
class ConvertArguments:
    """Options of `moon2 convert SOURCE OUT`.

    Raises:
        ValueError: an argument has no meaning; the message gives the allowed values.
    """

    source: str = field(metadata={"help": "Folder or Hub id of a dense Qwen3-VL, Instruct or Embedding."})
    out: str = field(metadata={"help": "Folder to write; must not exist."})
    num_experts: int = field(default=4, metadata={"help": "Z, experts of a layer."})
    num_experts_per_tok: int = field(default=2, metadata={"help": "k, experts that a token visits; 2 or more."})
    expert_init: str = field(
        default="copy",
        metadata={
            "help": "copy: every expert is the dense MLP, k times its cost; split: every expert is a k-th of it, at "
            "the dense cost."
        },
    )
    guided_fields: list[str] = field(
        default_factory=list,
        metadata={"help": "Guided MoE: fields of an item with k experts of their own: category, attributes."},
    )
    moe_layers: list[int] | None = field(
        default=None, metadata={"help": "Layers to convert, from 0; all if not given."}
    )
    expert_noise: float = field(
        default=0.0, metadata={"help": "Noise on every expert, in standard deviations of its weights; 0 is exact."}
    )
    max_pixels: int = field(
        default=MAX_PIXELS,
        metadata={
            "help": "Most pixels of a picture, 1,024 to a visual token; larger ones are shrunk, in training and ever "
            "after. A source with a smaller budget keeps it."
        },
    )
    max_shard_gb: float = field(default=1.0, metadata={"help": "Largest file to write, in GB; bounds the memory."})
    seed: int = field(default=0, metadata={"help": "Seed of gate, W* and noise."})
    base_model: str | None = field(
        default=None, metadata={"help": "Hub id of the source for the model card, where SOURCE is a folder."}
    )

    def __post_init__(self):
        if self.expert_init not in EXPERT_INITS:
            raise ValueError(f"expert_init={self.expert_init!r}; give one of {', '.join(EXPERT_INITS)}")
        if not 2 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok}; give 2 to num_experts={self.num_experts}: the "
                "weight of a single expert is not one, so the converted model would not answer as its source"
            )
        if self.expert_init == "split" and self.num_experts % self.num_experts_per_tok:
            raise ValueError(
                f"num_experts={self.num_experts}; to split, give a multiple of "
                f"num_experts_per_tok={self.num_experts_per_tok}"
            )
        if not set(self.guided_fields) <= set(GUIDED_FIELDS):
            raise ValueError(f"guided_fields={self.guided_fields}; give none or some of {', '.join(GUIDED_FIELDS)}")
        if self.expert_noise < 0 or self.max_shard_gb <= 0:
            raise ValueError("expert_noise is 0 or more, max_shard_gb more than 0")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels={self.max_pixels}; give 1 or more")


def expert_weights(
    gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, arguments: ConvertArguments, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the experts of a layer from its dense MLP.

    copy: f_z = f for every z, and Σ_z G̃_z = 1. split: the hidden units are cut into k slices; experts come in Z / k
    groups of one expert per slice, whose gate rows are equal, so that a whole group is always chosen, each with weight
    1 / k; the outputs are scaled by k. The k experts of a guided field, each used with weight 1 / k, are such a group.

    Args:
        gate, up (I, D), down (D, I): the dense weights.

    Returns:
        gate_up_proj (Z', 2 I', D) and down_proj (Z', D, I') with I' = I for copy and I / k for split, and
        Z' = Z + k * guided fields.
    """
    k = arguments.num_experts_per_tok
    z = arguments.num_experts + k * len(arguments.guided_fields)
    if arguments.expert_init == "copy":
        gate_up, down = torch.cat([gate, up]).expand(z, -1, -1), down.expand(z, -1, -1)
    else:
        gate_up = torch.cat([gate.unflatten(0, (k, -1)), up.unflatten(0, (k, -1))], dim=1).repeat(z // k, 1, 1)
        down = (k * down).unflatten(1, (k, -1)).transpose(0, 1).repeat(z // k, 1, 1)
    if arguments.expert_noise:
        gate_up, down = (
            weight + arguments.expert_noise * weight.float().std() * _normal(weight.shape, generator, weight.dtype)
            for weight in (gate_up, down)
        )
    return gate_up.contiguous(), down.contiguous()


def gate_weight(hidden_size: int, arguments: ConvertArguments, generator: torch.Generator) -> torch.Tensor:
    """W_g (Z, D): random rows; for split one row for each group of slices, repeated within the group."""
    per_group = arguments.num_experts_per_tok if arguments.expert_init == "split" else 1
    rows = NEW_WEIGHT_STD * _normal((arguments.num_experts // per_group, hidden_size), generator)
    return rows.repeat_interleave(per_group, dim=0)


def _normal(shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def target_config(source: Path, arguments: ConvertArguments) -> Moon2Config:
    """Configuration of the converted model.

    Raises:
        ValueError: the source is not a dense Qwen3-VL, or its MLP cannot be split into k equal parts.
    """
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: no readable config.json ({error})") from error
    if config.model_type != SOURCE_TYPE:
        raise ValueError(f"{source}: holds a {config.model_type} model; give a dense Qwen3-VL ({SOURCE_TYPE})")
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    width, k = text["intermediate_size"], arguments.num_experts_per_tok
    if arguments.expert_init == "split" and width % k:
        raise ValueError(f"{source}: its MLP is {width} wide, which does not split into {k} equal parts")
    for sub_config in (text, vision):
        del sub_config["model_type"]
    text |= {
        "num_experts": arguments.num_experts,
        "num_experts_per_tok": k,
        "moe_intermediate_size": width // k if arguments.expert_init == "split" else width,
        "guided_fields": arguments.guided_fields,
        "moe_layers": arguments.moe_layers,
        "use_cache": False,
    }
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "dtype")
    return Moon2Config(text_config=text, vision_config=vision, **{name: getattr(config, name) for name in names})


class WeightGroup(NamedTuple):
    """Tensors of the converted model that are made together.

    Attributes:
        names: of the tensors.
        nbytes: of all of them.
        make: reads what it takes from the source and makes them.
    """

    names: tuple[str, ...]
    nbytes: int
    make: Callable[[], tuple[torch.Tensor, ...]]


def weight_groups(source: SourceWeights, config: Moon2Config, arguments: ConvertArguments) -> list[WeightGroup]:
    """All tensors of the converted model, not yet made.

    Raises:
        ValueError: the source lacks a tensor, has one of another shape, or one that the model does not know.
    """
    with torch.device("meta"):
        target = Moon2Model(config).state_dict()
    text, dtype = config.text_config, config.dtype
    dense_shape = (text.intermediate_size, text.hidden_size)  # (I, D)
    taken: set[str] = set()

    def take(name: str, shape: Sequence[int]) -> str:
        if name not in source.names:
            raise ValueError(f"{source.folder}: no tensor {name}; the checkpoint is incomplete or of another model")
        if (found := source.shapes[source.names[name]]) != tuple(shape):
            raise ValueError(f"{source.folder}: {name} is {found}, its config says {tuple(shape)}")
        taken.add(name)
        return name

    def group(names: tuple[str, ...], make: Callable[[], tuple[torch.Tensor, ...]]) -> WeightGroup:
        return WeightGroup(names, sum(target.pop(name).numel() for name in names) * dtype.itemsize, make)

    def mixture(layer: int, dense: list[str]) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(arguments.seed + layer)
        experts = expert_weights(*(source[name] for name in dense), arguments, generator)
        gate = gate_weight(text.hidden_size, arguments, generator)
        alignment = NEW_WEIGHT_STD * _normal((text.num_experts, len(text.alignment_objectives)), generator)
        return tuple(weight.to(dtype) for weight in (*experts, gate, alignment))

    def unchanged(name: str) -> tuple[torch.Tensor]:
        return (source[name].to(dtype),)

    groups = []
    for layer in filter(text.is_moe_layer, range(text.num_hidden_layers)):
        mlp = f"language_model.layers.{layer}.mlp"
        dense = [take(f"{mlp}.{part}_proj.weight", dense_shape) for part in ("gate", "up")]
        dense.append(take(f"{mlp}.down_proj.weight", dense_shape[::-1]))
        made = ("experts.gate_up_proj", "experts.down_proj", "gate.weight", "dual_alignment.weight")
        groups.append(group(tuple(f"{mlp}.{part}" for part in made), partial(mixture, layer, dense)))
    temperature = torch.full((2,), math.log(INITIAL_TEMPERATURE), dtype=dtype)
    groups.append(group(("temperature.weight",), lambda: (temperature,)))
    groups += [group((take(name, target[name].shape),), partial(unchanged, name)) for name in list(target)]
    if unknown := sorted(set(source.names) - taken):
        raise ValueError(f"{source.folder}: {unknown[0]} has no place in the model ({len(unknown)} such tensors)")
    return groups


def convert(arguments: ConvertArguments, progress: bool = True) -> Path:
    """Convert a checkpoint.

    Files are made one at a time, so memory holds one file of `max_shard_gb` and the tensors it is made from. The
    folder is built beside its place and renamed when whole; a conversion that was interrupted goes on behind its last
    finished file when it is started again with the same arguments.

    Args:
        arguments: what to convert, and how.
        progress: show a bar over the tensors.

    Returns:
        The folder of the converted model.

    Raises:
        FileExistsError: OUT exists, or holds the unfinished conversion of other arguments.
        FileNotFoundError: there is no such source.
        ValueError: the source is no dense Qwen3-VL, incomplete or damaged. Nothing is left behind.
    """
    out = Path(arguments.out)
    unfinished = out.with_name(out.name + PARTIAL)
    if out.exists() and not (out / PLAN).is_file():
        raise FileExistsError(f"{out} exists; give another folder or remove it")
    folder = resolve_source(arguments.source)
    config = target_config(folder, arguments)
    weights = SourceWeights(folder)
    config.dtype = config.dtype or weights.dtype  # as transformers loads a source whose config gives none
    groups = weight_groups(weights, config, arguments)
    processor = load_source_processor(folder, arguments.max_pixels)
    processor.tokenizer.chat_template = None  # the source's is for a chat; the processor brings its own

    plan = _plan(arguments, weights)
    if out.exists():  # it was killed when all was done but for its plan
        _refuse_other(out, plan)
        (out / PLAN).unlink()
        return out
    with naming(unfinished):
        unfinished.mkdir(parents=True, exist_ok=True)
    if set(unfinished.iterdir()) <= {part_of(unfinished / PLAN)}:
        write_text(unfinished / PLAN, json.dumps(plan))
    _refuse_other(unfinished, plan)
    with naming(unfinished):
        try:
            _write_weights(unfinished, groups, int(arguments.max_shard_gb * 1e9), progress)
        except ValueError:
            shutil.rmtree(unfinished)
            raise
        with torch.device("meta"):
            model = Moon2Model(config)
        config.architectures = [type(model).__name__]
        custom_object_save(model, unfinished, config=config)
        config.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        complete_hub_folder(unfinished, _provenance(folder, arguments))
        write_model_card(unfinished, model_id=out.name)
        unfinished.rename(out)
        (out / PLAN).unlink()  # last: what is killed before that is gone on with
    return out


def _refuse_other(folder: Path, plan: dict) -> None:
    try:
        found = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = None
    if found != plan:
        raise FileExistsError(f"{folder} holds an unfinished conversion of something else; remove it")


def _provenance(source: Path, arguments: ConvertArguments) -> dict:
    """What the model card tells of the source and the conversion, without this machine's folders."""
    base_model = arguments.base_model or (None if Path(arguments.source).is_dir() else arguments.source)
    readme = source / "README.md"
    licence = ModelCard.load(readme, ignore_metadata_errors=True).data.license if readme.is_file() else None
    conversion = {name: value for name, value in asdict(arguments).items() if name not in ("source", "out")}
    return {"base_model": base_model, "base_license": licence, "conversion": conversion}


def _plan(arguments: ConvertArguments, weights: SourceWeights) -> dict:
    """What an unfinished conversion must have in common with this one to be gone on with."""
    sizes = {file: (weights.folder / file).stat().st_size for file in set(weights.files.values())}
    source = hashlib.sha256(json.dumps([sorted(sizes.items()), sorted(weights.files.items())]).encode()).hexdigest()
    return {"arguments": asdict(arguments) | {"out": Path(arguments.out).name}, "source": source}


def _write_weights(folder: Path, groups: list[WeightGroup], max_bytes: int, progress: bool) -> None:
    """Write the groups into files of at most `max_bytes` (or one group), unless they are there, and the index."""
    shards: list[list[WeightGroup]] = [[]]
    for group in groups:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + group.nbytes > max_bytes:
            shards.append([])
        shards[-1].append(group)
    for path in folder.glob(".tmp*"):  # what safetensors was writing in a run that was killed
        path.unlink()
    weight_map = {}
    with tqdm(total=sum(group.nbytes for group in groups), unit="B", unit_scale=True, disable=not progress) as bar:
        for number, shard in enumerate(shards, start=1):
            file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            if not file.exists():
                tensors = {}
                for group in shard:
                    tensors |= dict(zip(group.names, group.make(), strict=True))
                with naming(file):
                    save_file(tensors, file.with_suffix(PARTIAL), metadata={"format": "pt"})
                put_in_place(file.with_suffix(PARTIAL), file)
            for group in shard:
                weight_map |= dict.fromkeys(group.names, file.name)
                bar.update(group.nbytes)
    index = {"metadata": {"total_size": sum(group.nbytes for group in groups)}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 convert SOURCE OUT`."""
    argv = list(argv or ())
    if len(argv) > 1 and not argv[0].startswith("-") and not argv[1].startswith("-"):
        argv[:2] = ["--source", argv[0], "--out", argv[1]]
    parser = RecipeParser(ConvertArguments, prog="moon2 convert", description="Make MOON2.0 of a dense Qwen3-VL.")
    (arguments,) = parser.parse_args_and_config(argv)
    print(f"converted to {convert(arguments)}")
