"""The recipe: one YAML file with the domains, target, limits, model, training and studies.

``load_recipe`` turns it into a checked ``Recipe`` before anything is trained. Every error names file, line and key, and
says what would be right.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, ValidationError, model_validator

from armillary.recipe.budget import parse_budget
from armillary.recipe.checking import check_document, nearest
from armillary.recipe.errors import FieldError, SeveralFieldsError, UsageError
from armillary.recipe.layout import Layout
from armillary.recipe.lesson import Lesson
from armillary.recipe.names import check_domain_name, check_folder_name, check_path, check_recipe_name, check_twins
from armillary.recipe.optimizers import OptimizerKind
from armillary.recipe.reader import read_yaml
from armillary.recipe.run import Decay
from armillary.recipe.shapes import Document, Family
from armillary.recipe.trackers import Trackers
from armillary.recipe.words import counted, first_problem
from armillary.recipe.written import blaming_changes

D = TypeVar("D", bound=Document)

# Fewer runs do not determine a law of the learning rate.
_LR_RUNS = 6
# Nor a law of two phases.
_PHASE_RUNS = 12
# Limits closer together than this leave a single mixture.
_ROOM = 1e-3


def _budget(text: str) -> str:
    try:
        parse_budget(text)
    except UsageError as error:
        raise ValueError(str(error).removeprefix(f"budget '{text}' ")) from error
    return text


Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Depth = Annotated[int, Field(ge=1)]
Power = Annotated[float, Field(ge=0, le=100)]
FolderName = Annotated[str, AfterValidator(check_folder_name)]
PathText = Annotated[str, AfterValidator(check_path)]
Budget = Annotated[str, AfterValidator(_budget)]


def _repeated(document: Document, *fields: str) -> list[FieldError]:
    """A problem for each of the lists ``fields`` with a duplicate entry."""
    problems = []
    for name in fields:
        values: Sequence[Any] = getattr(document, name)
        if any(a == b for a, b in pairwise(sorted(values))):
            problems.append(FieldError(f"{name} must differ, found {list(values)}", name))
    return problems


def _unless(problems: list[FieldError], document: D) -> D:
    """``document``, if there are no problems."""
    if problems:
        raise SeveralFieldsError(problems)
    return document


class DomainSpec(Document):
    """A domain of text: ``source`` is a file, a folder, or ``demo:NAME`` for a built-in one.

    With ``train: false`` all of the domain's text goes to validation. ``licence`` is the text's licence, for the report
    and the model card; it replaces the recorded licence of a built-in domain.
    """

    later: ClassVar[tuple[str, ...]] = ("licence",)

    source: PathText
    train: bool = True
    text_field: str = "text"
    licence: str | None = Field(default=None, min_length=1)


class TokenizerSpec(Document):
    """A byte-level BPE of ``vocab_size`` trained on the corpus, or the ``tokenizer.json`` of ``file``.

    ``end`` is the special token of ``file`` that ends a text, needed if the files beside it do not name one.
    """

    later: ClassVar[tuple[str, ...]] = ("end",)

    vocab_size: int = Field(default=2048, ge=257)
    file: PathText | None = None
    end: str | None = None

    @model_validator(mode="after")
    def _end_of_a_file(self) -> Self:
        if self.end is not None and self.file is None:
            raise FieldError(
                "applies only to a tokenizer given by 'file'; a trained one has its own end-of-text token", "end"
            )
        return self


class CorpusSpec(Document):
    """The domains, and how they become training and validation tokens.

    Documents longer than ``max_document_chars`` are cut at line ends. ``validation_share`` of the documents of each
    training domain is held out by hash. Of these, about ``validation_chars`` characters per domain at most are kept.
    """

    domains: dict[str, DomainSpec] = Field(min_length=1)
    tokenizer: TokenizerSpec = TokenizerSpec()
    validation_share: float = Field(default=0.05, gt=0, lt=0.5)
    validation_chars: int = Field(default=400_000, ge=1000)
    max_document_chars: int = Field(default=8_000, ge=100)

    @model_validator(mode="after")
    def _names_are_fit(self) -> Self:
        problems = check_twins(self.domains, "domains")
        for name in self.domains:
            try:
                check_domain_name(name)
            except ValueError as error:
                problems.append(FieldError(str(error), "domains", name))
        return _unless(problems, self)

    @property
    def training_domains(self) -> tuple[str, ...]:
        """Names of the domains one may train on, in the recipe's order."""
        return tuple(name for name, domain in self.domains.items() if domain.train)


