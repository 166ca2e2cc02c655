"""Writes the report: plain data in, one self-contained HTML file out.

The template holds the layout, this file the few judgements that the page makes of its own: which sections there are,
whether an interval excludes zero, whether a prediction really came first. What a section lacks is left out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from armillary.files import write_file
from armillary.recipe import ArmillaryError
from armillary.report import charts
from armillary.report import format as fmt
from armillary.report.data import CostRow, DifferenceRow, MixtureChoice, PredictionPart, PredictionRow, ReportData
from armillary.report.text import Language, Words

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def write_report(data: ReportData, path: Path, language: Language = "en") -> None:
    """Write ``data`` as one HTML file that loads nothing from elsewhere; an older file is replaced atomically.

    The same data gives the same bytes.

    Raises:
        ArmillaryError: the file cannot be written.
    """
    # a young model may write control characters, which HTML forbids
    html = _CONTROL.sub("\ufffd", _render(data, Words(language)))
    try:
        write_file(path, html.encode("utf-8", errors="replace"))
    except OSError as error:
        raise ArmillaryError(
            f"{path}: the report cannot be written ({error.strerror}); give a path that can be written"
        ) from error


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("armillary.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _render(data: ReportData, words: Words) -> str:
    predictions = [] if data.prediction is None else list(data.prediction.rows)
    if data.prediction is not None and data.prediction.target is not None:
        predictions.insert(0, data.prediction.target)
    judged = [row for row in predictions if row.inside is not None]

    def by_domain(field: str, domain: str) -> list[float | None]:
        return [getattr(row, field).get(domain) for row in data.arms]

    return _template().render(
        data=data,
        t=words,
        name=words.name,
        fmt=fmt,
        mean=fmean,
        charts=charts,
        sections=_sections(data),
        total=_total(data),
        target=_target(data),
        predictions=predictions,
        judged=judged,
        judged_domains=[row for row in judged if row is not data.prediction.target] if data.prediction else [],
        unseen={row.name for row in data.corpus if not row.trained},
        by_domain=by_domain,
        ladder_domains=list(data.ladder.points[0].losses) if data.ladder and data.ladder.points else [],
        recorded=_recorded(data.prediction, words) if data.prediction else "",
        choice=_choice(data.mixture.choice, words) if data.mixture and data.mixture.choice else "",
        choice_taken=data.mixture.choice.taken if data.mixture and data.mixture.choice else None,
        gains=[_gain(difference, words) for difference in data.differences],
        recipe=_recipe(data),
        record_inside=sum(row.inside for row in data.record if row.inside is not None),
        record_forecasts=sum(row.forecasts for row in data.record if row.inside is not None),
    )


def _sections(data: ReportData) -> list[str]:
    """Ids of the sections that have something to show, in order."""
    present: dict[str, Any] = {
        "verdict": True,
        "question": True,
        "corpus": data.corpus,
        "mixture": data.mixture,
        "anneal": data.anneal,
        "ladder": data.ladder,
        "record": data.record,
        "prediction": data.prediction,
        "arms": data.arms,
        "curves": data.curves,
        "samples": data.samples,
        "cost": data.cost,
        "reproduce": data.reproduce,
        "lineage": data.lineage,
    }
    return [section for section, content in present.items() if content]


def _total(data: ReportData) -> CostRow | None:
    if data.total is not None or not data.cost:
        return data.total
    return CostRow(
        "total",
        sum(row.runs for row in data.cost),
        sum(row.flops for row in data.cost),
        sum(row.wall_s for row in data.cost),
        sum(row.core_s for row in data.cost),
    )


def _target(data: ReportData) -> PredictionRow | None:
    """What was said and what was seen of the target loss, from the recorded prediction or else from the ladder."""
    if data.prediction is not None:
        return data.prediction.target
    if data.ladder is not None and (point := data.ladder.target) is not None:
        inside = None if point.measured is None else point.low <= point.measured <= point.high
        return PredictionRow("target", point.predicted, point.low, point.high, point.measured, inside)
    return None


def _recipe(data: ReportData) -> list[tuple[str, float, float]]:
    """The found mixture, largest weight first: domain, its weight, and its weight in the natural mixture."""
    if data.mixture is None:
        return []
    natural: Mapping[str, float] = data.mixture.natural
    found = sorted(data.mixture.found.items(), key=lambda item: -item[1])
    return [(domain, weight, natural.get(domain, 0.0)) for domain, weight in found]


def _recorded(part: PredictionPart, words: Words) -> Markup:
    recorded = fmt.date(part.recorded_at)
    if part.started_at is None:
        return words.sentence("recorded_only", recorded=recorded)
    said, began = fmt.moment(part.recorded_at), fmt.moment(part.started_at)
    if said >= began:
        return words.sentence("recorded_late", recorded=recorded, started=fmt.date(part.started_at))
    lead = fmt.duration(words, (began - said).total_seconds())
    return words.sentence("recorded", recorded=recorded, started=fmt.date(part.started_at), lead=lead)


def _choice(choice: MixtureChoice, words: Words) -> Markup:
    return words.sentence(
        "choice_significant" if choice.significant else "choice_not_significant",
        taken=words.name(choice.taken),
        reference=words.name(choice.reference),
        difference=fmt.difference(choice.difference, choice.low, choice.high),
    )


def _gain(row: DifferenceRow, words: Words) -> tuple[str, Markup]:
    """Whether the difference is ``better``, ``worse`` or ``undecided``, and the sentence that says so."""
    verdict = "better" if row.high < 0 else "worse" if row.low > 0 else "undecided"
    said = words.sentence(
        verdict,
        arm=words.name(row.arm),
        reference=words.name(row.reference),
        difference=fmt.difference(row.mean, row.low, row.high),
    )
    return verdict, said
