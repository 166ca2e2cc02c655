"""The loss of pairs of answers, computed with the model's own criterion and therefore under every layout.

The loss of a pair depends on the model through two numbers: the log-probabilities of its answers. Its gradient is that
of a weighted cross entropy, where a token's weight is the slope of the loss by its answer's log-probability. A first
pass over the output matrix, without gradients, computes the log-probabilities. The second pass is the model's own
criterion with these weights. A parallel layout only has to sum a log-probability of which each rank has a part.

Trade-off: there are four products with the output matrix instead of three, and the full logits never exist at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from torch import Tensor

from armillary.model.transformer import Transformer
from armillary.recipe import Preference


@dataclass(frozen=True)
class PairTargets:
    """The targets of a ``Batch`` of pairs: ``targets``, ``weights``, ``documents`` and ``reference``, each [B, T].

    ``slots`` is an even number above all document numbers in whole sequences. ``pairs`` and ``chosen_tokens`` are
    counts of the whole batch. ``add_up`` sums a tensor over the ranks that hold parts of the same sequences.
    """

    targets: Tensor
    weights: Tensor
    documents: Tensor
    reference: Tensor
    slots: int
    pairs: float
    chosen_tokens: float
    add_up: Callable[[Tensor], Tensor] = lambda part: part


def preference_sums(
    model: Transformer, features: Tensor, wanted: PairTargets, objective: Preference
) -> tuple[Tensor, Tensor]:
    """The objective for ``backward``, and the sums over the pairs of their loss and ``recipe.MEASURES``.

    ``features`` is [B, T, d_model], or this rank's part of it. The objective has the gradient of the sum of the pairs'
    losses, but its value is meaningless. The sums [1 + measures] carry no gradient. Divide both by the number of pairs
    in the whole batch.
    """
    matrix = model.output_weight
    losses = model.token_criterion(features, matrix, wanted.targets, wanted.weights)
    parts = torch.stack((-losses, wanted.weights, wanted.reference))
    sums = wanted.add_up(answer_sums(parts, wanted.documents, wanted.slots))
    log_probs, counts, reference = sums.view(*sums.shape[:-1], -1, 2)  # [B, slots / 2, 2] each
    there = (counts > 0).all(-1)
    log_probs = log_probs.clone().requires_grad_()
    with torch.enable_grad():
        each = pair_losses(log_probs, reference, counts, objective).where(there, 0.0)
        if objective.sft_weight:
            share = objective.sft_weight * wanted.pairs / wanted.chosen_tokens
            each = each - share * log_probs[..., 0]
        (slopes,) = torch.autograd.grad(each.sum(), log_probs)
    by_token = -slopes.flatten(-2).gather(-1, wanted.documents) * wanted.weights
    objective_sum, _ = model.criterion(features, matrix, wanted.targets, 0.0, by_token)
    log_probs = log_probs.detach()
    chosen, rejected = (objective.beta * (log_probs - reference)).unbind(-1)
    measured = (each.detach(), chosen - rejected, (chosen > rejected).float(), *log_probs.unbind(-1))
    return objective_sum, torch.stack([x.where(there, 0.0).sum() for x in measured])


def answer_sums(values: Tensor, documents: Tensor, slots: int) -> Tensor:
    """Sum ``values`` [..., B, T] over each document; numbers in ``documents`` [B, T] are below ``slots``.

    Returns [..., B, slots]. The shape does not depend on the documents, so the host does not wait for their number.
    """
    return values.new_zeros(*values.shape[:-1], slots).scatter_add(-1, documents.expand(values.shape), values)


def slots_for(length: int) -> int:
    """A number of ``slots`` that is enough for any packing of pairs into sequences of ``length`` predictions."""
    return length + 2 + length % 2


def pair_losses(log_probs: Tensor, reference: Tensor, counts: Tensor, objective: Preference) -> Tensor:
    """The loss of each pair [...] of answers with ``log_probs``, ``reference`` and ``counts`` of tokens [..., 2].

    The formulas are those of ``recipe.Preference``, without ``sft_weight``.
    """
    gains = log_probs - reference
    if objective.loss in ("sigmoid_norm", "ipo"):
        gains = gains / counts.clamp(min=1)
    delta = gains[..., 0] - gains[..., 1]
    beta, smoothing = objective.beta, objective.label_smoothing
    match objective.loss:
        case "ipo" | "ipo_sequence":
            return (delta - 1 / (2 * beta)).square()
        case "hinge":
            return torch.relu(1 - beta * delta)
        case "robust":
            kept, turned = -F.logsigmoid(beta * delta), -F.logsigmoid(-beta * delta)
            return ((1 - smoothing) * kept - smoothing * turned) / (1 - 2 * smoothing)
        case "sigmoid" | "sigmoid_norm":
            loss = -F.logsigmoid(beta * delta)
            # a term of weight 0 may be infinite
            return loss if not smoothing else (1 - smoothing) * loss - smoothing * F.logsigmoid(-beta * delta)
