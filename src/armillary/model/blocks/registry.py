"""The registry of block modules by kind; each file of this folder registers its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor, nn

from armillary.model.roles import Role
from armillary.recipe import AttentionBlock, Block, FeedForwardBlock, ModelShape, UsageError


class AttentionModule(nn.Module):
    """The interface of an attention for the rest of the model and the parallel layouts.

    ``roles`` has the role of each parameter by its name in the module. The module calls ``core`` with q, k and v; it is
    ``operators.attention`` or a layout's replacement, as under context parallel. The number of heads follows from the
    tensors and not from the shape, because under tensor parallel a rank has only some of the heads.
    """

    roles: Mapping[str, Role]
    core: Callable[..., Tensor]


_Build = TypeVar("_Build", bound=Callable[[ModelShape], nn.Module])
_MODULES: dict[tuple[type[Block], str], Callable[[ModelShape], nn.Module]] = {}


def register_attention(kind: str) -> Callable[[_Build], _Build]:
    """Register the decorated class or function, which takes a shape, as the ``AttentionModule`` of ``kind``."""
    return _register(AttentionBlock, kind)


def register_feed_forward(kind: str) -> Callable[[_Build], _Build]:
    """Register the decorated class or function, which takes a shape, as the feed-forward block ``kind``.

    The module has ``roles`` and maps [B, T, d_model] to the same shape.
    """
    return _register(FeedForwardBlock, kind)


def _register(base: type[Block], kind: str) -> Callable[[_Build], _Build]:
    def add(build: _Build) -> _Build:
        if (base, kind) in _MODULES:
            raise ValueError(f"a module of a block of kind {kind!r} is already registered")
        _MODULES[base, kind] = build
        return build

    return add


def build_attention(shape: ModelShape) -> AttentionModule:
    """Build the attention of one layer; raises UsageError if its kind has no module."""
    module = _find(AttentionBlock, shape.attention_block.kind)(shape)
    assert isinstance(module, AttentionModule), f"{type(module).__name__} is not an AttentionModule"
    return module


def build_feed_forward(shape: ModelShape) -> nn.Module:
    """Build the feed-forward block of one layer; raises UsageError if its kind has no module."""
    return _find(FeedForwardBlock, shape.feed_forward_block.kind)(shape)


def _find(base: type[Block], kind: str) -> Callable[[ModelShape], nn.Module]:
    if (base, kind) not in _MODULES:
        known = ", ".join(sorted(name for one, name in _MODULES if one is base))
        raise UsageError(f"no module is registered for a block of kind {kind!r}; registered: {known}")
    return _MODULES[base, kind]
