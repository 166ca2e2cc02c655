"""The positions, documents and weights of tokens, which every layer receives besides the hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """The positions of the tokens [B, T] of a batch, and the weight of each prediction.

    ``cos`` [T, head_dim] and ``sin`` [T, head_dim / 2] are the rotary tables; [B, T, ...] if sequences differ in their
    positions. ``starts`` [B, T] (int64) is the index, in the whole sequence, of the first token of each token's
    document; attention sees no earlier token. None: each sequence is one document. ``weights`` [B, T] are the weights
    of the predictions, used to balance experts (None: all 1).

    It is not a tuple, so that hooks that cast or move module inputs do not change the tables.
    """

    cos: Tensor
    sin: Tensor
    starts: Tensor | None = None
    weights: Tensor | None = None


def document_starts(documents: Tensor) -> Tensor:
    """The index [B, T] (int64) of the first token of each token's document; ``documents`` [B, T] (int64) numbers them.

    The tokens of a document are adjacent: a new document begins wherever the number changes.
    """
    index = torch.arange(documents.shape[-1], device=documents.device).expand(documents.shape)
    begins = torch.nn.functional.pad(documents[..., 1:] != documents[..., :-1], (1, 0), value=True)
    return index.where(begins, 0).cummax(-1).values


def visible(starts: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """The mask [..., Q, K] of ``keys`` [K] that ``queries`` [Q] with ``starts`` [..., Q] see (sequence indices)."""
    return (keys <= queries[:, None]) & (keys >= starts[..., None])
