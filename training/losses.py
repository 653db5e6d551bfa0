"""Dual-level alignment of MOON2.0: between products, within a product, and how much each objective weighs.

Symbols follow the paper: Z experts, M objectives, G the gate's softmax over all experts, G̃ its renormalised weights
of the chosen experts (0 for the others), W* the dual-alignment matrix, ω_m the weight of objective m, ε and ε̃ the
temperatures, ρ and ς the coefficients of L_aux and L_sparsity. In shapes, R counts the rows [q, p, (n)] of B triplets,
N = R − B the items [p, (n)], C ≥ N the candidates (the items, perhaps those of other processes, perhaps earlier ones),
L the MoE layers, D the embedding size, and 3 stands for VIEWS.

Reference: MOON2.0 (Nie et al., CVPR 2026, arXiv 2511.12449).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contrastive import inter_product_loss, intra_product_loss, negative_mask
from .filtering import FilterResult, SampleFilter, mean_negative_similarity
from .gathering import gather_rows, process_rank, sum_over_processes
from .router_losses import load_balancing_loss, mean_distribution, objective_weights, sparsity_loss

if TYPE_CHECKING:
    from modeling_moon2 import Moon2Routing, Moon2ViewsOutput

    from .memory_queue import MemoryQueue

VIEWS = ("text", "image", "multimodal")
OBJECTIVES = ("inter_text", "inter_image", "inter_multimodal", "intra_positive", "intra_negative")
OBJECTIVE_WEIGHTINGS = ("learned", "uniform", "balanced")
FILTER_SCOPES = ("all", "inter")


class ItemViews(NamedTuple):
    """The views of the rows of one role (all q, all p or all n)."""

    text: Tensor  # (B, D), zeros where has_text is False
    image: Tensor  # (B, D), zeros where has_image is False
    multimodal: Tensor  # (B, D), never missing
    has_text: Tensor  # (B,) bool
    has_image: Tensor  # (B,) bool
    routing: Moon2Routing | None  # None for a dense model

    @property
    def has_both(self) -> Tensor:
        return self.has_text & self.has_image  # (B,)


class Candidates(NamedTuple):
    """Items that anchors are scored against: the batch's, perhaps of all processes, then perhaps earlier ones."""

    multimodal: Tensor  # (C, D)
    text: Tensor  # (C, D), zeros where has_text is False
    has_text: Tensor  # (C,) bool
    product_keys: Tensor  # (C,) int64
    title_keys: Tensor  # (C,) int64
    usable: Tensor  # (C,) bool, False for an empty place of the memory


@dataclass
class DualLevelLossOutput:
    """What `DualLevelAlignmentLoss` returns; everything but `loss` is detached.

    Attributes:
        loss: scalar, L_total.
        objectives: names of the M objectives that are active in this batch, in the order of OBJECTIVES.
        objective_losses: (M,), unweighted; 0 for an objective that no row serves.
        objective_weights: (M,), M·ω after the floor; 1 each for uniform weights.
        served: (M,) bool, whether any row serves the objective.
        aux_loss: scalar, L_aux before ρ; 0 for a dense model.
        sparsity_loss: scalar, L_sparsity in nats, before ς; 0 for a dense model.
        expert_load: (3, Z), each expert's share of a view's assignments, mean over layers; None for a dense model.
        routing_entropy: (3,), entropy in nats of a view's mean gate distribution (G averaged over the view's tokens of
            all rows), taken in each layer, then averaged over layers. log Z means that the view as a whole spreads
            evenly; it does not say how sure single tokens are. None for a dense model.
        filtering: what the sample filter said; None without one.
        items: the batch's items, of all processes if they are gathered: what a memory should remember.
        distillation: what [`distillation_losses`] gave where there are teachers, before its coefficient; the Trainer
            adds it.
    """

    loss: Tensor
    objectives: tuple[str, ...]
    objective_losses: Tensor
    objective_weights: Tensor
    served: Tensor
    aux_loss: Tensor
    sparsity_loss: Tensor
    expert_load: Tensor | None
    routing_entropy: Tensor | None
    filtering: FilterResult | None
    items: Candidates
    distillation: dict[str, Tensor] = field(default_factory=dict)


