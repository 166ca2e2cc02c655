"""The dry run's operators, which compute nothing: the program runs unchanged, and its memory is counted.

Floating-point tensors are plain CPU tensors without values. They reserve address space but no memory, since no operator
touches them. PyTorch's ``FakeTensorMode`` gives the form of a result (shape, strides and type) once for each new
combination of operator and shapes. A whole run on fake tensors gives the same report but takes some 25 times as long.
The ``meta`` device is no alternative: FSDP2 refuses it, and it has no flash attention.

Integers have real values, because they steer the program (positions, tokens per expert). A router's choice (top-k) is
that of a perfectly balanced router. If the program reads a value that does not exist, the dry run raises an error and
does not guess.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from torch import Tensor, nn
from torch._C._distributed_c10d import FakeWork, ProcessGroup
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.function import Function, once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from armillary.recipe import ArmillaryError

# Kinds of memory: parameter shards that a rank keeps, gradients in any form, optimizer state, parameters gathered from
# other ranks, and all else.
KINDS = PARAMETERS, GRADIENTS, OPTIMIZER, GATHERED, ACTIVATIONS = (
    "parameters",
    "gradients",
    "optimizer",
    "gathered",
    "activations",
)

_COLLECTIVES = {
    "_allgather_base_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
    "allreduce_": "all-reduce",
    "all_reduce": "all-reduce",
    "all_reduce_": "all-reduce",
    "alltoall_base_": "all-to-all",
    "all_to_all_single": "all-to-all",
    "send": "send",
    "recv_": "receive",
    "broadcast_": "broadcast",
    "barrier": "barrier",
}

_FAKE = torch._C._TorchDispatchModeKey.FAKE
_aten = torch.ops.aten
_VALUE = _aten._local_scalar_dense.default
_BY_VALUE = {_aten.nonzero.default, _aten.masked_select.default, _aten.equal.default}


class Storages:
    """Bytes of all live storages by kind, and their peaks."""

    def __init__(self) -> None:
        self.live = dict.fromkeys(KINDS, 0)
        self.total = 0
        self._kinds: dict[int, str] = {}
        self._sizes: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        self.restart()

    def restart(self) -> None:
        """Reset the peaks to the current bytes."""
        self.most = dict(self.live)  # the peak of each kind, at its own time
        self.peak, self.at_peak = self.total, dict(self.live)  # the peak of the total, and the kinds at that time

    def kind(self, tensor: Tensor) -> str | None:
        """The kind of a tensor's memory, or None if it is not known."""
        return self._kinds.get(tensor.untyped_storage()._cdata)

    def note(self, tensor: Tensor, kind: str) -> None:
        """Count the memory of ``tensor`` as ``kind``, whether it is new or was counted as another kind."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._kinds.get(key)
        if known == kind:
            return
        if known is None:
            self._watched[key] = weakref.ref(storage, lambda _: self._forget(key))
        else:
            self._add(known, -self._sizes[key])
        self._kinds[key], self._sizes[key] = kind, storage.nbytes()
        self._add(kind, self._sizes[key])

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Record a storage's new size."""
        key = storage._cdata
        if key in self._kinds:
            self._add(self._kinds[key], storage.nbytes() - self._sizes[key])
            self._sizes[key] = storage.nbytes()

    def _forget(self, key: int) -> None:
        self._add(self._kinds.pop(key), -self._sizes.pop(key))
        del self._watched[key]

    def _add(self, kind: str, nbytes: int) -> None:
        self.live[kind] += nbytes
        self.total += nbytes
        self.most[kind] = max(self.most[kind], self.live[kind])
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, dict(self.live)


