"""The content of a report as plain frozen data. The caller fills it from its stores; the report reads nothing else.

Trade-offs: the report recomputes no statistics. Intervals and verdicts come with the data, so it prints exactly the
recorded decisions; it only sums costs and compares an interval with zero. A part that does not exist yet is ``None``
(or an empty sequence) and is left out, so that a report can be written after every stage.

Units, unless a field says otherwise: losses are validation losses in nats per token, weights are shares that sum to 1,
``low`` and ``high`` are the ends of 90% intervals, times end in ``_s`` and are seconds, dates are ISO 8601.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Question:
    """The question: weights over validation domains, limits of the mixture, the model, its tokens, the budget."""

    target: Mapping[str, float]
    model: str
    parameters: int | None = None
    tokens: int | None = None
    budget: str | None = None
    max_epochs: float | None = None
    floors: Mapping[str, float] = field(default_factory=dict)
    ceilings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DomainRow:
    """A domain of the corpus. ``trained`` is false for a domain that is only examined; ``train_tokens`` is then 0.

    ``source`` does not contain folders of the machine; ``licence`` is empty if unknown.
    """

    name: str
    source: str
    licence: str
    trained: bool
    train_tokens: int
    validation_tokens: int
    documents: int
    duplicates: int
    bytes_per_token: float


@dataclass(frozen=True)
class DomainFit:
    """The mixture law against the proxies for one validation domain, over the design's n runs.

    ``predicted[i]`` comes from a law fitted without run i (held out); ``form`` names the chosen form. ``ratio`` is the
    spread over the design divided by the noise between pairs of runs with one seed, None if it is unknown.
    """

    domain: str
    predicted: Sequence[float]
    measured: Sequence[float]
    spearman: float
    rmse: float
    form: str = ""
    ratio: float | None = None


@dataclass(frozen=True)
class CandidateRow:
    """A mixture run again with new seeds: the law's prediction of the target loss and each seed's measurement."""

    name: str
    weights: Mapping[str, float]
    predicted: float
    low: float
    high: float
    measured: Sequence[float]


@dataclass(frozen=True)
class MixtureChoice:
    """The choice of a mixture. ``difference`` is ``best`` minus ``reference`` on the target, at proxy size.

    ``best`` has the lowest mean of the ``others`` mixtures that were compared with the reference. ``significant`` says
    whether it is better than the reference beyond chance; if not, ``taken`` is the reference. ``others`` is 0 if no
    mixture could be compared; ``best`` is then None.
    """

    taken: str
    reference: str
    difference: float
    low: float
    high: float
    significant: bool
    best: str | None
    others: int


@dataclass(frozen=True)
class Reserve:
    """The last proxies of the mixture study, trained after a first fit.

    ``beyond`` of the ``runs`` extend the tried range of ``domains``; the others surround the best mixture. ``stopped``
    is where the final optimum lies: ``inside``, at the ``limits``, or at an edge with the ``reserve`` spent.
    """

    runs: int
    beyond: int
    domains: Sequence[str]
    stopped: str


@dataclass(frozen=True)
class MixturePart:
    """The mixture study. ``design[i][j]`` is the weight of ``domains[j]`` in run i.

    ``target_fit`` is the law against the target loss itself. ``reserve`` is None if no proxies were kept back. With two
    phases, ``design``, ``found`` and the candidates show the stable phase, and ``second`` both phases of the best
    candidate.
    """

    domains: Sequence[str]
    design: Sequence[Sequence[float]]
    fits: Sequence[DomainFit]
    candidates: Sequence[CandidateRow]
    choice: MixtureChoice | None
    natural: Mapping[str, float]
    uniform: Mapping[str, float]
    found: Mapping[str, float]
    target_fit: DomainFit | None = None
    reserve: Reserve | None = None
    second: TwoPhases | None = None


@dataclass(frozen=True)
class TwoPhases:
    """The law's best candidate of two phases, with the ends of all values within one standard error of it.

    ``rows`` have a domain, its weight in the stable phase with its two ends, and the same in the annealing. ``share``
    is that of the decay, with its ends. ``error`` is the standard error in nats per token.
    """

    rows: Sequence[tuple[str, tuple[float, float, float], tuple[float, float, float]]]
    share: tuple[float, float, float]
    error: float


@dataclass(frozen=True)
class Phase:
    """A part of a run with one mixture: steps ``first`` to ``last``, counted from 1; ``weights`` of the domains."""

    first: int
    last: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Recipe:
    """The training data of the target run: its phases in order, and the passes over each domain in the whole run.

    ``measured``: whether the passes were counted by the run, or are only planned.
    """

    phases: Sequence[Phase]
    passes: Mapping[str, float]
    measured: bool


@dataclass(frozen=True)
class AnnealRow:
    """A branch that decays over the last ``share`` of the steps; ``losses`` are target losses, one per seed.

    It decays on the mixture found, each weight raised to ``power`` and scaled, or on its ``own`` mixture. Without all
    its seeds it is not ``complete``, and cannot be taken.
    """

    share: float
    shape: str
    losses: Sequence[float]
    power: float = 1.0
    complete: bool = True
    own: bool = False


@dataclass(frozen=True)
class LrCurve:
    """The learning rate of a branch: ``lr[i]`` at ``steps[i]``."""

    label: str
    steps: Sequence[int]
    lr: Sequence[float]


@dataclass(frozen=True)
class CurveLaw:
    """The forecast of the training loss by the law of the learning-rate curve.

    ``nearby`` holds pairs of a share of decay and its loss above the best; ``endings`` pairs of a number of steps and
    the additional loss of an unplanned end there. Losses in nats per token.
    """

    shape: str
    share: float
    nearby: Sequence[tuple[float, float]]
    endings: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class AnnealPart:
    """The annealing study. ``chosen``, ``reference`` and ``best`` are indices of ``branches``.

    ``reference`` is the usual choice; ``best`` is the other complete branch with the lowest mean, or None.
    ``difference`` is the target loss of ``best`` minus that of ``reference``; ``significant`` says whether it is better
    beyond chance. If not, ``chosen`` is the reference. The last ``further`` branches lie beyond the edge of the others;
    ``stopped`` says where the best branch lies in the end, as in ``Reserve``. It is empty if that is unknown.
    """

    branches: Sequence[AnnealRow]
    chosen: int
    significant: bool
    reference: int
    best: int | None = None
    difference: float = 0.0
    low: float = 0.0
    high: float = 0.0
    curves: Sequence[LrCurve] = ()
    law: CurveLaw | None = None
    further: int = 0
    stopped: str = ""


@dataclass(frozen=True)
class LrLine:
    """The runs of one depth on ``tokens``: ``losses[i]`` at ``multiples[i]`` of the rule's peak rate.

    ``law`` holds pairs of a multiple and the law's loss there; empty without a law.
    """

    depth: int
    tokens: int
    multiples: Sequence[float]
    losses: Sequence[float]
    law: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class LrRow:
    """The rule's peak rate and the tuned one for a size; ``of`` is ``tuned``, ``ladder`` or ``target``.

    ``best`` is the law's best rate with its 90 % interval, ``flat`` the rates within 0.1 % of its loss. ``gain`` with
    its interval is the relative cost of the rule's rate, ``probability`` that it is above 0.
    """

    of: str
    depth: int
    parameters: int
    tokens: int
    rule: float
    lr: float
    best: float
    low: float
    high: float
    flat: tuple[float, float]
    gain: float
    gain_low: float
    gain_high: float
    probability: float


@dataclass(frozen=True)
class LrPart:
    """The learning-rate study. ``taken`` is ``tuned`` or ``rule``.

    ``confirm`` has the target losses with new seeds at ``depth``, by ``rule`` and ``tuned``; ``difference`` is their
    mean difference with ends, or None if nothing was compared.
    """

    lines: Sequence[LrLine]
    rows: Sequence[LrRow]
    taken: str
    depth: int
    confirm: Mapping[str, Sequence[float]]
    difference: tuple[float, float, float] | None


@dataclass(frozen=True)
class LadderPoint:
    """A run of the ladder: loss per validation domain, and the target loss.

    ``predicted``, ``low`` and ``high`` are its family's law for the target loss at this run's parameters and tokens;
    None without a law.
    """

    family: str
    depth: int
    parameters: int
    tokens: int
    flops: float
    losses: Mapping[str, float]
    target: float
    predicted: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class LadderLaw:
    """The law of one family for the target loss; ``form`` is the averaged form with the largest weight."""

    family: str
    parameters: Mapping[str, float]
    form: str = ""


@dataclass(frozen=True)
class HoldoutRow:
    """A held-out run and the law's prediction of it.

    ``column`` is ``params``, ``tokens`` or ``compute``: runs with at least ``least`` of it were left out.
    """

    column: str
    least: float
    depth: int
    parameters: int
    tokens: int
    predicted: float
    measured: float


@dataclass(frozen=True)
class FamilyRow:
    """A family at the target's compute: its law's prediction of the target loss."""

    family: str
    parameters: int
    predicted: float
    low: float
    high: float


@dataclass(frozen=True)
class TargetPoint:
    """The target run on the ladder's chart. ``measured`` is None before it has run."""

    flops: float
    predicted: float
    low: float
    high: float
    measured: float | None = None


