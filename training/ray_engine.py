"""`moon2 encode --engine ray`: the shards of a catalogue are encoded by workers of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray reads it: nothing is reported to anybody

import numpy as np
import ray
import ray.data

from .catalogue_shards import ShardJob, encode_shards
from .encode import Encoder
from .vector_files import ShardFiles, ShardRecord

if TYPE_CHECKING:
    from .encode_catalogue import EncodeArguments


class RayEngine:
    """Encodes by actors of Ray Data, one shard at a time each; they must see the same files as this process.

    A shard is written as in one process and counts once its record is there, so an actor or a node that dies costs
    the shard it was at, which another one encodes again.

    Args:
        arguments: of the command.

    Raises:
        ConnectionError: there is no cluster at the address.
    """

    def __init__(self, arguments: EncodeArguments) -> None:
        from .encode_catalogue import load_for_encoding

        self.arguments = arguments
        self._start()
        gpus = int(ray.cluster_resources().get("GPU", 0)) if arguments.quantization == "none" else 0
        self.gpu = gpus > 0
        cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        cpus = [number for number in cpus if number] or [1]  # a head may have none
        self.workers = arguments.ray_workers or gpus or len(cpus)
        self.cpus = max(1, min(sum(cpus) // self.workers, min(cpus)))  # of a worker, which so uses as many threads
        model, processor, self.fingerprint = load_for_encoding(
            arguments.model, arguments.dtype, arguments.quantization, self.gpu, on_cpu=True
        )
        self.width, self.dtype = Encoder(model, processor).width, model.dtype

    def encode_shards(
        self, job: ShardJob, numbers: Sequence[int], advance: Callable[[int], Any]
    ) -> Iterator[ShardRecord]:
        """Encode shards in any order.

        Args:
            job: what to encode.
            numbers: of the shards.
            advance: is told of every shard how many rows of the catalogue are done.

        Yields:
            The record of every shard.

        Raises:
            ValueError: as the function of that name.
        """
        if not numbers:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # ours counts products
        arguments = self.arguments
        loading = {"model": arguments.model, "dtype": arguments.dtype, "quantization": arguments.quantization}
        shards = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))
        encoded = shards.map_batches(
            ShardWorker,
            fn_constructor_args=(job, loading | {"gpu": self.gpu}, arguments.batch_size, arguments.workers),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(numbers))),
            num_cpus=1 if self.gpu else self.cpus,
            num_gpus=1 if self.gpu else 0,
        )
        files = ShardFiles(job.folder)
        for row in encoded.iter_rows():
            if row["error"]:
                raise ValueError(row["error"])
            number = int(row["shard"])
            advance(len(job.rows_of(number)))
            yield files.record(number)

    def _start(self) -> None:
        """Connect to the cluster, or start one on this machine, unless this process has one."""
        if ray.is_initialized():
            return
        if self.arguments.ray_address:
            ray.init(address=self.arguments.ray_address, log_to_driver=False)
        else:
            ray.init(include_dashboard=False, log_to_driver=False)


class ShardWorker:
    """An actor's encoder, and the vectors that it need not make.

    Args:
        job: what to encode.
        loading: arguments of `load_for_encoding`.
        batch_size, workers: of the `Encoder`.
    """

    def __init__(self, job: ShardJob, loading: dict[str, Any], batch_size: int, workers: int | None) -> None:
        from .encode_catalogue import load_for_encoding

        model, processor, _ = load_for_encoding(**loading)
        self.job, self.encoder = job, Encoder(model, processor, batch_size, workers)
        self.stored = job.open_stored()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encode the shards of a batch, {"shard": (N,)}, unless an actor that died has done so."""
        numbers = [int(number) for number in batch["shard"]]
        files, errors = ShardFiles(self.job.folder), []
        for number in numbers:
            error = ""
            if files.record(number) is None:
                try:
                    list(encode_shards(self.job, [number], self.encoder, stored=self.stored))
                except ValueError as found:  # which another try would find again
                    error = str(found)
            errors.append(error)
        return {"shard": np.array(numbers), "error": np.array(errors, dtype=object)}
