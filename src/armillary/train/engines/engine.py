"""The protocol of an engine, which takes the steps of a run for `loop`, and the code that all engines share.

`single` is one model on one device, `parallel` a program over many ranks, `stack` many models of one shape on one
device. The loop does not depend on the engine.
"""

from __future__ import annotations

import contextlib
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from armillary.corpus import Batch, Corpus
from armillary.model import (
    Transformer,
    add_adapters,
)
from armillary.recipe import RunSpec
from armillary.train.checkpoint import CheckpointReader, Piece, PieceReader

ADAPTER = "adapter.safetensors"  # file of the adapter in the folder of its run
VALIDATION_BATCH = 64  # windows per batch; fixed, because it affects rounding


def outline(spec: RunSpec) -> Transformer:
    """The model of a run with its adapters on the meta device: names and sizes without values."""
    with torch.device("meta"):
        model = Transformer(spec.model)
        if spec.adapter is not None:
            add_adapters(model, spec.adapter)
    return model


class Engine(Protocol):
    """A model with its optimizer, on one device or over many ranks.

    A new engine has uninitialised weights; call ``draw_weights``, ``load_weights`` or ``load`` first.
    """

    device: torch.device
    described: dict[str, Any]  # fields about the engine in the event of a start
    compiles: bool  # whether the first step compiles parts of the model

    def step(self, step: int, batch: Batch[Tensor]) -> tuple[Tensor, ...]:
        """One optimizer step on the global ``batch``.

        Returns scalars on the device: the mean loss in nats, the gradient norm before clipping, and the further
        measurements of the objective (``recipe.measures``).
        """

    def entropy(self, step: int, windows: Tensor) -> float:
        """Mean cross entropy in nats over ``windows`` [n, T + 1] (int64), with the positions used at ``step``."""

    def pieces(self) -> dict[str, Piece]:
        """This process's pieces of the weights (under the names of the model) and optimizer state (``NAME/KEY``)."""

    def draw_weights(self) -> None:
        """Draw initial weights from the seed of the run."""

    def load_weights(self, reader: PieceReader) -> None:
        """Read all weights; the optimizer keeps its initial state."""

    def load(self, reader: CheckpointReader) -> None:
        """Read weights and optimizer state from a checkpoint."""

    def save_weights(self, path: Path) -> None:
        """Write the weights of the whole model as one safetensors file, with an adapter merged and in a second file."""

    def check_copies(self) -> str | None:
        """A description of differing copies of the same values on several ranks; None if all agree."""


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that this process has used so far, in GiB: tensors on an accelerator, or all of it on a CPU."""
    if device.type != "cpu":
        with contextlib.suppress(RuntimeError):  # a device without PyTorch's allocator keeps no statistics
            return torch.accelerator.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def autocast(spec: RunSpec, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The precision of the matrix products: bf16 by autocast with fp32 weights, or plain fp32."""
    if spec.precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def parts(batch: Batch[Tensor], count: int, dim: int = 0) -> list[Batch[Tensor]]:
    """``count`` equal parts of a batch along the dimension of its sequences."""
    return [batch.map(lambda x, i=i: x.chunk(count, dim)[i]) for i in range(count)]  # type: ignore[misc]


def validate(entropy: Callable[[Tensor], float], spec: RunSpec, corpus: Corpus) -> dict[str, tuple[float, float]]:
    """The mean loss in nats per token and the bits per byte of every domain's validation windows.

    ``entropy`` is the mean cross entropy in nats over windows [n, T + 1] (int64).
    """
    results = {}
    for domain in corpus.domains:
        held_out = corpus.validation(domain, spec.context_length, spec.validation.windows)
        total = 0.0
        for part in torch.split(torch.from_numpy(np.ascontiguousarray(held_out.tokens)), VALIDATION_BATCH):
            total += entropy(part) * part.shape[0] * spec.context_length
        predicted = held_out.tokens.shape[0] * spec.context_length
        results[domain] = (total / predicted, total / math.log(2) / held_out.bytes)
    return results