class WithoutNumbers(TorchDispatchMode):
    """A context in which operators on floating-point tensors compute nothing and return tensors of the right form.

    The memory of new tensors counts as the kind ``phase``, which the caller sets. ``collectives`` counts collectives by
    kind, group name and bytes. Bytes are those of the whole vector: the output of an all-gather, the input of a
    reduce-scatter. The ``fake`` backend transfers nothing: other ranks are assumed to send the same as this rank.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase = PARAMETERS
        self.storages = Storages()
        self.collectives: Counter[tuple[str, str, int]] = Counter()
        self._fake = FakeTensorMode()
        self._traits: dict[Any, _Traits] = {}
        self._forms: dict[Any, Any] = {}
        self._unknown: dict[int, weakref.ref[Any]] = {}
        self._resize, self._rms_norm = torch.UntypedStorage.resize_, F.rms_norm

    def __enter__(self) -> WithoutNumbers:
        def resize(storage: torch.UntypedStorage, nbytes: int) -> torch.UntypedStorage:
            self._resize(storage, nbytes)
            self.storages.resized(storage)
            return storage

        # FSDP2 allocates and frees memory by resizing storages, which the dispatcher does not see.
        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        # On a CPU, RMSNorm consists of operators that keep several copies; an accelerator has one fused operator.
        F.rms_norm = rms_norm  # type: ignore[assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.UntypedStorage.resize_, F.rms_norm = self._resize, self._rms_norm  # type: ignore[method-assign]

    def gradient(self, parameter: Tensor) -> None:
        """Record the gradient of ``parameter``; registered as a hook."""
        grad = parameter.grad
        self.storages.note(grad.to_local() if hasattr(grad, "to_local") else grad, GRADIENTS)  # type: ignore[union-attr, arg-type]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # DTensor infers shapes with fake tensors
        if torch._C._get_dispatch_mode(_FAKE) is not None or FakeTensor in types or func.namespace == "profiler":
            return func(*args, **kwargs)
        if any(kind is not Tensor and kind is not nn.Parameter for kind in types):
            return NotImplemented  # a wrapper such as DTensor, whose inner tensors are dispatched here next
        traits = self._traits.get(func)
        if traits is None:
            traits = self._traits[func] = _Traits.of(func)
        tensors = list(_tensors((args, *kwargs.values())))
        real = bool(tensors) and all(map(self._has_values, tensors))
        if traits.group is not None:
            return self._send(func, args, kwargs, traits, real)
        if real or traits.view or any(t.is_meta for t in tensors) or str(kwargs.get("device")) == "meta":
            out = func(*args, **kwargs)
        elif traits.written is not None:
            written = [args[at] if at < len(args) else kwargs[name] for at, name in traits.written]
            out = None if not written else written[0] if len(written) == 1 else tuple(written)
        else:
            out = self._new(func, args, kwargs, bool(tensors))
        if traits.collective is not None:
            group = args[-1] if isinstance(args[-1], str) else args[-1].group_name
            self._record(traits.collective, group, max(size(args[0]), size(out)))
        if traits.makes is not None:  # FSDP2's own operators
            for tensor in tensors:
                if self.storages.kind(tensor) != PARAMETERS:
                    self.storages.note(tensor, traits.makes)
        if not traits.view and traits.written is None:
            # a result whose first tensor is a gradient counts as a gradient
            gradient = bool(tensors) and self.storages.kind(tensors[0]) == GRADIENTS
            for tensor in (out,) if isinstance(out, Tensor) else tree_leaves(out):
                if isinstance(tensor, Tensor) and not tensor.is_meta and self.storages.kind(tensor) is None:
                    self.storages.note(tensor, GRADIENTS if gradient else self.phase)
        return out

    def _has_values(self, tensor: Tensor) -> bool:
        return not tensor.dtype.is_floating_point and tensor.untyped_storage()._cdata not in self._unknown

    def _new(self, func: Any, args: Any, kwargs: Any, of_tensors: bool) -> Any:
        """The result of ``func`` without values; factory functions such as ``arange`` still compute integers."""
        if func is _VALUE and args[0].dtype.is_floating_point:
            return 1.0  # the optimizer's step count, or a gradient norm that is only logged
        if func is _VALUE or func in _BY_VALUE:
            raise ArmillaryError(f"dry run: the program reads values of a tensor without data ({func})")
        key = func, _key(args), _key(tuple(kwargs.items()))
        form = self._forms.get(key)
        if form is None:
            # FakeTensorMode supports the grouped product only in bf16.
            half = func is _aten._grouped_mm.default
            with self._fake:
                fakes, named = tree_map_only(Tensor, partial(_alike, half=half), (args, kwargs))
                form = func(*fakes, **named)
            form = tree_map_only(Tensor, lambda t: _Form(t.shape, t.stride(), args[0].dtype if half else t.dtype), form)
            self._forms[key] = form
        if isinstance(form, _Form):
            return self._empty(form) if of_tensors or form.dtype.is_floating_point else func(*args, **kwargs)
        out = tree_map_only(_Form, self._empty, form)
        if func is _aten.topk.default:
            return out[0], balanced(out[1].shape, args[0].shape[-1])
        return out

    def _empty(self, form: _Form) -> Tensor:
        tensor = torch.empty_strided(form.shape, form.stride, dtype=form.dtype)
        if not form.dtype.is_floating_point:
            storage = tensor.untyped_storage()
            key = storage._cdata
            self._unknown[key] = weakref.ref(storage, lambda _: self._unknown.pop(key))
        return tensor

    def _send(self, func: Any, args: Any, kwargs: Any, traits: _Traits, real: bool) -> Any:
        """Count a collective of c10d, which writes to its arguments; with ``real`` arguments, also run it."""
        assert traits.group is not None
        # Pipeline stages exchange integers once per run to agree on shapes; these are not counted.
        if not (real and traits.collective in ("send", "receive")):
            group = ProcessGroup.unbox(args[traits.group]).group_name
            self._record(traits.collective or func._opname, group, max(map(size, args[: traits.group])))
        if traits.makes is not None:
            self.storages.note(args[0], traits.makes)
        if real and traits.collective == "receive":
            args[0][0].fill_(1)  # 1 means that the other stage agrees
        elif real:
            return func(*args, **kwargs)
        work = FakeWork().boxed()
        return work if len(func._schema.returns) == 1 else (args[0], work)

    def _record(self, kind: str, group: str, nbytes: int) -> None:
        self.collectives[kind, group, nbytes] += 1


@dataclass(frozen=True)
class _Form:
    """The form of a tensor: everything but its values."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Traits:
    """The properties of an operator that the dry run uses.

    ``view``: it returns views of its arguments. ``written``: arguments (position, name) that it writes to and returns.
    ``collective``: the kind of collective, if it is one. ``group``: the position of the process group in its arguments.
    ``makes``: the kind of the memory it works on.
    """

    view: bool
    written: tuple[tuple[int, str], ...] | None
    collective: str | None
    group: int | None
    makes: str | None

    @classmethod
    def of(cls, func: Any) -> _Traits:
        name, space = func._opname, func.namespace
        arguments = func._schema.arguments
        aliases = [result.alias_info for result in func._schema.returns if result.alias_info is not None]
        view = any(not alias.is_write for alias in aliases) or name in ("wait_tensor", "_wrap_tensor_autograd")
        written = None
        if not view and any(x.alias_info is not None and x.alias_info.is_write for x in arguments):
            sets = [None if x.alias_info is None else x.alias_info.before_set for x in arguments]
            positions = [sets.index(alias.before_set) for alias in aliases]
            written = tuple((position, arguments[position].name) for position in positions)
        collective = _COLLECTIVES.get(name) if space in ("c10d", "_c10d_functional") else None
        names = [x.name for x in arguments]
        group = names.index("process_group") if space == "c10d" and "process_group" in names else None
        makes = None
        if name in ("_allgather_base_", "all_gather_copy_in", "split_with_sizes_copy") and space in ("c10d", "fsdp"):
            makes = GATHERED
        elif name in ("_reduce_scatter_base_", "chunk_cat") and space in ("c10d", "fsdp"):
            makes = GRADIENTS
        return cls(view, written, collective, group, makes)


