"""Two processes of half a batch have the loss and the gradients of one process with the whole."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
import torch

from moon2_training.gathering import gather_rows, num_processes, process_rank, sum_over_processes
from moon2_training.triplets import TripletDataset

PROCESS = """
import os
import pickle
import sys
from contextlib import nullcontext
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoProcessor
from modeling_moon2 import Moon2Model
from moon2_training.cached_loss import KEYS, cached_backward
from moon2_training.collator import Moon2Collator
from moon2_training.filtering import SampleFilter
from moon2_training.losses import DualLevelAlignmentLoss
from moon2_training.memory_queue import MemoryQueue

folder, pickled, wrapper, chunk_size = sys.argv[1:]
dist.init_process_group("gloo")
rank, chunk_size = dist.get_rank(), int(chunk_size)
collator = Moon2Collator(AutoProcessor.from_pretrained(folder, trust_remote_code=True))
with open(pickled, "rb") as file:
    triplets = pickle.load(file)
half = len(triplets) // 2
mine = triplets[rank * half : (rank + 1) * half]
options = dict(sample_filter=SampleFilter(warmup=0.0), aux_coef=0.5)

def run(model, triplets, gather):
    loss = DualLevelAlignmentLoss(**options, gather=gather)
    memory = MemoryQueue(64, model_width, 10)
    generator = torch.Generator().manual_seed(0)
    old = torch.nn.functional.normalize(torch.randn(9, model_width, generator=generator), dim=-1)
    memory.push(old, old.flip(0), torch.ones(9, dtype=torch.bool), torch.arange(1, 10), torch.arange(1, 10), step=1)

    def score(views, keys):
        return loss(views, **keys, memory=memory, step=2)

    if chunk_size and gather:
        chunks = [triplets[i : i + chunk_size] for i in range(0, len(triplets), chunk_size)]
        no_sync = model.no_sync if wrapper == "ddp" else nullcontext
        sizes = [len(chunk) for chunk in chunks]
        result, _ = cached_backward(model, lambda: map(collator, chunks), sizes, score, no_sync=no_sync)
    else:
        inputs = collator(triplets)
        keys = {name: inputs.pop(name) for name in KEYS}
        result = score(model(**inputs, return_views=True), keys)
        result.loss.backward()
    memory.push(*result.items[:-1], step=2)
    return result.loss.detach(), memory.product_keys

plain = Moon2Model.from_pretrained(folder).train()
model_width = plain.config.text_config.hidden_size
expected, expected_keys = run(plain, triplets, gather=False)
model = Moon2Model.from_pretrained(folder).train()
if wrapper == "ddp":
    model = DistributedDataParallel(model)
else:
    for layer in (*model.language_model.layers, *model.visual.blocks):
        fully_shard(layer)
    fully_shard(model)
loss, keys = run(model, mine, gather=True)
assert torch.allclose(loss, expected, rtol=1e-5), (loss, expected)
assert sorted(keys.tolist()) == sorted(expected_keys.tolist())
worst = 0.0
gradients = {name.removeprefix("module."): weight.grad for name, weight in model.named_parameters()}
for name, weight in plain.named_parameters():
    got = gradients[name]
    got = got.full_tensor() if hasattr(got, "full_tensor") else got
    if weight.grad is None:
        assert got is None or not got.any(), name
        continue
    error = (got - weight.grad).norm() / weight.grad.norm().clamp(min=1e-6)
    assert error < 1e-4, (name, error)
    worst = max(worst, float(error))
if rank == 0:
    print("same to", worst, flush=True)
dist.destroy_process_group()
os._exit(0)  # gloo's threads, ended by the interpreter, now and then abort the process
"""


def run_two(tmp_path, tiny, triplets, wrapper, chunk_size=0):
    model, processor = tiny
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "triplets.pickle").write_bytes(pickle.dumps(triplets))
    (tmp_path / "process.py").write_text(PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               tmp_path / "process.py", tmp_path / "model", tmp_path / "triplets.pickle", wrapper,
               str(chunk_size)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and "same to" in result.stdout, result.stderr[-3000:]


@pytest.fixture(scope="module")
def triplets(shop):
    """Eight triplets with explicit negatives; some lack a text or an image."""
    dataset = TripletDataset(shop, negatives="explicit", max_images_per_item=2)
    return [dataset[index] for index in (0, 2, 3, 4, 6, 9, 12, 15)]


@pytest.mark.parametrize(("wrapper", "chunk_size"), [("ddp", 0), ("ddp", 2), ("fsdp2", 0), ("fsdp2", 2)])
def test_two_halves_are_as_good_as_the_whole(tmp_path, tiny, triplets, wrapper, chunk_size):
    run_two(tmp_path, tiny, triplets, wrapper, chunk_size)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_a_process_without_any_image_neither_hangs_nor_crashes(tmp_path, tiny, triplets, wrapper):
    texts = [t for t in triplets if t.query.text and t.positive.text and t.negative.text][:4]
    bare = [t._replace(query=t.query._replace(images=[]), positive=t.positive._replace(images=[]),
                       negative=t.negative._replace(images=[])) for t in texts]  # fmt: skip
    run_two(tmp_path, tiny, bare[:3] + triplets[:3], wrapper)


def test_one_process_gathers_itself():
    rows = torch.randn(3, 2)
    assert num_processes() == 1 and process_rank() == 0
    assert gather_rows(rows) is rows and sum_over_processes(rows) is rows
