"""Columns whose values contradict their names: an accuracy called a loss, swapped sizes, perplexities.

A column that cannot be a loss is refused. An unlikely column is reported by an ``UnlikelyColumnWarning`` with the
remedy, and the fit continues.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from armillary.laws.estimator import Array
from armillary.laws.table import Table
from armillary.recipe import UsageError, counted

# A column is not a loss if it rises in more than this share of the pairs of a run and a larger one; minimum number of
# pairs.
RISING, RISING_PAIRS = 2 / 3, 6

# A uniform guess over 262,144 tokens, a large vocabulary, costs this many nats. Losses are below this value.
GUESS = 18 * math.log(2)

# A column is reported if more than this share of its rows is unlikely. In published tables of runs at most 4 % have
# more parameters than tokens, and none has a loss above ``GUESS``.
SWAPPED, ABOVE_GUESS = 0.75, 0.25

# Every table of language models has some run above this number of parameters or tokens.
SMALLEST = 1e4


class UnlikelyColumnWarning(UserWarning):
    """The values of a column are unlikely for its name; the message has a likely explanation and a remedy."""


def refuse_rising(table: Table, sizes: Array, losses: Array, targets: Sequence[str]) -> None:
    """Refuse a column [n, t] that rises with both parameters and tokens (sizes [n, 2]), since it is not a loss.

    The function compares pairs of runs in which one is larger in both, and refuses a column that rises in more than two
    thirds of them.

    Raises:
        UsageError: such a column.
    """
    larger = (sizes[:, None] >= sizes[None]).all(2) & (sizes[:, None] > sizes[None]).any(2)
    for t, name in enumerate(targets):
        change = losses[:, None, t] - losses[None, :, t]
        pairs = larger & np.isfinite(change)
        rises, count = int((pairs & (change > 0)).sum()), int(pairs.sum())
        if count >= RISING_PAIRS and rises > RISING * count:
            raise UsageError(
                f"{table.path}: column '{name}' rises with parameters and tokens ({rises} of "
                f"{counted(count, 'pair')} of runs): "
                "it is not a loss (an accuracy?); choose a loss column with --columns"
            )


def warn_of_swapped(table: Table, sizes: Array, names: Sequence[str]) -> None:
    """Warn if nearly all runs have more parameters than tokens (sizes [n, 2]), which suggests swapped columns.

    Args:
        table: of the runs.
        sizes: parameters and tokens.
        names: of their two columns.
    """
    more = int((sizes[:, 0] > sizes[:, 1]).sum())
    if more > SWAPPED * len(sizes):
        warnings.warn(
            f"{table.path}: {more} of {len(sizes)} runs have more parameters (column '{names[0]}') than training "
            f"tokens (column '{names[1]}'); the two columns look swapped. If they are, swap their names; "
            "if not, ignore this warning",
            UnlikelyColumnWarning,
            stacklevel=3,
        )


def warn_of_units(table: Table, sizes: Array, names: Sequence[str]) -> None:
    """Warn if parameters or tokens (sizes [n, 2]) are so small that their unit is probably millions or billions.

    Args:
        table: of the runs.
        sizes: parameters and tokens.
        names: of their two columns.
    """
    for values, name in zip(sizes.T, names, strict=True):
        if values.max() < SMALLEST:
            warnings.warn(
                f"{table.path}: the largest value of column '{name}' is {values.max():g}; it looks like millions or "
                "billions. Write the unit (10M, 2B), or request predictions in the same unit",
                UnlikelyColumnWarning,
                stacklevel=3,
            )


def warn_of_perplexities(path: Path, losses: Array, names: Sequence[str]) -> None:
    """Warn about columns [n, t] with losses above that of a uniform guess: perplexities, or sums over tokens."""
    for values, name in zip(losses.T, names, strict=True):
        known = values[np.isfinite(values)]
        above = int((known > GUESS).sum())
        if above > ABOVE_GUESS * len(known):
            warnings.warn(
                f"{path}: {above} of {len(known)} values of column '{name}' are above {GUESS:.1f}, the loss of a "
                "uniform guess over a large vocabulary in nats per token; they look like perplexities. If they are, "
                "give their logarithms; if they are sums over tokens, give their means",
                UnlikelyColumnWarning,
                stacklevel=3,
            )
