"""Logits of a model on disk for given tokens, to compare two programs or two formats."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from armillary.model.transformer import Transformer
from armillary.model.weights import build, open_model, save_tensors
from armillary.recipe import ArmillaryError, UsageError, reason_of


def read_tokens(path: Path) -> Tensor:
    """The tensor ``tokens`` [b, n] (int64) of a safetensors file.

    Raises:
        UsageError: no such file, not a safetensors file, no tensor of this name, or another size or type.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as a safetensors file ({reason_of(error)})") from error
    if "tokens" not in found:
        raise UsageError(f"{path}: has no tensor 'tokens'; it has {', '.join(sorted(found)[:8]) or 'none'}")
    tokens = found["tokens"]
    if tokens.dtype != torch.int64 or tokens.ndim != 2 or 0 in tokens.shape:
        kind = str(tokens.dtype).removeprefix("torch.")
        raise UsageError(f"{path}: 'tokens' is {kind} {list(tokens.shape)} and must be int64 [b, n], b and n above 0")
    return tokens


@torch.no_grad()
def logits_of(
    model: Transformer, tokens: Tensor, progress: Callable[[int, int], None] = lambda done, of: None
) -> Tensor:
    """Logits [b, n, vocab_size] in fp32 for ``tokens`` [b, n], one sequence at a time."""
    try:
        logits = torch.empty(*tokens.shape, model.shape.vocab_size, dtype=torch.float32)
    except (RuntimeError, MemoryError) as error:
        raise ArmillaryError(
            f"no memory for logits of {list(tokens.shape)} tokens over a vocabulary of {model.shape.vocab_size}; "
            "give fewer tokens"
        ) from error
    for row, sequence in enumerate(tokens):
        logits[row] = model(sequence[None])[0]
        progress(row + 1, len(tokens))
    return logits


def write_logits(
    model: Path,
    tokens: Path,
    out: Path,
    progress: Callable[[int, int], None] = lambda done, of: None,
    *,
    force: bool = False,
) -> Tensor:
    """Write ``logits`` [b, n, vocab_size] (fp32) of the model in the folder ``model`` for ``tokens`` to ``out``.

    ``tokens`` and ``out`` are safetensors files. The weights are widened to fp32, and each sequence is computed in one
    pass, without a cache.
    An older file ``out`` is replaced only with ``force``. Returns the logits.

    Raises:
        UsageError: as ``open_model`` and ``read_tokens``, a token outside of the vocabulary, or ``out`` exists.
        IsADirectoryError: ``out`` is a folder.
        ArmillaryError: the weights cannot be read.
    """
    given = read_tokens(tokens)
    if out.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(out))
    if out.resolve() == tokens.resolve() or model.resolve() in (out.resolve(), out.resolve().parent):
        raise UsageError(f"{out}: is a file of the model, or the tokens; give another --out")
    if out.exists() and not force:
        raise UsageError(f"{out}: exists; give another --out, or --force to replace it")
    source = open_model(model)
    outside = (given < 0) | (given >= source.shape.vocab_size)
    if outside.any():
        row, column = (int(i) for i in outside.nonzero()[0])
        raise UsageError(
            f"{tokens}: token {int(given[row, column])} at [{row}, {column}] is outside the model's vocabulary of "
            f"{source.shape.vocab_size}"
        )
    logits = logits_of(build(source), given, progress)
    save_tensors({"logits": logits}, out)
    return logits
