"""The fitted values of a law as JSON, exact to the last bit: each field has a stable name, a type and a shape.

An estimator declares its fields once, as ``{name in the file: (attribute, codec)}``; that declaration writes the file,
reads it and documents it. The names outlive the attributes: renaming an attribute changes the declaration's right side
and no file. Reading checks every type and shape, so that a file cannot give a law values that ``fit`` could not.

Arrays of more than a few numbers are base64 of their bytes: exact and small. Their shapes are written as letters, such
as ``t p``. A letter has one value in a record and all records inside it; a number is a fixed size.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# Arrays up to this size are lists of numbers, larger ones base64.
READABLE = 16

_DTYPES = {"f": ("<f8", "<f4"), "i": ("<i8", "<i4")}
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

# The size of each letter of a shape.
Sizes = dict[str, int]


class ValueInFileError(ValueError):
    """A value that a law cannot hold; the message has its place, the value and the requirement."""


class Codec(Protocol):
    """Converts one value to JSON and back."""

    def write(self, value: Any, at: str) -> Any:
        """``value`` as JSON; raises ValueInFileError with the place ``at`` if it is not of this kind."""

    def read(self, value: Any, at: str, sizes: Sizes) -> Any:
        """The value from JSON; raises ValueInFileError likewise. ``sizes`` holds the sizes of shape letters so far."""


# A field of a record: the codec of an attribute of the same name, or the attribute's name and its codec.
Fields = Mapping[str, "Codec | tuple[str, Codec]"]


def _refuse(at: str, value: Any, wanted: str) -> ValueInFileError:
    shown = repr(value)
    return ValueInFileError(f"{at} is {shown if len(shown) <= 60 else shown[:57] + '...'}; it must be {wanted}")


@dataclass(frozen=True)
class Text:
    """A string."""

    def write(self, value: Any, at: str) -> Any:
        """See ``Codec``."""
        return self.read(value, at, {})

    def read(self, value: Any, at: str, sizes: Sizes) -> str:
        """See ``Codec``."""
        if not isinstance(value, str):
            raise _refuse(at, value, "a string")
        return str(value)


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def write(self, value: Any, at: str) -> Any:
        """See ``Codec``."""
        return self.read(bool(value) if isinstance(value, np.bool_) else value, at, {})

    def read(self, value: Any, at: str, sizes: Sizes) -> bool:
        """See ``Codec``."""
        if not isinstance(value, bool):
            raise _refuse(at, value, "true or false")
        return value


@dataclass(frozen=True)
class Whole:
    """A whole number."""

    def write(self, value: Any, at: str) -> Any:
        """See ``Codec``."""
        return self.read(value.item() if isinstance(value, np.integer) else value, at, {})

    def read(self, value: Any, at: str, sizes: Sizes) -> int:
        """See ``Codec``."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise _refuse(at, value, "a whole number")
        return value


@dataclass(frozen=True)
class Number:
    """A number; with ``finite=False`` also ``"nan"``, ``"inf"`` and ``"-inf"``, which JSON writes as strings."""

    finite: bool = True

    def write(self, value: Any, at: str) -> Any:
        """See ``Codec``."""
        plain = value.item() if isinstance(value, np.generic) else value
        if isinstance(plain, float) and not math.isfinite(plain) and not self.finite:
            return str(plain)
        return self.read(plain, at, {})

    def read(self, value: Any, at: str, sizes: Sizes) -> float:
        """See ``Codec``."""
        if not self.finite and isinstance(value, str) and value in _NOT_FINITE:
            return _NOT_FINITE[value]
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise _refuse(at, value, "a finite number" if self.finite else "a number")
        return value


@dataclass(frozen=True)
class Maybe:
    """A value or null."""

    codec: Codec

    def write(self, value: Any, at: str) -> Any:
        """See ``Codec``."""
        return None if value is None else self.codec.write(value, at)

    def read(self, value: Any, at: str, sizes: Sizes) -> Any:
        """See ``Codec``."""
        return None if value is None else self.codec.read(value, at, sizes)


