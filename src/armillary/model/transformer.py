"""The decoder-only transformer: RMSNorm before each block, rotary positions, grouped-query attention, SwiGLU."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from torch import Tensor, nn

from armillary.recipe import ModelShape


class Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019, equation 4): ``x / rms(x) * weight`` over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions; q, k and v come from one matrix product."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        heads, kv_heads, size = shape.n_heads, shape.n_kv_heads, shape.head_dim
        self.qkv = nn.Linear(shape.d_model, (heads + 2 * kv_heads) * size, bias=False)
        self.out = nn.Linear(heads * size, shape.d_model, bias=False)
        self.q_norm = Norm(size, shape.norm_eps) if shape.qk_norm else None
        self.k_norm = Norm(size, shape.norm_eps) if shape.qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shape = self.shape
        batch, length, _ = x.shape
        heads = self.qkv(x).view(batch, length, -1, shape.head_dim)
        q, k, v = heads.split((shape.n_heads, shape.n_kv_heads, shape.n_kv_heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = rotate(q, cos, sin).transpose(1, 2), rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shape.n_heads != shape.n_kv_heads)
        x = self.out(y.transpose(1, 2).reshape(batch, length, -1))
        return x


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, equation 6): ``down(silu(gate(x)) * up(x))``; gate and up are one matrix product."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_up = nn.Linear(shape.d_model, 2 * shape.d_ff, bias=False)
        self.down = nn.Linear(shape.d_ff, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        y: Tensor = self.down(F.silu(gate) * up)
        return y


class Layer(nn.Module):
    """One residual layer: attention, then feed-forward, each behind its RMSNorm."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.attention_norm = Norm(shape.d_model, shape.norm_eps)
        self.attention = Attention(shape)
        self.feed_forward_norm = Norm(shape.d_model, shape.norm_eps)
        self.feed_forward = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return y


class Transformer(nn.Module):
    """A decoder-only language model of the given shape, on the current default device."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.n_layers))
        self.norm = Norm(shape.d_model, shape.norm_eps)
        self.output = None if shape.tied_embeddings else nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)

    @property
    def output_weight(self) -> Tensor:
        """The output matrix ``[vocab_size, d_model]``: the embedding itself where tied."""
        return self.embedding.weight if self.output is None else self.output.weight

    def init_weights(self, seed: int) -> None:
        """Draw all parameters anew, from ``seed`` alone."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.ones_(parameter)
                continue
            std = 0.02 if name == "embedding.weight" else 1 / math.sqrt(parameter.shape[1])
            if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
                std /= math.sqrt(2 * self.shape.n_layers)
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            drawn = torch.empty(parameter.shape, device="cpu", dtype=torch.float32).normal_(0, std, generator=generator)
            with torch.no_grad():
                parameter.copy_(drawn)

    def features(self, tokens: Tensor) -> Tensor:
        """Token ids ``[B, T]`` to the normalised last hidden state ``[B, T, d_model]``."""
        length = tokens.shape[1]
        if self.cos.shape[0] < length or self.cos.device != tokens.device:
            self._grow_tables(length, tokens.device)
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        y: Tensor = self.norm(x)
        return y

    def _grow_tables(self, length: int, device: torch.device) -> None:
        half = torch.arange(0, self.shape.head_dim, 2, dtype=torch.float32) / self.shape.head_dim
        angles = torch.outer(torch.arange(length, dtype=torch.float32), 1.0 / self.shape.rope_theta**half)
        angles = torch.cat((angles, angles), dim=-1)[:, None, :]
        self.cos, self.sin = angles.cos().to(device), angles.sin().to(device)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids ``[B, T]`` (int64) to logits ``[B, T, vocab_size]``."""
        return F.linear(self.features(tokens), self.output_weight)

    def loss(self, tokens: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
        """Mean loss of predicting ``tokens[:, 1:]`` from those before, in nats per token; ``tokens`` is [B, T + 1].

        Returns the objective (cross entropy plus ``z_loss`` times the mean squared log partition function) and the
        cross entropy alone, both fp32 scalars.
        """
        logits = self.forward(tokens[:, :-1]).flatten(0, 1).float()
        cross_entropy = F.cross_entropy(logits, tokens[:, 1:].flatten())
        if z_loss == 0.0:
            return cross_entropy, cross_entropy.detach()
        return cross_entropy + z_loss * torch.logsumexp(logits, dim=-1).square().mean(), cross_entropy.detach()

    def optimizer_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: matrices and embeddings decay by ``weight_decay``, gains do not."""
        parameters = list(self.parameters())
        return [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
