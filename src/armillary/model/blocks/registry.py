"""The modules of the blocks by kind: what a file of this folder registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor, nn

from armillary.model.roles import Role
from armillary.recipe import AttentionBlock, Block, FeedForwardBlock, ModelShape, UsageError


class AttentionModule(nn.Module):
    """What the rest of the model and the parallel layouts need of an attention.

    ``roles`` has the role of each parameter by its name in the module. ``core`` is ``operators.attention`` or what a
    layout puts in its place, as context parallel does: the module calls it with q, k and v. How many heads there are
    follows from the tensors and not from the shape: under tensor parallel a rank has its part of them.
    """

    roles: Mapping[str, Role]
    core: Callable[..., Tensor]


_Build = TypeVar("_Build", bound=Callable[[ModelShape], nn.Module])
_MODULES: dict[tuple[type[Block], str], Callable[[ModelShape], nn.Module]] = {}


def register_attention(kind: str) -> Callable[[_Build], _Build]:
    """Make the decorated class or function, which takes a shape, the attention of ``kind`` (``AttentionModule``)."""
    return _register(AttentionBlock, kind)


def register_feed_forward(kind: str) -> Callable[[_Build], _Build]:
    """Make the decorated class or function, which takes a shape, the feed-forward block of ``kind``.

    The module has ``roles``, and takes [B, T, d_model] to the same.
    """
    return _register(FeedForwardBlock, kind)


def _register(base: type[Block], kind: str) -> Callable[[_Build], _Build]:
    def add(build: _Build) -> _Build:
        if (base, kind) in _MODULES:
            raise ValueError(f"a module of a block of kind {kind!r} is registered already")
        _MODULES[base, kind] = build
        return build

    return add


def build_attention(shape: ModelShape) -> AttentionModule:
    """The attention of one layer; UsageError where its kind has no module."""
    module = _find(AttentionBlock, shape.attention_block.kind)(shape)
    assert isinstance(module, AttentionModule), f"{type(module).__name__} is not an AttentionModule"
    return module


def build_feed_forward(shape: ModelShape) -> nn.Module:
    """The feed-forward block of one layer; UsageError where its kind has no module."""
    return _find(FeedForwardBlock, shape.feed_forward_block.kind)(shape)


def _find(base: type[Block], kind: str) -> Callable[[ModelShape], nn.Module]:
    if (base, kind) not in _MODULES:
        known = ", ".join(sorted(name for one, name in _MODULES if one is base))
        raise UsageError(f"no module is registered for a block of kind {kind!r}; there are {known}")
    return _MODULES[base, kind]
