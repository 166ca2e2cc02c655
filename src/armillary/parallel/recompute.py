"""Activation recompute: what the forward pass computed is dropped and computed again in the backward pass.

Two ways (Chen et al. 2016, arXiv 1604.06174; Korthikanti et al. 2022, arXiv 2205.05198, section 5):

- *full*: of each layer only its input stays, one hidden state; the backward pass computes the layer once more.
- *selective*: the results of matrix products stay, and of the attention where PyTorch's operators compute it; norms,
  rotary positions, SwiGLU and what collectives brought are computed again.

Trade-offs: PyTorch's selective checkpoints see its operators, not the C kernels, so that on a CPU attention is computed
again as well (measured in docs/parallel.md: to keep it too would take a form of its own for each kernel). A product
that narrows, as the last one of a layer does, does not stay: nothing after it needs its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from armillary.model import Layer, Places, Transformer

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten._grouped_mm.default)
_ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)


def recompute_all(model: Transformer) -> None:
    """Keep the input of each layer of ``model`` alone."""
    for layer in cast("Iterable[Layer]", model.layers.values()):
        layer.forward = _checkpointed(layer.forward)  # type: ignore[method-assign]


def recompute_cheap(model: Transformer) -> None:
    """Keep of each layer of ``model`` what is dear to compute: matrix products and attention."""
    contexts = partial(create_selective_checkpoint_contexts, _keep_dear)
    for layer in cast("Iterable[Layer]", model.layers.values()):
        layer.forward = _checkpointed(layer.forward, context_fn=contexts)  # type: ignore[method-assign]


def _keep_dear(_: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    widens = operator in _PRODUCTS and arguments[0].shape[-1] <= arguments[1].shape[-1]
    return CheckpointPolicy.MUST_SAVE if widens or operator in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE


def _checkpointed(forward: Callable[..., tuple[Tensor, Tensor]], **options: Any) -> Any:
    def summed(x: Tensor, delta: Tensor | None, places: Places) -> Tensor:
        x, new = forward(x, delta, places)
        return x + new

    def call(x: Tensor, delta: Tensor | None, places: Places) -> tuple[Tensor, None]:
        # summed, so that what stays between two layers is one hidden state and not two
        return checkpoint(summed, x, delta, places, use_reentrant=False, preserve_rng_state=False, **options), None

    return call