@dataclass(frozen=True)
class LadderPart:
    """The ladder: its runs, one law per family, errors on held-out points, and the target run."""

    points: Sequence[LadderPoint]
    laws: Sequence[LadderLaw]
    holdout: Sequence[HoldoutRow] = ()
    target: TargetPoint | None = None
    families: Sequence[FamilyRow] = ()


@dataclass(frozen=True)
class PredictionRow:
    """A prediction and its outcome; ``measured`` and ``inside`` are None before the verdict.

    With ``inside`` false and no measurement, the run diverged.
    """

    domain: str
    predicted: float
    low: float
    high: float
    measured: float | None = None
    inside: bool | None = None


@dataclass(frozen=True)
class Chain:
    """The store's chain of records: its length, the hash of the last record, and the break in the chain, or None.

    ``prediction`` and ``verdict`` are the numbers of these records in the chain, counted from 1.
    """

    records: int
    head: str
    problem: str | None = None
    prediction: int | None = None
    verdict: int | None = None


@dataclass(frozen=True)
class PredictionPart:
    """The recorded prediction. ``started_at`` is the start of the target run; None if unknown or not yet begun.

    ``target`` is the prediction of the target loss itself; ``rows`` are the validation domains. ``extrapolation`` is
    parameters times tokens of the target run over the largest of the ladder. ``begun`` says whether the run has begun.
    ``pending`` is the reason for a missing result, an empty string for an unknown reason, and None if there is a result
    or the run was not requested.
    """

    recorded_at: str
    started_at: str | None
    rows: Sequence[PredictionRow]
    target: PredictionRow | None = None
    extrapolation: float | None = None
    begun: bool = False
    pending: str | None = None
    chain: Chain | None = None


