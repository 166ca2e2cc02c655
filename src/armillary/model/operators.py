"""What a transformer computes besides plain matrix products: each operation with its gradient, one form per device.

On a CPU, in fp32 or under bf16 autocast, the C kernels of ``kernels.c``; anywhere else, and where no compiler is at
hand, PyTorch's operators. Every operation here also has a batching rule for ``torch.vmap``, by which a stack of models
is trained as one (``armillary.train.fleet``): the kernels take the members of a stack as more rows, with as many gains
as members.

Trade-offs: the kernels' gradients are written by hand, and have no second derivative; the loss computes its gradient
together with its value, wasted if nobody asks for it (under ``torch.no_grad`` it is not computed).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from armillary.model.native import argument, kernels
from armillary.model.places import Places, visible
from armillary.recipe import ArmillaryError

# Logits per block. On a CPU a block (4 MiB in fp32) stays in the cache; an accelerator wants few, large blocks. Each
# block reads the whole matrix of the head three times, so that of a large vocabulary has enough rows to pay for that.
CPU_BLOCK = 2**20
CPU_ROWS = 128
ACCELERATOR_BLOCK = 2**27


class TokenError(ArmillaryError, IndexError):
    """A token that the vocabulary does not have."""


def check_tokens(tokens: Tensor, vocab_size: int) -> None:
    """Compare tokens in the host's memory with the vocabulary; those of an accelerator must be compared before.

    No token means "ignore": a target of weight 0 must be taken out before, and -100 is an error like every other one
    outside of the vocabulary.

    Raises:
        TokenError: the first one outside of ``[0, vocab_size)``.
    """
    if tokens.device.type != "cpu" or not tokens.numel():
        return
    for dim, stride in enumerate(tokens.stride()):
        if stride == 0:  # the same ones repeated, as in a dry run: looked at once, and not copied
            tokens = tokens.narrow(dim, 0, 1)
    least, most = (int(value) for value in torch.aminmax(tokens))
    if least < 0 or most >= vocab_size:
        raise TokenError(
            f"token {least if least < 0 else most} lies outside of the vocabulary of {vocab_size} (0 to "
            f"{vocab_size - 1}): the corpus is not one of this model, or a shard of it is damaged, which 'armillary "
            "verify' finds out"
        )


def product_dtype(x: Tensor) -> torch.dtype:
    """In which precision matrix products with ``x`` run: autocast's where it is on, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def block_rows(x: Tensor, width: int) -> int:
    """How many rows of ``width`` logits to compute at once where ``x`` is."""
    return max(CPU_ROWS, CPU_BLOCK // width) if x.device.type == "cpu" else max(1, ACCELERATOR_BLOCK // width)


def _native(x: Tensor) -> bool:
    """Whether the kernels can take ``x`` and fp32 gains."""
    return x.device.type == "cpu" and kernels(product_dtype(x)) is not None


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    problem = getattr(kernels(dtype), name)(*map(argument, arguments))
    if problem == 1:
        raise MemoryError(f"{name}: no memory for its scratch space")
    if problem == 2:
        raise TokenError(f"{name}: a target lies outside of the vocabulary")


def _stacked(size: int, dim: int | None, x: Tensor | None) -> Tensor | None:
    """``x`` with its batching dimension first, repeated where it has none; dense."""
    if x is None:
        return None
    return (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).contiguous()


# ---- residual sum and RMSNorm ---------------------------------------------------------------------------------------


def add_norm(x: Tensor, delta: Tensor | None, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x + delta`` on the residual stream, and its RMSNorm (Zhang and Sennrich 2019, equation 4).

    ``x`` and ``delta`` are [..., width], ``gain`` [width]; without ``delta`` the sum is ``x``. The norm is reduced in
    fp32 and comes in the precision of matrix products where the kernels compute it, else in the sum's.
    """
    if _native(x) and x.dtype == gain.dtype == torch.float32:
        total, normalised, _ = _AddNorm.apply(x, delta, gain, eps, product_dtype(x))  # type: ignore[no-untyped-call]
        return total, normalised
    total = x if delta is None else x + delta
    return total, F.rms_norm(total, gain.shape, gain.to(total.dtype), eps)


class _AddNorm(Function):
    """The gain is [width], or [members, width] where the first dimension of the rest is the members."""

    @staticmethod
    def forward(
        x: Tensor, delta: Tensor | None, gain: Tensor, eps: float, product: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, delta = x.contiguous(), delta if delta is None else delta.to(product).contiguous()
        total, normalised, scale = torch.empty_like(x), torch.empty_like(x, dtype=product), x.new_empty(x.shape[:-1])
        rows, width = scale.numel(), x.shape[-1]
        group = rows * width // gain.numel()
        _call("add_norm", product, rows, width, group, eps, x, delta, gain.contiguous(), total, normalised, scale)
        return total, normalised, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, delta, gain, _, product = inputs
        total, _, scale = output
        ctx.mark_non_differentiable(scale)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, scale, gain.contiguous())
        ctx.product, ctx.delta = product, None if delta is None else delta.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direct: Tensor | None, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        total, scale, gain = ctx.saved_tensors
        rows, width = scale.numel(), total.shape[-1]
        grad_total, grad_gain = torch.empty_like(total), torch.zeros_like(gain)
        half = None if ctx.delta in (None, torch.float32) else torch.empty_like(total, dtype=ctx.product)
        direct = None if direct is None else direct.contiguous()
        arguments = (rows, width, rows * width // gain.numel(), total, scale, gain, direct, grad.contiguous())
        _call("add_norm_back", ctx.product, *arguments, grad_total, half, grad_gain)
        grad_delta = None if ctx.delta is None else grad_total if half is None else half
        return grad_total, grad_delta, grad_gain, None, None

    @staticmethod
    def vmap(
        info: Any, dims: Any, x: Tensor, delta: Tensor | None, gain: Tensor, eps: float, product: torch.dtype
    ) -> Any:
        tensors = [_stacked(info.batch_size, dim, t) for dim, t in zip(dims, (x, delta, gain), strict=False)]
        return _AddNorm.apply(*tensors, eps, product), (0, 0, 0)  # type: ignore[no-untyped-call]


# ---- SwiGLU ---------------------------------------------------------------------------------------------------------


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` (Shazeer 2020, equation 6) of two tensors [..., width]."""
    if _native(gate) and gate.dtype == product_dtype(gate):
        gated: Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
        return gated
    return F.silu(gate) * up


class _SwiGLU(Function):
    @staticmethod
    def forward(gate: Tensor, up: Tensor) -> Tensor:
        out = torch.empty_like(gate, memory_format=torch.contiguous_format)
        _call("swiglu", gate.dtype, out.numel(), gate.contiguous(), up.contiguous(), out)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*(x.contiguous() for x in inputs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grads = torch.empty_like(gate), torch.empty_like(up)
        _call("swiglu_back", gate.dtype, grad.numel(), gate, up, grad.contiguous(), *grads)
        return grads

    @staticmethod
    def vmap(info: Any, dims: Any, gate: Tensor, up: Tensor) -> Any:
        tensors = (_stacked(info.batch_size, dim, x) for dim, x in zip(dims, (gate, up), strict=True))
        return _SwiGLU.apply(*tensors), 0  # type: ignore[no-untyped-call]


# ---- attention ------------------------------------------------------------------------------------------------------


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    places: Places,
    gains: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Causal grouped-query attention (Ainslie et al. 2023) with rotary positions (Su et al. 2021, equation 15).

    ``q`` is [B, T, n_heads * head_dim], ``k`` and ``v`` [B, T, n_kv_heads * head_dim]; ``places`` holds the rotary
    tables and where documents start, which tokens see no token before. With ``gains`` [head_dim] of queries and keys,
    both are normalised per head before they are turned (QK-norm). Returns [B, T, n_heads * head_dim].
    """
    q_gain, k_gain = gains or (None, None)
    if _native(q) and q.dtype == product_dtype(q) and (q_gain is None or q_gain.dtype == torch.float32):
        tables = places.cos, places.sin, places.starts
        mixed: Tensor = _Attention.apply(q, k, v, *tables, q_gain, k_gain, eps)[0]  # type: ignore[no-untyped-call]
        return mixed
    mask = None
    if places.starts is not None:
        index = torch.arange(q.shape[1], device=q.device)
        mask = visible(places.starts, index, index)[:, None]
    q, k, v = prepare(q, k, v, places, gains, eps)
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q.shape != k.shape,
    )
    return mixed.transpose(1, 2).flatten(2)


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    places: Places,
    gains: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``attention`` does before the products: q, k and v cut into heads, q and k normalised and turned.

    Arguments as there; returns [B, T, n_heads, head_dim] and twice [B, T, n_kv_heads, head_dim].
    """
    head_dim = places.cos.shape[-1]
    q, k, v = (x.unflatten(-1, (-1, head_dim)) for x in (q, k, v))  # type: ignore[no-untyped-call]
    if gains is not None:
        q, k = (F.rms_norm(x, gain.shape, gain.to(x.dtype), eps) for x, gain in zip((q, k), gains, strict=True))
    q, k = (_Rotate.apply(x, places.cos, places.sin) for x in (q, k))  # type: ignore[no-untyped-call]
    return q, k, v


class _Attention(Function):
    """Gains are [head_dim], or [members, head_dim] where the first dimension of the rest is the members."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        starts: Tensor | None,
        q_gain: Tensor | None,
        k_gain: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        sizes = _attention_sizes(q, k, cos, q_gain)
        batch, length, n_heads, *_ = sizes
        cos, sin = cos.contiguous(), sin.contiguous()
        out = torch.empty_like(q)
        log_partition = q.new_empty((batch, n_heads, length), dtype=torch.float32)
        _call("attention", q.dtype, *sizes, eps, q, k, v, cos, sin, starts, q_gain, k_gain, out, log_partition)
        return out, log_partition.view(*q.shape[:-2], n_heads, length)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, starts, q_gain, k_gain, ctx.eps = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*(x.contiguous() for x in tensors), starts, q_gain, k_gain, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        q, k, v, cos, sin, starts, q_gain, k_gain, out, log_partition = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (q, k, v)]
        grad_gains = [None if gain is None else torch.zeros_like(gain) for gain in (q_gain, k_gain)]
        sizes = _attention_sizes(q, k, cos, q_gain)
        tables = cos, sin, starts
        arguments = (q, k, v, *tables, q_gain, k_gain, out, log_partition, grad.contiguous(), *grads, *grad_gains)
        _call("attention_back", q.dtype, *sizes, ctx.eps, *arguments)
        return *grads, None, None, None, *grad_gains, None

    @staticmethod
    def vmap(
        info: Any,
        dims: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        starts: Tensor | None,
        q_gain: Tensor | None,
        k_gain: Tensor | None,
        eps: float,
    ) -> Any:
        q, k, v, starts, q_gain, k_gain = (  # type: ignore[assignment]
            _stacked(info.batch_size, dims[i], t)
            for i, t in ((0, q), (1, k), (2, v), (5, starts), (6, q_gain), (7, k_gain))
        )
        if starts is not None:
            cos, sin = (_stacked(info.batch_size, dims[i], t) for i, t in ((3, cos), (4, sin)))  # type: ignore[assignment]
        tables = cos, sin, starts
        return _Attention.apply(q, k, v, *tables, q_gain, k_gain, eps), (0, 0)  # type: ignore[no-untyped-call]


def _attention_sizes(q: Tensor, k: Tensor, cos: Tensor, gain: Tensor | None) -> tuple[int, ...]:
    """Sequences, length, heads, kv heads, head_dim, how many share a member's gains, and whether each has tables."""
    length, batch = q.shape[-2], q.shape[:-2].numel()
    head_dim = cos.shape[-1]
    members = 1 if gain is None else gain.numel() // head_dim
    heads, kv_heads = q.shape[-1] // head_dim, k.shape[-1] // head_dim
    return batch, length, heads, kv_heads, head_dim, batch // members, int(cos.ndim > 2)


class _Rotate(Function):
    """Turns each pair (i, i + head_dim / 2) of the last dimension by its angle; the gradient is turned back."""

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _turn(x, cos, sin, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1), None, None

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        cos, sin = (t if dim is None else t.movedim(dim, 0) for t, dim in ((cos, dims[1]), (sin, dims[2])))
        return _Rotate.apply(_stacked(info.batch_size, dims[0], x), cos, sin), 0  # type: ignore[no-untyped-call]


def _turn(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    half = x.shape[-1] // 2
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    turned = x * cos  # fp32 also where x is half precision: angles of late positions need the digits
    turned[..., :half].addcmul_(x[..., half:], sin, value=-direction)
    turned[..., half:].addcmul_(x[..., :half], sin, value=direction)
    return turned.to(x.dtype)


# ---- the output matrix and the loss ---------------------------------------------------------------------------------


def mean_share(total: Tensor, batch_weight: float | Tensor, parts: int) -> Tensor:
    """What one of ``parts`` equal parts of a batch adds to its mean: ``total`` / ``batch_weight``, in fp32.

    ``total`` is the part's sum (``linear_cross_entropy``) and ``batch_weight`` the weight of the whole batch; of the
    members of a stack each has its own [members]. It is divided in two steps, by a part's share of the weight and then
    by the number of parts: where all weights are 1 the first is the number of predictions in the part, and the result
    has the bits of a mean of the parts' means.
    """
    return (total / (batch_weight / parts)).float() / parts


def linear_cross_entropy(
    features: Tensor, weight: Tensor, targets: Tensor, z_loss: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of the cross entropies of ``features @ weight.T`` against ``targets``, in nats, reduced in fp32 or fp64.

    The logits are by far the largest tensor of a small model. Here they never exist as a whole: a block of them is
    computed, turned into its part of the loss and of both gradients while it is still near the processor, and dropped
    (as Liger Kernel does, Hsu et al. 2024, arXiv 2410.10989, section 3.2).

    ``features`` is [..., d], ``weight`` [V, d], ``targets`` [...] (int64); ``weights`` [...] (fp32) multiply the terms
    of the sums, all 1 if not given. A position of weight 0 never reaches the loss: its target may be any number.
    Returns the objective (cross entropy plus ``z_loss`` times the squared log of the partition function; PaLM,
    Chowdhery et al. 2022, section 5) and the cross entropy alone, which carries no gradient: sums, for the caller to
    divide by the weight of the whole batch (``mean_share``). Matrix products run in the autocast precision where it is
    on.
    """
    objective, entropy, *_ = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        features.flatten(0, -2)[None],
        weight[None],
        targets.flatten()[None],
        None if weights is None else weights.flatten()[None],
        z_loss,
        product_dtype(features),
        torch.is_grad_enabled(),
        # beside an adapter the head is frozen, and needs no gradient; members of a stack are no parameters
        not isinstance(weight, nn.Parameter) or weight.requires_grad,
    )
    return objective[0], entropy[0]


@torch.no_grad()
def token_cross_entropy(features: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The cross entropy of each prediction by itself, in nats (fp32), as ``linear_cross_entropy`` sums them.

    Arguments as there. Returns [...], 0 where the weight is; carries no gradient.
    """
    x, targets = features.flatten(0, -2), counted_targets(targets, weights).flatten()
    check_tokens(targets, weight.shape[-2])
    product = product_dtype(features)
    x, matrix = x.to(product), weight.to(product)
    found = torch.empty(len(x), dtype=torch.float32, device=x.device)
    size = block_rows(x, len(matrix))
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        logits = (x[part] @ matrix.mT).float()
        found[part] = F.cross_entropy(logits, targets[part], reduction="none")
    return _weighted(found.view(weights.shape), weights)


class _LinearCrossEntropy(Function):
    """All tensors with the members of a stack as first dimension; the losses are [members]."""

    @staticmethod
    def forward(
        features: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        z_loss: float,
        product: torch.dtype,
        with_gradient: bool,
        of_weight: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        targets = counted_targets(targets, weights)
        check_tokens(targets, weight.shape[-2])
        x, matrix = features.to(product), weight.to(product)
        grads: _Grads | None = None
        if with_gradient:
            grads = torch.empty_like(x), torch.zeros_like(matrix, dtype=torch.float32) if of_weight else None
        if _native(x):
            members = range(len(x))
            sums = [
                _native_sums(
                    (x[i], matrix[i], targets[i], None if weights is None else weights[i]),
                    z_loss,
                    grads and (grads[0][i], None if grads[1] is None else grads[1][i]),
                )
                for i in members
            ]
            entropy, squares = torch.tensor(sums, dtype=torch.float64).unbind(1)
        else:
            entropy, squares = _blocks((x, matrix, targets, weights), z_loss, grads)
        return entropy + z_loss * squares, entropy, *(grads or (None, None))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        features, weight, *_ = inputs
        _, cross_entropy, *grads = output
        ctx.mark_non_differentiable(cross_entropy, *(grad for grad in grads if grad is not None))
        ctx.set_materialize_grads(False)
        ctx.dtypes = features.dtype, weight.dtype
        ctx.save_for_backward(*grads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_objective: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grad_features, grad_weight = ctx.saved_tensors
        scale = grad_objective.float()[:, None, None]
        features_dtype, weight_dtype = ctx.dtypes
        of_weight = None if grad_weight is None else (grad_weight * scale).to(weight_dtype)
        return (grad_features * scale).to(features_dtype), of_weight, None, None, None, None, None, None

    @staticmethod
    def vmap(
        info: Any, dims: Any, features: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, *rest: Any
    ) -> Any:
        # the dimension of size one that a single model has makes way for the members of the stack
        stacked = [
            _stacked(info.batch_size, dim, t)
            for dim, t in zip(dims, (features, weight, targets, weights), strict=False)
        ]
        tensors = [None if t is None else t.flatten(0, 1) for t in stacked]
        outputs = _LinearCrossEntropy.apply(*tensors, *rest)  # type: ignore[no-untyped-call]
        return tuple(None if t is None else t[:, None] for t in outputs), tuple(
            None if t is None else 0 for t in outputs
        )


def counted_targets(targets: Tensor, weights: Tensor | None) -> Tensor:
    """``targets`` with token 0 in the place of those of weight 0, which may be no tokens at all."""
    return targets if weights is None else targets.masked_fill(weights == 0, 0)


def counted_rows(weights: Tensor | None) -> Tensor | None:
    """Where ``weights`` [n] are not 0, for which alone logits are computed; None where that is everywhere.

    On an accelerator None too: the host would wait for the count.
    """
    if weights is None or weights.device.type != "cpu" or bool(weights.all()):
        return None
    return weights.nonzero()[:, 0]


def without_ignored(tokens: Tensor, weights: Tensor | None) -> Tensor:
    """``tokens`` [..., T + 1] with token 0 in the place of those that reach no prediction of a weight in [..., T].

    That is a target of weight 0 behind which no prediction has a weight: what pads a sequence, which may be any number.
    """
    if weights is None:
        return tokens
    reached = F.pad(weights != 0, (1, 1))  # as a target; and one more place for what follows the last token
    following = reached.flip(-1).cumsum(-1).flip(-1) > 0  # from this token on, as an input
    return tokens.masked_fill(~(reached[..., :-1] | following[..., 1:]), 0)


_Rows = tuple[Tensor, Tensor, Tensor, Tensor | None]  # features, output matrix, targets, weights
_Grads = tuple[Tensor, Tensor | None]  # of features and output matrix; None where the matrix is frozen


def _native_sums(rows: _Rows, z_loss: float, grads: _Grads | None) -> tuple[float, float]:
    """As ``_native_blocks``, with logits only where a weight is not 0: of supervised examples a small part."""
    x, matrix, targets, weights = rows
    counted = counted_rows(weights)
    if counted is None or weights is None:
        return _native_blocks(rows, z_loss, grads)
    inner = x[counted]
    grad = torch.empty_like(inner)
    sums = _native_blocks(
        (inner, matrix, targets[counted], weights[counted]), z_loss, None if grads is None else (grad, grads[1])
    )
    if grads is not None:
        grads[0].zero_()[counted] = grad
    return sums


def _native_blocks(rows: _Rows, z_loss: float, grads: _Grads | None) -> tuple[float, float]:
    """Sums over the tokens of cross entropy and squared log partition; gradients are written or added."""
    x, matrix, targets, weights = rows
    sums = torch.zeros(2, dtype=torch.float64)
    vocab_size = matrix.shape[0]
    size = max(1, min(block_rows(x, vocab_size), len(x)))
    buffer = x.new_empty((size, vocab_size))
    targets, weights = targets.contiguous(), None if weights is None else weights.contiguous()
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        block, counted = x[part], None if weights is None else weights[part]
        logits = torch.mm(block, matrix.t(), out=buffer[: len(block)])
        arguments = (len(block), vocab_size, logits, targets[part], counted, z_loss, int(grads is not None), sums)
        _call("cross_entropy", x.dtype, *arguments)
        if grads is not None:
            torch.mm(logits, matrix, out=grads[0][part])
            if grads[1] is None:
                continue
            if x.dtype == torch.float32:
                grads[1].addmm_(logits.t(), block)
            else:
                more = logits.t() @ block
                _call("add_into", x.dtype, more.numel(), more, grads[1])
    entropy, squares = sums.tolist()
    return entropy, squares


def _blocks(rows: _Rows, z_loss: float, grads: _Grads | None) -> tuple[Tensor, Tensor]:
    """As ``_native_blocks``, for all members at once, in PyTorch."""
    x, matrix, targets, weights = rows
    size = max(1, block_rows(x, matrix.shape[1]) // len(x))
    entropy = torch.zeros(len(x), dtype=torch.float32, device=x.device)
    squares = torch.zeros_like(entropy)
    for start in range(0, x.shape[1], size):
        part = slice(start, start + size)
        block, wanted = x[:, part], targets[:, part, None]
        counted = None if weights is None else weights[:, part, None]
        logits = (block @ matrix.mT).float()
        # log of the partition function, from the largest logit and its probability: two cheap reductions, and no
        # overflow, since that probability is at least 1 / V
        probabilities = torch.softmax(logits, dim=-1)
        log_partition = logits.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log()
        entropy += _weighted(log_partition - logits.gather(2, wanted), counted).sum((1, 2))
        if z_loss:
            squares += _weighted(log_partition.square(), counted).sum((1, 2))
        if grads is not None:
            # d objective / d logits: p (1 + 2 z log Z) - 1[target], times the weight
            if z_loss:
                probabilities.mul_(1 + 2 * z_loss * log_partition)
            probabilities.scatter_add_(2, wanted, torch.full_like(log_partition, -1.0))
            grad_logits = _weighted(probabilities, counted).to(x.dtype)
            grads[0][:, part].copy_(grad_logits @ matrix)
            if grads[1] is not None:
                grads[1].add_(grad_logits.mT @ block)
    return entropy, squares


def _weighted(x: Tensor, weights: Tensor | None) -> Tensor:
    """``x`` times ``weights``; 0 where the weight is, whatever ``x`` is there."""
    return x if weights is None else (x * weights).masked_fill(weights == 0, 0.0)
