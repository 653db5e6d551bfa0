"""Contrastive terms of MOON2.0: InfoNCE of an anchor, its positive and those of the candidates that are negatives.

In shapes, A counts anchors and N candidates, B queries, C items, and D is the embedding size.

Reference: MOON2.0 (Nie et al., CVPR 2026, arXiv 2511.12449).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .similarity_blocks import in_blocks


def negative_mask(product_keys: Tensor, title_keys: Tensor, positive_keys: Tensor, positive_titles: Tensor) -> Tensor:
    """Which candidates may serve as negatives: neither a known positive's product nor the positive's title.

    Args:
        product_keys: (N,) int64 product of each candidate.
        title_keys: (N,) int64 normalised title of each candidate.
        positive_keys: (A, P) int64 products known to be right for each anchor, padded with 0, which is no key.
        positive_titles: (A,) int64 title of each anchor's positive.

    Returns:
        (A, N) bool, True where the candidate is a negative of the anchor.
    """
    ordered = product_keys.sort().values  # (N,)
    first = torch.searchsorted(ordered, product_keys)  # (N,) where a candidate's product begins
    place = torch.searchsorted(ordered, positive_keys).clamp(max=len(ordered) - 1)  # (A, P)
    place = torch.where(ordered[place] == positive_keys, place, len(ordered))  # behind all, where no candidate has it
    is_right = torch.zeros(len(place), len(ordered) + 1, dtype=torch.bool, device=place.device)
    same_product = is_right.scatter_(1, place, True)[:, first]  # (A, N), without P of them
    same_title = positive_titles[:, None] == title_keys  # (A, N)
    return ~(same_product | same_title)


def masked_info_nce(
    anchors: Tensor, candidates: Tensor, targets: Tensor, negatives: Tensor, temperature: Tensor
) -> Tensor:
    """−log [ exp(a·c⁺/ε) / ( exp(a·c⁺/ε) + Σ_{negatives} exp(a·c/ε) ) ] for every anchor a.

    Args:
        anchors: (A, D) embeddings.
        candidates: (N, D) embeddings.
        targets: (A,) int64 index of c⁺; it is the positive whatever `negatives` says of it.
        negatives: (A, N) bool. An anchor without any has loss 0 and gradient 0.
        temperature: scalar ε.

    Returns:
        (A,) losses in nats.

    Of a large batch only one block of the (A, N) logits exists at a time; the gradient computes it again.
    """

    def term(of_anchors: Tensor, of_targets: Tensor, of_negatives: Tensor) -> Tensor:
        return _info_nce(of_anchors, candidates, of_targets, of_negatives, temperature)

    return in_blocks(term, len(candidates), anchors, targets, negatives)


def _info_nce(anchors: Tensor, candidates: Tensor, targets: Tensor, negatives: Tensor, temperature: Tensor) -> Tensor:
    with torch.autocast(anchors.device.type, enabled=False):  # dividing by ε magnifies the rounding of bfloat16
        logits = anchors @ candidates.T / temperature  # (A, N)
    is_target = targets[:, None] == torch.arange(len(candidates), device=targets.device)  # (A, N)
    logits = logits.masked_fill(~(negatives | is_target), -math.inf)
    return F.cross_entropy(logits, targets, reduction="none")


def inter_product_loss(
    query_view: Tensor, item_multimodal: Tensor, negatives: Tensor, temperature: Tensor, first_item: int = 0
) -> Tensor:
    """L^ϑ_inter = −log [ exp(r^ϑ_q·r^mm_p/ε) / ( exp(r^ϑ_q·r^mm_p/ε) + Σ_{N_q} exp(r^ϑ_q·r^mm_n/ε) ) ].

    Args:
        query_view: (B, D) r^ϑ_q, one view ϑ of the queries.
        item_multimodal: (C, D) r^mm of all p, then of all n if there are any.
        negatives: (B, C) bool, N_q.
        temperature: scalar ε.
        first_item: place of the first query's positive; the others follow it.

    Returns:
        (B,) losses in nats.
    """
    targets = torch.arange(first_item, first_item + len(query_view), device=query_view.device)
    return masked_info_nce(query_view, item_multimodal, targets, negatives, temperature)


def intra_product_loss(
    image: Tensor, item_text: Tensor, first_item: int, negatives: Tensor, temperature: Tensor
) -> Tensor:
    """L^ϖ_intra = −log [ exp(r^i_ϖ·r^t_ϖ/ε̃) / ( exp(r^i_ϖ·r^t_ϖ/ε̃) + Σ exp(r^i_ϖ·r^t_wrong/ε̃) ) ].

    The paper takes the wrong texts from the other polarity; here they come from both, so that the objective also
    exists without explicit negatives.

    Args:
        image: (B, D) r^i_ϖ, the images of the items of one polarity ϖ.
        item_text: (C, D) r^t of all p, then of all n if there are any.
        first_item: where polarity ϖ starts in `item_text`: 0 for p, B for n.
        negatives: (B, C) bool, the wrong texts.
        temperature: scalar ε̃.

    Returns:
        (B,) losses in nats.
    """
    targets = torch.arange(first_item, first_item + len(image), device=image.device)
    return masked_info_nce(image, item_text, targets, negatives, temperature)