@dataclass(frozen=True)
class RecordRow:
    """The record of a law's predictions of held-out measurements.

    ``law`` is ``mixture_law``, ``scaling_law`` or ``anneal_law``, shown in the report's language; ``what`` names the
    held-out measurements: ``confirm``, ``branches``, or runs with at least ``least`` ``params`` or ``tokens``.
    ``inside`` of the ``forecasts`` were within the interval, whose mean width relative to the loss is ``width``; both
    are None for forecasts without an interval. ``error`` is the mean relative error. ``extrapolation`` is parameters
    times tokens of the farthest held-out run over those of the largest kept run.
    """

    law: str
    what: str
    forecasts: int
    inside: int | None
    error: float
    width: float | None
    extrapolation: float
    least: float | None = None


@dataclass(frozen=True)
class ArmRow:
    """The target model on one mixture: ``name`` is ``found``, ``natural`` or ``uniform``.

    ``losses`` are target losses, one per finished seed, with their mean and interval, which are None if too few seeds
    have finished; ``domain_losses`` and ``bits_per_byte`` are means over the seeds per validation domain.
    """

    name: str
    losses: Sequence[float]
    mean: float | None
    low: float | None
    high: float | None
    domain_losses: Mapping[str, float] = field(default_factory=dict)
    bits_per_byte: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DifferenceRow:
    """Target loss of ``arm`` minus that of ``reference`` over ``seeds`` pairs: below zero, ``arm`` is better.

    The numbers are None if fewer than two seeds have finished on both.
    """

    arm: str
    reference: str
    seeds: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Multiplier:
    """The value of a difference in compute, by the ladder's law.

    The found mixture reaches the target loss of ``reference`` with ``1 / value`` of its compute; parameters and tokens
    are reduced by the same factor. All three are None if the answer is outside the sizes of the ladder.
    """

    reference: str
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class BreakEven:
    """The smallest target run for which the studies pay off, in FLOPs, compared with training on ``reference``.

    ``multiplier`` is the compute multiplier; ``at`` is the size, and ``low`` and ``high`` are the sizes for the ends of
    the multiplier's interval. A size of None means that the studies never pay off. A ``multiplier`` of None means that
    the law does not support an answer.
    """

    reference: str
    studies: float
    run: float
    multiplier: float | None
    at: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class FailureRow:
    """A run without a result: its study, id, state (``failed``, ``diverged``, ...) and the cause."""

    study: str
    run: str
    status: str
    cause: str


