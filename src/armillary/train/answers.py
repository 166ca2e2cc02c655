"""The log-probabilities of answers under a model: the reference of a preference loss, also used to select pairs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch

from armillary.corpus import Example
from armillary.model import Transformer, check_tokens

GROUP = 256  # number of examples that are sorted by length together
TOKENS = 8192  # tokens in one batch, padding included


def answer_log_probs(
    model: Transformer, examples: Iterable[Example], precision: Literal["fp32", "bf16"] = "fp32"
) -> Iterator[float]:
    """Yield, for each of ``examples``, the weighted log-probability in nats of its tokens under ``model``.

    The examples are streamed; only those that are sorted together are in memory. ``precision`` is that of matrix
    products. It should equal the precision of the run that uses these numbers.

    Raises:
        TokenError: a token outside the vocabulary.
    """
    coming = iter(examples)
    while group := list(itertools.islice(coming, GROUP)):
        scores = [0.0] * len(group)
        order = sorted(range(len(group)), key=lambda number: len(group[number].tokens))
        for part in _parts(order, [len(example.tokens) for example in group]):
            with torch.autocast(model.output_weight.device.type, torch.bfloat16, enabled=precision == "bf16"):
                found = _scores(model, [group[number] for number in part])
            for number, score in zip(part, found, strict=True):
                scores[number] = score
        yield from scores


def _parts(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Split ``order``, sorted by ``lengths``, into parts of at most TOKENS tokens with padding."""
    part: list[int] = []
    for number in order:
        if part and (len(part) + 1) * lengths[number] > TOKENS:
            yield part
            part = []
        part.append(number)
    if part:
        yield part


@torch.no_grad()
def _scores(model: Transformer, examples: Sequence[Example]) -> list[float]:
    """The log-probability of each example, all computed as one batch."""
    longest = max(len(example.tokens) for example in examples)
    tokens = torch.zeros(len(examples), longest, dtype=torch.int64)
    weights = torch.zeros(len(examples), longest)
    for row, example in enumerate(examples):
        tokens[row, : len(example.tokens)] = torch.as_tensor(example.tokens)
        weights[row, : len(example.tokens)] = torch.as_tensor(example.weights)
    check_tokens(tokens, model.shape.vocab_size)
    device = model.output_weight.device
    tokens, weights = tokens.to(device), weights[:, 1:].to(device)
    features = model.features(tokens[:, :-1])
    losses = model.token_criterion(features, model.output_weight, tokens[:, 1:], weights)
    scores: list[float] = (-losses.double()).sum(1).tolist()
    return scores
