"""The common base of all laws: the form of a prediction, checks of the input, and the estimator's contract.

Input comes from users' tables, so each check names the wrong row and column. Rows and columns of arrays are counted
from 0, as in numpy. For arrays from a file, ``rows_named`` makes all messages name its lines. The contract is
scikit-learn's: the constructor only stores its arguments, ``fit`` returns the estimator, and fitted attributes end in
``_``. scikit-learn itself is not needed.
"""

from __future__ import annotations

import abc
import contextlib
import copy
import difflib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from armillary.laws.values import (
    Codec,
    Fields,
    Number,
    ValueInFileError,
    Whole,
    attributes_of,
    read_fields,
    write_fields,
)
from armillary.recipe import UsageError, counted

Array = NDArray[np.float64]

# Increased whenever the same table would give other fitted numbers. Stored results of a law (a study's stage, a law
# file) include this number.
LAWS_VERSION = 4


class ExtrapolationError(UsageError):
    """A requested prediction is too far beyond the fitted runs; the message says how far, and which runs it needs."""


class ExtrapolationWarning(UserWarning):
    """A prediction is farther beyond the fitted runs than the law's test on left-out largest runs."""


class SetAsideWarning(UserWarning):
    """Runs that contradict the others were left out of a fit; the message names them and the reason."""


@dataclass(frozen=True)
class SetAside:
    """A loss that was left out of a fit because it contradicts the other runs.

    Attributes:
        row: of the table that was fitted.
        target: column of the losses.
        value: the loss.
        expected: the prediction of a law of the other runs.
    """

    row: int
    target: int
    value: float
    expected: float


SET_ASIDE: Fields = {"row": Whole(), "target": Whole(), "value": Number(), "expected": Number()}


class Estimator(abc.ABC):
    """A law with the contract of scikit-learn's estimators, whose fitted values can be written and read.

    A subclass has a constructor that stores its arguments unchanged under their names, a ``fit`` that begins with
    ``_forget``, and two declarations. ``PARAMS`` has a codec for each argument of the constructor. ``FITTED`` has a
    stable name and a codec for each fitted attribute that predictions need.
    """

    PARAMS: ClassVar[Mapping[str, Codec]]
    FITTED: ClassVar[Fields]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The current arguments of the constructor by name; ``deep`` exists for scikit-learn and has no effect."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor; ``fit`` uses them from then on.

        Raises:
            UsageError: an unknown argument; no argument is changed.
        """
        known = self.get_params()
        for name in params:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean '{near[0]}'? It" if near else "it"
                raise UsageError(f"{type(self).__name__} has no parameter '{name}'; {hint} takes {', '.join(known)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def clone(self) -> Self:
        """A new estimator with copies of the same parameters, not fitted."""
        return type(self)(**copy.deepcopy(self.get_params()))

    def __repr__(self) -> str:
        """The class with the parameters that differ from the defaults."""
        usual = inspect.signature(type(self)).parameters
        changed = {name: repr(value) for name, value in self.get_params().items()}
        arguments = [f"{name}={text}" for name, text in changed.items() if text != repr(usual[name].default)]
        return f"{type(self).__name__}({', '.join(arguments)})"

    def to_json(self) -> dict[str, Any]:
        """``params`` and ``fitted`` as JSON, exact to the last bit.

        Raises:
            UsageError: not fitted; a parameter of a type that a file cannot hold.
        """
        require_fitted(self, *(attribute for attribute, _ in attributes_of(self.FITTED).values()))
        try:
            params = write_fields(self.PARAMS, lambda name: getattr(self, name), "params")
        except ValueInFileError as error:
            raise UsageError(f"this {type(self).__name__} cannot be written: {error}") from error
        return {"params": params, "fitted": write_fields(self.FITTED, lambda name: getattr(self, name), "fitted")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The fitted estimator from what ``to_json`` returned.

        Raises:
            ValueInFileError: a field is missing, unknown, or not of its kind or shape.
        """
        law = cls(**read_fields(cls.PARAMS, value.get("params"), "params", {}))
        vars(law).update(read_fields(cls.FITTED, value.get("fitted"), "fitted", {}))
        law._derive()
        return law

    @abc.abstractmethod
    def probe(self) -> list[Array]:
        """Predictions at points that the law chooses; a law file holds them to detect a different version of the code.

        Raises:
            UsageError: not fitted.
            ValueError: fitted values that do not belong together.
        """

    @abc.abstractmethod
    def _derive(self) -> None:
        """Set the fitted attributes that follow from those in ``FITTED``."""

    def _forget(self) -> None:
        """Delete the attributes of an earlier fit, so that a failed fit does not leave a mix of two."""
        for name in vars(self).keys() - self.get_params().keys():
            delattr(self, name)


