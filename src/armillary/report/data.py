"""What a report shows, as plain frozen data: the caller fills it from its stores, the report reads nothing else.

Trade-offs: the report recomputes no statistics, so intervals and verdicts come with the data and what is printed is
what was decided; it only sums costs and compares an interval with zero. A part that does not exist yet is ``None`` (or
an empty sequence) and is left out, so that a report can be written after every stage.

Units, unless a field says otherwise: losses are validation losses in nats per token, weights are shares that sum to 1,
``low`` and ``high`` are the ends of 90% intervals, times end in ``_s`` and are seconds, dates are ISO 8601.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Question:
    """What was asked: weights over validation domains, limits of the mixture, the model, its tokens, the budget."""

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
    """A domain of the corpus. ``trained`` is false for a domain that is only examined; ``train_tokens`` is then 0."""

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

    ``predicted[i]`` was made by a law that did not see run i (held out); ``form`` names the form that was chosen.
    """

    domain: str
    predicted: Sequence[float]
    measured: Sequence[float]
    spearman: float
    rmse: float
    form: str = ""


@dataclass(frozen=True)
class CandidateRow:
    """A mixture run again with new seeds: the law's prediction of the target loss and what each seed measured."""

    name: str
    weights: Mapping[str, float]
    predicted: float
    low: float
    high: float
    measured: Sequence[float]


@dataclass(frozen=True)
class MixtureChoice:
    """Which candidate was taken. ``difference`` is best candidate minus ``reference`` on the target, at proxy size.

    ``significant`` says whether the best candidate was better than the reference beyond doubt; where it was not,
    ``taken`` is the reference.
    """

    taken: str
    reference: str
    difference: float
    low: float
    high: float
    significant: bool


@dataclass(frozen=True)
class MixturePart:
    """The mixture study. ``design[i][j]`` is the weight of ``domains[j]`` in run i.

    ``target_fit`` is the law against the target loss itself. ``epochs`` are passes over each domain's text at the
    tokens of the target run, under the found mixture.
    """

    domains: Sequence[str]
    design: Sequence[Sequence[float]]
    fits: Sequence[DomainFit]
    candidates: Sequence[CandidateRow]
    choice: MixtureChoice | None
    natural: Mapping[str, float]
    uniform: Mapping[str, float]
    found: Mapping[str, float]
    epochs: Mapping[str, float] = field(default_factory=dict)
    target_fit: DomainFit | None = None


@dataclass(frozen=True)
class AnnealRow:
    """A branch that decays over the last ``share`` of the budget; ``losses`` are target losses, one per seed."""

    share: float
    shape: str
    mixture: str
    losses: Sequence[float]


@dataclass(frozen=True)
class LrCurve:
    """Learning rate of a branch: ``lr[i]`` at ``steps[i]``."""

    label: str
    steps: Sequence[int]
    lr: Sequence[float]


@dataclass(frozen=True)
class CurveLaw:
    """What the law of the learning-rate curve says of the training loss.

    ``nearby`` holds pairs of a share of decay and the loss it gives away against the best; ``endings`` pairs of a
    number of steps and what is lost by ending there without having planned it. Losses in nats per token.
    """

    shape: str
    share: float
    nearby: Sequence[tuple[float, float]]
    endings: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class AnnealPart:
    """The annealing study. ``chosen`` is an index of ``branches``; ``significant`` says whether it beat the next."""

    branches: Sequence[AnnealRow]
    chosen: int
    significant: bool
    curves: Sequence[LrCurve] = ()
    law: CurveLaw | None = None


@dataclass(frozen=True)
class LadderPoint:
    """A run of the ladder: loss per validation domain, and the target loss."""

    family: str
    depth: int
    parameters: int
    tokens: int
    flops: float
    losses: Mapping[str, float]
    target: float


@dataclass(frozen=True)
class LadderLaw:
    """The law of one family for the target loss, and its band over a grid of compute (``flops``, growing)."""

    family: str
    parameters: Mapping[str, float]
    flops: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    form: str = ""


@dataclass(frozen=True)
class HoldoutRow:
    """A point the law was asked for without having seen it."""

    what: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class FamilyRow:
    """A family at the target's compute: what its law promises on the target."""

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
    """The ladder: its runs, one law per family, errors on held-out points, and the target run.

    ``note`` stands below the chart, such as how the laws' grid of compute is split into parameters and tokens.
    """

    points: Sequence[LadderPoint]
    laws: Sequence[LadderLaw]
    holdout: Sequence[HoldoutRow] = ()
    target: TargetPoint | None = None
    families: Sequence[FamilyRow] = ()
    note: str = ""


