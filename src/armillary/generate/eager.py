"""Decoding steps of a model in PyTorch: on accelerators, and on a CPU without a compiler.

A row is one token of one sequence. The logits of a row must not depend on the other rows of the step, so that an answer
is the same alone and in a batch. But a matrix library chooses the order of its sums by the sizes of its operands.
Therefore all sizes are fixed:

- Each step has the same number of rows, padded with idle ones.
- Attention reads keys and values in pages of one size. A page that a row must not see changes its sums by exactly zero.
- Every expert computes every row.

Trade-offs: a step of one row costs as much as a full step. On an accelerator the difference is small, since reading the
weights takes most of the time. Experts are computed even for tokens that are not routed to them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from numpy.typing import NDArray
from torch import Tensor

from armillary.generate.decoder import CacheMemory, Rows, available_memory
from armillary.model import LatentAttention, Layer, MixtureOfExperts, Places, Transformer, prepare, rotary_tables
from armillary.recipe import ArmillaryError

PAGE = 128  # positions per page
_ROWS_CPU, _ROWS_ACCELERATOR = 16, 128
# Reserved pages: page 0 is never written and fills up the lists of pages, page 1 takes the keys of idle rows.
_UNSEEN, _IDLE = 0, 1


class PagedCache:
    """The pages of one sequence; they are released with the last reference to this object."""

    def __init__(self, pool: _Pool, capacity: int) -> None:
        self.pages = pool.take(-(-capacity // PAGE))
        self.capacity, self.bytes = len(self.pages) * PAGE, len(self.pages) * pool.page_bytes
        self._pool = pool
        weakref.finalize(self, pool.free.extend, self.pages)

    def take_prefix(self, other: PagedCache, length: int) -> None:
        """Copy the pages with the first ``length`` positions."""
        count = -(-length // PAGE)
        memory = self._pool.memory
        memory[:, :, self.pages[:count]] = memory[:, :, other.pages[:count]]


class _Pool:
    """Keys and values of all sequences [layers, 2, pages, PAGE, heads, head_dim].

    The pool starts with the two reserved pages and grows, by half or more, when too few pages are free.
    """

    def __init__(self, layers: int, heads: int, dim: int, device: torch.device) -> None:
        self.memory = torch.zeros(layers, 2, 2, PAGE, heads, dim, device=device)
        self.free: list[int] = []
        self.page_bytes = 4 * layers * 2 * PAGE * heads * dim

    def take(self, count: int) -> list[int]:
        """Take ``count`` free pages, fill them with zeros and return their numbers."""
        missing = count - len(self.free)
        if missing > 0:
            old = self.memory.shape[2]
            added = max(missing, old // 2)
            layers, two, _, *page = self.memory.shape
            self.memory = torch.cat([self.memory, self.memory.new_zeros(layers, two, added, *page)], dim=2)
            self.free += range(old, old + added)
        pages = [self.free.pop() for _ in range(count)]
        self.memory[:, :, pages] = 0  # NaN of an earlier sequence would survive the mask, since 0 * NaN is NaN
        return pages


class EagerDecoder:
    """Computes decoding steps in PyTorch, in fp32, on the model's device."""

    def __init__(self, model: Transformer) -> None:
        self.shape, self._model = model.shape, model
        self._device = model.output_weight.device
        self.max_rows = _ROWS_CPU if self._device.type == "cpu" else _ROWS_ACCELERATOR
        first = cast(Layer, next(iter(model.layers.values())))
        latent = isinstance(first.attention, LatentAttention)
        self._heads = self.shape.n_heads if latent else self.shape.n_kv_heads
        self._pool = _Pool(self.shape.n_layers, self._heads, self.shape.head_dim, self._device)
        self._cos = self._sin = torch.empty(0)

    def cache_bytes(self, capacity: int) -> int:
        """Bytes of the pages for ``capacity`` tokens."""
        return -(-capacity // PAGE) * self._pool.page_bytes

    def new_cache(self, capacity: int) -> PagedCache:
        """Pages for a sequence of up to ``capacity`` tokens.

        Raises:
            ArmillaryError: the device has too little memory.
        """
        try:
            return PagedCache(self._pool, capacity)
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            raise ArmillaryError(
                f"no memory on {self._device} for the keys and values of a sequence of {capacity} tokens; ask for "
                "fewer new tokens or a smaller batch"
            ) from error

    def free_memory(self) -> int | None:
        """Bytes that caches may use: half of an accelerator's free memory, on a CPU all available memory.

        The other half of an accelerator is for the growth of the pool, which copies its pages.
        """
        if self._device.type == "cpu":
            return available_memory()
        return int(torch.accelerator.get_memory_info(self._device)[0]) // 2

    @torch.no_grad()
    def step(self, rows: Rows, caches: Sequence[CacheMemory]) -> NDArray[np.float32]:
        """Compute one step and return the logits of the wanted rows [wanted, vocab_size].

        Raises:
            ArmillaryError: the device has too little memory.
        """
        count, idle = len(rows.tokens), self.max_rows - len(rows.tokens)
        longest = int(rows.positions.max()) + 1
        self._tables(longest)
        pages = np.full((self.max_rows, -(-longest // PAGE)), _UNSEEN, np.int64)
        for row, (sequence, position) in enumerate(zip(rows.sequence, rows.positions, strict=True)):
            seen = position // PAGE + 1
            pages[row, :seen] = caches[sequence].pages[:seen]
        own = np.append(pages[np.arange(count), rows.positions // PAGE], [_IDLE] * idle)
        positions = self._on_device(np.append(rows.positions, [0] * idle))
        attend = _Attend(self._pool.memory, self._on_device(pages), self._on_device(own), positions)
        places = Places(self._cos[positions], self._sin[positions], None, None)
        try:
            x = self._layers(self._on_device(np.append(rows.tokens, [0] * idle))[None], places, attend)
            logits = F.linear(x[0], self._model.output_weight.float())
        except torch.OutOfMemoryError as error:
            raise ArmillaryError(f"no memory on {self._device} for a step; use a smaller batch") from error
        return logits[self._on_device(rows.wanted)].cpu().numpy()

    def _layers(self, tokens: Tensor, places: Places, attend: _Attend) -> Tensor:
        """The hidden state after the last layer and its norm [1, rows, d_model]."""
        model = self._model
        assert model.embedding is not None and model.norm is not None, "a part of a model does not generate"
        x = model.embedding(tokens).float()
        for index, layer in enumerate(cast(Iterable[Layer], model.layers.values())):
            attention, block = layer.attention, layer.feed_forward
            core = attention.core
            attend.layer, attention.core = index, attend
            try:
                x = x + attention(layer.attention_norm(x, None)[1], places)
            finally:
                attention.core = core  # replaced for this step only, since the model may be in training
            normalised = layer.feed_forward_norm(x, None)[1]
            x = x + (_mixture(block, normalised) if isinstance(block, MixtureOfExperts) else block(normalised))
        features: Tensor = model.norm(x, None)[1]
        return features

    def _tables(self, length: int) -> None:
        if len(self._cos) < length:
            cos, sin = rotary_tables(self.shape, max(length, 2 * len(self._cos)))
            self._cos, self._sin = cos.to(self._device), sin.to(self._device)

    def _on_device(self, numbers: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.asarray(numbers, np.int64)).to(self._device)


class _Attend:
    """The ``core`` of an attention layer: writes the keys and values of each row, and attends to its pages.

    ``pages`` [rows, n] are the pages of each row's sequence up to the row's own; ``own`` [rows] is the page that the
    row writes to.

    The softmax is computed page by page (online softmax: Milakov and Gimelshein 2018, arXiv 1805.02867). When a page
    raises the maximum of the scores, the sums so far are rescaled.
    """

    def __init__(self, memory: Tensor, pages: Tensor, own: Tensor, positions: Tensor) -> None:
        self._memory, self._pages, self._own, self._positions, self.layer = memory, pages, own, positions, 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, places: Places, gains: Any = None, eps: float = 0.0) -> Tensor:
        """Maps [1, rows, heads * head_dim] to the same shape."""
        q, k, v = (x[0] for x in prepare(q, k, v, places, gains, eps))
        keys, values = self._memory[self.layer]
        offset = self._positions % PAGE
        keys[self._own, offset], values[self._own, offset] = k, v
        rows, heads, dim = q.shape
        groups = (q / dim**0.5).view(rows, k.shape[1], -1, dim)
        running_max = q.new_full((*groups.shape[:-1], 1), float("-inf"))
        denominator, weighted_values = torch.zeros_like(running_max), torch.zeros_like(groups)
        for number in range(self._pages.shape[1]):
            page = self._pages[:, number]
            scores = groups @ keys[page].permute(0, 2, 3, 1)
            position = number * PAGE + torch.arange(PAGE, device=q.device)
            unseen = position > self._positions[:, None]
            scores = scores.masked_fill(unseen[:, None, None], float("-inf"))
            new_max = torch.maximum(running_max, scores.amax(-1, keepdim=True))
            rescale, weights = (running_max - new_max).exp(), (scores - new_max).exp()
            denominator = denominator * rescale + weights.sum(-1, keepdim=True)
            weighted_values = weighted_values * rescale + weights @ values[page].transpose(1, 2)
            running_max = new_max
        return (weighted_values / denominator).reshape(1, rows, heads * dim)


def _mixture(block: MixtureOfExperts, x: Tensor) -> Tensor:
    """A mixture of experts that drops no token; each expert computes all rows."""
    spec, experts = block.spec, block.experts
    logits = F.linear(x.float(), block.router.weight.float())
    scores = logits.softmax(-1) if spec.scores == "softmax" else logits.sigmoid()
    chosen = (scores + block.bias if spec.balance == "bias" else scores).topk(spec.active, dim=-1).indices
    routed = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)
    shares = scores.masked_fill(~routed, 0)
    if spec.normalise:
        shares = shares / shares.sum(-1, keepdim=True)
    mixed = torch.zeros_like(x)
    matrices = (experts.get_parameter(name).unbind(0) for name in ("gate", "up", "down"))
    columns = (shares * spec.scale).unbind(-1), routed.unbind(-1)
    for gate, up, down, share, mask in zip(*matrices, *columns, strict=True):
        hidden = F.silu(F.linear(x, gate)) * F.linear(x, up)
        mixed = mixed + (F.linear(hidden, down) * share[..., None]).masked_fill(~mask[..., None], 0)
    return mixed if block.shared is None else mixed + block.shared(x)
