"""The recipe: one YAML file that says what is asked and within which limits.

``load_recipe`` turns it into a checked ``Recipe``. Whatever is wrong in it is told with file, line, key and what would
be right, before anything is trained.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, NonNegativeFloat, PositiveFloat, ValidationError, model_validator

from armillary.recipe.errors import FieldError, UsageError
from armillary.recipe.layout import Layout
from armillary.recipe.run import Decay
from armillary.recipe.shapes import Document, Family

Share = Annotated[float, Field(ge=0, le=1)]
D = TypeVar("D", bound=Document)


class DomainSpec(Document):
    """A domain of text: ``source`` is a file, a folder, or ``demo:NAME`` for a built-in one.

    With ``train: false`` the domain is only examined: all of its text goes to validation.
    """

    source: str
    train: bool = True
    text_field: str = "text"


class TokenizerSpec(Document):
    """A byte-level BPE of ``vocab_size`` trained on the corpus, or the ``tokenizer.json`` of ``file``."""

    vocab_size: int = Field(default=2048, ge=257)
    file: str | None = None


class CorpusSpec(Document):
    """Which domains there are, and how they become training and validation tokens.

    Documents longer than ``max_document_chars`` are cut at line ends. ``validation_share`` of the documents of each
    training domain is held out by hash, at most about ``validation_chars`` characters of it being kept per domain.
    """

    domains: dict[str, DomainSpec] = Field(min_length=1)
    tokenizer: TokenizerSpec = TokenizerSpec()
    validation_share: float = Field(default=0.05, gt=0, lt=0.5)
    validation_chars: int = Field(default=400_000, ge=1000)
    max_document_chars: int = Field(default=8_000, ge=100)

    @property
    def training_domains(self) -> tuple[str, ...]:
        """Names of the domains one may train on, in the recipe's order."""
        return tuple(name for name, domain in self.domains.items() if domain.train)


class Limits(Document):
    """What a mixture may be: passes over a domain at the target's tokens, and floors and ceilings of its weight."""

    max_epochs: float = Field(default=4.0, gt=0)
    floors: dict[str, Share] = Field(default_factory=dict)
    ceilings: dict[str, Share] = Field(default_factory=dict)


class MixtureTarget(Document):
    """What a mixture is to lower: the weighted sum of losses of some validation domains.

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
    """Limits of a mixture where no corpus is at hand: ``domain_tokens`` of each domain and the run's ``budget_tokens``.

    A domain without an entry in ``domain_tokens`` has no limit on epochs. ``natural`` is the mixture to compare with;
    without it that is the mixture in proportion to ``domain_tokens`` if each domain is there. A file may hold all of it
    below ``limits:``, as a recipe does.
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

    The peak learning rate of a model of width d is ``lr * (lr_width / d) ** lr_exponent``; or ``base_width`` lets rates
    and initial values follow the width by muP, as in ``OptimizerSpec``, and then ``lr_exponent`` is 0. The target run
    takes ``tokens``, or ``budget_share`` of the recipe's budget; it is repeated with each of ``seeds``. With a
    ``layout`` it and the arms beside it are carried out one after another, each over that many ranks.
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
    seeds: tuple[int, ...] = Field(default=(1, 2, 3), min_length=2)
    optimizer: Literal["adamw", "muon"] = "adamw"
    base_width: int | None = Field(default=None, ge=1)
    layout: Layout | None = None

    @model_validator(mode="after")
    def _tokens_or_share(self) -> Self:
        if (self.tokens is None) == (self.budget_share is None):
            raise ValueError("give exactly one of 'tokens' (a number) and 'budget_share' (a share of the budget)")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ, found {list(self.seeds)}")
        return self

    @model_validator(mode="after")
    def _one_rule_for_the_width(self) -> Self:
        if self.base_width is not None and self.lr_exponent:
            raise FieldError(
                f"makes the rate follow the width, and so does lr_exponent ({self.lr_exponent:g}): "
                "set lr_exponent to 0, or take base_width out",
                "base_width",
            )
        return self

    def peak_lr(self, d_model: int) -> float:
        """Peak learning rate for a model of width ``d_model``."""
        return self.lr * float((self.lr_width / d_model) ** self.lr_exponent)


