"""Draws tokens with temperature, top-k and top-p, in float64 on the host.

A draw depends only on the logits of its own row, the request and the number of the answer. Since it is computed in
float64 on the host, equal logits give equal draws on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from armillary.generate.backend import Sampling, seed_of
from armillary.recipe import ArmillaryError

# Most nuclei fit into this many tokens, which are found without sorting the whole vocabulary.
_LIKELY = 512


class Sampler:
    """Draws the tokens of answer ``number`` to a request, one by one."""

    def __init__(self, sampling: Sampling, number: int) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(seed_of(sampling, number))

    def draw(self, logits: NDArray[np.floating[Any]]) -> int:
        """A token from the softmax of ``logits`` [vocab_size] / temperature, cut to ``top_k`` and the nucleus.

        The nucleus is the smallest set of most likely tokens with a total probability of ``top_p`` (Holtzman et al.
        2020, section 3.1). In a tie, the token with the lower id counts as more likely. Temperature 0 takes the most
        likely token.

        Raises:
            ArmillaryError: the logits are not finite.
        """
        best = int(logits.argmax())
        check_logit(float(logits[best]))  # NaN counts as the largest
        sampling = self._sampling
        if sampling.temperature == 0:
            return best
        with np.errstate(over="ignore"):  # a temperature near 0 may overflow for all but the best token
            weights = np.exp((logits - np.float64(logits[best])) / sampling.temperature)
        total = float(weights.sum())
        # one random number per token, whatever the number of candidates
        point = float(torch.rand((), dtype=torch.float64, generator=self._generator))
        # The order of the tokens is never needed, only that of their weights, which is much faster to sort.
        values = _likely(weights)
        at = _pick(values, len(weights), total, point, sampling)
        if at is None:
            values = np.sort(weights)[::-1]
            at = _pick(values, len(weights), total, point, sampling)
            assert at is not None, "the whole vocabulary covers every point"
        equal = np.flatnonzero(weights == values[at])
        return int(equal[at - int(np.searchsorted(-values, -values[at]))])


@dataclass(frozen=True)
class Scored:
    """A token, its log probability in nats, and the most likely tokens at its place with theirs, best first.

    The first token of a prompt has no log probability.
    """

    token: int
    value: float | None
    top: tuple[tuple[int, float], ...]


def log_probabilities(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The log softmax of ``logits`` [vocab_size] in nats, in float64.

    Raises:
        ArmillaryError: the logits are not finite.
    """
    exact = logits.astype(np.float64)
    best = exact[exact.argmax()]
    check_logit(float(best))  # NaN counts as the largest
    exact -= best
    exact -= np.log(np.exp(exact).sum())
    return exact


def score(logits: NDArray[np.floating[Any]], token: int, top: int) -> Scored:
    """The log probability of ``token``, with the ``top`` most likely tokens; in a tie the lower id comes first.

    Raises:
        ArmillaryError: the logits are not finite.
    """
    values = log_probabilities(logits)
    if top:
        least = np.partition(values, len(values) - top)[len(values) - top] if top < len(values) else values.min()
        likely = np.flatnonzero(values >= least)
        likely = likely[np.argsort(-values[likely], kind="stable")][:top]
    else:
        likely = np.array([], np.intp)
    return Scored(token, float(values[token]), tuple((int(one), float(values[one])) for one in likely))


def check_logit(largest: float) -> None:
    """Raise ArmillaryError if the largest logit of a row is not a finite number."""
    if not math.isfinite(largest):
        raise ArmillaryError(
            f"the model's logits contain {largest}: its weights diverged in training or are damaged; use an earlier "
            "checkpoint, or fetch the model again"
        )


def _likely(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest weights in order, without any that tie with the last of them; or all."""
    if len(weights) <= 2 * _LIKELY:
        return np.sort(weights)[::-1]
    last = np.partition(weights, len(weights) - _LIKELY)[len(weights) - _LIKELY]
    return np.sort(weights[weights > last])[::-1]


def _pick(values: NDArray[np.float64], size: int, total: float, point: float, sampling: Sampling) -> int | None:
    """The rank of the token at ``point`` (a share) of the candidates' probability.

    ``values`` are the largest of ``size`` weights, in order; None if they are too few to decide it.
    """
    whole = len(values) == size
    if not whole and (sampling.top_k or 0) > len(values):
        return None
    if sampling.top_k is not None:
        values = values[: sampling.top_k]
    mass = np.cumsum(values)
    if sampling.top_k is not None:
        total, whole = float(mass[-1]), True
    if sampling.top_p < 1:
        inside = int((mass < sampling.top_p * total).sum()) + 1
        if inside > len(values):
            if not whole:
                return None
            inside = len(values)
        mass, whole = mass[:inside], True
        total = float(mass[-1])
    at = int(np.searchsorted(mass, point * total, side="right"))
    if at >= len(mass):
        # rounding may put the point at the very end; tokens of weight 0 are never drawn
        return int(np.count_nonzero(values[: len(mass)])) - 1 if whole else None
    return at
