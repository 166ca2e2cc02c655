"""The decoder-only transformer: RMSNorm before each block, rotary positions, grouped-query attention, SwiGLU.

It is equivalent to Llama and, with QK-norm, to Qwen3, so weights convert both ways. It contains no code for devices,
ranks or precision: it runs on the device of its parameters, and in half precision inside the caller's
``torch.autocast``. Two properties make it fit for many ranks. A ``Part`` of it is a model with the same names. And
``criterion``, ``token_criterion`` (of the model) and ``core`` (of each attention) are plain functions, which a layout
replaces with functions over several ranks.

Trade-offs, for the many small runs that a study trains on one core:

- Each matrix is a separate parameter, the unit of export, of splitting over ranks and of orthogonalisation (Muon). One
  joint product for q, k and v, and one for gate and up, was measured to be faster only for the smallest models.
- Everything except plain matrix products goes through ``operators``, which has special kernels for one core.
- Rotary tables are plain fp32 tensors, built at first use and rebuilt for a longer context. So there is no longest
  context, and a model built on the ``meta`` device needs no repair. Casting the model to half precision, which would
  round buffers, leaves the angles exact.
- No dropout, and no biases unless the shape names them, as for weights from outside: these models make one pass over
  little data.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from torch import Tensor, nn

from armillary.model.blocks import AttentionModule, FeedForward, build_attention, build_feed_forward
from armillary.model.moe import MixtureOfExperts
from armillary.model.operators import (
    add_norm,
    check_tokens,
    linear_cross_entropy,
    token_cross_entropy,
    without_ignored,
)
from armillary.model.places import Places, document_starts
from armillary.model.roles import Role, declared_roles, gain
from armillary.model.rotary import rotary_tables
from armillary.model.width import width_factors
from armillary.recipe import ModelShape, OptimizerSpec, RopeScaling

# Standard deviation of most matrices at the start, whatever their size (as in GPT-2 and Llama).
INIT_STD = 0.02


@dataclass(frozen=True)
class Part:
    """Consecutive ``layers`` of a model. The part that ``begins`` it has the embedding, the one that ``ends`` it norm
    and output.
    """

    layers: range
    begins: bool
    ends: bool


class Transformer(nn.Module):
    """A decoder-only language model, or a part of one; its parameters are built on the current default device.

    The values are uninitialised until ``init_weights`` is called or weights are loaded.
    """

    def __init__(self, shape: ModelShape, part: Part | None = None) -> None:
        super().__init__()
        part = part or Part(range(shape.n_layers), begins=True, ends=True)
        self.shape, self.part = shape, part
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model) if part.begins else None
        self.layers = nn.ModuleDict({str(index): Layer(shape, index) for index in part.layers})
        self.norm = Norm(shape.d_model, shape.norm_eps) if part.ends else None
        untied = part.ends and not shape.tied_embeddings
        self.output = nn.Linear(shape.d_model, shape.vocab_size, bias=False) if untied else None
        tied = shape.tied_embeddings
        self.roles: dict[str, Role] = {}
        if self.embedding is not None:
            role = Role("vocabulary", "tied" if tied else "normal", width="input", matrix=False)
            self.roles["embedding.weight"] = role
        if self.norm is not None:
            # if the embedding is also the output matrix, the gain takes the output's factor
            self.roles["norm.weight"] = gain("stream", width="output" if tied else "input")
        if self.output is not None:
            self.roles["output.weight"] = Role("vocabulary", "output", width="output", matrix=False)
        self.roles = declared_roles(self)
        self.criterion: Callable[..., tuple[Tensor, Tensor]] = linear_cross_entropy
        self.token_criterion: Callable[..., Tensor] = token_cross_entropy
        self._cos = self._sin = torch.empty(0)
        self._turned: RopeScaling | None = None

    @property
    def output_weight(self) -> Tensor:
        """The output matrix [vocab_size, d_model]; if tied, the embedding itself."""
        holder = self.embedding if self.output is None else self.output
        assert holder is not None, "this part of a model has no output matrix"
        return holder.weight

    def init_weights(self, seed: int, optimizer: OptimizerSpec | None = None) -> None:
        """Draw all parameters from ``seed``, at the scale of the width transfer of ``optimizer``.

        Every parameter, and every expert of a stack, has its own CPU generator, seeded by ``seed`` and its name. The
        values do not depend on the global generator, threads, device or other parameters.
        """
        for name, parameter in self.named_parameters():
            with torch.no_grad():
                parameter.copy_(self.init_values(name, parameter.shape, seed, optimizer))
        for buffer in self.buffers():  # the biases of experts
            buffer.zero_()

    def init_values(
        self,
        name: str,
        size: torch.Size,
        seed: int,
        optimizer: OptimizerSpec | None = None,
        experts: range | None = None,
    ) -> Tensor:
        """The initial values of the parameter ``name`` of ``size`` (see ``init_weights``): an fp32 tensor on the CPU.

        With ``experts``, only these experts of a stack are drawn.
        """
        role, factor, base_width = self.roles[name], 1.0, None
        if optimizer is not None:
            factor, _ = width_factors(role, self.shape, optimizer)
            base_width = optimizer.base_width
        if role.init in ("ones", "zeros"):
            value = factor if role.init == "ones" else 0.0
            return torch.full(size, value, dtype=torch.float32, device="cpu")
        std = factor * self._init_std(role, base_width or size[-1])
        if role.cut != "experts":
            return torch.empty(size, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=_source(seed, name))
        # one rank could not hold all experts
        chosen = range(size[0]) if experts is None else experts
        values = torch.empty((len(chosen), *size[1:]), dtype=torch.float32, device="cpu")
        for value, expert in zip(values, chosen, strict=True):
            value.normal_(0.0, std, generator=_source(seed, f"{name} {expert}"))
        return values

    def _init_std(self, role: Role, fan_in: int) -> float:
        # Measured on models of 1 to 3 layers (docs/model.md): with these small values, layers start as a small change
        # of the embedding; at 1 / sqrt(fan_in) their noise dominates it, which costs 0.4 nats. The output matrix needs
        # larger values: at 0.02 training is slower, and unstable at a high learning rate. A tied matrix gets half of
        # that, because the layers then also start from large embeddings.
        if role.init == "output":
            return 1 / math.sqrt(fan_in)
        if role.init == "tied":
            return 0.5 / math.sqrt(fan_in)
        # The 2 n_layers contributions to the residual stream should not grow with the depth in sum
        # (GPT-2, Radford et al. 2019, section 2.3).
        return INIT_STD / math.sqrt(2 * self.shape.n_layers) if role.init == "residual" else INIT_STD

    def features(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        starts: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Map token ids [B, T] (int64) to the normalised last hidden state [B, T, d_model].

        A part that does not begin the model takes a hidden state [B, T, d_model]; one that does not end it returns one.
        ``positions`` [T] (int64, on the CPU) are the tokens' positions in their sequence (default: 0 to T - 1).
        ``starts`` [B, T] (``document_starts``) is the start of each token's document, from which positions are counted.
        ``weights`` [B, T] are the weights of the predictions, used to balance experts.

        Raises:
            TokenError: on a CPU, a token outside of the vocabulary.
        """
        places = Places(*self._rotary_tables(x.shape[1], positions, starts, x.device), starts, weights)
        if self.embedding is not None:
            try:
                x = self.embedding(x)
            except IndexError:
                check_tokens(x, self.shape.vocab_size)  # raises, and names the token
                raise
        delta = None
        for layer in self.layers.values():
            x, delta = layer(x, delta, places)
        if self.norm is None:
            return x if delta is None else x + delta
        _, normalised = self.norm(x, delta)
        features: Tensor = normalised
        return features

    def turn_as(self, shape: ModelShape) -> None:
        """Use the rotary positions of ``shape``, which must be equal in all other fields; the weights are kept."""
        if shape != self.shape:
            self.shape = shape
            self._cos = self._sin = torch.empty(0)
            self._turned = None

    def _rotary_tables(
        self, length: int, positions: Tensor | None, starts: Tensor | None, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Cosines [T, head_dim] and sines [T, head_dim / 2] of the angles of these positions, or [B, T, ...]."""
        needed = length if positions is None else int(positions.max()) + 1
        known = self._cos.shape[0]
        turned = self.shape.at_length(needed).rope_scaling
        if known < needed or self._cos.device != device or turned != self._turned:
            # doubled, so that text that grows token by token rarely rebuilds the tables
            cos, sin = rotary_tables(self.shape, max(needed, 2 * known), needed)
            self._cos, self._sin, self._turned = cos.to(device), sin.to(device), turned
        if starts is not None:
            at = torch.arange(length, device=device) if positions is None else positions.to(device)
            return self._cos[at - starts], self._sin[at - starts]
        if positions is not None:
            at = positions.to(device, non_blocking=True)
            return self._cos[at], self._sin[at]
        return self._cos[:length], self._sin[:length]

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids [B, T] (int64) to logits [B, T, vocab_size]."""
        return F.linear(self.features(tokens), self.output_weight)

    def loss(
        self,
        tokens: Tensor,
        z_loss: float = 0.0,
        weights: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss of predicting ``tokens[:, 1:]`` from the tokens before each; ``tokens`` is [B, T + 1] (int64).

        ``weights`` [B, T] (fp32) are the weights of the predictions, all 1 if not given; a prediction of weight 0 is
        left out, whatever its target. ``documents`` [B, T] (int64) numbers the documents of ``tokens[:, :-1]``. They do
        not attend to each other, and each counts its positions from 0. None: each sequence is one document.

        Returns two scalars, sums over the predictions in nats. The first is the objective for ``backward``: cross
        entropy plus ``z_loss`` times the squared log of the partition function. The second is the cross entropy alone,
        without gradient. Divide both by the sum of the weights of the whole batch.
        """
        starts = None if documents is None else document_starts(documents)
        tokens = without_ignored(tokens, weights)
        features = self.features(tokens[:, :-1], None, starts, weights)
        return self.criterion(features, self.output_weight, tokens[:, 1:], z_loss, weights)

    def optimizer_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimizer: matrices and embeddings decay by ``weight_decay``, gains do not."""
        parameters = dict(self.named_parameters())
        decaying, others = ([p for name, p in parameters.items() if self.roles[name].decay is d] for d in (True, False))
        return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@functools.lru_cache(maxsize=64)
def model_roles(shape: ModelShape) -> Mapping[str, Role]:
    """The role of each parameter of a whole model of ``shape``, by name in the order of the model."""
    with torch.device("meta"):
        return MappingProxyType(Transformer(shape).roles)


def _source(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))


class Norm(nn.RMSNorm):
    """The residual sum and its RMSNorm: maps two tensors [..., width] to two (``operators.add_norm``)."""

    def forward(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """``x + delta`` and its norm."""
        return add_norm(x, delta, self.weight, self.eps or 0.0)


class Layer(nn.Module):
    """One residual layer: attention, then feed-forward or a mixture of experts, each behind its RMSNorm."""

    def __init__(self, shape: ModelShape, index: int) -> None:
        super().__init__()
        self.attention_norm = Norm(shape.d_model, shape.norm_eps)
        self.attention: AttentionModule = build_attention(shape)
        self.feed_forward_norm = Norm(shape.d_model, shape.norm_eps)
        self.feed_forward: nn.Module
        if shape.experts is not None and index in shape.mixture_layers:
            width = shape.experts.shared_d_ff
            shared = FeedForward(shape.d_model, width) if width else None
            self.feed_forward = MixtureOfExperts(shape.d_model, shape.experts, shared)
        else:
            self.feed_forward = build_feed_forward(shape)
        self.roles = {"attention_norm.weight": gain("stream"), "feed_forward_norm.weight": gain("stream")}

    def forward(self, x: Tensor, delta: Tensor | None, places: Places) -> tuple[Tensor, Tensor]:
        """Map the residual stream [B, T, d_model] and a pending summand (or None) to the same pair."""
        x, normalised = self.attention_norm(x, delta)
        x, normalised = self.feed_forward_norm(x, self.attention(normalised, places))
        balanced = isinstance(self.feed_forward, MixtureOfExperts)
        return x, self.feed_forward(normalised, *((places.weights,) if balanced else ()))
