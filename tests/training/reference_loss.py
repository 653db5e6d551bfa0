"""The dual-level loss as the paper writes it, in Python loops: what the fast one is compared with."""

from __future__ import annotations

import torch
from loss_batches import IMAGE, TEXT, Batch

from moon2_training.losses import OBJECTIVES


def reference(
    batch: Batch,
    *,
    learned: bool = True,
    floor: float = 0.0,
    aux: float = 0.01,
    sparsity: float = 0.01,
    triplet_weights: list[float] | None = None,
    earlier: list[tuple] = (),
):
    """The paper, one row and one token at a time. Returns (loss, [L_m], [weight_m], [served_m], L_aux, L_sparsity).

    `triplet_weights` are the sample filter's; `earlier` items are (r^mm, r^t, has text, product, title).
    """
    views, size = batch.views(), len(batch.positive_keys)
    text, image, multimodal = views.text_embeddings, views.image_embeddings, views.multimodal_embeddings
    epsilon, intra_epsilon = views.temperatures
    rows, layers, experts = len(text), batch.gates.shape[1], batch.gates.shape[-1]
    products, titles = batch.product_keys.tolist(), batch.title_keys.tolist()
    has_text, has_image = views.has_text.tolist(), views.has_image.tolist()
    lengths = batch.lengths.tolist()
    objectives = OBJECTIVES if rows == 3 * size else OBJECTIVES[:4]
    triplet_weights = triplet_weights or [1.0] * size

    objective_losses, tokens_of, served = [], [], []
    for name in objectives:
        row_losses, row_weights, tokens = [], [], []
        for b in range(size):
            if name.startswith("inter"):
                view = OBJECTIVES.index(name)
                if not (has_text[b] or view == IMAGE) or not (has_image[b] or view == TEXT):
                    continue
                positive = torch.exp((text, image, multimodal)[view][b] @ multimodal[size + b] / epsilon)
                total = positive
                for n in range(len(products)):
                    if products[n] not in batch.positive_keys[b].tolist() and titles[n] != titles[b]:
                        total = total + torch.exp((text, image, multimodal)[view][b] @ multimodal[size + n] / epsilon)
                for old, _, _, product, title in earlier:
                    if product not in batch.positive_keys[b].tolist() and title != titles[b]:
                        total = total + torch.exp((text, image, multimodal)[view][b] @ old / epsilon)
                tokens += [(view, b, t) for t in range(lengths[view][b])]
            else:
                item = b if name == "intra_positive" else size + b
                if not has_text[size + item] or not has_image[size + item]:
                    continue
                positive = torch.exp(image[size + item] @ text[size + item] / intra_epsilon)
                total = positive
                for n in range(len(products)):
                    if has_text[size + n] and products[n] != products[item] and titles[n] != titles[item]:
                        total = total + torch.exp(image[size + item] @ text[size + n] / intra_epsilon)
                for _, old, old_has_text, product, title in earlier:
                    if old_has_text and product != products[item] and title != titles[item]:
                        total = total + torch.exp(image[size + item] @ old / intra_epsilon)
                for view in (TEXT, IMAGE):
                    tokens += [(view, size + item, t) for t in range(lengths[view][size + item])]
            row_losses.append(-torch.log(positive / total) * triplet_weights[b])
            row_weights.append(triplet_weights[b])
        served.append(len(row_losses) > 0)
        mean = sum(row_losses) / sum(row_weights) if any(row_weights) else torch.zeros((), dtype=text.dtype)
        objective_losses.append(mean)
        tokens_of.append(tokens)

    preferences = []  # [l][z][m]
    for layer in range(layers):
        preferences.append([])
        for z in range(experts):
            powers = [torch.exp(batch.alignment_logits[layer, z, m]) for m in range(len(objectives))]
            preferences[layer].append([power / sum(powers) for power in powers])

    weights = []
    for m, tokens in enumerate(tokens_of):
        omega = torch.tensor(1 / len(objectives), dtype=text.dtype)
        if tokens:
            omega = 0
            for layer in range(layers):
                for view, row, t in tokens:
                    for z in range(experts):
                        gate = batch.gates[view, layer, row, t, z]
                        omega = omega + preferences[layer][z][m] * gate / len(tokens) / layers
        weights.append(floor + (1 - floor) * len(objectives) * omega if learned else torch.ones((), dtype=text.dtype))

    all_tokens = [(view, row, t) for view in range(3) for row in range(rows) for t in range(lengths[view][row])]
    aux_loss, sparsity_term = 0, 0
    for layer in range(layers):
        chosen = [sum(float(batch.gates[v, layer, r, t, z] > 0) for v, r, t in all_tokens) for z in range(experts)]
        for z in range(experts):
            mean_prob = sum(batch.probs[v, layer, r, t, z] for v, r, t in all_tokens) / len(all_tokens)
            aux_loss = aux_loss + experts * chosen[z] / sum(chosen) * mean_prob / layers
            entropy = -sum(p * torch.log(p) for p in preferences[layer][z])
            sparsity_term = sparsity_term + entropy / experts / layers
    loss = aux * aux_loss + sparsity * sparsity_term
    for weight, objective_loss in zip(weights, objective_losses, strict=True):
        loss = loss + weight * objective_loss
    return loss, objective_losses, weights, served, aux_loss, sparsity_term
