"""The operations of a transformer besides plain matrix products: each with its gradient, one form per device.

The C kernels of ``kernels.c`` run on a CPU, in fp32 or under bf16 autocast. Elsewhere, and without a compiler,
PyTorch's operators run. Every operation also has a batching rule for ``torch.vmap``, which trains a stack of models as
one (``armillary.train.fleet``). The kernels treat the members of a stack as more rows, with one gain per member.

Trade-offs: the kernels' gradients are written by hand and have no second derivative. The loss computes its gradient
together with its value, even if the gradient is not used; under ``torch.no_grad`` it is not computed.
"""

from armillary.model.operators.attention import attention, prepare
from armillary.model.operators.common import TokenError, block_rows, check_tokens, product_dtype, use_large_blocks
from armillary.model.operators.loss import (
    counted_rows,
    counted_targets,
    linear_cross_entropy,
    mean_share,
    reduce_logits,
    token_cross_entropy,
    without_ignored,
)
from armillary.model.operators.norm import add_norm
from armillary.model.operators.swiglu import swiglu

__all__ = [
    "TokenError",
    "add_norm",
    "attention",
    "block_rows",
    "check_tokens",
    "counted_rows",
    "counted_targets",
    "linear_cross_entropy",
    "mean_share",
    "prepare",
    "product_dtype",
    "reduce_logits",
    "swiglu",
    "token_cross_entropy",
    "use_large_blocks",
    "without_ignored",
]
