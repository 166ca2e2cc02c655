"""Activation recompute: results of the forward pass are dropped and computed again in the backward pass.

Two modes (Chen et al. 2016, arXiv 1604.06174; Korthikanti et al. 2022, arXiv 2205.05198, section 5):

- *full*: only the input of each layer is kept, one hidden state. The backward pass computes the layer once more.
- *selective*: results of matrix products are kept, and those of attention if PyTorch's operators compute it. Norms,
  rotary positions, SwiGLU and results of collectives are recomputed.

Trade-offs: PyTorch's selective checkpoints see its operators but not the C kernels, so a CPU recomputes attention as
well (measured in docs/parallel.md). To keep it, each kernel would need a special form. The result of a product that
narrows, such as the last one of a layer, is not kept: no later operation needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    SAC_IGNORED_OPS,
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from armillary.model import Layer, Places, Transformer

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten._grouped_mm.default)
_ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)
# FSDP marks its calls for the profiler. Experts are a unit of their own in a layer, and the backward pass marks them
# more often than the forward pass, which a selective checkpoint takes for another computation.
_MARKS = (
    torch.ops.profiler._record_function_enter_new.default,
    torch.ops.profiler._record_function_exit._RecordFunction,
)


def recompute_all(model: Transformer) -> None:
    """Keep only the input of each layer of ``model``."""
    for layer in cast("Iterable[Layer]", model.layers.values()):
        layer.forward = _checkpointed(layer.forward)  # type: ignore[method-assign]


def recompute_cheap(model: Transformer) -> None:
    """Keep only the expensive results of each layer of ``model``: matrix products and attention."""
    SAC_IGNORED_OPS.update(_MARKS)
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
        # summed, so that one hidden state is kept between two layers and not two
        return checkpoint(summed, x, delta, places, use_reentrant=False, preserve_rng_state=False, **options), None

    return call