@dataclass(frozen=True)
class Listed:
    """Any number of values of one kind, as a list."""

    codec: Codec

    def write(self, value: Any, at: str) -> Any:
        """See ``Codec``."""
        return [self.codec.write(part, f"{at}[{i}]") for i, part in enumerate(value)]

    def read(self, value: Any, at: str, sizes: Sizes) -> list[Any]:
        """See ``Codec``."""
        if not isinstance(value, list):
            raise _refuse(at, value, "a list")
        return [self.codec.read(part, f"{at}[{i}]", sizes) for i, part in enumerate(value)]


@dataclass(frozen=True)
class Names:
    """Any sequence of strings; read as a tuple."""

    def write(self, value: Any, at: str) -> Any:
        """See ``Codec``."""
        if isinstance(value, str):
            raise _refuse(at, value, "a list of names")
        return Listed(Text()).write(value, at)

    def read(self, value: Any, at: str, sizes: Sizes) -> tuple[str, ...]:
        """See ``Codec``."""
        return tuple(Listed(Text()).read(value, at, sizes))


@dataclass(frozen=True)
class Together:
    """A fixed number of values; read as a tuple."""

    codecs: tuple[Codec, ...]

    def write(self, value: Any, at: str) -> Any:
        """See ``Codec``."""
        pairs = zip(self.codecs, value, strict=True)
        return [codec.write(part, f"{at}[{i}]") for i, (codec, part) in enumerate(pairs)]

    def read(self, value: Any, at: str, sizes: Sizes) -> tuple[Any, ...]:
        """See ``Codec``."""
        if not isinstance(value, list) or len(value) != len(self.codecs):
            raise _refuse(at, value, f"a list of {len(self.codecs)}")
        pairs = zip(self.codecs, value, strict=True)
        return tuple(codec.read(part, f"{at}[{i}]", sizes) for i, (codec, part) in enumerate(pairs))


@dataclass(frozen=True)
class Mapped:
    """Values by name. ``codec`` is one codec for all, or a function from a name to its codec (None if unknown)."""

    codec: Codec | Callable[[str], Codec | None]

    def write(self, value: Any, at: str) -> Any:
        """See ``Codec``."""
        return {name: self._of(name, at).write(part, f"{at}.{name}") for name, part in value.items()}

    def read(self, value: Any, at: str, sizes: Sizes) -> dict[str, Any]:
        """See ``Codec``."""
        if not isinstance(value, dict):
            raise _refuse(at, value, "an object")
        return {name: self._of(name, at).read(part, f"{at}.{name}", sizes) for name, part in value.items()}

    def _of(self, name: str, at: str) -> Codec:
        codec = self.codec(name) if callable(self.codec) else self.codec
        if codec is None:
            raise ValueInFileError(f"{at} has '{name}', which this version does not know")
        return codec


