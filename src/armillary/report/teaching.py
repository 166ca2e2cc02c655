"""Writes the results of a post-training: a section of a recipe's report, or a separate page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from armillary.recipe import Language
from armillary.report import charts
from armillary.report import format as fmt
from armillary.report.diversity import diversity_section
from armillary.report.template import environment, write_page
from armillary.report.text import Words
from armillary.report.view import TaughtGain, TaughtScore, TeachingPart


@dataclass(frozen=True)
class TeachingPage:
    """A page on one post-training: its ``title``, its time of writing (ISO 8601), and the program's version."""

    title: str
    part: TeachingPart
    created_at: str
    code_version: str


def teaching_section(part: TeachingPart, words: Words) -> Markup:
    """The section as HTML, followed by the section on the diversity of the questions."""
    template = environment().get_template("teaching.html.j2")
    diversity = diversity_section(part.diversity, words.language) if part.diversity else ""
    lead = _lead(part, words)
    gain = "" if part.gain is None else _gain(part.gain, words)
    return Markup(
        template.render(
            part=part, t=words, name=words.name, fmt=fmt, charts=charts, lead=lead, gain=gain, diversity=diversity
        )
    )


def write_teaching(page: TeachingPage, path: Path, language: Language = "en") -> None:
    """Write the page as one self-contained HTML file; an older file is replaced atomically.

    Raises:
        ArmillaryError: the file cannot be written.
    """
    words = Words(language)
    html = (
        environment()
        .get_template("teaching_page.html.j2")
        .render(
            t=words,
            fmt=fmt,
            title=page.title,
            part=page.part,
            created_at=page.created_at,
            version=page.code_version,
            section=teaching_section(page.part, words),
        )
    )
    write_page(path, html)


def _lead(part: TeachingPart, words: Words) -> list[Markup]:
    trained = next((row.items for row in part.questions if row.name.startswith("questions")), 0)
    families = words.join([words.task(name) for name in part.families])
    sentences = [words.sentence("teaching_lead", items=words.n("questions", trained), families=families)]
    row = _decisive(part.scores, part.taken)
    if row is None or row.against is None:
        sentences.append(words.sentence("teaching_not_better"))
    else:
        difference = fmt.points(row.difference, row.difference_low, row.difference_high)
        names = {"model": words.name(row.model), "against": words.name(row.against)}
        about = {"n": fmt.count(row.n), "p": fmt.relation(row.p)}
        sentences.append(words.sentence("teaching_better", difference=difference, **names, **about))
    if part.gain is not None:
        sentences.append(words.sentence("chance_line", chance=fmt.percent(part.gain.chance)))
    return sentences


def _decisive(scores: Sequence[TaughtScore], taken: str) -> TaughtScore | None:
    """The held-out score of the model taken."""
    return next((row for row in scores if row.model == taken and row.subset is None), None)


def _gain(gain: TaughtGain, words: Words) -> Markup:
    measured = fmt.percent(gain.measured)
    if gain.predicted is None or gain.low is None or gain.high is None:
        reason = Markup("<code>{}</code>").format(gain.reason)
        return words.sentence("gain_unpredicted", reason=reason, measured=measured)
    return words.sentence(
        "gain_verdict",
        parts=words.join([fmt.count(size) for size in gain.parts]),
        items=fmt.count(gain.items),
        predicted=fmt.percent(gain.predicted),
        interval=fmt.percents(gain.low, gain.high),
        recorded=fmt.date(gain.recorded_at),
        measured=measured,
        verdict=words("inside" if gain.inside else "outside"),
    )
