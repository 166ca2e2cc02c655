"""Writes the diversity of sets of items as a section of HTML, or as a page of its own: bars side by side, from numbers.

The data is that of ``armillary post diversity --json``: by the name of each set, ``items``, ``sampled``, ``distinct``
(by n), ``spread``, ``coverage``, ``effective`` and ``types`` (by field, the number of items by value).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from armillary.files import write_file
from armillary.recipe import ArmillaryError


def diversity_section(sets: Mapping[str, Mapping[str, Any]]) -> Markup:
    """The section as HTML, to be put into a page with the style of the reports."""
    first = next(iter(sets.values()))
    measures = [
        *((f"distinct {n}-grams", [one["distinct"][n] for one in sets.values()], 1.0) for n in first["distinct"]),
        ("spread of the embedding", [one["spread"] for one in sets.values()], 1.0),
        ("share of clusters with a question", [one["coverage"] for one in sets.values()], 1.0),
        ("effective clusters", [one["effective"] for one in sets.values()], None),
    ]
    histograms = [
        (name, value, [one["types"].get(name, {}).get(value, 0) / one["items"] for one in sets.values()])
        for name in first["types"]
        for value in sorted({value for one in sets.values() for value in one["types"].get(name, {})})
    ]
    rows = [(name, values, top or max(*values, 1e-12)) for name, values, top in measures]
    return Markup(_environment().get_template("diversity.html.j2").render(sets=sets, rows=rows, histograms=histograms))


def diversity_page(path: Path, sets: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the section as one self-contained file; an older file is replaced atomically.

    Raises:
        ArmillaryError: the file cannot be written.
    """
    html = _environment().get_template("diversity_page.html.j2").render(section=diversity_section(sets))
    try:
        write_file(path, html.encode("utf-8", errors="replace"))
    except OSError as error:
        raise ArmillaryError(
            f"{path}: cannot be written ({error.strerror}); give a path that can be written"
        ) from error


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("armillary.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
