"""Steps of a decoder-only transformer with a key-value cache: from rows of (token, position, sequence) to logits.

A step takes rows of any number of sequences, prompt tokens and new tokens alike. The result of a row depends only on
its own sequence, to the last bit. It does not depend on the other rows, the division of a prompt into steps, or the
number of threads.

On a CPU, a step is one call into C (``decoder.c``). On other devices, or without a compiler, ``eager.py`` computes the
same with PyTorch. Mixtures of experts drop no token here, even if they were trained with a capacity: the capacity
depends on the length of the whole sequence, which is unknown until it ends.

Trade-off: weights are copied into panels of the processor's vector width, so memory holds a model twice for as long as
its module exists.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from numpy.typing import NDArray
from torch import Tensor, nn

from armillary.model import (
    Attention,
    FeedForward,
    LatentAttention,
    Layer,
    MixtureOfExperts,
    ReLU2FeedForward,
    Transformer,
    compiled,
    rotary_tables,
)
from armillary.recipe import ArmillaryError, ModelShape, UsageError

# Maximum number of rows of one step; longer prompts take several steps.
MAX_ROWS = 256
# Multiply-adds that justify another thread, which takes about 30 microseconds to start.
THREAD_WORK = 2**22
_NONE, _LAST = 0, -1  # `at` of an operation: all rows, or only rows whose logits are needed

Ints = NDArray[np.int32]


class CacheMemory(Protocol):
    """Keys and values of one sequence, with room for ``capacity`` positions; ``bytes`` is its size."""

    capacity: int
    bytes: int

    def take_prefix(self, other: Any, length: int) -> None:
        """Copy the first ``length`` positions of another cache of the same decoder."""


@dataclass(frozen=True)
class Rows:
    """Rows of a step: tokens, positions and cache numbers [rows]; ``wanted`` lists the rows whose logits to return."""

    tokens: Ints
    positions: Ints
    sequence: Ints
    wanted: Ints


class Decoder(Protocol):
    """A model prepared to compute steps."""

    shape: ModelShape
    max_rows: int

    def new_cache(self, capacity: int) -> CacheMemory:
        """An empty cache for a sequence of ``capacity`` tokens."""

    def cache_bytes(self, capacity: int) -> int:
        """The size of the cache that ``new_cache`` returns."""

    def free_memory(self) -> int | None:
        """Bytes available for caches; None if the system does not report it."""

    def step(self, rows: Rows, caches: Sequence[CacheMemory]) -> NDArray[np.float32]:
        """Logits [wanted, vocab_size] of the wanted rows; afterwards the caches hold all rows.

        The rows of a sequence are in the order of their positions and follow those already in the cache.
        """


def check_length(shape: ModelShape, tokens: int) -> None:
    """Raise UsageError if a cache cannot hold this many tokens of a sequence, because their keys change as it grows."""
    scaling = shape.rope_scaling
    if scaling is not None and scaling.kind == "telechat2" and tokens > (scaling.original_length or 0):
        raise UsageError(
            f"a sequence of {tokens} tokens is longer than the {scaling.original_length} tokens of this model's "
            "training: beyond it positions depend on the length of the whole sequence (TeleChat2), but generation "
            "caches the keys of earlier tokens; ask for fewer tokens"
        )


def build_decoder(model: Transformer) -> Decoder:
    """The decoder for the device of ``model``.

    Raises:
        UsageError: the model has a block of an unknown kind.
    """
    if model.output_weight.device.type == "cpu":
        library = _library()
        if library is not None:
            return CompiledDecoder(model, library)
    from armillary.generate.eager import EagerDecoder

    return EagerDecoder(model)


@cache
def _library() -> ctypes.CDLL | None:
    source = files("armillary.generate").joinpath("decoder.c").read_bytes()
    return compiled(source, (), "generation uses", "ten times")


# ---- the compiled decoder -------------------------------------------------------------------------------------------

(_EMBED, _NORM, _PRODUCT, _PREPARE, _ATTEND, _JOIN, _ROUTE, _COMBINE) = range(8)
(_STORE, _ADD, _SWIGLU, _RELU2) = range(4)


class _Op(ctypes.Structure):
    """``Op`` of decoder.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("kind", "mode", "in_", "in2", "in3", "out", "n", "k", "at", "at2")),
        *((name, ctypes.c_int64) for name in ("at3", "layer", "experts", "gather")),
        *((name, ctypes.c_void_p) for name in ("weight", "gain", "gain2")),
        *((name, ctypes.c_double) for name in ("eps", "scale")),
    )