class MixtureStudy(Document):
    """Proxies over a designed set of mixtures, then ``candidates`` of the law run again with new seeds."""

    depth: int = Field(default=2, ge=1)
    runs: int = Field(default=40, ge=8)
    tokens: int = Field(default=300_000, ge=1)
    candidates: int = Field(default=3, ge=1)
    confirm_seeds: int = Field(default=3, ge=2)
    seed: int = Field(default=0, ge=0)


class AnnealStudy(Document):
    """Branches that decay from one stable trunk: each share of the budget with each shape and annealing mixture.

    ``sharpen`` lists exponents: the mixture found, each weight raised to it and normalised (1 keeps the mixture).
    """

    depth: int = Field(default=2, ge=1)
    tokens: int = Field(default=400_000, ge=1)
    shares: tuple[Share, ...] = Field(default=(0.1, 0.2, 0.4), min_length=1)
    shapes: tuple[Decay, ...] = Field(default=("linear", "1-sqrt"), min_length=1)
    sharpen: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    seeds: int = Field(default=2, ge=2)


class LadderStudy(Document):
    """Models of growing depth; each trains a trunk and decays from it at ``fractions`` of ``tokens``.

    Every depth takes the same tokens. A law needs six points: depths times fractions times seeds.
    """

    depths: tuple[int, ...] = Field(default=(1, 2, 3), min_length=1)
    tokens: int = Field(default=600_000, ge=1)
    fractions: tuple[Share, ...] = Field(default=(0.25, 0.5, 1.0), min_length=1)
    families: tuple[str, ...] = ("base",)
    seeds: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _enough_for_a_law(self) -> Self:
        points = len(set(self.depths)) * len(set(self.fractions)) * self.seeds
        if points < 6 or min(len(set(self.depths)), len(set(self.fractions))) < 2:
            raise ValueError(
                f"{len(set(self.depths))} depths, {len(set(self.fractions))} fractions and {self.seeds} seeds are "
                f"{points} points; a law needs 6, of at least 2 depths and 2 fractions"
            )
        return self


class Studies(Document):
    """The three studies that argue for the recipe."""

    mixture: MixtureStudy = MixtureStudy()
    anneal: AnnealStudy = AnnealStudy()
    ladder: LadderStudy = LadderStudy()


class Recipe(Document):
    """What is asked: domains, target, limits, model, training and studies."""

    format: Literal[1] = 1
    name: str = Field(min_length=1)
    corpus: CorpusSpec
    target: dict[str, float] = Field(min_length=1)
    limits: Limits = Limits()
    families: tuple[Family, ...] = Field(default=(Family(),), min_length=1)
    model: TargetModel
    training: Training
    study: Studies = Studies()
    budget: str | None = None
    validation_windows: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        domains = list(self.corpus.domains)
        training = self.corpus.training_domains
        limits, ladder = self.limits, self.study.ladder
        if len(training) < 2:
            raise FieldError("a mixture needs at least two domains with 'train: true'", "corpus", "domains")
        known_domain(self.target, domains, "target")
        known_domain(limits.floors, training, "limits", "floors")
        known_domain(limits.ceilings, training, "limits", "ceilings")
        if any(w < 0 for w in self.target.values()) or sum(self.target.values()) <= 0:
            raise FieldError("weights must not be negative, and not all zero", "target")
        for name, floor in limits.floors.items():
            ceiling = limits.ceilings.get(name, 1.0)
            if floor > ceiling:
                raise FieldError(f"the floor {floor:g} lies above the ceiling {ceiling:g}", "limits", "floors", name)
        if sum(limits.floors.values()) > 1 + 1e-9:
            raise FieldError("the floors sum to more than 1", "limits", "floors")
        names = [family.name for family in self.families]
        if len(set(names)) != len(names):
            raise FieldError(f"names must differ, found {names}", "families")
        for family, *where in (
            (self.model.family, "model", "family"),
            *((f, "study", "ladder", "families") for f in ladder.families),
        ):
            if family not in names:
                raise FieldError(f"'{family}' is not in families{_nearest(family, names)}", *where)
        if self.model.family not in ladder.families:
            raise FieldError(f"must hold the target's family '{self.model.family}'", "study", "ladder", "families")
        if self.training.budget_share is not None and self.budget is None:
            raise FieldError("needs a 'budget' (such as 20m or 1e15flops)", "training", "budget_share")
        return self

    def over(self, ranks: int) -> Recipe:
        """The recipe with its target run over so many ranks, data parallel where no layout says otherwise.

        Raises:
            UsageError: its layout has more or fewer.
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


def known_domain(names: Collection[str], known: Collection[str], *where: str) -> None:
    """Raise FieldError if one of ``names``, which stand at ``where``, is not ``known``, with the nearest known one."""
    for name in names:
        if name not in known:
            raise FieldError(f"no domain of that name here{_nearest(name, list(known))}", *where, name)


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Relative sources are taken from the recipe's own folder.

    Raises:
        UsageError: as ``load_document``.
    """
    return _absolute_sources(load_document(path, Recipe), path.resolve().parent)


