"""Activation-aware scaling before quantization (AWQ, arXiv 2306.00978): the channels that matter get finer steps.

The input channels of q, k, v and of gate, up are multiplied by a scale, and the RMSNorm in front of them is divided by
it, so the model computes the same. A channel with large activations gets a larger scale, and its weights a smaller
relative error. The scale is ``mean(|x|) ** alpha``; each block takes the alpha, of eleven from 0 to 1, whose quantized
product has the least squared error on the given tokens. Alpha 0 changes nothing.

Trade-off: only what follows a norm is scaled, not the output of attention and ``down``; blocks with experts are left
as they are. Measuring takes the whole model in memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from armillary.model.weights import quantized
from armillary.model.weights.source import Source, build
from armillary.recipe import ArmillaryError

_ALPHAS = tuple(i / 10 for i in range(11))
# Rows of activations that the error is measured on.
_ROWS = 1024
_BLOCKS = {
    "attention": ("attention.q", "attention.k", "attention.v"),
    "feed_forward": ("feed_forward.gate", "feed_forward.up"),
}


class Scaled(Source):
    """A model whose norms and the matrices behind them are scaled against each other; it computes the same.

    ``scales`` has a vector [d_model] for ``layers.N.attention`` and ``layers.N.feed_forward``.
    """

    def __init__(self, source: Source, scales: Mapping[str, Tensor]) -> None:
        self.format, self.folder, self.shape, self.dtype = source.format, source.folder, source.shape, source.dtype
        self.context_length, self.special = source.context_length, source.special
        self._source = source
        self._norms = {f"{block}_norm.weight": scale for block, scale in scales.items()}
        self._matrices = {
            f"{layer}.{name}.weight": scale
            for block, scale in scales.items()
            for layer, _, kind in [block.rpartition(".")]
            for name in _BLOCKS[kind]
        }

    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        """As ``Source.tensor``; scaled ones are in fp32."""
        values = self._source.tensor(name, expert)
        if name in self._norms:
            return values.float() / self._norms[name]
        return values.float() * self._matrices[name] if name in self._matrices else values


@torch.no_grad()
def scaled(source: Source, tokens: Tensor, bits: int) -> Scaled:
    """``source`` with the scales that quantization to ``bits`` loses least with, on ``tokens`` [n, length].

    Raises:
        UsageError: its rows cannot be packed.
        ArmillaryError: activations that are not finite.
    """
    shape = source.shape
    size = quantized.group_size([shape.d_model, shape.n_heads * shape.head_dim, shape.d_ff], bits)
    model = build(source)
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for index, layer in model.layers.items():
        for kind, names in _BLOCKS.items():
            block = getattr(layer, kind)
            if all(isinstance(getattr(block, name.rpartition(".")[2], None), nn.Module) for name in names):
                key = f"layers.{index}.{kind}"

                def keep(_: nn.Module, given: tuple[Tensor, ...], key: str = key) -> None:
                    seen.setdefault(key, []).append(given[0].flatten(0, 1))

                handles.append(block.register_forward_pre_hook(keep))
    for row in tokens:
        model(row[None])
    for handle in handles:
        handle.remove()
    scales = {}
    for key, parts in seen.items():
        inputs = torch.cat(parts)
        if not torch.isfinite(inputs).all():
            raise ArmillaryError(f"{source.folder}: {key} has activations that are not finite; the model is broken")
        place, _, kind = key.rpartition(".")
        matrices = [model.get_parameter(f"{place}.{name}.weight") for name in _BLOCKS[kind]]
        scales[key] = _best(inputs, matrices, bits, size)
    return Scaled(source, scales)


def _best(inputs: Tensor, matrices: list[nn.Parameter], bits: int, size: int | None) -> Tensor:
    """The scale [d_model] whose quantized products with ``inputs`` [n, d_model] have the least squared error."""
    sample = inputs[:: max(1, len(inputs) // _ROWS)]
    strength = inputs.abs().mean(0).clamp(min=1e-6)
    best, least = torch.ones_like(strength), float("inf")
    for alpha in _ALPHAS:
        scale = strength**alpha
        scale = scale / (scale.max() * scale.min()).sqrt()
        error = 0.0
        for matrix in matrices:
            lost = quantized.rounded(matrix * scale, bits, size) / scale - matrix
            error += float((sample @ lost.T).square().sum())
        if error < least:
            best, least = scale, error
    return best
