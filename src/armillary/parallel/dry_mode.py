"""Operators without numbers: a program runs as it is, and of its tensors only size, kind and lifetime are true.

Tensors of floating point are plain CPU tensors, to which address space belongs but, since no operator touches it, no
memory. What a new combination of operator and shapes would give is asked once of PyTorch's ``FakeTensorMode``; all of
the program on fake tensors gives the same report and takes some 25 times as long, and the ``meta`` device is refused by
FSDP2 and has no flash attention.

Integers are real. They steer a program (positions, the tokens that each expert gets), so it runs as it is; the choice
of a router (top-k) is answered as a perfectly balanced router would choose. Where a program asks for a value that is
not there, the dry run ends with an error rather than with a guess.
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

# What memory is for: the shards that a rank keeps, whatever holds gradients, the state of the optimizer, parameters
# gathered from other ranks, and the rest.
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
    """Bytes of all storages that live, by what they are for, and the most that there were."""

    def __init__(self) -> None:
        self.live = dict.fromkeys(KINDS, 0)
        self.total = 0
        self._kinds: dict[int, str] = {}
        self._sizes: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        self.restart()

    def restart(self) -> None:
        """Count the most that there is from now on."""
        self.most = dict(self.live)  # of each kind, at whatever time
        self.peak, self.at_peak = self.total, dict(self.live)  # of all together, and what it consisted of

    def kind(self, tensor: Tensor) -> str | None:
        """What a tensor's memory is for, if it is known."""
        return self._kinds.get(tensor.untyped_storage()._cdata)

    def note(self, tensor: Tensor, kind: str) -> None:
        """A tensor whose memory is new, or turns out to be of ``kind``."""
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
        """The storage has another size now."""
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
    """While it is open, operators on floating-point tensors do nothing but give tensors of the right form.

    What they give is of the kind ``phase``. ``collectives`` counts what goes to other ranks, by kind, name of the group
    and bytes: of the whole vector (of an all-gather what comes out, of a reduce-scatter what goes in). With the
    ``fake`` backend nothing arrives: other ranks are taken to send what this one sends.
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

        # FSDP2 takes and gives back memory in this way, which no operator shows
        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        # PyTorch composes it on a CPU of operators that keep several copies, and has one operator on an accelerator
        F.rms_norm = rms_norm  # type: ignore[assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.UntypedStorage.resize_, F.rms_norm = self._resize, self._rms_norm  # type: ignore[method-assign]

    def gradient(self, parameter: Tensor) -> None:
        """Note the gradient of ``parameter``, as a hook of it."""
        grad = parameter.grad
        self.storages.note(grad.to_local() if hasattr(grad, "to_local") else grad, GRADIENTS)  # type: ignore[union-attr, arg-type]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # DTensor thinks about shapes with fake tensors
        if torch._C._get_dispatch_mode(_FAKE) is not None or FakeTensor in types or func.namespace == "profiler":
            return func(*args, **kwargs)
        if any(kind is not Tensor and kind is not nn.Parameter for kind in types):
            return NotImplemented  # a tensor of tensors: what it consists of comes by here again
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
            # what is computed from a gradient alone is one
            gradient = bool(tensors) and self.storages.kind(tensors[0]) == GRADIENTS
            for tensor in (out,) if isinstance(out, Tensor) else tree_leaves(out):
                if isinstance(tensor, Tensor) and not tensor.is_meta and self.storages.kind(tensor) is None:
                    self.storages.note(tensor, GRADIENTS if gradient else self.phase)
        return out

    def _has_values(self, tensor: Tensor) -> bool:
        return not tensor.dtype.is_floating_point and tensor.untyped_storage()._cdata not in self._unknown

    def _new(self, func: Any, args: Any, kwargs: Any, of_tensors: bool) -> Any:
        """What ``func`` gives, without its values; a factory of integers with them."""
        if func is _VALUE and args[0].dtype.is_floating_point:
            return 1.0  # a count of steps, a norm that is shown
        if func is _VALUE or func in _BY_VALUE:
            raise ArmillaryError(f"dry run: the program asks for values of a tensor that has none ({func})")
        key = func, _key(args), _key(tuple(kwargs.items()))
        form = self._forms.get(key)
        if form is None:
            # PyTorch tells the form of a grouped product in bf16 alone
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
        """A collective of c10d, which writes to its arguments."""
        assert traits.group is not None
        # two neighbours tell each other integers once in a run (the pipeline: that they know their shapes)
        if not (real and traits.collective in ("send", "receive")):
            group = ProcessGroup.unbox(args[traits.group]).group_name
            self._record(traits.collective or func._opname, group, max(map(size, args[: traits.group])))
        if traits.makes is not None:
            self.storages.note(args[0], traits.makes)
        if real and traits.collective == "receive":
            args[0][0].fill_(1)  # a yes
        elif real:
            return func(*args, **kwargs)
        work = FakeWork().boxed()
        return work if len(func._schema.returns) == 1 else (args[0], work)

    def _record(self, kind: str, group: str, nbytes: int) -> None:
        self.collectives[kind, group, nbytes] += 1


@dataclass(frozen=True)
class _Form:
    """What a tensor looks like."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Traits:
    """What there is to know of an operator.

    ``view``: it gives other looks at its arguments. ``written``: arguments (place, name) that it writes to and returns.
    ``collective``: what it is for other ranks; ``group``: the place of the process group in its arguments. ``makes``:
    what the memory is for that it works on.
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
            places = [sets.index(alias.before_set) for alias in aliases]
            written = tuple((place, arguments[place].name) for place in places)
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
    """What ``F.rms_norm`` keeps and gives on an accelerator (``aten::_fused_rms_norm``), without computing it."""
    normalised: Tensor = _FusedNorm.apply(x, weight, len(size))
    return normalised


class _FusedNorm(Function):
    """Keeps its input and, in fp32, the scale of each row."""

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
    """All that the form of an operator's result depends on."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return type(value), value  # 1 and 1.0 and True are equal


def _alike(tensor: Tensor, half: bool) -> Tensor:
    dtype = torch.bfloat16 if half and tensor.dtype.is_floating_point else tensor.dtype
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype)


def size(value: Any) -> int:
    """Bytes of the tensors of ``value``."""
    return sum(tensor.numel() * tensor.itemsize for tensor in tree_leaves(value) if isinstance(tensor, Tensor))


def balanced(shape: torch.Size, choices: int) -> Tensor:
    """Indices [..., k] that take each of ``choices`` as often as any other, as near as may be."""
    return torch.arange(shape.numel(), dtype=torch.int64).remainder_(choices).view(shape)
