"""Large batches in small memory: the contrastive loss over a batch that is encoded chunk by chunk (GradCache).

Pass one encodes the chunks without a graph and keeps their embeddings and routing sums. The loss is taken on all of
them at once, and its gradient with respect to them is kept. Pass two encodes every chunk again, with its graph, the
same randomness and the same choice of experts, and sends that gradient back. In exact arithmetic the result is the
gradient of the whole batch: ω and L_aux are functions of the kept sums, so theirs comes back the same way.

Reference: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_moon2 import Moon2Routing, Moon2ViewsOutput

from .losses import DualLevelLossOutput

EMBEDDINGS = ("text_embeddings", "image_embeddings", "multimodal_embeddings")  # (R, D)
PRESENCE = ("has_text", "has_image")  # (R,)
SUMS = ("gate_sums", "prob_sums")  # (3, L, R, Z), differentiable
KEYS = ("product_keys", "title_keys", "positive_keys", "made_photos")


class RandomState:
    """The state of the random generators at the time when it is made.

    Args:
        device: whose generator to remember, beside the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self.cpu = torch.get_rng_state()
        self.module = None if device.type == "cpu" else torch.get_device_module(device)
        self.device = None if self.module is None else self.module.get_rng_state(device)

    def restore(self) -> None:
        """Put the generators back into that state."""
        torch.set_rng_state(self.cpu)
        if self.module is not None:
            self.module.set_rng_state(self.device)


class ChunkReader:
    """Makes the inputs of a batch's chunks, ahead of their use, and not all at once.

    Args:
        read: makes one example of a key.
        collate: makes model inputs of examples.
        num_threads: threads that do it; as many chunks are ready or in the making.
    """

    def __init__(self, read: Callable, collate: Callable, num_threads: int = 1) -> None:
        self.read = read
        self.collate = collate
        self.num_threads = num_threads

    def __call__(self, chunks: Sequence[Sequence]) -> Iterator[dict]:
        """Yield the inputs of each chunk of keys, in order."""
        with ThreadPoolExecutor(self.num_threads) as threads:
            pending = [threads.submit(self._make, keys) for keys in chunks[: self.num_threads]]
            for number in range(len(chunks)):
                inputs = pending.pop(0).result()
                if number + self.num_threads < len(chunks):
                    pending.append(threads.submit(self._make, chunks[number + self.num_threads]))
                yield inputs

    def _make(self, keys: Sequence) -> dict:
        return self.collate([self.read(key) for key in keys])


class _Chunk(NamedTuple):
    rows: Tensor  # (r,) where its rows stand in the batch
    random_state: RandomState
    expert_choices: Tensor | None


