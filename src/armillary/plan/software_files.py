"""Families of training programs, from ``software.toml``, and the family of a table's row."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files

from armillary.plan.job import Software

DEFAULT = "megatron"


@cache
def _read() -> dict[str, tuple[Software, list[str], list[str]]]:
    read = tomllib.loads(files("armillary.plan").joinpath("software.toml").read_text("utf-8"))
    return {
        name: (Software(name=name, **{k: v for k, v in entry.items() if k not in ("words", "within")}),
               entry["words"], entry.get("within", []))
        for name, entry in read.items()
    }  # fmt: skip


def software(name: str) -> Software:
    """The family of this name."""
    return _read()[name][0]


def software_of(source: str, note: str) -> Software:
    """The family named in a source or a note; by default Megatron's as others run it."""
    text = f"{source} {note}".lower()
    for family, words, within in _read().values():
        if any(word in text for word in words) and (not within or any(word in text for word in within)):
            return family
    return software(DEFAULT)


def family_names() -> tuple[str, ...]:
    """The names of all families."""
    return tuple(_read())