@dataclass(frozen=True)
class Array:
    """An array of numbers of a ``shape`` such as ``n 4``; ``...`` at its end stands for any further axes."""

    shape: str
    kind: str = "f"
    finite: bool = True

    def write(self, value: Any, at: str) -> Any:
        """See ``Codec``."""
        array = np.asarray(value)
        dtype = array.dtype.newbyteorder("<").str
        self._check(array, dtype, at, {})
        array = array.astype(dtype)
        readable = array.size <= READABLE and bool(np.isfinite(array).all())
        data = array.ravel().tolist() if readable else base64.b64encode(array.tobytes()).decode()
        return {"dtype": dtype, "shape": list(array.shape), "data": data}

    def read(self, value: Any, at: str, sizes: Sizes) -> NDArray[Any]:
        """See ``Codec``."""
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data"}:
            raise _refuse(at, value, "an array with dtype, shape and data")
        dtype, shape, data = value["dtype"], value["shape"], value["data"]
        if dtype not in _DTYPES[self.kind]:
            raise _refuse(f"{at}.dtype", dtype, " or ".join(_DTYPES[self.kind]))
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise _refuse(f"{at}.shape", shape, "a list of sizes")
        if isinstance(data, list):
            wanted = (int, float) if self.kind == "f" else (int,)
            if not all(type(number) in wanted and abs(number) < 2**63 for number in data):
                raise _refuse(f"{at}.data", data, "numbers" if self.kind == "f" else "whole numbers")
            flat = np.array(data, dtype)
        else:
            try:
                flat = np.frombuffer(base64.b64decode(data, validate=True), dtype)
            except (TypeError, ValueError) as error:
                raise ValueInFileError(f"{at}.data is not the encoded data of an array ({error})") from error
        if flat.size != math.prod(shape):
            raise ValueInFileError(f"{at}.data has {flat.size} numbers, but its shape is {shape}")
        array = flat.reshape(shape).astype(np.dtype(dtype).newbyteorder("="))
        self._check(array, dtype, at, sizes)
        return array

    def _check(self, array: NDArray[Any], dtype: str, at: str, sizes: Sizes) -> None:
        if dtype not in _DTYPES[self.kind]:
            raise _refuse(f"{at}.dtype", dtype, " or ".join(_DTYPES[self.kind]))
        letters = self.shape.split()
        known = letters[: len(letters) - (letters[-1:] == ["..."])]
        wanted = [int(letter) if letter.isdigit() else sizes.get(letter) for letter in known]
        fits = len(array.shape) == len(known) or (len(known) < len(letters) and len(array.shape) > len(known))
        pairs = list(zip(known, wanted, array.shape, strict=False))
        # A letter may occur twice in a shape.
        square = len({(letter, size) for letter, _, size in pairs}) == len({letter for letter, _, _ in pairs})
        if not fits or not square or any(size not in (there, None) for _, size, there in pairs):
            wanted_shape = ", ".join(
                letter if size is None else str(size) for letter, size in zip(known, wanted, strict=True)
            )
            raise ValueInFileError(f"{at} has shape {list(array.shape)}; it must have [{wanted_shape}]")
        if self.finite and not np.isfinite(array).all():
            raise ValueInFileError(f"{at} has a value that is not finite")
        sizes.update({letter: size for letter, _, size in pairs if not letter.isdigit()})


@dataclass(frozen=True)
class Record:
    """An object with ``fields``; ``make`` creates it from its attributes."""

    make: Callable[..., Any]
    fields: Fields

    def write(self, value: Any, at: str) -> Any:
        """See ``Codec``."""
        return write_fields(self.fields, lambda attribute: getattr(value, attribute), at)

    def read(self, value: Any, at: str, sizes: Sizes) -> Any:
        """See ``Codec``."""
        return self.make(**read_fields(self.fields, value, at, dict(sizes)))


def restored(kind: type) -> Callable[..., Any]:
    """Creates an object of a class from its attributes without calling its constructor."""

    def make(**attributes: Any) -> Any:
        made: Any = object.__new__(kind)
        vars(made).update(attributes)
        return made

    return make


def attributes_of(fields: Fields) -> dict[str, tuple[str, Codec]]:
    """The attribute and codec of each field."""
    return {name: field if isinstance(field, tuple) else (name, field) for name, field in fields.items()}


def write_fields(fields: Fields, get: Callable[[str], Any], at: str) -> dict[str, Any]:
    """A JSON object of ``fields``; ``get`` returns the value of an attribute, ``at`` is the object's place."""
    pairs = attributes_of(fields).items()
    return {name: codec.write(get(attribute), f"{at}.{name}") for name, (attribute, codec) in pairs}


def read_fields(fields: Fields, value: Any, at: str, sizes: Sizes) -> dict[str, Any]:
    """Attributes from a JSON object with exactly these ``fields``.

    Raises:
        ValueInFileError: a field is missing, unknown, or not of its kind or shape.
    """
    if not isinstance(value, dict):
        raise _refuse(at, value, "an object")
    for name in fields:
        if name not in value:
            raise ValueInFileError(f"{at} lacks '{name}'")
    for name in value:
        if name not in fields:
            raise ValueInFileError(f"{at} has '{name}', which this version does not know")
    pairs = attributes_of(fields).items()
    return {attribute: codec.read(value[name], f"{at}.{name}", sizes) for name, (attribute, codec) in pairs}
