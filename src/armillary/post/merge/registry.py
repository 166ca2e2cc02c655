"""The registry of merge methods: one function each, over one tensor at a time. A new method is one file.

A method gets a tensor of the base and of each model in fp32 (fp64 if the file has it), and returns the merged tensor.
It depends only on these, the weights and the options, so tensors may come in any order.
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
    """Options of a merge.

    Attributes:
        method: a name of ``methods``.
        weights: one per model; empty for the method's default, equal weights. For ``weighted`` they are scores.
        density: share of each difference that ``ties`` and ``dare`` keep.
        scale: factor of the merged difference, for methods that add one to the base.
        rescale: how ``dare`` compensates for dropped entries: ``density`` (divide by the density, as in the paper) or
            ``norm`` (keep the sum of magnitudes of each tensor, as in mergekit).
        base_score: score of the base, for ``weighted``: a model's weight is its gain over it.
        seed: seed of the entries that ``dare`` drops.
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
    """The same tensor from all parents.

    Attributes:
        name: name of the tensor.
        base: the base's tensor.
        models: the models' tensors, in the order of ``weights``.
        ids: hash of each model's weights, an identity independent of the order.
        weights: the weights that ``Method.weights`` returned.
        options: options of the merge.
    """

    name: str
    base: Tensor
    models: Sequence[Tensor]
    ids: Sequence[str]
    weights: Sequence[float]
    options: MergeOptions

    def generator(self, model: int) -> torch.Generator:
        """Random numbers that depend only on the seed, the tensor's name and the model's weights."""
        text = f"{self.options.seed}/{self.ids[model]}/{self.name}".encode()
        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1)
        return generator


@dataclass(frozen=True)
class Method:
    """A merge method.

    Attributes:
        combine: returns the merged tensor of a group.
        weights: checks the weights of n models and returns those to use, or raises UsageError.
        uses: options besides ``weights`` that change the result, for the record.
        adds: whether it adds a difference to the base, so that its weights need not sum to 1.
    """

    combine: Callable[[Group], Tensor]
    weights: Callable[[MergeOptions, int], tuple[float, ...]]
    uses: tuple[str, ...] = ()
    adds: bool = False


_METHODS: dict[str, Method] = {}


def register(name: str, method: Method) -> None:
    """Register ``method`` under ``name``."""
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
        UsageError: no such method.
    """
    known = methods()
    if name not in known:
        raise UsageError(f"no merge method '{name}'; known are {', '.join(known)}")
    return known[name]


def read_weights(text: str | None) -> tuple[float, ...]:
    """Weights from a comma-separated list; empty for None.

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
        UsageError: a wrong number of weights, no weights without a default, or a weight that is not finite.
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
    """1/n each by default, used unchanged."""
    return given_weights(options, count, 1.0 / count)


def check_density(options: MergeOptions) -> None:
    """Raise UsageError unless the density is a share above 0."""
    if not 0 < options.density <= 1:
        raise UsageError(f"density is {options.density:g}; give the share that is kept, above 0 and at most 1")


def average(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of ``tensors`` times ``weights``; a tensor with weight 0 is not read."""
    result = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight != 0:
            result.add_(tensor, alpha=weight)
    return result


def add_difference(group: Group, difference: Tensor) -> Tensor:
    """The base plus the scaled ``difference``, which is changed in place."""
    return difference.mul_(group.options.scale).add_(group.base)
