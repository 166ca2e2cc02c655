"""Writes the report: plain data in, one self-contained HTML file out.

The template holds the layout. This module decides what the page states: which sections are shown, whether an interval
excludes zero, whether the prediction was recorded before the run, and which sentence the numbers support. Missing parts
of a section are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from armillary.recipe import Language
from armillary.report import charts
from armillary.report import format as fmt
from armillary.report.teaching import teaching_section
from armillary.report.template import environment, write_page
from armillary.report.text import Words
from armillary.report.view import (
    AnnealPart,
    AnnealRow,
    BreakEven,
    Chain,
    CostRow,
    DifferenceRow,
    LrPart,
    MixtureChoice,
    Multiplier,
    Note,
    PredictionPart,
    PredictionRow,
    ReportData,
    ScoreRow,
    compared_row,
)

# Notes about names of this program; other notes are about domains, families and files with the user's names.
_ABOUT_STUDIES = frozenset({"failures", "reason", "adjusted"})


def write_report(data: ReportData, path: Path, language: Language = "en") -> None:
    """Write ``data`` as one self-contained HTML file; an older file is replaced atomically.

    The same data gives the same bytes.

    Raises:
        ArmillaryError: the file cannot be written.
    """
    write_page(path, _render(data, Words(language)))


def _render(data: ReportData, words: Words) -> str:
    predictions = [] if data.prediction is None else list(data.prediction.rows)
    if data.prediction is not None and data.prediction.target is not None:
        predictions.insert(0, data.prediction.target)
    judged = [row for row in predictions if row.inside is not None]

    def by_domain(field: str, domain: str) -> list[float | None]:
        return [getattr(row, field).get(domain) for row in data.arms]

    return (
        environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            t=words,
            name=words.name,
            fmt=fmt,
            mean=fmean,
            charts=charts,
            sections=_sections(data),
            seeds=_seeds(data, words),
            total=_total(data),
            target=_target(data),
            predictions=predictions,
            judged=judged,
            hits=_hits(judged, words),
            unseen={row.name for row in data.corpus if not row.trained},
            by_domain=by_domain,
            ladder_domains=list(data.ladder.points[0].losses) if data.ladder and data.ladder.points else [],
            ladder_inside=sum(
                p.low <= p.target <= p.high for p in data.ladder.points if p.low is not None and p.high is not None
            )
            if data.ladder
            else 0,
            pending_sentence=_pending(data.prediction, data.workspace, words) if data.prediction else "",
            ladder_laws=[p for p in data.ladder.points if p.predicted is not None] if data.ladder else [],
            recorded=_recorded(data.prediction, words) if data.prediction else [],
            choice=_choice(data.mixture.choice, words) if data.mixture and data.mixture.choice else "",
            choice_taken=data.mixture.choice.taken if data.mixture and data.mixture.choice else None,
            anneal_choice=_anneal_choice(data.anneal, words) if data.anneal else "",
            lr_choice=_lr_choice(data.lr, words) if data.lr else "",
            lr_target=next((row for row in data.lr.rows if row.of == "target"), None) if data.lr else None,
            scores_sentences=_scores(data.scores, words) if data.scores else [],
            scores_compared=compared_row(data.scores) if data.scores else None,
            scores_paired=any(row.reference is not None for row in data.scores),
            gains=[_gain(difference, words) for difference in data.differences],
            multipliers=[_multiplier(multiplier, words) for multiplier in data.multipliers],
            break_even=_break_even(data.break_even, words) if data.break_even else [],
            pays=_pays(data.break_even, words) if data.break_even else "",
            reproduce_lead=words.sentence("reproduce_lead", folder=_code(data.workspace), out=_code("--out")),
            teaching=teaching_section(data.teaching, words) if data.teaching is not None else "",
            notes=[_note(note, words) for note in data.notes],
            recipe=_recipe(data),
            record_inside=sum(row.inside for row in data.record if row.inside is not None),
            record_forecasts=sum(row.forecasts for row in data.record if row.inside is not None),
        )
    )


def _sections(data: ReportData) -> list[str]:
    """Ids of the non-empty sections, in order."""
    present: dict[str, Any] = {
        "verdict": True,
        "question": True,
        "corpus": data.corpus,
        "mixture": data.mixture,
        "anneal": data.anneal,
        "lr": data.lr,
        "ladder": data.ladder,
        "record": data.record,
        "prediction": data.prediction,
        "arms": data.arms,
        "regrets": data.regrets,
        "curves": data.curves,
        "scores": data.scores,
        "samples": data.samples,
        "teaching": data.teaching,
        "diversity": data.teaching is not None and data.teaching.diversity,
        "failures": data.failures,
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
    """The predicted and the measured target loss, from the recorded prediction or else from the ladder."""
    if data.prediction is not None:
        return data.prediction.target
    if data.ladder is not None and (point := data.ladder.target) is not None:
        inside = None if point.measured is None else point.low <= point.measured <= point.high
        return PredictionRow("target", point.predicted, point.low, point.high, point.measured, inside)
    return None


def _recipe(data: ReportData) -> list[tuple[str, list[float], float | None]]:
    """The recipe's domains, largest weight first: weight in each phase of the target run, and in the natural mixture.

    Before the phases are known, the found mixture counts as the only phase.
    """
    natural: Mapping[str, float] = data.mixture.natural if data.mixture else {}
    phases = [phase.weights for phase in data.recipe.phases] if data.recipe else []
    if not phases and data.mixture:
        phases = [data.mixture.found]
    names = dict.fromkeys(name for weights in phases for name in weights)
    rows = [(name, [weights.get(name, 0.0) for weights in phases], natural.get(name)) for name in names]
    return sorted(rows, key=lambda row: -row[1][0])


def _seeds(data: ReportData, words: Words) -> str:
    """The number of finished seeds: one number if all arms have the same, else by arm."""
    counts = {row.name: len(row.losses) for row in data.arms}
    if len(set(counts.values())) == 1:
        return str(next(iter(counts.values())))
    listed = ""
    for name, count in counts.items():
        arm = words("arm_seeds", arm=words.name(name), seeds=count)
        listed = words("pair", first=listed, second=arm) if listed else arm
    return listed


def _scores(rows: Sequence[ScoreRow], words: Words) -> list[Markup | str]:
    """Whether the published model is better than chance, and better than the model on the natural mixture."""
    total, row = rows[0], compared_row(rows)
    level = "above" if total.low > 0.5 else "below" if total.high < 0.5 else "at"
    lead: list[Markup | str] = [words.sentence(f"scores_{level}", value=fmt.percent(total.value), n=fmt.count(total.n))]
    if row.difference_low is None or row.difference_high is None:
        return [*lead, words("scores_alone")]
    difference = fmt.points(row.difference, row.difference_low, row.difference_high)
    key = "better" if row.difference_low > 0 else "worse" if row.difference_high < 0 else "undecided"
    compared = words.sentence(f"scores_{key}", difference=difference, n=fmt.count(row.n), p=fmt.relation(row.p))
    return [*lead, compared] if row is total else [*lead, compared, words("scores_weighted")]


def _hits(judged: list[PredictionRow], words: Words) -> Markup | str:
    """How many measurements are inside their predicted intervals, for the domains and for the target."""
    if not judged:
        return ""
    domains = sum(row.domain != "target" for row in judged)
    return words.sentence(
        "hits" if domains < len(judged) else "hits_domains",
        inside=sum(bool(row.inside) for row in judged),
        predictions=words.n("predictions", len(judged)),
        domains=words.n("domains", domains),
    )


def _recorded(part: PredictionPart, words: Words) -> list[Markup]:
    """The time of the prediction, whether it came before the run, and the chain of records."""
    recorded = fmt.date(part.recorded_at)
    if part.started_at is None:
        sentences = [words.sentence("recorded_unknown" if part.begun else "recorded_only", recorded=recorded)]
    else:
        before, began = fmt.moment(part.recorded_at), fmt.moment(part.started_at)
        lead = fmt.duration(words, (began - before).total_seconds())
        key = "recorded_late" if before >= began else "recorded"
        sentences = [words.sentence(key, recorded=recorded, started=fmt.date(part.started_at), lead=lead)]
    if part.extrapolation is not None:
        sentences.append(words.sentence("extrapolated", factor=fmt.ratio(part.extrapolation)))
    if part.chain is not None:
        sentences += _chain(part.chain, words)
    return sentences


def _pending(part: PredictionPart, workspace: str, words: Words) -> Markup:
    """The sentence that the verdict is pending, with the reason."""
    if not part.pending:
        return words.sentence("pending_plain")
    return words.sentence("pending", cause=_code(part.pending), command=_code(f"armillary train {workspace}"))


def _chain(chain: Chain, words: Words) -> list[Markup]:
    if chain.problem is not None:
        return [words.sentence("chain_broken", problem=_code(chain.problem))]
    sentences = [words.sentence("chain_intact", records=words.n("records", chain.records), head=_code(chain.head))]
    if chain.prediction is not None:
        key = "chain_order_prediction" if chain.verdict is None else "chain_order"
        sentences.append(words.sentence(key, prediction=chain.prediction, verdict=chain.verdict))
    return sentences


def _choice(choice: MixtureChoice, words: Words) -> Markup:
    key = "choice_significant" if choice.significant else "choice_not_significant"
    if not choice.others or choice.best is None:
        key = "choice_untested"
    return words.sentence(
        key,
        taken=words.candidate(choice.taken),
        reference=words.candidate(choice.reference),
        best=words.candidate(choice.best or ""),
        others=words.n("mixtures" if key == "choice_not_significant" else "others", choice.others),
        difference=fmt.difference(choice.difference, choice.low, choice.high),
    )


def _anneal_choice(part: AnnealPart, words: Words) -> Markup:
    def named(row: AnnealRow) -> str:
        return words(
            "anneal_name",
            share=fmt.share(row.share),
            shape=words.name(row.shape),
            mixture=words.mixture(row.power, row.own),
        )

    taken = part.branches[part.chosen]
    key = "anneal_only" if part.best is None else "anneal_chosen" if part.significant else "anneal_tied"
    return words.sentence(
        key,
        shape=words.name(taken.shape),
        share=fmt.share(taken.share),
        mixture=words.mixture(taken.power, taken.own),
        reference=named(part.branches[part.reference]),
        best="" if part.best is None else named(part.branches[part.best]),
        others=words.n("others", sum(row.complete for row in part.branches) - 1),
        difference=fmt.difference(part.difference, part.low, part.high),
    )


def _lr_choice(part: LrPart, words: Words) -> Markup:
    if part.difference is None:
        return words.sentence(f"lr_{part.taken}_untested")
    return words.sentence(f"lr_{part.taken}", depth=part.depth, difference=fmt.difference(*part.difference))


def _gain(row: DifferenceRow, words: Words) -> tuple[str, list[Markup]]:
    """Whether the difference is ``better``, ``worse``, ``undecided`` or ``untested``, and the evidence."""
    names = {"arm": words.name(row.arm), "reference": words.name(row.reference)}
    if row.mean is None or row.low is None or row.high is None:
        return "untested", [words.sentence("untested", **names)]
    verdict = "better" if row.high < 0 else "worse" if row.low > 0 else "undecided"
    difference = fmt.difference(row.mean, row.low, row.high)
    ratios = {
        name: fmt.ratio(math.exp(value)) for name, value in (("ratio", row.mean), ("low", row.low), ("high", row.high))
    }
    return verdict, [
        words.sentence(verdict, difference=difference, seeds=words.n("seeds", row.seeds), **names),
        words.sentence("perplexity", reference=names["reference"], **ratios),
    ]


def _multiplier(row: Multiplier, words: Words) -> Markup:
    names = {"arm": words.name("found"), "reference": words.name(row.reference)}
    if row.value is None or row.low is None or row.high is None:
        return words.sentence("multiplier_beyond", reference=names["reference"])
    # the larger the multiplier, the smaller the share of the compute
    shares = {"share": row.value, "low": row.high, "high": row.low}
    return words.sentence(
        "multiplier",
        value=fmt.ratio(row.value),
        **names,
        # 0: the law does not reach the reference's loss at any of its sizes
        **{key: fmt.percent(1 / value) if value else "∞" for key, value in shares.items()},
    )


def _break_even(part: BreakEven, words: Words) -> list[Markup]:
    costs = {"studies": fmt.power(part.studies), "run": fmt.power(part.run)}
    if part.multiplier is None:
        return [words.sentence("break_even_unknown", **costs)]
    if part.at is None:
        return [words.sentence("break_even_none", **costs)]
    if part.high is None or part.low is None:
        between = words("break_even_open")
    else:
        between = words("break_even_range", low=fmt.power(part.low), high=fmt.power(part.high))
    lead = words.sentence(
        "break_even",
        **costs,
        multiplier=fmt.ratio(part.multiplier),
        reference=words.name(part.reference),
        saved=fmt.ratio(part.multiplier - 1),
        at=fmt.power(part.at),
        factor=fmt.ratio(part.at / part.run),
        range=between,
    )
    return [
        lead,
        words.sentence("pays_here" if part.run >= part.at else "pays_not_here"),
        words.sentence("break_even_assumes"),
    ]


def _pays(part: BreakEven, words: Words) -> Markup | str:
    """The same in one sentence, if there is an answer."""
    if part.multiplier is None:
        return ""
    if part.at is None:
        return words.sentence("card_pays_none")
    return words.sentence(
        "card_pays", reference=words.name(part.reference), at=fmt.power(part.at), factor=fmt.ratio(part.at / part.run)
    )


def _note(note: Note, words: Words) -> Markup:
    things = words.n("problems" if note.what == "domain" else "runs", note.count)
    subject: str = words.name(note.subject) if note.what in _ABOUT_STUDIES else note.subject
    return words.sentence(
        f"note_{note.what}",
        subject=_code(subject) if note.what == "unreadable" else subject,
        detail=_code(note.detail),
        things=things,
        end=words(f"end_{note.end}") if note.end else "",
    )


def _code(text: str) -> Markup:
    """Text that is shown verbatim, such as an id, a path or an error message."""
    return Markup("<code>{}</code>").format(text)
