"""The methods of merging: one registered function each, over one tensor at a time. A new method is one file.

A method sees a tensor of the base and of each model in fp32 (fp64 where the file has it) and returns the merged one. It
depends on nothing but these, the weights and the options, so tensors may come in any order.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from armillary.recipe import UsageError


@dataclass(frozen=True)
class MergeOptions:
    """How models are merged.

    Attributes:
        method: a name of ``methods``.
        weights: one per model; empty for the method's default, equal weights. Of ``weighted`` they are scores.
        density: share of each difference that ``ties`` and ``dare`` keep.
        scale: factor of the merged difference, for the methods that add one to the base.
        rescale: how ``dare`` makes up for what it drops: ``density`` (divide by the density, as the paper does) or
            ``norm`` (keep the sum of magnitudes of each tensor, as mergekit does).
        base_score: score of the base, for ``weighted``: a model counts by its gain over it.
        seed: of the entries that ``dare`` drops.
    """

    method: str = "linear"
    weights: tuple[float, ...] = ()
    density: float = 0.5
    scale: float = 1.0
    rescale: str = "density"
    base_score: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Group:
    """One tensor of all parents.

    Attributes:
        name: of the tensor.
        base: of the base.
        models: of the models, in the order of ``weights``.
        ids: hash of each model's weights, which names it whatever the order.
        weights: after ``Method.weights``.
        options: of the merge.
    """

    name: str
    base: Tensor
    models: Sequence[Tensor]
    ids: Sequence[str]
    weights: Sequence[float]
    options: MergeOptions

    def generator(self, model: int) -> torch.Generator:
        """Random numbers that depend on the seed, the tensor's name and the model's weights alone."""
        text = f"{self.options.seed}/{self.ids[model]}/{self.name}".encode()
        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1)
        return generator


@dataclass(frozen=True)
class Method:
    """A way to merge.

    Attributes:
        combine: the merged tensor of a group.
        weights: checks the weights of n models and returns those to use; UsageError names what is wrong.
        uses: options besides ``weights`` that change the result, for the record.
        adds: whether it adds a difference to the base, so that its weights need not sum to 1.
    """

    combine: Callable[[Group], Tensor]
    weights: Callable[[MergeOptions, int], tuple[float, ...]]
    uses: tuple[str, ...] = ()
    adds: bool = False


_METHODS: dict[str, Method] = {}


def register(name: str, method: Method) -> None:
    """Make ``method`` known under ``name``."""
    _METHODS[name] = method


def methods() -> dict[str, Method]:
    """All methods by name."""
    package = importlib.import_module("armillary.post.merge.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_METHODS.items()))


def method_named(name: str) -> Method:
    """The method ``name``.

    Raises:
        UsageError: there is none.
    """
    known = methods()
    if name not in known:
        raise UsageError(f"no method '{name}' of merging; there are {', '.join(known)}")
    return known[name]


def read_weights(text: str | None) -> tuple[float, ...]:
    """Weights from a comma-separated list; none for None.

    Raises:
        UsageError: an entry that is not a number.
    """
    if text is None:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"weights are '{text}'; give one number per model, separated by commas") from None


def given_weights(options: MergeOptions, count: int, default: float | None) -> tuple[float, ...]:
    """``options.weights`` for ``count`` models, or ``default`` for each.

    Raises:
        UsageError: another number of weights, none without a default, or one that is not finite.
    """
    weights = options.weights
    if not weights and default is not None:
        return (default,) * count
    if len(weights) != count:
        raise UsageError(f"{len(weights)} weights for {count} models; give one for each model, in their order")
    for weight in weights:
        if not abs(weight) < float("inf"):
            raise UsageError(f"a weight is {weight}; give finite numbers")
    return weights


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """``weights`` divided by their sum.

    Raises:
        UsageError: they sum to 0.
    """
    total = sum(weights)
    if abs(total) < 1e-8:
        raise UsageError(f"the weights {', '.join(f'{w:g}' for w in weights)} sum to 0; an average needs another sum")
    return tuple(weight / total for weight in weights)


def linear_weights(options: MergeOptions, count: int) -> tuple[float, ...]:
    """Equal by default, and divided by their sum."""
    return shares(given_weights(options, count, 1.0))


def task_weights(options: MergeOptions, count: int) -> tuple[float, ...]:
    """1/n each by default, used as they are."""
    return given_weights(options, count, 1.0 / count)


def check_density(options: MergeOptions) -> None:
    """Raises UsageError unless the density is a share above 0."""
    if not 0 < options.density <= 1:
        raise UsageError(f"density is {options.density:g}; give the share that is kept, above 0 and at most 1")


def average(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of ``tensors`` times ``weights``; a weight of 0 leaves its tensor unread."""
    result = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight != 0:
            result.add_(tensor, alpha=weight)
    return result


def add_difference(group: Group, difference: Tensor) -> Tensor:
    """The base plus the scaled ``difference``, which is changed."""
    return difference.mul_(group.options.scale).add_(group.base)