class Limits(Document):
    """Limits of a mixture: passes over a domain at the target's tokens, and floors and ceilings of its weight."""

    max_epochs: float = Field(default=4.0, gt=0)
    floors: dict[str, Share] = Field(default_factory=dict)
    ceilings: dict[str, Share] = Field(default_factory=dict)


class MixtureTarget(Document):
    """The objective of a mixture: the weighted sum of the losses of some validation domains.

    A file may hold ``weights:`` (or ``target:``, as a recipe does) with the mapping below it, or the mapping alone.
    """

    weights: dict[str, NonNegativeFloat] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _mapping_alone(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "weights" in value:
            return value
        return {"weights": value["target"] if isinstance(value.get("target"), dict) else value}

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if not any(self.weights.values()):
            raise FieldError("no domain has a weight above 0", "weights")
        return self


class MixtureLimits(Limits):
    """Limits of a mixture without a corpus: ``domain_tokens`` of each domain and the run's ``budget_tokens``.

    A domain without an entry in ``domain_tokens`` has no limit on epochs. ``natural`` is the mixture to compare with.
    By default it is proportional to ``domain_tokens``, if these have every domain. A file may hold all of it below
    ``limits:``, as a recipe does.
    """

    budget_tokens: PositiveFloat | None = None
    domain_tokens: dict[str, PositiveFloat] = Field(default_factory=dict)
    natural: dict[str, Share] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _below_limits(cls, value: Any) -> Any:
        return value["limits"] if isinstance(value, dict) and list(value) == ["limits"] else value

    @model_validator(mode="after")
    def _budget_for_epochs(self) -> Self:
        if self.domain_tokens and self.budget_tokens is None:
            raise FieldError("the limit on epochs needs the tokens of the run", "budget_tokens")
        if self.budget_tokens is not None and not self.domain_tokens:
            raise FieldError("the limit on epochs needs the tokens of each domain", "domain_tokens")
        if self.natural and abs(sum(self.natural.values()) - 1) > 0.005:
            raise FieldError(f"the weights sum to {sum(self.natural.values()):.6g}, not to 1", "natural")
        return self


class TargetModel(Document):
    """The model one wants in the end: a family's name and its depth."""

    family: str = "base"
    depth: int = Field(ge=1)


class Training(Document):
    """How every run of the recipe trains.

    The peak learning rate of a model of width d is ``lr * (lr_width / d) ** lr_exponent``. With ``base_width``, rates
    and initial values follow the width by muP instead, as in ``OptimizerSpec``, and ``lr_exponent`` is 0. The target
    run takes ``tokens``, or ``budget_share`` of the recipe's budget, and is repeated with each of ``seeds``. With a
    ``layout``, the target run and the other arms run one after another, each over the layout's ranks.
    """

    later: ClassVar[tuple[str, ...]] = ("optimizer", "base_width", "layout")

    tokens: int | None = Field(default=None, ge=1)
    budget_share: float | None = Field(default=None, gt=0, lt=1)
    context_length: int = Field(default=128, ge=2)
    batch_sequences: int = Field(default=16, ge=1)
    lr: float = Field(default=4e-3, gt=0)
    lr_width: int = Field(default=64, ge=1)
    lr_exponent: float = Field(default=1.0, ge=0, le=2)
    weight_decay: float = Field(default=0.1, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    z_loss: float = Field(default=0.0, ge=0)
    warmup_share: float = Field(default=0.05, ge=0, lt=0.5)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seeds: tuple[Seed, ...] = Field(default=(1, 2, 3), min_length=2)
    optimizer: OptimizerKind = "adamw"
    base_width: int | None = Field(default=None, ge=1)
    layout: Layout | None = None

    @model_validator(mode="after")
    def _tokens_or_share(self) -> Self:
        if (self.tokens is None) == (self.budget_share is None):
            message = "give exactly one of 'tokens' (a number) and 'budget_share' (a share of the budget)"
            raise FieldError(message, "tokens")
        return _unless(_repeated(self, "seeds"), self)

    @model_validator(mode="after")
    def _one_rule_for_the_width(self) -> Self:
        if self.base_width is not None and self.lr_exponent:
            raise FieldError(
                f"scales the rate with the width, and so does lr_exponent ({self.lr_exponent:g}): "
                "set lr_exponent to 0, or remove base_width",
                "base_width",
            )
        return self

    def peak_lr(self, d_model: int) -> float:
        """Peak learning rate for a model of width ``d_model``."""
        return self.lr * float((self.lr_width / d_model) ** self.lr_exponent)


class MixtureStudy(Document):
    """Proxy runs over a design of mixtures; then ``candidates`` of the fitted law are run again with new seeds.

    The share ``reserve`` of the ``runs`` is trained after a first law: beyond the edge of the design if its optimum
    lies there, else around the optimum. With two ``phases``, the design has a mixture for the stable phase, another for
    the annealing, and the share of the decay.
    """

    later: ClassVar[tuple[str, ...]] = ("reserve", "phases")

    depth: int = Field(default=2, ge=1)
    runs: int = Field(default=40, ge=8)
    tokens: int = Field(default=300_000, ge=1)
    candidates: int = Field(default=3, ge=1)
    confirm_seeds: int = Field(default=3, ge=2)
    seed: Seed = 0
    reserve: float = Field(default=0.2, ge=0, le=0.5)
    phases: Literal[1, 2] = 1

    @model_validator(mode="after")
    def _enough_for_two_phases(self) -> Self:
        designed = self.runs - round(self.reserve * self.runs)
        if self.phases == 2 and designed < _PHASE_RUNS:
            raise FieldError(
                f"2 need {_PHASE_RUNS} runs or more before the reserve, and {self.runs} runs leave {designed}", "phases"
            )
        return self


class AnnealStudy(Document):
    """Branches that decay from one stable trunk: each share of the budget with each shape and annealing mixture.

    ``sharpen`` lists exponents: the mixture found, each weight raised to it and normalised (1 keeps the mixture). If
    the best annealing has the largest or smallest share, or the largest exponent, up to ``reserve`` further annealings
    are trained beyond it, at most with the share ``max_share`` and the exponent ``max_sharpen``.
    """

    later: ClassVar[tuple[str, ...]] = ("reserve", "max_share", "max_sharpen")

    depth: int = Field(default=2, ge=1)
    tokens: int = Field(default=400_000, ge=1)
    shares: tuple[PositiveShare, ...] = Field(default=(0.1, 0.2, 0.4), min_length=1)
    shapes: tuple[Decay, ...] = Field(default=("linear", "1-sqrt"), min_length=1)
    sharpen: tuple[Power, ...] = Field(default=(1.0,), min_length=1)
    seeds: int = Field(default=2, ge=2)
    reserve: int = Field(default=3, ge=0, le=20)
    max_share: PositiveShare = 1.0
    max_sharpen: Power = 8.0

    @model_validator(mode="after")
    def _each_branch_once(self) -> Self:
        problems = _repeated(self, "shares", "shapes", "sharpen")
        for field, listed in (("max_share", self.shares), ("max_sharpen", self.sharpen)):
            largest, limit = max(listed), getattr(self, field)
            if field in self.model_fields_set and limit < largest:
                problems.append(FieldError(f"is {limit:g}, below the largest value listed ({largest:g})", field))
        return _unless(problems, self)


class LadderStudy(Document):
    """Models of increasing depth; each trains a trunk and decays from it at ``fractions`` of ``tokens``.

    Every depth takes the same number of tokens. A law needs six points: depths times fractions times seeds.
    """

    depths: tuple[Depth, ...] = Field(default=(1, 2, 3), min_length=1)
    tokens: int = Field(default=600_000, ge=1)
    fractions: tuple[PositiveShare, ...] = Field(default=(0.25, 0.5, 1.0), min_length=1)
    families: tuple[str, ...] = ("base",)
    seeds: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _enough_for_a_law(self) -> Self:
        _unless(_repeated(self, "depths", "fractions", "families"), self)
        points = len(set(self.depths)) * len(set(self.fractions)) * self.seeds
        if points < 6 or min(len(set(self.depths)), len(set(self.fractions))) < 2:
            raise ValueError(
                f"{len(set(self.depths))} depths, {len(set(self.fractions))} fractions and {self.seeds} seeds are "
                f"{points} points; a law needs at least 6, from 2 depths or more and 2 fractions or more"
            )
        return self


class LrStudy(Document):
    """Short runs at ``multiples`` of the peak rate that the recipe's rule gives, to tune it for every size.

    ``depths`` defaults to the smallest of the ladder (``Studies.lr_depths``). Each run trains ``fractions`` of
    ``tokens``. A law of the rate needs six runs: depths times fractions times multiples. The rate that the law chooses
    is compared with the rule's on ``confirm_seeds`` new seeds.
    """

    depths: tuple[Depth, ...] | None = Field(default=None, min_length=1)
    tokens: int = Field(default=200_000, ge=1)
    fractions: tuple[PositiveShare, ...] = Field(default=(0.25, 0.5, 1.0), min_length=1)
    multiples: tuple[PositiveFloat, ...] = Field(default=(0.35, 0.7, 1.4, 2.8), min_length=3)
    confirm_seeds: int = Field(default=3, ge=2)

    @model_validator(mode="after")
    def _enough_for_a_law(self) -> Self:
        _unless(_repeated(self, *(("depths",) if self.depths else ()), "fractions", "multiples"), self)
        depths = 2 if self.depths is None else len(self.depths)
        runs = depths * len(self.fractions) * len(self.multiples)
        if runs < _LR_RUNS:
            raise ValueError(
                f"{counted(depths, 'depth')}, {counted(len(self.fractions), 'fraction')} and "
                f"{counted(len(self.multiples), 'multiple')} are {runs} runs; a law needs at least {_LR_RUNS}"
            )
        return self


class Studies(Document):
    """The studies that determine the recipe: mixture, annealing, ladder and, if it has a section, learning rate.

    With ``match_repetition``, the runs of the mixture and annealing studies draw from a part of each domain, in
    proportion to their tokens, so that they repeat it as often as the target run does.
    """

    later: ClassVar[tuple[str, ...]] = ("match_repetition", "lr")

    mixture: MixtureStudy = MixtureStudy()
    anneal: AnnealStudy = AnnealStudy()
    lr: LrStudy | None = None
    ladder: LadderStudy = LadderStudy()
    match_repetition: bool = True

    @property
    def lr_depths(self) -> tuple[int, ...]:
        """Depths of the learning-rate study, rising; by default the ladder's smallest three.

        The ladder's largest depth is not among them if that leaves two or more, since it costs more than all others.
        """
        if self.lr is None:
            return ()
        ladder = sorted(self.ladder.depths)
        return tuple(sorted(self.lr.depths or ladder[: max(2, min(3, len(ladder) - 1))]))


class Recipe(Document):
    """The recipe: domains, target, limits, model, training and studies, and the lesson after the verdict.

    ``trackers`` also get the metrics of every run.
    """

    later: ClassVar[tuple[str, ...]] = ("lesson", "trackers")

    format: Literal[1] = 1
    name: Annotated[str, AfterValidator(check_recipe_name)]
    corpus: CorpusSpec
    target: dict[str, float] = Field(min_length=1)
    limits: Limits = Limits()
    families: tuple[Family, ...] = Field(default=(Family(),), min_length=1)
    model: TargetModel
    training: Training
    study: Studies = Studies()
    budget: Budget | None = None
    validation_windows: int = Field(default=64, ge=1)
    lesson: Lesson | None = None
    trackers: Trackers = Trackers()

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        return _unless([*self._domain_problems(), *self._limit_problems(), *self._family_problems()], self)

    def _domain_problems(self) -> list[FieldError]:
        domains, trained = list(self.corpus.domains), self.corpus.training_domains
        problems = []
        if len(trained) < 2:
            message = "a mixture needs at least two domains with 'train: true'"
            problems.append(FieldError(message, "corpus", "domains"))
        problems += unknown_domains(self.target, domains, "target")
        problems += unknown_domains(self.limits.floors, trained, "limits", "floors")
        problems += unknown_domains(self.limits.ceilings, trained, "limits", "ceilings")
        if any(w < 0 for w in self.target.values()) or sum(self.target.values()) <= 0:
            problems.append(FieldError("weights must not be negative, and not all zero", "target"))
        if self.training.budget_share is not None and self.budget is None:
            problems.append(FieldError("needs a 'budget' (such as 20m or 1e15flops)", "training", "budget_share"))
        return problems

    def _limit_problems(self) -> list[FieldError]:
        """Floors and ceilings that allow no mixture, or a single one, for any text."""
        floors, ceilings = self.limits.floors, self.limits.ceilings
        crossed = [
            FieldError(f"the floor {floor:g} is above the ceiling {ceilings[name]:g}", "limits", "floors", name)
            for name, floor in floors.items()
            if floor > ceilings.get(name, 1.0)
        ]
        if sum(floors.values()) > 1 + 1e-9:
            return [*crossed, FieldError("the floors sum to more than 1", "limits", "floors")]
        names = self.corpus.training_domains
        lower = [floors.get(name, 0.0) for name in names]
        upper = [ceilings.get(name, 1.0) for name in names]
        if sum(upper) < 1 - 1e-9:
            message = f"the ceilings sum to {sum(upper):g}; a mixture sums to 1, so raise some"
            return [*crossed, FieldError(message, "limits", "ceilings")]
        room = [
            min(high, 1 - sum(lower) + low) - max(low, 1 - sum(upper) + high)
            for low, high in zip(lower, upper, strict=True)
        ]
        if not crossed and len(names) > 1 and max(room) < _ROOM:
            where = "floors" if floors else "ceilings"
            return [FieldError("floors and ceilings allow only one mixture; widen them", "limits", where)]
        return crossed

    def _family_problems(self) -> list[FieldError]:
        ladder, names = self.study.ladder, [family.name for family in self.families]
        problems = []
        if len(set(names)) != len(names):
            problems.append(FieldError(f"names must differ, found {names}", "families"))
        if self.model.family not in names:
            message = f"'{self.model.family}' is not in families{nearest(self.model.family, names)}"
            problems.append(FieldError(message, "model", "family"))
        for name in ladder.families:
            if name not in names:
                message = f"'{name}' is not in families{nearest(name, names)}"
                problems.append(FieldError(message, "study", "ladder", "families"))
        if self.model.family not in ladder.families and self.model.family in names:
            message = f"must include the target's family '{self.model.family}'"
            problems.append(FieldError(message, "study", "ladder", "families"))
        return problems or self._shape_problems()

    def _shape_problems(self) -> list[FieldError]:
        """Invalid shapes. Every shape is built now, because the last ones are trained only after hours of studies."""
        study = self.study
        wanted = {(self.model.family, depth) for depth in (self.model.depth, study.mixture.depth, study.anneal.depth)}
        wanted |= {(name, depth) for name in study.ladder.families for depth in study.ladder.depths}
        wanted |= {(self.model.family, depth) for depth in study.lr_depths}
        problems = []
        for name, depth in sorted(wanted):
            try:
                self.family(name).shape(depth, self.corpus.tokenizer.vocab_size)
            except ValidationError as error:
                reason = first_problem(error)
                problems.append(FieldError(f"'{name}' has no model of depth {depth}: {reason}", "families"))
        return problems[:1]

    def over(self, ranks: int) -> Recipe:
        """The recipe with its target run over ``ranks`` ranks, data parallel unless it has a layout.

        Raises:
            UsageError: its layout has another number of ranks.
        """
        layout = self.training.layout or Layout(dp_shard=ranks)
        layout.refuse_others(ranks)
        return self.model_copy(update={"training": self.training.model_copy(update={"layout": layout})})

    def family(self, name: str) -> Family:
        """The family of that name."""
        return next(family for family in self.families if family.name == name)

    @property
    def target_weights(self) -> dict[str, float]:
        """The target's weights, scaled to sum to 1, without zeros."""
        total = sum(self.target.values())
        return {name: weight / total for name, weight in self.target.items() if weight > 0}


def unknown_domains(names: Collection[str], known: Collection[str], *where: str) -> list[FieldError]:
    """A problem for each of ``names`` at ``where`` that is not ``known``, with the nearest known name."""
    return [
        FieldError(f"unknown domain{nearest(name, list(known))}", *where, name) for name in names if name not in known
    ]


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Relative sources are relative to the recipe's folder.

    Raises:
        UsageError: as ``load_document``.
    """
    return in_folder(load_document(path, Recipe), path.resolve().parent)


def load_document(path: Path, kind: type[D]) -> D:
    """Read a YAML file as a document of ``kind`` and check it.

    Raises:
        UsageError: file missing, not YAML, a key twice, an unknown key (with the nearest valid one) or a wrong value.
            One error lists every problem, each with file, line and column.
        DamagedDocumentError: the same, for a file that was changed after a workspace wrote it.
    """
    with blaming_changes(path):
        return check_document(read_yaml(path), kind)


def in_folder(recipe: Recipe, base: Path) -> Recipe:
    """The recipe with its relative sources resolved against the folder ``base``."""

    def absolute(source: str) -> str:
        return source if source.startswith("demo:") or "://" in source else str(beside(base, source))

    domains = {
        name: domain.model_copy(update={"source": absolute(domain.source)})
        for name, domain in recipe.corpus.domains.items()
    }
    tokenizer = recipe.corpus.tokenizer
    if tokenizer.file is not None:
        tokenizer = tokenizer.model_copy(update={"file": absolute(tokenizer.file)})
    corpus = recipe.corpus.model_copy(update={"domains": domains, "tokenizer": tokenizer})
    return recipe.model_copy(update={"corpus": corpus, "trackers": recipe.trackers.beside(base)})


def beside(folder: Path, path: str) -> Path:
    """``path`` relative to the resolved ``folder``; ``~`` is expanded, and a leading ``..`` is removed."""
    relative = Path(path).expanduser()
    while relative.parts and relative.parts[0] == "..":
        folder, relative = folder.parent, Path(*relative.parts[1:])
    return folder / relative
