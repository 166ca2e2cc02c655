"""What the operators share: tokens and precisions, and how the kernels are called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from armillary.model.native import argument, kernels
from armillary.recipe import ArmillaryError

# Logits per block. On a CPU a block (4 MiB in fp32) stays in the cache; an accelerator needs few, large blocks. Each
# block reads the whole output matrix three times, so a block of a large vocabulary has enough rows to pay for that.
CPU_BLOCK = 2**20
CPU_ROWS = 128
ACCELERATOR_BLOCK = 2**27


class TokenError(ArmillaryError, IndexError):
    """A token that the vocabulary does not have."""


def check_tokens(tokens: Tensor, vocab_size: int) -> None:
    """Check that tokens in host memory are in the vocabulary; tokens on an accelerator must be checked earlier.

    No token id means "ignore". Targets of weight 0 must be replaced before, and -100 is an error like every other id
    outside of the vocabulary.

    Raises:
        TokenError: the first one outside of ``[0, vocab_size)``.
    """
    if tokens.device.type != "cpu" or not tokens.numel():
        return
    for dim, stride in enumerate(tokens.stride()):
        if stride == 0:  # repeated tokens, as in a dry run: checked once, without a copy
            tokens = tokens.narrow(dim, 0, 1)
    least, most = (int(value) for value in torch.aminmax(tokens))
    if least < 0 or most >= vocab_size:
        raise TokenError(
            f"token {least if least < 0 else most} is outside the vocabulary of {vocab_size} (0 to "
            f"{vocab_size - 1}): the corpus belongs to another model, or one of its shards is damaged, which "
            "'armillary verify' checks"
        )


def product_dtype(x: Tensor) -> torch.dtype:
    """The precision of matrix products with ``x``: autocast's if enabled, else that of ``x``."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def block_rows(x: Tensor, width: int) -> int:
    """The number of rows of ``width`` logits to compute at once on the device of ``x``."""
    return max(CPU_ROWS, CPU_BLOCK // width) if x.device.type == "cpu" else max(1, ACCELERATOR_BLOCK // width)


def use_large_blocks() -> None:
    """Make this process compute logits on a CPU in blocks of an accelerator's size."""
    global CPU_BLOCK  # noqa: PLW0603
    CPU_BLOCK = ACCELERATOR_BLOCK


def native(x: Tensor) -> bool:
    """Whether the kernels can take ``x`` and fp32 gains."""
    return x.device.type == "cpu" and kernels(product_dtype(x)) is not None


def call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Call a kernel.

    Raises:
        MemoryError: it has no memory for its scratch space.
        TokenError: a target is outside the vocabulary.
    """
    problem = getattr(kernels(dtype), name)(*map(argument, arguments))
    if problem == 1:
        raise MemoryError(f"{name}: no memory for its scratch space")
    if problem == 2:
        raise TokenError(f"{name}: a target is outside the vocabulary")


def batch_first(size: int, dim: int | None, x: Tensor | None) -> Tensor | None:
    """``x`` with its batching dimension first, repeated where it has none; dense."""
    if x is None:
        return None
    return (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).contiguous()
