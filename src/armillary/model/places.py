"""What the blocks of a layer need to know of their tokens besides the hidden states: the same for every layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Where the tokens [B, T] of a batch stand, and how much the prediction of each counts.

    ``cos`` [T, head_dim] and ``sin`` [T, head_dim / 2] are the rotary tables; [B, T, ...] where sequences differ in
    their positions. ``starts`` [B, T] (int64) is the index, in its whole sequence, of the first token of each token's
    document: attention sees no token before it. None: a sequence is one document. ``weights`` [B, T] are those of the
    predictions (None: all 1), by which mixtures of experts balance.

    Not a tuple, so that what casts or moves the inputs of modules leaves the tables as they are.
    """

    cos: Tensor
    sin: Tensor
    starts: Tensor | None = None
    weights: Tensor | None = None


def document_starts(documents: Tensor) -> Tensor:
    """The index of the first token of each token's document; ``documents`` [B, T] (int64) numbers them, as the result.

    The tokens of a document stand side by side: wherever the number changes, a document begins.
    """
    index = torch.arange(documents.shape[-1], device=documents.device).expand(documents.shape)
    begins = torch.nn.functional.pad(documents[..., 1:] != documents[..., :-1], (1, 0), value=True)
    return index.where(begins, 0).cummax(-1).values


def visible(starts: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Which ``keys`` [K] ``queries`` [Q] (indices in a sequence) see that have ``starts`` [..., Q]: [..., Q, K]."""
    return (keys <= queries[:, None]) & (keys >= starts[..., None])
