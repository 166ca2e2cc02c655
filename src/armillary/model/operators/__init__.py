"""What a transformer computes besides plain matrix products: each operation with its gradient, one form per device.

On a CPU, in fp32 or under bf16 autocast, the C kernels of ``kernels.c``; anywhere else, and where no compiler is at
hand, PyTorch's operators. Every operation here also has a batching rule for ``torch.vmap``, by which a stack of models
is trained as one (``armillary.train.fleet``): the kernels take the members of a stack as more rows, with as many gains
as members.

Trade-offs: the kernels' gradients are written by hand, and have no second derivative; the loss computes its gradient
together with its value, wasted where it is not needed (under ``torch.no_grad`` it is not computed).
"""

from armillary.model.operators.attention import attention, prepare
from armillary.model.operators.common import TokenError, block_rows, check_tokens, product_dtype, use_large_blocks
from armillary.model.operators.loss import (
    counted_rows,
    counted_targets,
    linear_cross_entropy,
    mean_share,
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
    "swiglu",
    "token_cross_entropy",
    "use_large_blocks",
    "without_ignored",
]