@dataclass(frozen=True)
class PredictionRow:
    """A prediction and its outcome; ``measured`` and ``inside`` are None before the verdict."""

    domain: str
    predicted: float
    low: float
    high: float
    measured: float | None = None
    inside: bool | None = None


@dataclass(frozen=True)
class PredictionPart:
    """The recorded prediction. ``started_at`` is when the target run began, None before it has.

    ``target`` is the prediction of the target loss itself; ``rows`` are the validation domains. ``extrapolation`` is
    the target run's compute over the largest of the ladder.
    """

    recorded_at: str
    started_at: str | None
    rows: Sequence[PredictionRow]
    target: PredictionRow | None = None
    extrapolation: float | None = None


@dataclass(frozen=True)
class RecordRow:
    """How a law fared on measurements that it was asked for without having seen them.

    ``law`` is ``mixture_law``, ``scaling_law`` or ``anneal_law``, shown in the report's language; ``what`` says what
    was held out. ``inside`` of ``forecasts`` lay within the interval, which was ``width`` of the loss wide on average;
    both are None for forecasts without an interval. ``error`` is the mean relative error; ``extrapolation`` how many
    times beyond the fitted compute the farthest lay.
    """

    law: str
    what: str
    forecasts: int
    inside: int | None
    error: float
    width: float | None
    extrapolation: float


@dataclass(frozen=True)
class ArmRow:
    """The target model on one mixture: ``name`` is ``found``, ``natural`` or ``uniform``.

    ``losses`` are target losses, one per seed, with their mean and interval; ``domain_losses`` and ``bits_per_byte``
    are means over the seeds per validation domain.
    """

    name: str
    losses: Sequence[float]
    mean: float
    low: float
    high: float
    domain_losses: Mapping[str, float] = field(default_factory=dict)
    bits_per_byte: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DifferenceRow:
    """Target loss of ``arm`` minus that of ``reference``: below zero, ``arm`` is better."""

    arm: str
    reference: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class LossCurve:
    """A loss of a target run over its training: ``losses[i]`` after ``tokens[i]`` tokens."""

    label: str
    tokens: Sequence[float]
    losses: Sequence[float]


@dataclass(frozen=True)
class Sample:
    """Text that the target model wrote after ``prompt``."""

    prompt: str
    text: str


@dataclass(frozen=True)
class CostRow:
    """What a stage cost: ``core_s`` is the sum over its processes of the time they ran.

    The words corpus, mixture, confirm, anneal, ladder, predict, target, arms, verdict, export, total, everything,
    recipe and code are shown in the report's language; any other ``stage`` as it is.
    """

    stage: str
    runs: int
    flops: float
    wall_s: float
    core_s: float


@dataclass(frozen=True)
class Command:
    """How to get a number of this report again. ``what`` is translated as in CostRow."""

    what: str
    command: str


@dataclass(frozen=True)
class LineageRow:
    """One link of the chain from the weights back to the text: the id of a run, a corpus, a recipe, a code version.

    ``what`` is translated as in CostRow.
    """

    what: str
    id: str


@dataclass(frozen=True)
class ReportData:
    """All that a report shows.

    ``total`` is the cost of the whole; without it, the sum of ``cost`` is shown. ``warnings`` are sentences in the
    report's language. Where ``differences`` are not given, the verdict speaks of the mixture's choice at proxy size.
    """

    name: str
    question: Question
    created_at: str
    code_version: str
    corpus: Sequence[DomainRow] = ()
    mixture: MixturePart | None = None
    anneal: AnnealPart | None = None
    ladder: LadderPart | None = None
    record: Sequence[RecordRow] = ()
    prediction: PredictionPart | None = None
    arms: Sequence[ArmRow] = ()
    differences: Sequence[DifferenceRow] = ()
    curves: Sequence[LossCurve] = ()
    samples: Sequence[Sample] = ()
    cost: Sequence[CostRow] = ()
    total: CostRow | None = None
    reproduce: Sequence[Command] = ()
    lineage: Sequence[LineageRow] = ()
    warnings: Sequence[str] = ()
