"""The decoder-only transformer: RMSNorm before each block, rotary positions, grouped-query attention, SwiGLU.

What it computes is what Llama computes and, with QK-norm, what Qwen3 computes, so its weights travel to and from both.
It knows nothing of devices, ranks or precision: it runs where its parameters are, and in half precision where the
caller opens ``torch.autocast``.

Trade-offs, for the many small runs that a study trains on one core:

- q, k and v come from one matrix product, gate and up from another; the weight formats cut them apart.
- All that is no plain matrix product goes through ``operators``, which has a form of its own for one core.
- Rotary tables are plain fp32 tensors, built at first use and built larger when a longer context comes: there is no
  longest context, a model built on the ``meta`` device needs nothing repaired, and casting the model to half precision
  (which would round buffers) leaves the angles exact.
- No dropout and no biases: one pass over little data is what these models are for.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from torch import Tensor, nn

from armillary.model.operators import add_norm, attention, linear_cross_entropy, swiglu
from armillary.recipe import ModelShape

# Standard deviation of most matrices at the start, whatever their size (as in GPT-2 and Llama).
INIT_STD = 0.02


class Transformer(nn.Module):
    """A decoder-only language model; its parameters are built on the current default device.

    They hold no sensible values until ``init_weights`` is called or weights are loaded.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.n_layers))
        self.norm = Norm(shape.d_model, shape.norm_eps)
        self.output = None if shape.tied_embeddings else nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        self._cos = self._sin = torch.empty(0)

    @property
    def output_weight(self) -> Tensor:
        """The output matrix [vocab_size, d_model]; where tied, the embedding itself."""
        return self.embedding.weight if self.output is None else self.output.weight

    def init_weights(self, seed: int) -> None:
        """Draw all parameters from ``seed``.

        Every parameter has a generator of its own, on the CPU, seeded by ``seed`` and its name: the values depend
        neither on the global generator, nor on threads or device, nor on which other parameters exist.
        """
        for name, parameter in self.named_parameters():
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))
            values = torch.ones(parameter.shape, dtype=torch.float32, device="cpu")
            if parameter.ndim > 1:
                values.normal_(0.0, self._init_std(name, parameter.shape[1]), generator=generator)
            with torch.no_grad():
                parameter.copy_(values)

    def _init_std(self, name: str, fan_in: int) -> float:
        # Measured on models of 1 to 3 layers (docs/model.md): drawn this small, the layers begin as a gentle change of
        # the embedding; at 1 / sqrt(fan_in) their noise drowns it, which costs 0.4 nats. What makes the logits wants
        # to be larger: at 0.02 training is slower, and unstable at a high learning rate. Half of it where tied, since
        # the layers then start from large embeddings too.
        if name == "output.weight":
            return 1 / math.sqrt(fan_in)
        if name == "embedding.weight" and self.output is None:
            return 0.5 / math.sqrt(fan_in)
        # What a layer adds to the residual stream, 2 n_layers times, should not grow with the depth
        # (GPT-2, Radford et al. 2019, section 2.3).
        residual = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
        return INIT_STD / math.sqrt(2 * self.shape.n_layers) if residual else INIT_STD

    def features(self, tokens: Tensor) -> Tensor:
        """Token ids [B, T] (int64) to the normalised last hidden state [B, T, d_model]."""
        length = tokens.shape[1]
        cos, sin = self._rotary_tables(length, tokens.device)
        x, delta = self.embedding(tokens), None
        for layer in self.layers:
            x, delta = layer(x, delta, cos, sin)
        _, normalised = self.norm(x, delta)
        features: Tensor = normalised
        return features

    def _rotary_tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines [T, head_dim] and sines [T, head_dim / 2] of the angles (Su et al. 2021, equation 15)."""
        known = self._cos.shape[0]
        if known < length or self._cos.device != device:
            # doubled, so that text which grows token by token seldom pays for this
            positions = torch.arange(max(length, 2 * known), dtype=torch.float32, device="cpu")
            exponents = torch.arange(0, self.shape.head_dim, 2, dtype=torch.float32, device="cpu") / self.shape.head_dim
            angles = torch.outer(positions, 1.0 / self.shape.rope_theta**exponents)
            self._cos = torch.cat((angles, angles), dim=-1).cos().to(device)
            self._sin = angles.sin().to(device)
        return self._cos[:length], self._sin[:length]

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [B, T] (int64) to logits [B, T, vocab_size]."""
        return F.linear(self.features(tokens), self.output_weight)

    def loss(self, tokens: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
        """Loss of predicting ``tokens[:, 1:]`` from the tokens before each; ``tokens`` is [B, T + 1] (int64).

        Returns two fp32 scalars, means over all B * T predictions in nats: the objective (cross entropy plus
        ``z_loss`` times the squared log of the partition function), which is what ``backward`` is for, and the cross
        entropy alone, which carries no gradient.
        """
        features = self.features(tokens[:, :-1]).flatten(0, 1)
        return linear_cross_entropy(features, self.output_weight, tokens[:, 1:].flatten(), z_loss)

    def optimizer_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimizer: matrices and embeddings decay by ``weight_decay``, gains do not."""
        parameters = list(self.parameters())
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]


class Norm(nn.RMSNorm):
    """The residual sum and its RMSNorm: [..., width] twice to the same twice (``operators.add_norm``)."""

    def forward(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """``x + delta`` and its norm."""
        return add_norm(x, delta, self.weight, self.eps or 0.0)


class Layer(nn.Module):
    """One residual layer: attention, then feed-forward, each behind its RMSNorm."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.attention_norm = Norm(shape.d_model, shape.norm_eps)
        self.attention = Attention(shape)
        self.feed_forward_norm = Norm(shape.d_model, shape.norm_eps)
        self.feed_forward = FeedForward(shape)

    def forward(self, x: Tensor, delta: Tensor | None, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream [B, T, d_model] and what is still to be added to it, to the same."""
        x, normalised = self.attention_norm(x, delta)
        x, normalised = self.feed_forward_norm(x, self.attention(normalised, cos, sin))
        return x, self.feed_forward(normalised)


class Attention(nn.Module):
    """Causal grouped-query attention (Ainslie et al. 2023) with rotary positions and, if so shaped, QK-norm."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.heads = (shape.n_heads, shape.n_kv_heads)
        self.qkv = nn.Linear(shape.d_model, (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim, bias=False)
        self.out = nn.Linear(shape.n_heads * shape.head_dim, shape.d_model, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.k_norm = nn.RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.eps = shape.norm_eps

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, T, d_model] to the same; ``cos`` and ``sin`` are the rotary tables."""
        gains = (self.q_norm.weight, self.k_norm.weight) if self.q_norm and self.k_norm else None
        x = self.out(attention(self.qkv(x), self.heads, (cos, sin), gains, self.eps))
        return x


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, equation 6): ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_up = nn.Linear(shape.d_model, 2 * shape.d_ff, bias=False)
        self.down = nn.Linear(shape.d_ff, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d_model] to the same."""
        x = self.down(swiglu(self.gate_up(x)))
        return x