def _select_rows(outputs: Moon2ViewsOutput, rows: slice) -> ItemViews:
    routing = outputs.routing
    if routing is not None:
        routing = routing._replace(
            gate_sums=routing.gate_sums[:, :, rows],
            prob_sums=routing.prob_sums[:, :, rows],
            expert_counts=routing.expert_counts[:, :, rows],
            token_counts=routing.token_counts[:, rows],
        )
    return ItemViews(
        text=outputs.text_embeddings[rows],
        image=outputs.image_embeddings[rows],
        multimodal=outputs.multimodal_embeddings[rows],
        has_text=outputs.has_text[rows],
        has_image=outputs.has_image[rows],
        routing=routing,
    )


def split_roles(outputs: Moon2ViewsOutput, batch_size: int) -> tuple[ItemViews, ItemViews, ItemViews | None]:
    """Split rows [q, p] or [q, p, n] into their roles.

    Args:
        outputs: views of 2B or 3B rows.
        batch_size: B, the number of triplets.

    Returns:
        (query, positive, negative), B rows each; negative is None when there are 2B rows.

    Raises:
        ValueError: the rows are neither 2B nor 3B.
    """
    num_rows = outputs.multimodal_embeddings.shape[0]
    if batch_size < 1 or num_rows not in (2 * batch_size, 3 * batch_size):
        raise ValueError(f"{num_rows} rows for {batch_size} triplets; give [q, p] (2B rows) or [q, p, n] (3B rows)")
    roles = [_select_rows(outputs, slice(i, i + batch_size)) for i in range(0, num_rows, batch_size)]
    return roles[0], roles[1], roles[2] if len(roles) == 3 else None


def _sum_over_tokens(routing: Moon2Routing, views: slice, rows: Tensor) -> tuple[Tensor, Tensor]:
    """G̃ (L, Z) and the number of tokens (), summed over some views of the rows (B,) marked True."""
    gate_sums = (routing.gate_sums[views] * rows[:, None]).sum(dim=(0, 2))
    return gate_sums, (routing.token_counts[views] * rows).sum()


def truncate(embeddings: Tensor, dim: int) -> Tensor:
    """The first `dim` dimensions of embeddings (…, D), normalised again (Matryoshka)."""
    return embeddings if dim == embeddings.shape[-1] else F.normalize(embeddings[..., :dim], dim=-1)


