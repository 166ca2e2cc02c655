"""The options that name a workspace, and the actions of verbs on it: open it, run to a goal, print the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from armillary.cli.app import JsonOption
from armillary.cli.options import with_options
from armillary.cli.show.screen import Reporter, show_json
from armillary.recipe import ArmillaryError, Language, Recipe, given, load_recipe, results_folder

RecipeArgument = Annotated[
    Path, typer.Argument(help="The recipe, a YAML file; or the folder of its results.", show_default=False)
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder of the results (default: the recipe's name, next to the recipe)."),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Concurrent runs (default: one per core or accelerator).")
]
BudgetOption = Annotated[
    str | None, typer.Option(help="Wall time (90s, 3m30s, 2h) or FLOPs (1e15flops) instead of the recipe's.")
]
DatabaseOption = Annotated[
    str | None, typer.Option(envvar="ARMILLARY_DATABASE", help="SQLAlchemy URL of the store instead of SQLite.")
]

OnOption = Annotated[
    str | None,
    typer.Option(
        "--on",
        help="Train on a Ray cluster: ray (this machine's cluster, or a new local one) or ray://HOST:PORT.",
        show_default=False,
    ),
]
LanguageOption = Annotated[Language, typer.Option(help="Language of the report.")]
_OPTIONS: dict[str, Any] = {
    "recipe": RecipeArgument,
    "folder": OutOption,
    "budget": BudgetOption,
    "workers": WorkersOption,
    "database": DatabaseOption,
    "on": OnOption,
}


@dataclass(frozen=True)
class WorkspaceOptions:
    """The recipe or the folder of its results, and the options of `path.Workspace`."""

    recipe: Path = Path()  # some verbs have a built-in recipe
    folder: Path | None = None
    budget: str | None = None
    workers: int | None = None
    database: str | None = None
    on: str | None = None
    nproc: int | None = None  # ranks of the target run


def opens_workspace(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a verb's parameter ``at`` with the options of these names, passed as one object."""
    return with_options("at", {name: _OPTIONS[name] for name in names}, lambda values: WorkspaceOptions(**values))


def workspace(at: WorkspaceOptions, show: Reporter) -> Any:
    """The workspace of a recipe file."""
    # First, so that errors in the recipe are reported before torch is imported.
    document, place = opened(at.recipe, at.folder, show)
    if at.nproc is not None:
        document = document.over(at.nproc)
    from armillary.path import Workspace

    return Workspace(document, place, at.budget, at.workers, at.database, show, at.on, show.say)


def opened(recipe: Path, folder: Path | None, show: Reporter) -> tuple[Recipe, Path]:
    """The recipe in a file or in a folder of results, and the folder of its results."""
    found = given(recipe)
    document = load_recipe(found.file)
    if found.edited:
        show.say(f"{found.file} was edited after it was written; the edited version is used")
    place = folder or found.folder
    if place is None:
        place, note = results_folder(found.file, document.name)
        if note is not None:
            show.say(note)
    return document, place


def reach(goal: str, at: WorkspaceOptions) -> Any:
    """Run all stages up to ``goal``, write the report, and return the evidence."""
    show = Reporter()
    try:
        return workspace(at, show).report(goal)
    finally:
        show.close()


def refuse_unfinished(evidence: Any) -> None:
    """After all results are shown, raise an error if a run failed for a transient cause."""
    if evidence.unfinished:
        more = f" (and {len(evidence.unfinished) - 1} more)" if len(evidence.unfinished) > 1 else ""
        raise ArmillaryError(f"not finished: {evidence.unfinished[0]}{more}; the same command retries")


def stage_verb(goal: str, part: str, show: Callable[[Any], None]) -> Callable[..., None]:
    """A verb that runs to ``goal`` and prints the requested ``part`` of the evidence."""

    @opens_workspace("recipe", "folder", "budget", "workers", "database", "on")
    def verb(at: WorkspaceOptions, as_json: JsonOption = False) -> None:
        evidence = reach(goal, at)
        (show_json if as_json else show)(getattr(evidence, part))
        refuse_unfinished(evidence)

    return verb