def cached_backward(
    model: Callable[..., Moon2ViewsOutput],
    chunks: Callable[[], Iterator[dict]],
    chunk_sizes: Sequence[int],
    loss: Callable[[Moon2ViewsOutput, dict[str, Tensor]], DualLevelLossOutput],
    backward: Callable[[Tensor], None] = Tensor.backward,
    scale: float = 1.0,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[DualLevelLossOutput, Tensor]:
    """Add the gradient of the loss of a whole batch to the model's parameters.

    Args:
        model: a Moon2Model, or a wrapper of one.
        chunks: gives the inputs of the chunks, as [`Moon2Collator`] makes them, on the model's device; called twice.
        chunk_sizes: triplets of each chunk.
        loss: scores views and keys of the whole batch, rows [q, p] or [q, p, n].
        backward: of a scalar.
        scale: factor of the gradient.
        no_sync: a context in which gradients are not exchanged between processes; used for all chunks but the last.

    Returns:
        The loss and its parts, detached, and the temperatures (2,).
    """
    views, keys, kept = _encode_without_graph(model, chunks(), chunk_sizes)
    leaves, temperatures = _leaves(views), views.temperatures.detach()
    result = loss(views, keys)
    (result.loss * scale).backward()
    result.loss = result.loss.detach()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    del views, leaves  # what was embedded is needed no more

    for number, (inputs, chunk) in enumerate(zip(chunks(), kept, strict=True)):
        last = number == len(kept) - 1
        with nullcontext() if last else no_sync():
            chunk.random_state.restore()
            outputs = model(
                **{name: value for name, value in inputs.items() if name not in KEYS},
                return_views=True,
                expert_choices=chunk.expert_choices,
            )
            backward(_surrogate(outputs, gradients, chunk.rows, whole=last))
    return result, temperatures


@torch.no_grad()
def _encode_without_graph(
    model: Callable[..., Moon2ViewsOutput], chunks: Iterator[dict], chunk_sizes: Sequence[int]
) -> tuple[Moon2ViewsOutput, dict[str, Tensor], list[_Chunk]]:
    """Views and keys of the whole batch, its rows role by role, and what pass two must know of every chunk."""
    batch_size, start = sum(chunk_sizes), 0
    kept, routings, all_keys = [], [], []
    whole: dict[str, Tensor] = {}
    for inputs, size in zip(chunks, chunk_sizes, strict=True):
        random_state = RandomState(inputs["input_ids"].device)
        model_inputs = {name: value for name, value in inputs.items() if name not in KEYS}
        outputs = model(**model_inputs, return_views=True, return_expert_choices=True)
        roles = outputs.has_text.shape[0] // size
        triplets = torch.arange(start, start + size, device=outputs.has_text.device)
        rows = torch.cat([triplets + role * batch_size for role in range(roles)])
        kept.append(_Chunk(rows, random_state, outputs.expert_choices))
        for name in (*EMBEDDINGS, *PRESENCE):  # straight to its place, so that nothing large is there twice
            if name not in whole:
                whole[name] = outputs[name].new_empty(batch_size * roles, *outputs[name].shape[1:])
            whole[name][rows] = outputs[name]
        routings.append(outputs.routing)
        all_keys.append({name: inputs[name] for name in KEYS})
        start += size
    order = torch.cat([chunk.rows for chunk in kept]).argsort()

    def joined(tensors: list[Tensor], dim: int) -> Tensor:
        return torch.cat(tensors, dim=dim).index_select(dim, order)

    routing = None
    if routings[0] is not None:
        routing = Moon2Routing(
            *(joined([getattr(of_chunk, name) for of_chunk in routings], dim=2) for name in Moon2Routing._fields[:3]),
            token_counts=joined([of_chunk.token_counts for of_chunk in routings], dim=1),
        )
    views = Moon2ViewsOutput(
        **whole,
        routing=routing,
        alignment_logits=outputs.alignment_logits,
        temperatures=outputs.temperatures,
    )
    return views, _join_keys(all_keys, roles), kept


def _join_keys(all_keys: list[dict[str, Tensor]], roles: int) -> dict[str, Tensor]:
    """Keys of the whole batch: of items [p, (n)], of right products padded to equal width, and of queries."""
    joined = {"made_photos": torch.cat([keys["made_photos"] for keys in all_keys])}
    for name in ("product_keys", "title_keys"):
        by_role = zip(*(keys[name].chunk(roles - 1) for keys in all_keys), strict=True)
        joined[name] = torch.cat([of_chunk for role in by_role for of_chunk in role])
    width = max(keys["positive_keys"].shape[1] for keys in all_keys)
    padded = [F.pad(keys["positive_keys"], (0, width - keys["positive_keys"].shape[1])) for keys in all_keys]
    return joined | {"positive_keys": torch.cat(padded)}


def _leaves(views: Moon2ViewsOutput) -> dict[str, Tensor]:
    """The tensors of the batch through which the loss depends on the model, ready to take a gradient."""
    leaves = {name: views[name] for name in (*EMBEDDINGS, "temperatures")}
    if views.routing is not None:
        leaves |= {name: getattr(views.routing, name) for name in SUMS} | {"alignment_logits": views.alignment_logits}
    return {name: tensor.requires_grad_() for name, tensor in leaves.items()}


def _surrogate(outputs: Moon2ViewsOutput, gradients: dict[str, Tensor], rows: Tensor, whole: bool) -> Tensor:
    """A scalar whose gradient is the loss's, as far as it comes through this chunk; what has no rows counts once."""
    terms = [
        (outputs[name], gradients[name].index_select(0, rows)) for name in EMBEDDINGS if gradients[name] is not None
    ]
    if outputs.routing is not None:
        terms += [
            (getattr(outputs.routing, name), gradients[name].index_select(2, rows))
            for name in SUMS
            if gradients[name] is not None
        ]
    if whole:
        terms += [(outputs[name], gradients[name]) for name in ("temperatures", "alignment_logits")
                  if gradients.get(name) is not None]  # fmt: skip
    return sum((output * gradient).sum() for output, gradient in terms)