class DualLevelAlignmentLoss(nn.Module):
    """L_total = Σ_m (M·ω_m)·L_m + ρ·L_aux + ς·L_sparsity over the inter- and intra-product objectives of a batch.

    Each L_m is the mean over the rows that serve it: queries that have view ϑ for inter_ϑ (text and image for
    inter_multimodal), items with text and image for intra_ϖ. B_m is the tokens of those rows: of the query's view ϑ,
    or of the item's text view and image view. An objective that no row serves adds nothing; without explicit negatives
    intra_negative is not active at all. W*'s softmax runs over the active objectives, for otherwise its gradient
    could hide weight in objectives that cost nothing.

    A sample filter multiplies the terms of a triplet by its weight, and L_m is divided by the weights' sum. Negatives
    can also come from other processes (`gather`) and from earlier batches (a memory given to `forward`); the product
    and the title of a right item are never negatives, wherever they come from.

    The module has no parameters: ε, ε̃ and W* come with the model's output. Embeddings and routing sums are expected in
    float32, and nothing waits for the device.

    Args:
        objectives: the objectives to train, names from OBJECTIVES.
        objective_weighting: "learned" for M·ω, as published; "uniform" for 1 each; "balanced" for M·L_m / Σ L, without
            gradient, so that what is hardest weighs most. A dense model has no ω and takes uniform for learned.
        objective_floor: share of every learned weight that is kept uniform, 0 to 1.
        aux_coef: ρ.
        sparsity_coef: ς.
        sample_filter: weighs the triplets; all weigh 1 without one.
        filter_scope: "all" weighs a triplet's terms in every objective, as published; "inter" leaves the intra-product
            ones alone, for a wrong click says nothing about a product's own image and text.
        gather: score against the items of all processes, and take every mean, ω and L_aux over all processes, so that
            n processes of B / n triplets have the loss and the gradient of one of B. Needs equal rows everywhere.
        matryoshka_dims: take each L_m as the mean over the embeddings' first d dimensions for these d and over all D.

    Raises:
        ValueError: an argument is outside its range.

    Reference: MOON2.0 (Nie et al., CVPR 2026, arXiv 2511.12449).
    """

    def __init__(
        self,
        objectives: Sequence[str] = OBJECTIVES,
        objective_weighting: str = "learned",
        objective_floor: float = 0.0,
        aux_coef: float = 0.01,
        sparsity_coef: float = 0.01,
        sample_filter: SampleFilter | None = None,
        filter_scope: str = "all",
        gather: bool = False,
        matryoshka_dims: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if not objectives or isinstance(objectives, str) or not set(objectives) <= set(OBJECTIVES):
            raise ValueError(f"objectives={objectives!r}; give one or more of {', '.join(OBJECTIVES)}")
        if objective_weighting not in OBJECTIVE_WEIGHTINGS:
            raise ValueError(
                f"objective_weighting={objective_weighting!r}; give one of {', '.join(OBJECTIVE_WEIGHTINGS)}"
            )
        if not 0 <= objective_floor <= 1:
            raise ValueError(f"objective_floor={objective_floor!r}; give a share from 0 to 1")
        if filter_scope not in FILTER_SCOPES:
            raise ValueError(f"filter_scope={filter_scope!r}; give one of {', '.join(FILTER_SCOPES)}")
        for name, coef in (("aux_coef", aux_coef), ("sparsity_coef", sparsity_coef)):
            if not 0 <= coef < math.inf:
                raise ValueError(f"{name}={coef!r}; give a finite number, 0 or more")
        self.objectives = tuple(name for name in OBJECTIVES if name in objectives)
        self.objective_weighting = objective_weighting
        self.objective_floor = objective_floor
        self.aux_coef = aux_coef
        self.sparsity_coef = sparsity_coef
        self.sample_filter = sample_filter
        self.filter_scope = filter_scope
        self.gather = gather
        self.matryoshka_dims = tuple(matryoshka_dims)

    def forward(
        self,
        outputs: Moon2ViewsOutput,
        product_keys: Tensor,
        title_keys: Tensor,
        positive_keys: Tensor,
        made_photos: Tensor | None = None,
        progress: float = 0.0,
        memory: MemoryQueue | None = None,
        step: int = 0,
    ) -> DualLevelLossOutput:
        """Score one batch of B triplets.

        Args:
            outputs: views of the rows [q, p] or [q, p, n].
            product_keys: (N,) int64 product of each item [p, (n)].
            title_keys: (N,) int64 normalised title of each item.
            positive_keys: (B, P) int64 products known to be right for each query, padded with 0.
            made_photos: (B,) bool, queries whose photo was made from p; none if not given. Such a photo is like p
                however wrong the click was, so the filter judges these queries by their text.
            progress: share of the training that is done, for the filter's margin.
            memory: earlier items, as further negatives.
            step: of the training, for the age of what is in the memory.

        Returns:
            The loss and its parts.

        Raises:
            ValueError: rows and keys do not fit together, no objective is active, or embeddings are in half precision.
        """
        if (dtype := outputs.multimodal_embeddings.dtype) not in (torch.float32, torch.float64):
            raise ValueError(
                f"embeddings in {dtype} are too coarse to tell near products apart; keep the model's float32, in FSDP "
                "with output_dtype=None in its mixed precision policy"
            )
        batch_size = len(positive_keys)
        query, positive, negative = split_roles(outputs, batch_size)
        items = _select_rows(outputs, slice(batch_size, None))
        num_items = len(items.multimodal)
        if product_keys.shape != (num_items,) or title_keys.shape != (num_items,):
            raise ValueError(
                f"product_keys {tuple(product_keys.shape)} and title_keys {tuple(title_keys.shape)} "
                f"for {num_items} items; give one key per row of [p, (n)]"
            )
        active = tuple(name for name in self.objectives if name != "intra_negative" or negative is not None)
        if not active:
            raise ValueError("intra_negative is the only objective and the batch has no n; add n or another objective")

        batch_items = self._batch_items(items, product_keys, title_keys)
        first = process_rank() * num_items if self.gather else 0  # of this process's items among them
        candidates = batch_items if memory is None else _with_memory(batch_items, memory, step)
        not_right = negative_mask(  # (B, C)
            candidates.product_keys, candidates.title_keys, positive_keys, title_keys[:batch_size]
        )
        not_right = not_right & candidates.usable
        wrong_texts = negative_mask(candidates.product_keys, candidates.title_keys, product_keys[:, None], title_keys)
        wrong_texts = wrong_texts & candidates.usable & candidates.has_text  # (N, C)
        filtering = None
        if self.sample_filter is not None:
            evidence = _evidence(query, made_photos)
            filtering = self._filter(evidence, positive, negative, batch_items, not_right, progress)
        triplet_weights = torch.ones_like(outputs.temperatures[0]).expand(batch_size)  # (B,)
        if filtering is not None:
            triplet_weights = filtering.weights

        temperature, intra_temperature = outputs.temperatures.unbind()
        dims = (*self.matryoshka_dims, items.multimodal.shape[-1])

        def inter(view: Tensor) -> Tensor:
            terms = [
                inter_product_loss(
                    truncate(view, dim), truncate(candidates.multimodal, dim), not_right, temperature, first
                )
                for dim in dims
            ]
            return torch.stack(terms).mean(dim=0)

        def intra(role: ItemViews, first_item: int) -> Tensor:
            wrong = wrong_texts[first_item : first_item + batch_size]
            terms = [
                intra_product_loss(
                    truncate(role.image, dim),
                    truncate(candidates.text, dim),
                    first + first_item,
                    wrong,
                    intra_temperature,
                )
                for dim in dims
            ]
            return torch.stack(terms).mean(dim=0)

        sums = []  # per objective: Σ w·term, Σ w, rows, and Σ G̃ and tokens of B_m
        for name in active:
            match name:
                case "inter_text":
                    role, views, rows, terms = query, slice(0, 1), query.has_text, inter(query.text)
                case "inter_image":
                    role, views, rows, terms = query, slice(1, 2), query.has_image, inter(query.image)
                case "inter_multimodal":
                    role, views, rows, terms = query, slice(2, 3), query.has_both, inter(query.multimodal)
                case "intra_positive":
                    role, views, rows, terms = positive, slice(0, 2), positive.has_both, intra(positive, 0)
                case "intra_negative":
                    role, views, rows, terms = negative, slice(0, 2), negative.has_both, intra(negative, batch_size)
            unfiltered = self.filter_scope == "inter" and name.startswith("intra")
            weights = rows.to(triplet_weights) if unfiltered else torch.where(rows, triplet_weights, 0)
            of_objective = [(weights * torch.where(rows, terms, 0)).sum(), weights.sum(), rows.sum()]
            if role.routing is not None:
                of_objective += _sum_over_tokens(role.routing, views, rows)
            sums.append(of_objective)
        weighted_terms, weight_sums, row_counts, *routing_sums = self._sum(*map(torch.stack, zip(*sums, strict=True)))
        objective_losses = weighted_terms / weight_sums.clamp(min=torch.finfo(weight_sums.dtype).tiny)  # (M,)
        weights = torch.ones_like(objective_losses)
        aux = sparsity = objective_losses.new_zeros(())
        expert_load = routing_entropy = None
        if outputs.routing is not None:
            routing = outputs.routing
            expert_counts, prob_sums, token_counts = self._sum(
                routing.expert_counts.sum(dim=2, keepdim=True),  # (3, L, 1, Z)
                routing.prob_sums.sum(dim=2, keepdim=True),  # (3, L, 1, Z)
                routing.token_counts.sum(dim=1, keepdim=True),  # (3, 1)
            )
            columns = [outputs.alignment_logits[..., OBJECTIVES.index(name)] for name in active]
            alignment_logits = torch.stack(columns, dim=-1).to(prob_sums.dtype)  # (L, Z, M)
            aux = load_balancing_loss(expert_counts, prob_sums, token_counts)
            sparsity = sparsity_loss(alignment_logits)
            if self.objective_weighting == "learned":
                omega = objective_weights(*routing_sums, alignment_logits)
                weights = self.objective_floor + (1 - self.objective_floor) * len(active) * omega
            expert_load = mean_distribution(expert_counts).mean(dim=1)  # (3, Z)
            routing_entropy = torch.special.entr(mean_distribution(prob_sums)).sum(dim=-1).mean(dim=-1)  # (3,)
        if self.objective_weighting == "balanced":
            shares = objective_losses.detach() / objective_losses.detach().sum().clamp(min=1e-6)
            weights = self.objective_floor + (1 - self.objective_floor) * len(active) * shares
        # An objective nobody serves has loss 0 and a finite weight: it adds neither value nor gradient.
        loss = (weights * objective_losses).sum() + self.aux_coef * aux + self.sparsity_coef * sparsity
        return DualLevelLossOutput(
            loss=loss,
            objectives=active,
            objective_losses=objective_losses.detach(),
            objective_weights=weights.detach(),
            served=row_counts.detach() > 0,
            aux_loss=aux.detach(),
            sparsity_loss=sparsity.detach(),
            expert_load=expert_load,
            routing_entropy=routing_entropy,
            filtering=filtering,
            items=Candidates(*(tensor.detach() for tensor in batch_items)),
        )

    def _batch_items(self, items: ItemViews, product_keys: Tensor, title_keys: Tensor) -> Candidates:
        """The items of the batch, of all processes if they are gathered."""
        tensors = (items.multimodal, items.text, items.has_text, product_keys, title_keys)
        if self.gather:
            tensors = tuple(gather_rows(tensor) for tensor in tensors)
        return Candidates(*tensors, usable=torch.ones_like(tensors[2]))

    def _filter(
        self,
        query: Tensor,
        positive: ItemViews,
        negative: ItemViews | None,
        batch_items: Candidates,
        not_right: Tensor,
        progress: float,
    ) -> FilterResult:
        """Weigh the triplets by r_q (B, D) and the multimodal views of p and n."""
        with torch.no_grad():
            to_positive = (query * positive.multimodal).sum(dim=-1)  # (B,)
            if negative is not None:
                to_negative = (query * negative.multimodal).sum(dim=-1)
            else:
                items = batch_items.multimodal
                to_negative = mean_negative_similarity(query, items, not_right[:, : len(items)])
            return self.sample_filter(to_positive, to_negative, progress)

    def _sum(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors, summed over all processes if those are gathered, in one exchange."""
        if not self.gather:
            return list(tensors)
        dtype = torch.float32 if tensors[0].dtype == torch.float32 else torch.float64
        total = sum_over_processes(torch.cat([tensor.flatten().to(dtype) for tensor in tensors]))
        parts = total.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _evidence(query: ItemViews, made_photos: Tensor | None) -> Tensor:
    """r_q (B, D) of what the shopper gave: the multimodal view, but the text where the photo was made."""
    if made_photos is None:
        return query.multimodal
    return torch.where((made_photos & query.has_text)[:, None], query.text, query.multimodal)


def _with_memory(items: Candidates, memory: MemoryQueue, step: int) -> Candidates:
    """The items, and behind them what a memory holds."""
    remembered = (memory.multimodal, memory.text, memory.has_text, memory.product_keys, memory.title_keys)
    return Candidates(
        *(torch.cat([of_item, old.to(of_item.dtype)]) for of_item, old in zip(items, remembered, strict=False)),
        usable=torch.cat([items.usable, memory.valid(step)]),
    )
