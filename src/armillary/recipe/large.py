"""The document of one large run: a RunSpec, its corpus, and how it is executed.

Everything that determines the numbers is under ``run``, as in a RunSpec. ``layout``, ``checkpoints`` and ``trackers``
may change whenever the run is stopped. ``load_training`` distinguishes such a file from a recipe by its keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from armillary.recipe.checking import check_document
from armillary.recipe.document import FolderName, PathText, Recipe, beside, in_folder
from armillary.recipe.errors import FieldError, UsageError
from armillary.recipe.layout import Layout
from armillary.recipe.reader import YamlFile, read_yaml
from armillary.recipe.run import RunSpec
from armillary.recipe.shapes import Document
from armillary.recipe.trackers import Trackers
from armillary.recipe.written import blaming_changes

_KEYS = {"run", "layout", "checkpoints", "skipping"}  # a recipe has none of them


class Checkpoints(Document):
    """When checkpoints are written, and which are kept.

    A checkpoint is written after ``every_s`` seconds, after every ``every_steps`` steps, and when the run is stopped.
    The last ``keep_last`` are kept. At multiples of ``keep_every_steps`` a checkpoint is written too and always kept.
    Every ``snapshot_every_steps`` steps one is written to the memory of the machine, which a process that dies leaves
    intact, and to that of the next machine if there are several.
    """

    every_s: float = Field(default=600.0, gt=0)
    every_steps: int | None = Field(default=None, ge=1)
    keep_last: int = Field(default=2, ge=1)
    keep_every_steps: int | None = Field(default=None, ge=1)
    snapshot_every_steps: int | None = Field(default=None, ge=1)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step`` steps, independent of the time."""
        return any(every is not None and step % every == 0 for every in (self.every_steps, self.keep_every_steps))

    def stays(self, step: int) -> bool:
        """Whether the checkpoint of ``step`` is always kept."""
        return self.keep_every_steps is not None and step % self.keep_every_steps == 0


class Skipping(Document):
    """Which batches a large run passes over, at most ``most`` of them; 0: none.

    A step that is not finite, and again not after the run went back to its last checkpoint, is skipped, because the run
    would otherwise end. With ``loss_deviations`` so is a step whose loss lies that many standard deviations above the
    steps before it (``resilience.judge``): off by default, since it changes the numbers of a run that would continue.
    """

    most: int = Field(default=10, ge=0)
    loss_deviations: float | None = Field(default=None, ge=3, allow_inf_nan=False)


class LargeRun(Document):
    """One run over many ranks. ``corpus`` is the folder of a built corpus, ``run`` its specification.

    ``folder`` is the run's folder unless the command names one (default: the run's name, beside the file).
    ``run.corpus`` may be left out; if given, the corpus must have that hash. Without a ``layout`` all ranks are data
    parallel, with parameters in shards.
    """

    later: ClassVar[tuple[str, ...]] = ("trackers",)

    format: Literal[1] = 1
    name: FolderName
    corpus: PathText
    folder: PathText | None = None
    run: RunSpec
    layout: Layout | None = None
    checkpoints: Checkpoints = Checkpoints()
    skipping: Skipping = Skipping()
    trackers: Trackers = Trackers()

    @model_validator(mode="before")
    @classmethod
    def _corpus_is_found_later(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("run"), dict):
            return {**value, "run": {"corpus": "", **value["run"]}}
        return value

    @model_validator(mode="after")
    def _every_mixture_is_reached(self) -> Self:
        # Not a check of RunSpec: stores of earlier versions may hold such a specification.
        last = max((phase.start_step for phase in self.run.mixture), default=0)
        if last >= self.run.steps:
            raise FieldError(f"a phase starts at step {last}, but the run has {self.run.steps}", "run", "mixture")
        return self

    @model_validator(mode="after")
    def _layout_fits(self) -> Self:
        if self.layout is not None:
            try:
                self.layout.check(self.run)
            except UsageError as error:
                raise FieldError(str(error), "layout") from error
        return self

    def layout_of(self, ranks: int) -> Layout:
        """The layout for this many ranks.

        Raises:
            UsageError: the layout has another number of ranks, or the run cannot be divided among them.
        """
        if self.layout is None:
            layout = Layout(dp_shard=ranks)
            layout.check(self.run)
            return layout
        self.layout.refuse_others(ranks)
        return self.layout

    def on_fewer(self, ranks: int) -> LargeRun:
        """The same run on the layout with fewer data replicas that has this many ranks, if there is one."""
        smaller = self.layout.fewer_replicas(self.run) if self.layout is not None else []
        layout = next((layout for layout in smaller if layout.ranks == ranks), self.layout)
        return self.model_copy(update={"layout": layout})


def _is_large(file: YamlFile) -> bool:
    """Whether a file describes a large run: it has a key that no recipe has, or its corpus is a folder."""
    return not _KEYS.isdisjoint(file.keys) or file.is_scalar("corpus")


def load_training(path: Path) -> Recipe | LargeRun:
    """Read the argument of ``armillary train``: a recipe or a large run. Relative paths are relative to its folder.

    Raises:
        UsageError: as ``load_document``.
    """
    with blaming_changes(path):
        file = read_yaml(path)
        base = path.resolve().parent
        if not _is_large(file):
            return in_folder(check_document(file, Recipe), base)
        large = check_document(file, LargeRun)
    named = ((name, getattr(large, name)) for name in ("corpus", "folder"))
    paths: dict[str, Any] = {name: str(beside(base, where)) for name, where in named if where}
    paths["trackers"] = large.trackers.beside(base)
    start = large.run.start
    if start is not None and start.weights is not None:
        start = start.model_copy(update={"weights": str(beside(base, start.weights))})
        paths["run"] = large.run.model_copy(update={"start": start})
    return large.model_copy(update=paths)