@dataclass(frozen=True)
class Note:
    """A caveat: ``what`` names a sentence (``note_WHAT``) that is filled with the other fields.

    ``subject`` is a domain, a family or a file, and for ``failures``, ``reason`` and ``adjusted`` a word that is
    translated as in CostRow. ``detail`` is shown verbatim; ``end`` is ``low`` or ``high``.
    """

    what: str
    subject: str = ""
    detail: str = ""
    count: int = 0
    end: str = ""


@dataclass(frozen=True)
class LossCurve:
    """The loss curve of a target run: ``losses[i]`` after ``tokens[i]`` tokens."""

    label: str
    tokens: Sequence[float]
    losses: Sequence[float]


@dataclass(frozen=True)
class Sample:
    """Text that the target model of ``seed`` wrote after ``prompt``."""

    prompt: str
    text: str
    seed: int = 0


@dataclass(frozen=True)
class CostRow:
    """The cost of a stage: ``core_s`` is the time summed over its processes.

    The words corpus, mixture, confirm, anneal, ladder, predict, target, arms, verdict, export, total, everything,
    recipe and code are shown in the report's language; any other ``stage`` is shown verbatim.
    """

    stage: str
    runs: int
    flops: float
    wall_s: float
    core_s: float


@dataclass(frozen=True)
class Command:
    """The command that reproduces a number of this report. ``what`` is translated as in CostRow."""

    what: str
    command: str


@dataclass(frozen=True)
class ScoreRow:
    """Shares of right answers on the same ``n`` items of the domain ``subset``, with 95% intervals.

    The first row is the total. The second, named ``target``, is that of the target's domains with their weights; it is
    left out if it would repeat the total. ``value`` is the published model's. ``reference`` is that of the same model
    on the natural mixture, ``difference`` the first minus the second over pairs of answers, and ``p`` the probability
    of one as large by chance; all are None without such a model.
    """

    subset: str
    n: int
    value: float
    low: float
    high: float
    reference: float | None = None
    reference_low: float | None = None
    reference_high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None


def compared_row(rows: Sequence[ScoreRow]) -> ScoreRow:
    """The row on which two models are compared: the target, or the total if there is no row for the target."""
    return rows[1] if len(rows) > 1 and rows[1].subset == "target" else rows[0]


@dataclass(frozen=True)
class QuestionSet:
    """A set of questions with computed answers: ``of`` were drawn, ``verified`` is the share whose answer was confirmed
    by a second computation and by the verifier, with its 95% interval. All three are None if the questions come from a
    file.
    """

    name: str
    items: int
    verified: float | None = None
    low: float | None = None
    high: float | None = None
    of: int | None = None


@dataclass(frozen=True)
class TaughtScore:
    """Share of right answers of ``model`` on ``n`` questions of the set ``test``, with its 95% interval.

    ``subset`` is one family of the set; None is the whole. ``difference`` is the paired difference from the model
    ``against``, with its 95% interval and ``p``; None without a comparison.
    """

    model: str
    test: str
    subset: str | None
    n: int
    value: float
    low: float
    high: float
    against: str | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class ComparisonNeeds:
    """What the comparison of ``model`` with ``against`` on the set ``test`` needs, as stated before it.

    To see a ``difference`` in accuracy with a chance of ``power``, these two models need ``needed`` items and there are
    ``items``. With these, comparing the recipes needs ``seeds`` of each; None if no number is enough.
    """

    model: str
    against: str
    test: str
    difference: float
    power: float
    items: int
    needed: int
    seeds: int | None


