"""Sharded data parallel (FSDP2): what stays in float32 while the model computes in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy


def keep_float32(plugin: FullyShardedDataParallelPlugin) -> None:
    """Leave outputs as the model makes them, and sum gradients over processes in float32.

    Of mixed precision accelerate's policy rounds both: embeddings, routing sums and temperatures would come in
    bfloat16, and so would the whole loss be computed.

    Args:
        plugin: accelerate's; its policy is replaced. That of FSDP1, which rounds no outputs, stays.
    """
    if isinstance(plugin.mixed_precision_policy, MixedPrecisionPolicy):
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, output_dtype=None, reduce_dtype=torch.float32
        )
