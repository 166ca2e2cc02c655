"""`armillary train`: the target run of a recipe, or one large run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from armillary.cli.app import JsonOption, app
from armillary.cli.show.dry_run import show_dry_run
from armillary.cli.show.screen import Reporter, show_json
from armillary.cli.show.studies import show_arms, show_result
from armillary.cli.workspaces import (
    BudgetOption,
    DatabaseOption,
    OnOption,
    OutOption,
    WorkersOption,
    WorkspaceOptions,
    reach,
    refuse_unfinished,
)
from armillary.recipe import Recipe, UsageError, given, load_training, results_folder


@app.command()
def train(
    file: Annotated[Path, typer.Argument(help="A recipe, or the file of one large run (YAML).", show_default=False)],
    folder: OutOption = None,
    nproc: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks to start on this machine (default: the number in the file's layout)."),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Large run: restarts in a row without progress before it gives up.")
    ] = 3,
    min_ranks: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Large run: minimum ranks to continue with when one cannot be restarted (default: 1; under a "
            "launcher, all).",
        ),
    ] = None,
    inject: Annotated[Path | None, typer.Option(help="Large run: file of faults to inject.")] = None,
    dry: Annotated[
        bool,
        typer.Option("--dry-run", help="Large run: only report memory and collectives per rank; needs no cluster."),
    ] = False,
    budget: BudgetOption = None,
    workers: WorkersOption = None,
    database: DatabaseOption = None,
    on: OnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the target run of a recipe and the same model on other mixtures, or one large run over many ranks.

    Example: armillary train recipe.yaml

    armillary train run.yaml --nproc 4

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST -m armillary train run.yaml

    armillary train run.yaml --dry-run

    armillary train run.yaml --nproc 4 --inject faults.yaml
    """
    own = given(file).file
    document = load_training(own)
    if dry:
        return rehearse(document, own, nproc, as_json)
    if isinstance(document, Recipe):
        if inject is not None:
            raise UsageError(f"--inject is for the file of one large run, and {file} is a recipe; leave it out")
        evidence = reach("target", WorkspaceOptions(file, folder, budget, workers, database, on, nproc))
        (show_json if as_json else show_arms)(evidence.target)
        return refuse_unfinished(evidence)
    for option, value in {"--budget": budget, "--workers": workers, "--on": on}.items():
        if value is not None:
            raise UsageError(f"{option} does not apply: {file} is the file of one large run; leave it out")
    from armillary.launch import launched, start_fork_server

    if not launched():  # before the imports of this process, which take as long as those of the ranks
        start_fork_server(document.layout is not None and document.layout.compile)
    from armillary.launch import launch
    from armillary.resilience import load_faults

    faults = None if inject is None else load_faults(inject)
    place, note = folder or document.folder, None
    if place is None:
        place, note = results_folder(own, document.name)
    if note is not None:
        Reporter().say(note)
    result = launch(
        document,
        Path(place),
        nproc=nproc,
        max_restarts=max_restarts,
        min_ranks=min_ranks,
        faults=faults,
        reporter=Reporter,
    )
    if result is not None:
        show_json(asdict(result)) if as_json else show_result(result)


def rehearse(document: Any, file: Path, nproc: int | None, as_json: bool) -> None:
    """Estimate the memory and communication of a rank of a large run."""
    if isinstance(document, Recipe):
        raise UsageError(
            f"{file}: --dry-run is for the file of one large run, but this is a recipe; `armillary predict` writes "
            "one for its target run, target.yaml"
        )
    layout = document.layout_of(nproc or (document.layout.ranks if document.layout is not None else 1))
    from armillary.launch import check_corpus
    from armillary.parallel import dry_run
    from armillary.train import LocalOptimizer

    note, show = check_corpus(document, layout.ranks), Reporter()
    if note is not None:
        show.say(note)
    try:
        found = dry_run(document.run, layout, LocalOptimizer, show)
    finally:
        show.close()
    show_json(asdict(found)) if as_json else show_dry_run(document.name, found)