class _Model(ctypes.Structure):
    """``Model`` of decoder.c."""

    _fields_ = (
        ("ops", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "heads", "kv_heads", "dim", "value_dim", "buffers")),
        *((name, ctypes.c_void_p) for name in ("widths", "buffer", "cos", "sin")),
        ("active", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("chosen", "entries", "starts", "shares")),
    )


class _Step(ctypes.Structure):
    """``Step`` of decoder.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "wanted", "longest")),
        *((name, ctypes.c_void_p) for name in ("tokens", "positions", "sequence", "caches", "capacities")),
        *((name, ctypes.c_void_p) for name in ("wanted_rows", "logits")),
        ("stride", ctypes.c_int64),
    )


class CompiledCache:
    """Per layer: keys in transposed blocks, then values. Memory is committed as it is written."""

    def __init__(self, shape: ModelShape, sizes: tuple[int, int, int], lanes: int, capacity: int) -> None:
        heads, keys, values = sizes
        self.capacity, self.lanes = capacity, lanes
        try:
            self.floats = np.empty((shape.n_layers, capacity * heads * (keys + values)), np.float32)
        except MemoryError as error:
            raise ArmillaryError(
                f"no memory for the keys and values of a sequence of {capacity} tokens; ask for fewer new tokens or a "
                "smaller batch"
            ) from error
        self.bytes, self.address = self.floats.nbytes, self.floats.ctypes.data
        split = capacity * heads * keys
        self.keys = self.floats[:, :split].reshape(shape.n_layers, heads, capacity // lanes, lanes * keys)
        self.values = self.floats[:, split:].reshape(shape.n_layers, heads, capacity, values)

    def take_prefix(self, other: CompiledCache, length: int) -> None:
        """Copy the first ``length`` positions, in whole blocks: later positions are written before they are read."""
        blocks = -(-length // self.lanes)
        self.keys[:, :, :blocks] = other.keys[:, :, :blocks]
        self.values[:, :, :length] = other.values[:, :, :length]


class CompiledDecoder:
    """The steps in C, in fp32."""

    def __init__(self, model: Transformer, library: ctypes.CDLL) -> None:
        self.shape, self.max_rows, self._library = model.shape, MAX_ROWS, library
        self._lanes: int = library.lanes()
        self._multiply_adds = model.shape.matmul_parameters
        self._kept: list[Any] = []  # keeps alive the memory that operations point to
        self._buffers: dict[str, int] = {}
        self._rooms: list[Tensor] = []
        self._widths: list[int] = []
        self._cos = self._sin = torch.empty(0)
        shape, experts = model.shape, model.shape.experts
        self._active = 1 if experts is None else experts.active
        self._value_dim = shape.head_dim
        first = cast(Layer, next(iter(model.layers.values()))).attention
        if isinstance(first, LatentAttention):
            self._value_dim = first.value_dim
        self._cached_heads = shape.n_heads if isinstance(first, LatentAttention) else shape.n_kv_heads
        with torch.no_grad():
            self._ops = self._operations(model)
        array = (_Op * len(self._ops))(*self._ops)
        widths = np.array(self._widths, np.int64)
        rooms = np.array([room.data_ptr() for room in self._rooms], np.uint64)
        entries, counts = MAX_ROWS * self._active, 1 if experts is None else experts.count
        routing = [np.zeros(n, kind) for n, kind in ((entries, np.int32), (entries, np.int32), (counts + 1, np.int32))]
        routing.append(np.zeros(entries, np.float32))
        self._kept += [array, widths, rooms, routing]
        self._model = _Model(
            ctypes.addressof(array),
            len(self._ops),
            shape.n_heads,
            self._cached_heads,
            shape.head_dim,
            self._value_dim,
            len(widths),
            widths.ctypes.data,
            rooms.ctypes.data,
            None,
            None,
            self._active,
            *(numbers.ctypes.data for numbers in routing),
        )
        self._stride = self._padded(shape.vocab_size, 2)
        self._logits = np.empty((0, self._stride), np.float32)

    def _padded(self, n: int, vectors: int = 1) -> int:
        """``n`` floats, rounded up to whole vectors or pairs of vectors."""
        size = vectors * self._lanes
        return -(-n // size) * size

    # -- caches --

    def _cache_sizes(self) -> tuple[int, int, int]:
        return self._cached_heads, self._padded(self.shape.head_dim), self._padded(self._value_dim)

    def cache_bytes(self, capacity: int) -> int:
        """The size of a cache for ``capacity`` tokens."""
        heads, keys, values = self._cache_sizes()
        return 4 * self.shape.n_layers * self._padded(capacity, 2) * heads * (keys + values)

    def new_cache(self, capacity: int) -> CompiledCache:
        """An empty cache."""
        return CompiledCache(self.shape, self._cache_sizes(), self._lanes, self._padded(capacity, 2))

    def free_memory(self) -> int | None:
        """The memory that Linux reports as available without swapping."""
        return available_memory()

    # -- the step --

    def step(self, rows: Rows, caches: Sequence[CacheMemory]) -> NDArray[np.float32]:
        """Logits of the wanted rows, valid until the next step."""
        longest = int(rows.positions.max()) + 1
        self._tables(longest)
        pointers = np.array([one.address for one in caches], np.uint64)  # type: ignore[attr-defined]
        capacities = np.array([one.capacity for one in caches], np.int64)
        if len(rows.wanted) > len(self._logits):
            self._logits = np.empty((len(rows.wanted), self._stride), np.float32)
        step = _Step(len(rows.tokens), len(rows.wanted), longest)
        arrays = [np.ascontiguousarray(x, np.int32) for x in (rows.tokens, rows.positions, rows.sequence, rows.wanted)]
        step.tokens, step.positions, step.sequence, step.wanted_rows = (x.ctypes.data for x in arrays)
        step.caches, step.capacities = pointers.ctypes.data, capacities.ctypes.data
        step.logits, step.stride = self._logits.ctypes.data, self._stride
        work = len(rows.tokens) * self._multiply_adds
        threads = max(1, min(torch.get_num_threads(), work // THREAD_WORK))
        if self._library.step(ctypes.byref(self._model), ctypes.byref(step), ctypes.c_long(threads)):
            raise ArmillaryError("no memory for the scratch space of a step; use a smaller batch")
        return self._logits[: len(rows.wanted), : self.shape.vocab_size]

    def _tables(self, length: int) -> None:
        if len(self._cos) < length:
            cos, sin = rotary_tables(self.shape, max(length, 2 * len(self._cos)))
            self._cos, self._sin = cos.contiguous(), sin.contiguous()
            self._model.cos, self._model.sin = self._cos.data_ptr(), self._sin.data_ptr()

    # -- the model as operations --

    def _buffer(self, name: str, width: int, per_row: int = 1) -> int:
        """The number of the buffer ``name``, created if new, with ``per_row`` rows of ``width`` for each row."""
        padded = self._padded(width, 2)
        if name not in self._buffers:
            self._buffers[name] = len(self._rooms)
            self._rooms.append(torch.zeros(MAX_ROWS * per_row, padded, dtype=torch.float32, device="cpu"))
            self._widths.append(padded)
        number = self._buffers[name]
        if self._widths[number] < padded:  # feed-forward blocks and shared experts can differ in width
            self._rooms[number] = torch.zeros(MAX_ROWS * per_row, padded, dtype=torch.float32, device="cpu")
            self._widths[number] = padded
        return number

    def _operations(self, model: Transformer) -> list[_Op]:
        shape = model.shape
        x, normed = self._buffer("x", shape.d_model), self._buffer("normed", shape.d_model)
        output = self._packed([model.output_weight])
        assert model.embedding is not None and model.norm is not None, "a part of a model does not generate"
        tied = model.output is None
        table = output if tied else self._plain(model.embedding.weight)
        ops = [_Op(kind=_EMBED, mode=int(tied), out=x, k=shape.d_model, weight=table)]
        for index, layer in enumerate(cast(Iterable[Layer], model.layers.values())):
            ops.append(self._norm(x, normed, layer.attention_norm))
            attention = layer.attention
            if isinstance(attention, Attention):
                ops += self._grouped_query(attention, index)
            elif isinstance(attention, LatentAttention):
                ops += self._latent(attention, index)
            else:
                raise _unknown("attention", shape.attention_block.kind)
            ops.append(self._norm(x, normed, layer.feed_forward_norm))
            ops += self._feed_forward(layer.feed_forward)
        last = self._norm(x, self._buffer("last", shape.d_model), model.norm)
        last.at = _LAST
        ops.append(last)
        ops.append(_Op(kind=_PRODUCT, mode=_STORE, in_=last.out, n=shape.vocab_size, k=shape.d_model, weight=output))
        ops[-1].at = _LAST
        return ops

    def _grouped_query(self, attention: Attention, layer: int) -> list[_Op]:
        shape = self.shape
        queries, keys = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        width = queries + 2 * keys
        joined = self._buffer("qkv", width)
        weight = self._packed([torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])])
        ops = [_Op(kind=_PRODUCT, in_=self._buffers["normed"], out=joined, n=width, k=shape.d_model, weight=weight)]
        ops[0].gain = self._biases([attention.q, attention.k, attention.v])
        prepare = _Op(kind=_PREPARE, in_=joined, in2=joined, in3=joined, at2=queries, at3=queries + keys, layer=layer)
        if attention.q_norm is not None and attention.k_norm is not None:
            prepare.gain, prepare.gain2 = self._plain(attention.q_norm.weight), self._plain(attention.k_norm.weight)
        return ops + self._attend(prepare, layer, attention.out)

    def _latent(self, attention: LatentAttention, layer: int) -> list[_Op]:
        shape, normed = self.shape, self._buffers["normed"]
        product = self._product
        latent, ops = self._buffer("latent", attention.kv_down.out_features), []
        ops.append(product(attention.kv_down, normed, latent))
        ops.append(self._norm(latent, latent, attention.kv_norm))
        still = self._buffer("still", attention.k.out_features)
        turned = self._buffer("turned", attention.rope_dim)
        values = self._buffer("values", attention.v.out_features)
        keys = self._buffer("keys", shape.n_heads * shape.head_dim)
        ops.append(product(attention.k, latent, still))
        ops.append(product(attention.v, latent, values))
        ops.append(product(attention.k_rope, normed, turned))
        ops.append(_Op(kind=_JOIN, in_=turned, in2=still, out=keys, n=attention.rope_dim))
        queries, source = self._buffer("queries", attention.q.out_features), normed
        if attention.q_down is not None and attention.q_norm is not None:
            source = self._buffer("query latent", attention.q_down.out_features)
            ops.append(product(attention.q_down, normed, source))
            ops.append(self._norm(source, source, attention.q_norm))
        ops.append(product(attention.q, source, queries))
        prepare = _Op(kind=_PREPARE, in_=queries, in2=keys, in3=values, layer=layer)
        return ops + self._attend(prepare, layer, attention.out)

    def _attend(self, prepare: _Op, layer: int, out: nn.Linear) -> list[_Op]:
        shape = self.shape
        prepare.out = self._buffer("turned queries", shape.n_heads * self._padded(shape.head_dim))
        prepare.eps, prepare.scale = shape.norm_eps, 1 / math.sqrt(shape.head_dim)
        mixed = self._buffer("mixed", shape.n_heads * self._value_dim)
        attend = _Op(kind=_ATTEND, in_=prepare.out, out=mixed, layer=layer)
        return [prepare, attend, self._product(out, mixed, self._buffers["x"], _ADD)]

    def _feed_forward(self, block: nn.Module) -> list[_Op]:
        shape, x, normed = self.shape, self._buffers["x"], self._buffers["normed"]
        if isinstance(block, ReLU2FeedForward):
            hidden = self._buffer("hidden", block.up.out_features)
            return [self._product(block.up, normed, hidden, _RELU2), self._product(block.down, hidden, x, _ADD)]
        if isinstance(block, FeedForward):
            width = block.up.out_features
            hidden, weight = self._buffer("hidden", width), self._packed([block.gate.weight], [block.up.weight])
            gated = _Op(kind=_PRODUCT, mode=_SWIGLU, in_=normed, out=hidden, n=width, k=shape.d_model, weight=weight)
            gated.gain, gated.gain2 = self._biases([block.gate]), self._biases([block.up])
            return [gated, self._product(block.down, hidden, x, _ADD)]
        if not isinstance(block, MixtureOfExperts):
            raise _unknown("feed_forward", shape.feed_forward_block.kind)
        spec, experts = block.spec, block.experts
        count, width = spec.count, spec.d_ff
        scores = self._buffer("scores", count)
        route = _Op(kind=_ROUTE, mode=int(spec.scores == "sigmoid") + 2 * int(spec.normalise), in_=scores)
        route.experts, route.scale = count, spec.scale
        if spec.balance == "bias":
            route.gain = self._plain(block.bias)
        entries, mixed = self._buffer("entries", width, spec.active), self._buffer("outs", shape.d_model, spec.active)
        gate, up, down = (experts.get_parameter(name).unbind(0) for name in ("gate", "up", "down"))
        inside = _Op(kind=_PRODUCT, mode=_SWIGLU, in_=normed, out=entries, n=width, k=shape.d_model, experts=count)
        inside.weight, inside.gather = self._packed(gate, up), 1
        outside = _Op(kind=_PRODUCT, in_=entries, out=mixed, n=shape.d_model, k=width, experts=count)
        outside.weight = self._packed(down)
        ops = [self._product(block.router, normed, scores), route, inside, outside]
        ops.append(_Op(kind=_COMBINE, in_=mixed, out=x, n=shape.d_model))
        return ops + ([] if block.shared is None else self._feed_forward(block.shared))

    def _product(self, linear: nn.Linear, source: int, to: int, mode: int = _STORE) -> _Op:
        op = _Op(kind=_PRODUCT, mode=mode, in_=source, out=to, n=linear.out_features, k=linear.in_features)
        op.weight, op.gain = self._packed([linear.weight]), self._biases([linear])
        return op

    def _norm(self, source: int, to: int, norm: nn.RMSNorm) -> _Op:
        weight = self._plain(norm.weight)
        return _Op(kind=_NORM, in_=source, out=to, n=len(norm.weight), gain=weight, eps=norm.eps or 0.0)

    def _biases(self, linears: Sequence[nn.Linear]) -> int | None:
        """The address of the biases of ``linears`` side by side, padded as the output is; None if they have none."""
        if all(linear.bias is None for linear in linears):
            return None
        parts = [torch.zeros(one.out_features) if one.bias is None else one.bias.detach().float() for one in linears]
        joined = torch.cat(parts)
        return self._plain(F.pad(joined, (0, self._padded(len(joined), 2) - len(joined))))

    def _plain(self, tensor: Tensor) -> int:
        """The address of ``tensor`` in fp32; a copy unless it already is."""
        copy = tensor.detach().float().contiguous()
        self._kept.append(copy)
        return copy.data_ptr()

    def _packed(self, weights: Sequence[Tensor], seconds: Sequence[Tensor] | None = None) -> int:
        """The address of ``weights`` [n, k] in consecutive panels; ``seconds`` share the panels."""
        n, k = weights[0].shape
        size = self._padded(n if seconds is None else 2 * self._padded(n), 2) * k
        room = _large_pages(4 * size * len(weights))
        self._kept.append(room)
        start = torch.frombuffer(room, dtype=torch.float32).data_ptr()
        for i, weight in enumerate(weights):
            one = weight.detach().float().contiguous()
            two = None if seconds is None else seconds[i].detach().float().contiguous()
            to = ctypes.c_void_p(start + 4 * size * i)
            second = None if two is None else ctypes.c_void_p(two.data_ptr())
            self._library.pack(ctypes.c_long(n), ctypes.c_long(k), ctypes.c_void_p(one.data_ptr()), second, to)
        return start


def available_memory() -> int | None:
    """Bytes of host memory available without swapping; None if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _large_pages(size: int) -> mmap.mmap:
    """Memory for ``size`` bytes, in pages of 2 MiB if available, because it is read from end to end."""
    try:
        # private: shared memory gets large pages only if the administrator enables them
        room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError) as error:
        raise ArmillaryError(f"no memory for {size:,} bytes of weights ({error}); use a smaller model") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        room.madvise(mmap.MADV_HUGEPAGE)
    return room


def _unknown(part: str, kind: str) -> UsageError:
    return UsageError(
        f"generation does not support {part} '{kind}'; supported are grouped-query, latent, swiglu and relu2"
    )