# Names of rows and targets in messages; set by ``rows_named``.
_NAMES: ContextVar[tuple[Callable[[str, int], str | None], Sequence[str]] | None] = ContextVar("names", default=None)


@contextlib.contextmanager
def rows_named(row: Callable[[str, int], str | None], targets: Sequence[str] = ()) -> Iterator[None]:
    """In this context, messages name row ``i`` of array ``name`` as ``row(name, i)``, and targets by their names."""
    token = _NAMES.set((row, targets))
    try:
        yield
    finally:
        _NAMES.reset(token)


def row_name(name: str, row: int) -> str:
    """The name of a row in messages: ``row 3 of X``, or its file and line within ``rows_named``."""
    names = _NAMES.get()
    label = names[0](name, row) if names else None
    return label or f"row {row} of {name}"


def thing_name(name: str) -> str:
    """The name in messages of a named object such as a curve, or its file within ``rows_named``."""
    names = _NAMES.get()
    return (names[0](name, -1) if names else None) or name


def target_name(target: int) -> str:
    """The name in messages of a column of losses: ``loss 2``, or its own name within ``rows_named``."""
    names = _NAMES.get()
    return f"'{names[1][target]}'" if names and target < len(names[1]) else f"loss {target}"


def report_set_aside(found: Sequence[SetAside], name: str = "y") -> None:
    """Warn in one line about losses that were left out of a fit."""
    if not found:
        return
    parts = [
        f"{row_name(name, one.row)}: {target_name(one.target)} is {one.value:.4g}, but the other runs predict about "
        f"{one.expected:.4g}"
        for one in found[:SHOWN]
    ]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    one = len(found) == 1
    count = "1 loss contradicts" if one else f"{len(found)} losses contradict"
    warnings.warn(
        f"{count} the other runs and {'is' if one else 'are'} left out of the fit: {'; '.join(parts)}{more}",
        SetAsideWarning,
        stacklevel=3,
    )


# The largest number of losses named in one warning.
SHOWN = 8

# Weights are often published with three decimals, so that the sums of rows differ from 1 by some thousandths.
SUM_TOLERANCE = 0.005

# Largest factor of extrapolation; beyond it every law refuses to predict.
MOST_EXTRAPOLATION = 1000.0


class Prediction(NamedTuple):
    """An expected value with the ends of its interval; three arrays of the same shape, or three scalars."""

    mean: Array
    low: Array
    high: Array


def require_fitted(estimator: object, *attributes: str) -> None:
    """Raise UsageError unless ``fit`` has set ``attributes``."""
    if not all(hasattr(estimator, attribute) for attribute in attributes):
        raise UsageError(f"this {type(estimator).__name__} is not fitted yet; call fit first")


def check_reach(factor: float, tested: float, what: str, remedy: str, most: float = MOST_EXTRAPOLATION) -> None:
    """Warn if ``factor``, the distance beyond the fitted runs, exceeds the distance ``tested`` on held-out runs.

    Raises:
        ExtrapolationError: beyond ``most``; the message has ``what`` was predicted and the ``remedy``.
    """
    if factor > most:
        raise ExtrapolationError(f"{what} is {factor:.3g} times beyond the fitted runs, more than {most:g}; {remedy}")
    if factor > max(tested, 1.0) * (1 + 1e-9):
        text = f"{what} is {factor:.3g} times beyond the fitted runs; the law was tested up to {max(tested, 1.0):.3g}"
        warnings.warn(text, ExtrapolationWarning, stacklevel=3)


def checked_interval(interval: float) -> float:
    """``interval`` if it is a probability strictly between 0 and 1, else UsageError."""
    if not 0 < interval < 1:
        raise UsageError(f"interval is {interval!r}; give a probability between 0 and 1, such as 0.9")
    return interval


def checked_draws(bootstraps: int) -> int:
    """``bootstraps`` if this many draws give an interval, else UsageError."""
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
        raise UsageError(f"{name} has {counted(len(table), 'row')}; at least {rows} are needed")
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