def rms_norm(x: Tensor, size: Sequence[int], weight: Tensor, eps: float) -> Tensor:
    """``F.rms_norm`` without values: its output and saved tensors are those of the fused ``aten::_fused_rms_norm``."""
    normalised: Tensor = _FusedNorm.apply(x, weight, len(size))
    return normalised


class _FusedNorm(Function):
    """Saves its input and the scale of each row in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, width: int) -> Tensor:
        scale = torch.empty(*x.shape[:-width], *[1] * width, dtype=torch.float32, device=x.device)
        ctx.save_for_backward(x, weight, scale)
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight), None


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _key(value: Any) -> Any:
    """Everything on which the form of an operator's result depends."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return type(value), value  # the type, because 1 == 1.0 == True


def _alike(tensor: Tensor, half: bool) -> Tensor:
    dtype = torch.bfloat16 if half and tensor.dtype.is_floating_point else tensor.dtype
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype)


def size(value: Any) -> int:
    """Bytes of the tensors of ``value``."""
    return sum(tensor.numel() * tensor.itemsize for tensor in tree_leaves(value) if isinstance(tensor, Tensor))


def balanced(shape: torch.Size, choices: int) -> Tensor:
    """Indices [..., k] that use each of ``choices`` equally often, or as nearly as possible."""
    return torch.arange(shape.numel(), dtype=torch.int64).remainder_(choices).view(shape)