def load_document(path: Path, kind: type[D]) -> D:
    """Read a YAML file as a document of ``kind`` and check it.

    Raises:
        UsageError: file missing, not YAML, a key twice, an unknown key (with the nearest valid one) or a wrong value,
            with file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    try:
        # compose first: it keeps the line of every key for the messages below
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that is none
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from error
    twice = _key_twice(node)
    if twice is not None:
        raise UsageError(f"{path}:{twice.start_mark.line + 1}: the key '{twice.value}' is there twice; take one out")
    if not isinstance(value, dict):
        raise UsageError(f"{path}: the document is a mapping with the keys {', '.join(kind.model_fields)}")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems = [(_location(e), e) for e in error.errors()]
        lines = [f"{path}:{_line(node, where)}: {_problem(kind, where, e)}" for where, e in problems]
        raise UsageError("\n".join(lines)) from error


def _key_twice(node: yaml.Node | None) -> yaml.ScalarNode | None:
    """The second of two equal keys of one mapping anywhere below ``node``; YAML would let it win in silence."""
    if isinstance(node, yaml.SequenceNode):
        return next(filter(None, map(_key_twice, node.value)), None)
    if not isinstance(node, yaml.MappingNode):
        return None
    seen: set[str] = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                return key
            seen.add(key.value)
        below = _key_twice(value)
        if below is not None:
            return below
    return None


def _absolute_sources(recipe: Recipe, base: Path) -> Recipe:
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
    return recipe.model_copy(update={"corpus": corpus})


def beside(folder: Path, path: str) -> Path:
    """``path`` from ``folder``, which is resolved; ``~`` is expanded, and a leading ``..`` is taken out."""
    relative = Path(path).expanduser()
    while relative.parts and relative.parts[0] == "..":
        folder, relative = folder.parent, Path(*relative.parts[1:])
    return folder / relative


def _line(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Line (from 1) of the deepest part of ``location`` that stands in the file."""
    line = 1
    for key in location:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(key)]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _location(error: Any) -> tuple[int | str, ...]:
    """Where in the document a pydantic error points, or the check that raised it."""
    cause = error.get("ctx", {}).get("error")
    return (*error["loc"], *(cause.location if isinstance(cause, FieldError) else ()))


def _problem(kind: type[Document], location: tuple[int | str, ...], error: Any) -> str:
    """One pydantic error in words: the key, what is wrong with it, and for an unknown key the nearest valid one."""
    where = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        return f"unknown key '{where}'{_nearest(str(location[-1]), _valid_keys(kind, location[:-1]))}"
    if error["type"] == "missing":
        return f"the key '{where}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) else ""
    return f"{where}: {message}{shown}" if where else message


def _valid_keys(model: Any, location: tuple[int | str, ...]) -> list[str]:
    """Keys of the part of a document of type ``model`` that ``location`` leads to."""
    for key in location:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[str(key)].annotation
            if get_origin(model) in (Union, UnionType):  # X | None
                model = next(part for part in get_args(model) if part is not None)
        else:  # dict[str, X] or tuple[X, ...]: step into X
            arguments = [a for a in getattr(model, "__args__", ()) if a not in (str, Ellipsis)]
            model = arguments[0] if arguments else None
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _nearest(name: str, known: list[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; nearest valid: '{match[0]}'" if match else f"; valid: {', '.join(known)}" if known else ""
