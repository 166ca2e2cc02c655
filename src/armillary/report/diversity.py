"""Writes the diversity of sets of items as a section of HTML, or as a separate page: bars side by side, from numbers.

The data is that of ``armillary post diversity --json``: by the name of each set, ``items``, ``sampled``, ``distinct``
(by n), ``spread``, ``coverage``, ``effective`` and ``types`` (by field, the number of items by value).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from armillary.recipe import Language
from armillary.report import format as fmt
from armillary.report.template import environment, write_page
from armillary.report.text import Words


def diversity_section(sets: Mapping[str, Mapping[str, Any]], language: Language = "en") -> Markup:
    """The section as HTML, to be put into a page with the style of the reports."""
    first, words = next(iter(sets.values())), Words(language)
    measures = [
        *(
            (words("distinct_grams", n=n), [one["distinct"][n] for one in sets.values()], 1.0)
            for n in first["distinct"]
        ),
        (words("spread"), [one["spread"] for one in sets.values()], 1.0),
        (words("coverage"), [one["coverage"] for one in sets.values()], 1.0),
        (words("effective_clusters"), [one["effective"] for one in sets.values()], None),
    ]
    histograms = [
        (name, value, [one["types"].get(name, {}).get(value, 0) / one["items"] for one in sets.values()])
        for name in first["types"]
        for value in sorted({value for one in sets.values() for value in one["types"].get(name, {})})
    ]
    rows = [(name, values, top or max(*values, 1e-12)) for name, values, top in measures]
    template = environment().get_template("diversity.html.j2")
    return Markup(template.render(sets=sets, rows=rows, histograms=histograms, t=words, name=words.name, fmt=fmt))


def diversity_page(path: Path, sets: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the section as one self-contained file; an older file is replaced atomically.

    Raises:
        ArmillaryError: the file cannot be written.
    """
    write_page(path, environment().get_template("diversity_page.html.j2").render(section=diversity_section(sets)))
