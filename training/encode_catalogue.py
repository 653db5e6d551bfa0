"""`moon2 encode`: the vectors of a whole catalogue as Parquet files or a Lance table, and again when it changes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from moon2_dataset.product_stream import ProductStream
from moon2_dataset.recipe import RecipeParser
from moon2_dataset.row_errors import RowError, errors_as_csv, make_errors_folder
from moon2_dataset.shards import write_text

from .catalogue_shards import ShardJob, encode_shards
from .encode import MAX_WORKERS, VIEWS, Encoder
from .quantization import quantize_int8
from .saved_encoder import encoder_fingerprint, load_encoder
from .vector_files import FORMAT, NUMBER_TYPES, ShardRecord, VectorsOutput

ENGINES = ("local", "ray")
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "int8")
ON_ERROR = ("skip", "raise")
SHOWN_ERRORS = 10


@dataclass
class EncodeArguments:
    """Options of `moon2 encode`.

    Raises:
        ValueError: an argument has no meaning; the message gives the allowed values.
    """

    model: str = field(metadata={"help": "Folder or Hub id of a MOON2.0 encoder."})
    products: list[str] = field(
        metadata={
            "help": "Catalogue in the products schema: Parquet files, a glob, a folder, NAME.lance, or "
            "hf:OWNER/NAME[:CONFIG][:SPLIT] for Parquet files on the Hub."
        }
    )
    output: str = field(
        metadata={
            "help": "Folder of Parquet files to write, or NAME.lance for a Lance table. If it is there, what is new "
            "or changed is encoded, and what is gone is taken out."
        }
    )
    views: list[str] = field(
        default_factory=lambda: ["multimodal"],
        metadata={"help": f"Vectors to write, one or some of {', '.join(VIEWS)}; multimodal is of whatever is there."},
    )
    vector_dtype: str = field(
        default="float32", metadata={"help": f"Numbers of the vectors: {' or '.join(NUMBER_TYPES)}."}
    )
    truncate_dim: int | None = field(
        default=None, metadata={"help": "Keep the first numbers of every vector, normalised again."}
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": f"Of the weights, {', '.join(DTYPES)}; auto is bfloat16 on an accelerator, else as they are saved."
        },
    )
    quantization: str = field(
        default="none", metadata={"help": "int8: linear layers and experts compute in eight bits, on a CPU."}
    )
    batch_size: int = field(default=64, metadata={"help": "Products per forward."})
    workers: int | None = field(
        default=None,
        metadata={"help": f"Threads that decode pictures; at most {MAX_WORKERS}, by the processors, if not given."},
    )
    shard_rows: int = field(
        default=16_384, metadata={"help": "Products of a file; a run that is killed loses one file at most."}
    )
    on_error: str = field(
        default="skip",
        metadata={
            "help": "skip: leave out a picture that cannot be read, and a product of which nothing is left, keep "
            "vectors while a picture's file cannot be opened, and list all these; raise: stop there."
        },
    )
    errors: str | None = field(
        default=None, metadata={"help": "CSV file for what was left out; OUTPUT.errors.csv if not given."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Encode all products, whatever is in output."})
    engine: str = field(
        default="local", metadata={"help": "local: in this process; ray: by workers of a Ray cluster."}
    )
    ray_address: str | None = field(
        default=None, metadata={"help": "Of a Ray cluster; one is started on this machine if not given."}
    )
    ray_workers: int | None = field(
        default=None, metadata={"help": "Encoders at a time; one for each GPU, or for each node, if not given."}
    )

    def __post_init__(self):
        for name in ("products", "views"):
            if isinstance(getattr(self, name), str):  # as a recipe may give it
                setattr(self, name, [getattr(self, name)])
        if not self.views or not set(self.views) <= set(VIEWS):
            raise ValueError(f"views={self.views}; give one or some of {', '.join(VIEWS)}")
        self.views = [view for view in VIEWS if view in self.views]
        for name, allowed in (
            ("vector_dtype", tuple(NUMBER_TYPES)), ("dtype", DTYPES), ("quantization", QUANTIZATIONS),
            ("on_error", ON_ERROR), ("engine", ENGINES),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; give one of {', '.join(allowed)}")
        for name in ("truncate_dim", "batch_size", "workers", "shard_rows", "ray_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; give 1 or more")
        if self.quantization == "int8" and self.dtype not in ("auto", "float32"):
            raise ValueError(f"quantization=int8 starts from float32 weights, not dtype={self.dtype}; leave dtype out")
        if self.engine != "ray" and (self.ray_address or self.ray_workers):
            raise ValueError("ray_address and ray_workers are for --engine ray")


def load_for_encoding(
    model: str, dtype: str = "auto", quantization: str = "none", gpu: bool | None = None, on_cpu: bool = False
) -> tuple[PreTrainedModel, ProcessorMixin, str]:
    """Load an encoder as `moon2 encode` uses it.

    Args:
        model: folder or Hub id.
        dtype: of the weights; "auto" is bfloat16 on an accelerator, else float32.
        quantization: "none" or "int8".
        gpu: whether there will be an accelerator, which decides "auto"; None: whether there is one here.
        on_cpu: leave it on the CPU.

    Returns:
        (model, processor, the fingerprint of both before they are quantised).

    Raises:
        FileNotFoundError, ValueError: as `load_encoder`.
    """
    if gpu is None:
        gpu = torch.accelerator.current_accelerator(check_available=True) is not None
    if quantization == "int8":
        options, on_cpu = {"dtype": torch.float32}, True
    elif dtype == "auto":
        options = {"dtype": torch.bfloat16 if gpu else torch.float32}
    else:
        options = {"dtype": getattr(torch, dtype)}
    loaded, processor = load_encoder(model, **options, **({"device_map": "cpu"} if on_cpu else {}))
    fingerprint = encoder_fingerprint(loaded, processor)
    if quantization == "int8":
        quantize_int8(loaded)
    return loaded, processor, fingerprint


def encode_catalogue(arguments: EncodeArguments, progress: bool = True) -> dict[str, Any]:
    """Encode a catalogue, go on with a run that was interrupted, or bring vectors up to date.

    Written is OUTPUT, vectors in the order of the catalogue (a Lance table: in any order), and OUTPUT.json, which
    tells what it is. Until all is done the work lies in OUTPUT.partial, and OUTPUT stays as it was. A run that was
    killed at any point and is repeated ends with the same bytes as one that was not, if the device computes alike
    twice, as CPUs do.

    Args:
        arguments: what to encode, and how.
        progress: show bars.

    Returns:
        What OUTPUT.json says, and "message", a summary.

    Raises:
        FileNotFoundError: there is no catalogue, or no model.
        ValueError: naming file, product or argument and the way out.
    """
    begin = time.perf_counter()
    stream = ProductStream(arguments.products)
    stream.refuse_repeated_ids()
    errors_path = Path(arguments.errors or f"{arguments.output}.errors.csv")
    make_errors_folder(errors_path)
    engine = _engine(arguments)
    width = engine.width
    dimension = arguments.truncate_dim or width
    if dimension > width:
        raise ValueError(f"truncate_dim={dimension}; the encoder's vectors have {width} numbers, give fewer")
    options = {"views": arguments.views, "vector_dtype": arguments.vector_dtype, "dimension": dimension}
    options["quantization"] = arguments.quantization
    identity = {"format": FORMAT, "fingerprint": engine.fingerprint, **options}
    output = VectorsOutput(Path(arguments.output), identity, arguments.overwrite)
    source = {"catalogue": stream.fingerprint, "shard_rows": arguments.shard_rows}
    with output.writing():
        before = output.begin(source)
        stored = output.stored_files(before)
        records = output.shards.finished()
        is_done = before is not None and before["source"] == source and output.is_whole(before, stored)
        if is_done and not before["linked"] and not records:
            output.clear()
            lines = [f"nothing has changed: {before['products']:,} products in {output.out}"]
            return before | {"message": "\n".join(lines + _told_errors(before, stream, errors_path))}
        job = ShardJob(
            stream=stream,
            folder=output.partial.absolute(),  # as are all paths, for workers elsewhere
            shard_rows=arguments.shard_rows,
            views=tuple(arguments.views),
            vector_dtype=arguments.vector_dtype,
            dimension=dimension,
            raise_errors=arguments.on_error == "raise",
            stored=tuple(file.absolute() for file in stored),
            stored_errors=output.stored_errors(before),
            unchanged_in=output.out.absolute() if output.is_lance and before is not None else None,
            notes=identity,
        )
        todo = [number for number in range(job.num_shards) if number not in records]
        done = sum(len(job.rows_of(number)) for number in records)
        with tqdm(total=stream.num_rows, initial=done, unit=" products", desc="encode", disable=not progress) as bar:
            for record in engine.encode_shards(job, todo, bar.update):
                records[record.number] = record
        errors = [error for _, record in sorted(records.items()) for error in record.errors]
        kept = [error for _, record in sorted(records.items()) for error in record.kept]
        counts = {name: sum(getattr(record, name) for record in records.values()) for name in COUNTED}
        dropped = {product_id for _, product_id, _, is_dropped in errors if is_dropped}
        if not counts["encoded"] + counts["unchanged"]:
            raise ValueError(f"no product of {stream.num_rows:,} can be encoded: {_told(stream, errors[0]).message}")
        manifest = {
            "model": arguments.model,
            "dtype": str(engine.dtype).removeprefix("torch."),
            "source": source,
            "products": counts["encoded"] + counts["unchanged"],
            **counts,
            "errors": errors,
            "kept": kept,
        }
        told = output.commit(records, manifest, (name for name in stream.ids() if name not in dropped))
    lines = [
        f"{told['products']:,} products in {output.out}: {told['encoded']:,} encoded, {told['unchanged']:,} as before "
        f"({time.perf_counter() - begin:.0f} s)"
    ]
    return told | {"message": "\n".join(lines + _told_errors(told, stream, errors_path))}


COUNTED = ("encoded", "unchanged", "linked")


class LocalEngine:
    """Encodes in this process.

    Args:
        arguments: of the command.
    """

    def __init__(self, arguments: EncodeArguments) -> None:
        model, processor, self.fingerprint = load_for_encoding(
            arguments.model, arguments.dtype, arguments.quantization
        )
        self.encoder = Encoder(model, processor, arguments.batch_size, arguments.workers)
        self.width, self.dtype = self.encoder.width, model.dtype

    def encode_shards(self, job: ShardJob, numbers: Sequence[int], advance: Any) -> Iterator[ShardRecord]:
        """See `encode_shards`."""
        return encode_shards(job, numbers, self.encoder, advance)


def _engine(arguments: EncodeArguments) -> Any:
    if arguments.engine == "local":
        return LocalEngine(arguments)
    try:
        from .ray_engine import RayEngine
    except ModuleNotFoundError as error:
        raise ValueError(f'engine=ray: {error}; pip install "moon2[scale]"') from error
    return RayEngine(arguments)


def _told(stream: ProductStream, error: Sequence[Any]) -> RowError:
    row, product_id, message, dropped = error
    return RowError(row, product_id, f"{stream.place(row)}, product {product_id}{message}", dropped)


def _told_errors(told: Mapping[str, Any], stream: ProductStream, path: Path) -> list[str]:
    """Lines on the first errors; all of them go to a file, and one of an earlier run is removed."""
    kept = told.get("kept", [])
    errors = [_told(stream, error) for error in sorted(told["errors"] + kept)]
    dropped = sum(error.dropped for error in errors)
    if not errors:
        path.unlink(missing_ok=True)
        return []
    write_text(path, errors_as_csv(errors))
    counts = f"{dropped:,} products left out, {len(errors) - dropped - len(kept):,} pictures left out"
    if kept:
        counts += f", {len(kept):,} products as they were before, for a picture cannot be opened"
    lines = [f"{counts}; all are in {path}:"]
    lines += [f"  {error.message}" for error in errors[:SHOWN_ERRORS]]
    return lines + ["  …"] * (len(errors) > SHOWN_ERRORS)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 encode`: encode, and print what was done."""
    parser = RecipeParser(
        EncodeArguments,
        prog="moon2 encode",
        description="Encode a whole catalogue; an interrupted run goes on, and a changed catalogue is brought up to "
        "date.",
    )
    (arguments,) = parser.parse_args_and_config(argv)
    print(encode_catalogue(arguments)["message"])
