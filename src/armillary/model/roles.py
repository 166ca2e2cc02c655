"""The role of each parameter, from which parallel layouts, width transfer and optimizers derive their rules.

A block declares a ``Role`` for each of its parameters, by name. Code that treats parameters differently reads the role
and never the name:

==========  ==============================================================================================
``cut``     tensor parallel (``parallel.tensor``), expert parallel and the initial values of stacks
``init``    initial values (``Transformer.init_values``)
``width``   initial values and learning rates of the width transfer (``model.width``)
``decay``   weight decay of every optimizer
``matrix``  optimizers of matrices, as Muon
==========  ==============================================================================================

Under tensor parallel a block receives whole sequences on every rank, and its outputs are summed over the ranks. Each
rank computes a summand of the output from its rows of the first matrices, its columns of the last ones, and ``whole``
parameters. Gradients of ``whole`` parameters are summed over the ranks. What a block adds after the last matrix that is
cut by columns must have the cut ``once``, because the sum would otherwise contain it once per rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

Cut = Literal["rows", "columns", "vocabulary", "experts", "whole", "stream", "once"]
Init = Literal["normal", "residual", "output", "tied", "ones", "zeros"]
Width = Literal["input", "hidden", "output", "queries", "query-gain"]


@dataclass(frozen=True)
class Role:
    """How a parameter is cut, drawn, carried over to other widths, decayed and optimised.

    ``cut`` over the ranks of tensor parallel:

    - ``rows``, ``columns``: along the first, the last dimension, which the number of ranks must divide.
    - ``vocabulary``: along the first, by tokens.
    - ``whole``: not at all; each rank uses it for its own heads or tokens, so its gradient is summed over the ranks.
    - ``once``: not at all; a summand of the block's output, so one rank uses it and the others use zeros.
    - ``stream``: not at all; it acts on the residual stream, so its gradient is summed where sequences are cut.
    - ``experts``: the first dimension is the expert, dealt out by expert parallel; tensor parallel shards it as data.

    ``init``: normal with the standard deviation of most matrices (``normal``), of what adds to the residual stream
    (``residual``), of what makes the logits (``output``) or makes them and embeds (``tied``); ``ones``; ``zeros``.

    ``width`` is the row of the table in ``model.width``: what does not change with it (``input``), maps width to width
    (``hidden``) or width to a fixed number (``output``); matrices (``queries``) and gains (``query-gain``) whose
    product with the keys has a sum over the head dimension.

    ``decay``: whether weight decay applies. ``matrix``: whether it maps the residual stream or what is computed from
    it, and has two dimensions or is a stack of such: an optimizer that orthogonalises matrices takes it.
    """

    cut: Cut
    init: Init = "normal"
    width: Width = "hidden"
    decay: bool = True
    matrix: bool = True


def gain(cut: Cut, width: Width = "input") -> Role:
    """The role of a gain of a norm: begins at 1, does not decay, is not a matrix."""
    return Role(cut, "ones", width, decay=False, matrix=False)


def bias(cut: Cut) -> Role:
    """The role of a bias: begins at 0, does not decay, is not a matrix."""
    return Role(cut, "zeros", "input", decay=False, matrix=False)


def declared_roles(model: nn.Module) -> dict[str, Role]:
    """The roles of all parameters of ``model`` by name, from the mappings ``roles`` of its modules.

    Raises:
        TypeError: a parameter has no role, or a role no parameter.
    """
    found = {
        f"{prefix}.{name}" if prefix else name: role
        for prefix, module in model.named_modules()
        if isinstance(roles := getattr(module, "roles", None), Mapping)
        for name, role in roles.items()
    }
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        if name not in found:
            raise TypeError(f"parameter {name} has no role: its block must name it in 'roles'")
    for name in found:
        if name not in names:
            raise TypeError(f"a block declares a role for {name}, which is not a parameter of it")
    return {name: found[name] for name in names}
