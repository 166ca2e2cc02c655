"""What all laws share: the shape of an answer, checks of the input, and the estimator's contract.

Input comes from people's tables, so each check names the row and the column that is wrong. Rows and columns of arrays
are counted from 0, as numpy does; where the arrays come from a file, ``rows_named`` makes all messages speak of its
lines. The contract is scikit-learn's: the constructor only stores its arguments, ``fit``
returns the estimator, what was fitted ends in ``_``. scikit-learn itself is not needed for that.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from armillary.recipe import UsageError

Array = NDArray[np.float64]

# Raised whenever the same table would give other fitted numbers. Whatever is computed from a law and kept (a study's
# stage, a law file) is held under this number.
LAWS_VERSION = 2


class ExtrapolationError(UsageError):
    """A prediction was asked for farther out than the fitted runs support; says how far, and what runs it needs."""


class ExtrapolationWarning(UserWarning):
    """A prediction lies farther out than a law was tested by leaving out its own largest runs."""


class SetAsideWarning(UserWarning):
    """Runs that the others contradict were left out of a fit; says which and why."""


@dataclass(frozen=True)
class SetAside:
    """A loss that was left out of a fit because the other runs contradict it.

    Attributes:
        row: of the table that was fitted.
        target: column of the losses.
        value: the loss.
        expected: what a law of the other runs expects there.
    """

    row: int
    target: int
    value: float
    expected: float


# How rows and targets are called in messages; set by ``rows_named``.
_NAMES: ContextVar[tuple[Callable[[str, int], str | None], Sequence[str]] | None] = ContextVar("names", default=None)


@contextlib.contextmanager
def rows_named(row: Callable[[str, int], str | None], targets: Sequence[str] = ()) -> Iterator[None]:
    """Within this context messages call row ``i`` of array ``name`` by ``row(name, i)`` and targets by their names."""
    token = _NAMES.set((row, targets))
    try:
        yield
    finally:
        _NAMES.reset(token)


def row_name(name: str, row: int) -> str:
    """What messages call a row: ``row 3 of X``, or its file and line within ``rows_named``."""
    names = _NAMES.get()
    said = names[0](name, row) if names else None
    return said or f"row {row} of {name}"


def thing_name(name: str) -> str:
    """What messages call a thing with a name of its own, such as a curve: that, or its file within ``rows_named``."""
    names = _NAMES.get()
    return (names[0](name, -1) if names else None) or name


def target_name(target: int) -> str:
    """What messages call a column of losses: ``loss 2``, or its name within ``rows_named``."""
    names = _NAMES.get()
    return f"'{names[1][target]}'" if names and target < len(names[1]) else f"loss {target}"


def report_set_aside(found: Sequence[SetAside], name: str = "y") -> None:
    """Warn of losses that were left out of a fit, in one line."""
    if not found:
        return
    said = [
        f"{row_name(name, one.row)}: {target_name(one.target)} is {one.value:.4g}, where the other runs expect about "
        f"{one.expected:.4g}"
        for one in found[:SHOWN]
    ]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    count = "1 loss contradicts" if len(found) == 1 else f"{len(found)} losses contradict"
    warnings.warn(
        f"{count} the other runs and is left out of the fit: {'; '.join(said)}{more}", SetAsideWarning, stacklevel=3
    )


# So many of what was set aside are named in one message.
SHOWN = 8

# Weights are often published with three decimals, so that rows miss a sum of 1 by some thousandths.
SUM_TOLERANCE = 0.005

# Beyond this factor no law answers: what was fitted says nothing any more.
MOST_EXTRAPOLATION = 1000.0


class Prediction(NamedTuple):
    """An expected value with the ends of its interval; three arrays of the same shape, or three scalars."""

    mean: Array
    low: Array
    high: Array


def require_fitted(estimator: object, attribute: str) -> None:
    """Raise UsageError unless ``fit`` has set ``attribute``."""
    if not hasattr(estimator, attribute):
        raise UsageError(f"this {type(estimator).__name__} is not fitted yet; call fit first")


def check_reach(factor: float, tested: float, what: str, remedy: str, most: float = MOST_EXTRAPOLATION) -> None:
    """Warn where ``factor``, how far beyond the fitted runs an answer lies, exceeds what was ``tested`` by holding out.

    Raises:
        ExtrapolationError: beyond ``most``; ``what`` lies there, and ``remedy`` says which runs it needs.
    """
    if factor > most:
        raise ExtrapolationError(f"{what} lies {factor:.3g} times beyond the fitted runs, more than {most:g}; {remedy}")
    if factor > max(tested, 1.0) * (1 + 1e-9):
        text = f"{what} lies {factor:.3g} times beyond the fitted runs; the law was tested up to {max(tested, 1.0):.3g}"
        warnings.warn(text, ExtrapolationWarning, stacklevel=3)


def checked_interval(interval: float) -> float:
    """``interval`` if it is a probability strictly between 0 and 1, else UsageError."""
    if not 0 < interval < 1:
        raise UsageError(f"interval is {interval!r}; give a probability between 0 and 1, such as 0.9")
    return interval


def checked_draws(bootstraps: int) -> int:
    """``bootstraps`` if an interval can be had from so many draws, else UsageError."""
    if bootstraps < 2:
        raise UsageError(f"bootstraps is {bootstraps}; at least 2 are needed for an interval")
    return bootstraps


def checked_noise(noise: float | None) -> float | None:
    """``noise`` if it is unknown or a relative standard deviation strictly between 0 and 1, else UsageError."""
    if noise is not None and not 0 < noise < 1:
        raise UsageError(f"noise is {noise!r}; give the relative standard deviation of a run, such as 0.003")
    return noise


def checked_table(
    name: str, values: ArrayLike, *, columns: int | None = None, labels: Sequence[str] | None = None, rows: int = 1
) -> Array:
    """``values`` as a finite array [n, columns] with n >= rows.

    Raises:
        UsageError: not a table of numbers, wrong number of columns, too few rows, or a value that is not finite, with
            its row and column (and the column's label if given).
    """
    try:
        table = np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} is not a table of numbers: {error}") from error
    if table.ndim != 2 or table.shape[1] == 0 or (columns is not None and table.shape[1] != columns):
        wanted = f"[rows, {columns if columns is not None else 'columns'}]"
        raise UsageError(f"{name} has shape {list(table.shape)}; it must be {wanted}")
    if len(table) < rows:
        raise UsageError(f"{name} has {len(table)} rows; at least {rows} are needed")
    refuse_where(~np.isfinite(table), name, table, "give a finite number or leave the row out", labels)
    return table


def checked_positive(name: str, values: ArrayLike, **shape: object) -> Array:
    """As ``checked_table``, and every value above 0."""
    table = checked_table(name, values, **shape)  # type: ignore[arg-type]
    labels = shape.get("labels")
    refuse_where(table <= 0, name, table, "it must be above 0", labels)  # type: ignore[arg-type]
    return table


def checked_mixtures(name: str, values: ArrayLike, *, columns: int | None = None, rows: int = 1) -> Array:
    """Mixtures [n, d], one a row: not negative, each row summing to 1 within 0.5 % (then scaled to sum to 1 exactly).

    Raises:
        UsageError: as ``checked_table``; a negative weight; a row that does not sum to 1.
    """
    table = checked_table(name, values, columns=columns, rows=rows)
    refuse_where(table < 0, name, table, "a weight must not be negative", None)
    total = table.sum(1)
    for row in np.flatnonzero(np.abs(total - 1) > SUM_TOLERANCE):
        where = row_name(name, int(row))
        raise UsageError(f"{where} (columns 0 to {table.shape[1] - 1}) sums to {total[row]:.6g}, not to 1")
    return np.asarray(table / total[:, None])


def refuse_where(bad: NDArray[np.bool_], name: str, table: Array, remedy: str, labels: Sequence[str] | None) -> None:
    """Raise UsageError for the first true entry of ``bad``, naming row, column and value of ``table``."""
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        label = f" ({labels[column]})" if labels else ""
        others = f" ({int(bad.sum()) - 1} more such values)" if bad.sum() > 1 else ""
        raise UsageError(f"row {row}, column {column}{label} of {name} is {table[row, column]:g}; {remedy}{others}")
