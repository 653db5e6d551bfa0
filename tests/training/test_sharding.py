from __future__ import annotations

import copy
import os
import subprocess
import sys

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from trainer_arguments import arguments
from transformers import Trainer

from moon2_training.sharding import keep_float32
from moon2_training.trainer import Moon2Trainer

PROCESS = """
import os
import sys
import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import fully_shard
from modeling_moon2 import Moon2Model, Moon2Processor
from moon2_dataset import load_product_queries
from moon2_training.cached_loss import KEYS
from moon2_training.collator import Moon2Collator
from moon2_training.losses import DualLevelAlignmentLoss
from moon2_training.sharding import keep_float32
from moon2_training.triplets import TripletDataset

folder, products, queries = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
triplets = TripletDataset(load_product_queries(products, queries))
inputs = Moon2Collator(Moon2Processor.from_pretrained(folder))([triplets[row] for row in range(8)])
keys = {name: inputs.pop(name) for name in KEYS}
loss = DualLevelAlignmentLoss()

def sharded(plugin=None):
    model = Moon2Model.from_pretrained(folder).eval()
    if plugin is not None:
        for module in (*model.language_model.layers, *model.visual.blocks, model):
            fully_shard(module, mp_policy=plugin.mixed_precision_policy)
    return model

plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
plugin.set_mixed_precision("bf16")
try:
    loss(sharded(plugin)(**inputs, return_views=True), **keys)
except ValueError as error:
    print(error)
keep_float32(plugin)
model = sharded(plugin)
outputs = model(**inputs, return_views=True)
layer = model.language_model.layers[0]
assert layer.self_attn.q_proj.weight.dtype == torch.float32
kept = (outputs.multimodal_embeddings, outputs.text_embeddings, outputs.temperatures, *outputs.routing)
assert {tensor.dtype for tensor in kept if tensor.is_floating_point()} == {torch.float32}
result = loss(outputs, **keys)
result.loss.backward()
assert layer.self_attn.q_proj.weight.grad.dtype == torch.float32
expected = loss(sharded()(**inputs, return_views=True), **keys).loss
assert result.loss != expected  # computed in bfloat16
torch.testing.assert_close(result.loss, expected, rtol=0.01, atol=0)
print("in float32", flush=True)
dist.destroy_process_group()
os._exit(0)  # gloo's threads, ended by the interpreter, now and then abort the process
"""


def test_the_loss_is_computed_in_float32_under_accelerates_mixed_precision(tiny, shop, tmp_path):
    for part in tiny:
        part.save_pretrained(tmp_path / "model")
    for name, table in (("products", shop.products), ("queries", shop.queries)):
        table.to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "process.py").write_text(PROCESS)
    command = [sys.executable, tmp_path / "process.py", tmp_path / "model", tmp_path / "products.parquet",
               tmp_path / "queries.parquet"]  # fmt: skip
    result = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0 and "in float32" in result.stdout, result.stderr[-3000:]
    assert "embeddings in torch.bfloat16" in result.stdout


def test_the_trainer_keeps_it_so(tiny, shop, tmp_path, monkeypatch):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    create = Trainer.create_accelerator_and_postprocess

    def as_on_gpus(trainer):
        create(trainer)
        monkeypatch.setattr(trainer.accelerator.state, "fsdp_plugin", plugin, raising=False)
        trainer.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", as_on_gpus)
    Moon2Trainer(copy.deepcopy(tiny[0]), arguments(tmp_path), shop, processing_class=tiny[1])
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (torch.bfloat16, torch.float32, None)


def test_without_mixed_precision_there_is_nothing_to_keep():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    keep_float32(plugin)
    assert plugin.mixed_precision_policy is None