@dataclass(frozen=True)
class TaughtGain:
    """The predicted held-out score of the first fine-tuning, from runs on ``parts`` of its questions.

    ``scores`` are those of the parts, ``items`` the questions of the whole run. ``predicted`` with its 90% interval is
    None if the gain could not be predicted; ``reason`` says why. ``journal`` has the numbers of prediction, start and
    verdict in the store's journal. ``proved`` is whether it proves that the prediction came first (None: no store).
    """

    parts: Sequence[int]
    scores: Sequence[float]
    items: int
    chance: float
    measured: float
    recorded_at: str
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    inside: bool | None = None
    reason: str = ""
    proved: bool | None = None
    journal: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Forgetting:
    """Loss on the text ``domain`` before and after the teaching: in ``nats`` per token or ``bits`` per byte."""

    domain: str
    before: float
    after: float
    unit: Literal["nats", "bits"] = "nats"


@dataclass(frozen=True)
class Talk:
    """A held-out question with the right answer, and the replies of the base model and the taught model."""

    question: str
    answer: str
    before: str
    after: str
    right: bool


@dataclass(frozen=True)
class TeachingPart:
    """A post-training: questions, models with their scores, the predicted gain, and the loss on other text.

    ``models`` are in the order of training; ``taken`` is the one that was kept. ``left_out`` are stages without a
    model, with the reason. ``diversity`` is that of ``diversity_section``. ``needs`` are the statements before the
    comparisons.
    """

    models: Sequence[str]
    taken: str
    questions: Sequence[QuestionSet]
    scores: Sequence[TaughtScore]
    families: Sequence[str] = ()
    gain: TaughtGain | None = None
    forgetting: Sequence[Forgetting] = ()
    talks: Sequence[Talk] = ()
    diversity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    needs: Sequence[ComparisonNeeds] = ()


@dataclass(frozen=True)
class LineageRow:
    """One link of the chain from the weights back to the text: the id of a run, a corpus, a recipe, a code version.

    ``what`` is translated as in CostRow.
    """

    what: str
    id: str


@dataclass(frozen=True)
class RegretRow:
    """What a choice costs against the best of ``options`` in hindsight, in nats per token, with its interval.

    ``what`` names the choice: ``mixture``, ``anneal`` and ``lr`` at the size of their study, ``target`` the mixture at
    the target's size.
    """

    what: str
    chosen: str
    options: int
    seeds: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ReportData:
    """The whole content of a report.

    ``total`` is the total cost; without it, the sum of ``cost`` is shown. ``curves`` are losses on held-out text,
    ``training_curves`` on training batches, both of the runs of ``curves_seed``. The first of ``scores`` is the total.
    ``workspace`` is the folder from which the commands of ``reproduce`` read. Without ``differences``, the verdict is
    about the mixture's choice at proxy size.
    """

    name: str
    question: Question
    created_at: str
    code_version: str
    corpus: Sequence[DomainRow] = ()
    recipe: Recipe | None = None
    mixture: MixturePart | None = None
    anneal: AnnealPart | None = None
    lr: LrPart | None = None
    ladder: LadderPart | None = None
    record: Sequence[RecordRow] = ()
    regrets: Sequence[RegretRow] = ()
    prediction: PredictionPart | None = None
    arms: Sequence[ArmRow] = ()
    differences: Sequence[DifferenceRow] = ()
    multipliers: Sequence[Multiplier] = ()
    curves: Sequence[LossCurve] = ()
    training_curves: Sequence[LossCurve] = ()
    curves_seed: int = 0
    scores: Sequence[ScoreRow] = ()
    samples: Sequence[Sample] = ()
    teaching: TeachingPart | None = None
    failures: Sequence[FailureRow] = ()
    cost: Sequence[CostRow] = ()
    total: CostRow | None = None
    break_even: BreakEven | None = None
    reproduce: Sequence[Command] = ()
    workspace: str = ""
    lineage: Sequence[LineageRow] = ()
    notes: Sequence[Note] = ()
