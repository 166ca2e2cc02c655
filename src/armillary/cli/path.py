"""The verbs of the path from a recipe to a published model. Each calls one function of a room, and prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from armillary.cli.dry_run import show_dry_run
from armillary.cli.screen import JsonOption, Reporter, app, err, out, show_json, show_table
from armillary.recipe import (
    ArmillaryError,
    Recipe,
    UsageError,
    given,
    is_workspace,
    load_recipe,
    load_training,
    results_folder,
)

study_app = typer.Typer(help="Small runs that argue for a recipe.", no_args_is_help=True)
app.add_typer(study_app, name="study")

RecipeArgument = Annotated[
    Path, typer.Argument(help="The recipe, a YAML file; or the folder of its results.", show_default=False)
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder of the results (default: the recipe's name, beside the recipe)."),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Runs at the same time (default: one per core or accelerator).")
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
        help="Train on a Ray cluster: ray (the one this machine is in, else a new one on it alone) or ray://HOST:PORT.",
        show_default=False,
    ),
]


class Language(StrEnum):
    """Languages of the report."""

    en = "en"
    zh = "zh"


class Until(StrEnum):
    """Stages that a report may end with."""

    mixture = "mixture"
    anneal = "anneal"
    ladder = "ladder"
    predict = "predict"
    target = "target"
    verdict = "verdict"
    release = "release"


LanguageOption = Annotated[Language, typer.Option(help="Language of the report.")]


def workspace(
    recipe: Path,
    folder: Path | None,
    budget: str | None,
    workers: int | None,
    database: str | None,
    on: str | None,
    show: Reporter,
    nproc: int | None = None,
) -> Any:
    """The workspace of a recipe file, whose target run goes over ``nproc`` ranks."""
    document, place = opened(recipe, folder, show)  # first: errors in it are reported before torch is imported
    if nproc is not None:
        document = document.over(nproc)
    from armillary.path import Workspace

    return Workspace(document, place, budget, workers, database, show, on, show.say)


def opened(recipe: Path, folder: Path | None, show: Reporter) -> tuple[Recipe, Path]:
    """The recipe in a file or in a folder of results, and the folder of its results."""
    found = given(recipe)
    document = load_recipe(found.file)
    if found.edited:
        show.say(f"{found.file} was edited after it was written; what it says now holds")
    place = folder or found.folder
    if place is None:
        place, note = results_folder(found.file, document.name)
        if note is not None:
            show.say(note)
    return document, place


def reach(
    goal: str,
    recipe: Path,
    folder: Path | None,
    budget: str | None,
    workers: int | None,
    database: str | None,
    on: str | None,
    nproc: int | None = None,
) -> Any:
    """The evidence after all stages up to ``goal``; the report is written as far as it goes."""
    show = Reporter()
    try:
        return workspace(recipe, folder, budget, workers, database, on, show, nproc).report(goal)
    finally:
        show.close()


@app.command()
def corpus(
    recipe: RecipeArgument, folder: OutOption = None, workers: WorkersOption = None, as_json: JsonOption = False
) -> None:
    """Build the corpus of a recipe: domains to token shards.

    Example: armillary corpus recipe.yaml
    """
    show = Reporter()
    try:
        built = workspace(recipe, folder, None, workers, None, None, show).corpus()
    finally:
        show.close()
    if as_json:
        return show_json(built.manifest)
    rows = [
        [name, d.documents, d.duplicates, d.train_tokens, d.validation_tokens, d.problem_count]
        for name, d in built.manifest.domains.items()
    ]
    show_table(
        f"corpus {built.hash}",
        ["domain", "documents", "duplicates", "training tokens", "validation tokens", "problems"],
        rows,
    )
    for name, domain in built.manifest.domains.items():
        for problem in domain.problems:
            err.print(f"[yellow]{escape(name)}[/yellow]: {escape(problem)}", highlight=False)


def refuse_unfinished(evidence: Any) -> None:
    """End with an error, after all that was found is shown, where a run failed for a passing cause."""
    if evidence.unfinished:
        more = f" (and {len(evidence.unfinished) - 1} more)" if len(evidence.unfinished) > 1 else ""
        raise ArmillaryError(f"not finished: {evidence.unfinished[0]}{more}; the same command tries again")


def show_mixture(found: Any) -> None:
    """The mixture taken beside the plain ones, and what the law's candidates measured."""
    rows = [
        [d, found.natural[d], found.uniform[d], found.found[d]]
        for d in sorted(found.training_domains, key=lambda d: -found.found[d])
    ]
    show_table(f"mixture taken: {found.taken}", ["domain", "natural", "uniform", "taken"], rows)
    rows = [
        [c.name, c.predicted, sum(c.measured) / len(c.measured) if c.measured else None, len(c.measured)]
        for c in found.candidates
    ]
    show_table("target loss (nats per token)", ["mixture", "law", "measured again", "seeds"], rows)
    out.print(
        f"best candidate minus {found.reference}: {found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f}), "
        f"{'significant' if found.significant else 'not significant: the natural mixture is taken'}"
        if not found.reason
        else found.reason,
        highlight=False,
    )


def show_anneal(found: Any) -> None:
    """The target loss of every annealing by seed; an arrow marks the one taken."""
    rows = [
        ["→ " * (b.annealing == found.taken) + b.annealing.name, *(b.losses.get(run) for run in b.runs)]
        for b in found.branches
    ]
    if found.reason:
        out.print(found.reason, highlight=False)
    columns = ["annealing", *[f"seed {i + 1}" for i in range(max(len(b.runs) for b in found.branches))]]
    show_table("target loss by annealing (nats per token)", columns, rows)
    out.print(
        f"best ({found.best}) minus {found.reference}: "
        f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f}), "
        f"{'significant' if found.significant else f'not significant: {found.reference} is taken'}"
    )


def show_ladder(found: Any) -> None:
    """The points of the ladder."""
    rows = [[p.family, p.depth, p.parameters, p.tokens, p.target] for p in found.points]
    show_table("ladder", ["family", "depth", "parameters", "tokens", "target loss"], rows)


def show_prediction(said: dict[str, Any]) -> None:
    """What was recorded of the target run."""
    domains = said["domains"] if said["target"] is None else {**said["domains"], "target": said["target"]}
    rows = [[d, v["predicted"], v["low"], v["high"]] for d, v in domains.items()]
    show_table(
        f"prediction of run {said['run']}, recorded {said['recorded_at']}",
        ["domain", "predicted", f"low ({said['interval']:.0%})", "high"],
        rows,
    )
    out.print(f"extrapolated {said['extrapolation']:.1f} times in compute")
    if "unpredicted" in said:
        out.print(said["unpredicted"])


def show_arms(found: Any) -> None:
    """The arms of the target run and their differences."""
    rows = [[a.name, a.mean, a.low, a.high, len(a.target)] for a in found.arms]
    show_table("target loss (nats per token)", ["mixture", "mean", "low (90%)", "high", "seeds"], rows)
    for d in found.differences:
        word = "better" if d.high < 0 else "worse" if d.low > 0 else "not different with confidence"
        out.print(f"found minus {d.reference}: {d.mean:+.4f} ({d.low:+.4f} to {d.high:+.4f}): {word}")


def show_verdict(said: dict[str, Any]) -> None:
    """Predicted, interval, measured, inside or not."""
    rows = [
        [r["domain"], r["predicted"], r["low"], r["high"], r["measured"], "yes" if r["inside"] else "no"]
        for r in said["rows"]
    ]
    if "reason" in said:
        out.print(f"verdict on run {said['run']}, {said['status']}: {escape(said['reason'])}", highlight=False)
    if rows:
        show_table(f"verdict on run {said['run']}", ["domain", "predicted", "low", "high", "measured", "inside"], rows)
    if "unpredicted" in said:
        late = said["unpredicted"]
        out.print(f"target loss measured: {late['measured']:.4f}; {late['reason']}", highlight=False)


def stage_verb(group: typer.Typer, name: str, goal: str, part: str, show: Callable[[Any], None], text: str) -> None:
    """A verb that goes as far as ``goal`` and shows the ``part`` of the evidence that was asked for."""

    def verb(
        recipe: RecipeArgument,
        folder: OutOption = None,
        budget: BudgetOption = None,
        workers: WorkersOption = None,
        database: DatabaseOption = None,
        on: OnOption = None,
        as_json: JsonOption = False,
    ) -> None:
        evidence = reach(goal, recipe, folder, budget, workers, database, on)
        (show_json if as_json else show)(getattr(evidence, part))
        refuse_unfinished(evidence)

    group.command(name, help=text)(verb)


stage_verb(
    study_app,
    "mixture",
    "mixture",
    "mixture",
    show_mixture,
    "Find the mixture: designed proxies, a law, its best candidates run again, a choice with significance."
    "\n\nExample: armillary study mixture recipe.yaml --budget 8m",
)
stage_verb(
    study_app,
    "anneal",
    "anneal",
    "anneal",
    show_anneal,
    "Find the annealing: one stable trunk, branches that decay from it. Runs the mixture study first if needed."
    "\n\nExample: armillary study anneal recipe.yaml",
)
stage_verb(
    study_app,
    "ladder",
    "ladder",
    "ladder",
    show_ladder,
    "Train the ladder: growing models and tokens with the recipe found. Runs the studies before it if needed."
    "\n\nExample: armillary study ladder recipe.yaml --json",
)
stage_verb(
    app,
    "predict",
    "predict",
    "prediction",
    show_prediction,
    "Record what the target run will reach, before it exists. Runs the studies first if needed."
    "\n\nExample: armillary predict recipe.yaml",
)


@app.command()
def train(
    file: Annotated[Path, typer.Argument(help="A recipe, or the file of one large run (YAML).", show_default=False)],
    folder: OutOption = None,
    nproc: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks to start here for one run (default: as many as the file's layout has)."),
    ] = None,
    max_restarts: Annotated[int, typer.Option(min=0, help="Large run: how often ranks that died are restarted.")] = 3,
    dry: Annotated[
        bool,
        typer.Option("--dry-run", help="Large run: report memory and collectives of a rank instead; needs no cluster."),
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
    """
    own = given(file).file
    document = load_training(own)
    if dry:
        return rehearse(document, own, nproc, as_json)
    if isinstance(document, Recipe):
        evidence = reach("target", file, folder, budget, workers, database, on, nproc)
        (show_json if as_json else show_arms)(evidence.target)
        return refuse_unfinished(evidence)
    for option, value in {"--budget": budget, "--workers": workers, "--on": on}.items():
        if value is not None:
            raise UsageError(f"{option} has no meaning here: {file} is the file of one large run; leave it out")
    from armillary.launch import launch

    place, note = folder or document.folder, None
    if place is None:
        place, note = results_folder(own, document.name)
    if note is not None:
        Reporter().say(note)
    result = launch(document, Path(place), nproc=nproc, max_restarts=max_restarts, reporter=Reporter)
    if result is not None:
        show_json(asdict(result)) if as_json else show_result(result)


def rehearse(document: Any, file: Path, nproc: int | None, as_json: bool) -> None:
    """What a rank of a large run would need in memory, and send."""
    if isinstance(document, Recipe):
        raise UsageError(
            f"{file}: --dry-run is for the file of one large run, and this is a recipe; `armillary predict` writes "
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


def show_result(result: Any) -> None:
    """What a large run reached."""
    rows = [[domain, loss, result.bits_per_byte[domain]] for domain, loss in result.loss.items()]
    show_table(
        f"run {result.run}: {result.tokens:,} tokens", ["domain", "loss (nats per token)", "bits per byte"], rows
    )


stage_verb(
    app,
    "verdict",
    "verdict",
    "verdict",
    show_verdict,
    "Compare the prediction with the outcome, and record the verdict.\n\nExample: armillary verdict recipe.yaml",
)


@app.command()
def run(
    recipe: RecipeArgument,
    folder: OutOption = None,
    budget: BudgetOption = None,
    workers: WorkersOption = None,
    database: DatabaseOption = None,
    on: OnOption = None,
    language: LanguageOption = Language.en,
    as_json: JsonOption = False,
) -> None:
    """The whole path: corpus, studies, prediction, target run, verdict, published model, report.

    Example: armillary run recipe.yaml --budget 2h
    """
    show = Reporter()
    try:
        place = workspace(recipe, folder, budget, workers, database, on, show)
        evidence = place.report(language=language.value)
    finally:
        show.close()
    if as_json:
        print((place.folder / "summary.json").read_text(encoding="utf-8"))
        return refuse_unfinished(evidence)
    show_verdict(evidence.verdict)
    show_arms(evidence.target)
    for what, path in (
        ("report", place.report_file(language.value)),
        ("model", place.folder / "model"),
        ("numbers", place.folder / "summary.json"),
    ):
        if what != "model" or evidence.target.published is not None:
            out.print(f"{what:<8}{escape(str(path))}", highlight=False)
    if evidence.lesson is not None and evidence.lesson.published:
        out.print(f"chat    armillary chat {escape(str(place.folder / 'chat'))}", highlight=False)
    refuse_unfinished(evidence)


@app.command()
def demo(
    folder: OutOption = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only text that Python and torch bring along.")
    ] = False,
    budget: BudgetOption = None,
    workers: WorkersOption = None,
    on: OnOption = None,
    language: LanguageOption = Language.en,
    as_json: JsonOption = False,
) -> None:
    """The whole path with the built-in recipe.

    Example: armillary demo --out demo
    """
    from armillary.path import demo_recipe

    run(demo_recipe(offline), folder or Path("demo"), budget, workers, None, on, language, as_json)


@app.command()
def report(
    recipe: RecipeArgument,
    folder: OutOption = None,
    until: Annotated[
        Until, typer.Option(help="The last stage to show; it runs if its result is missing.")
    ] = Until.release,
    language: LanguageOption = Language.en,
    workers: WorkersOption = None,
    database: DatabaseOption = None,
    on: OnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the report again, for example in Chinese, or of the first stages alone.

    Example: armillary report recipe.yaml --language zh
    """
    show = Reporter()
    try:
        place = workspace(recipe, folder, None, workers, database, on, show)
        evidence = place.report(until.value, language.value)
    finally:
        show.close()
    path = str(place.report_file(language.value, until.value))
    show_json({"report": path}) if as_json else print(path)
    refuse_unfinished(evidence)


def rows_in_store(recipe: Path, folder: Path | None, database: str | None, rows_of: str) -> list[dict[str, Any]]:
    """What the store's method ``rows_of`` returns; a store that does not exist is not created."""
    show = Reporter()
    _, place = opened(recipe, folder, show)
    if database is None and not is_workspace(place):
        raise UsageError(
            f"{place}: no results are here yet; `armillary run {recipe}` makes them, and --out names another folder"
        )
    if database is None and not (place / "store" / "store.sqlite").exists():
        runs = place / "store" / "runs"
        why = f" yet; `armillary run {recipe}` makes it"
        if any(runs.glob("*")):
            why = f", and {runs} holds runs; put a backup in its place"
        raise UsageError(f"{place / 'store' / 'store.sqlite'}: there is no database{why}, or give one with --database")
    store = workspace(recipe, place, None, None, database, None, show).store()
    rows: list[dict[str, Any]] = getattr(store, rows_of)()
    return rows


def store_verb(name: str, rows_of: str, columns: list[str], title: str, text: str) -> None:
    """A verb that shows what the store's method ``rows_of`` says."""

    def verb(
        recipe: RecipeArgument, folder: OutOption = None, database: DatabaseOption = None, as_json: JsonOption = False
    ) -> None:
        rows = rows_in_store(recipe, folder, database, rows_of)
        if as_json:
            return show_json(rows)
        show_table(title, columns, [[row[column] for column in columns] for row in rows])

    app.command(name, help=text)(verb)


store_verb(
    "runs",
    "overview",
    ["run", "study", "status", "attempts", "parameters", "tokens", "examined", "error"],
    "runs",
    "List the runs of a recipe's store with their state.\n\nExample: armillary runs recipe.yaml",
)
store_verb(
    "rates",
    "rates_overview",
    [
        *("device", "workers", "layers", "d_model", "context_length", "batch_sequences", "precision", "how"),
        *("tokens_per_s", "seconds", "recorded_at"),
    ],
    "tokens per second of all workers together",
    "List how fast each machine has trained each shape, which budgets in time are divided by."
    "\n\nExample: armillary rates recipe.yaml",
)


store_app = typer.Typer(help="The database of a recipe's runs.", no_args_is_help=True)
app.add_typer(store_app, name="store")


@store_app.command("backup")
def store_backup(
    recipe: RecipeArgument,
    to: Annotated[Path, typer.Option("--to", help="The file to write; it must not exist yet.", show_default=False)],
    folder: OutOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the database of a recipe's store into one file, whole and checked, while others may be at work in it.

    Example: armillary store backup recipe.yaml --to store-backup.sqlite
    """
    show = Reporter()
    _, place = opened(recipe, folder, show)
    if database is None and not (place / "store" / "store.sqlite").exists():
        raise UsageError(f"{place}: holds no database; --out names another folder of results, --database a database")
    workspace(recipe, place, None, None, database, None, show).store().backup(to)
    if as_json:
        return show_json({"backup": str(to)})
    out.print(
        f"written to {escape(str(to))}; copy the folder store/runs beside it for the runs' files", highlight=False
    )


@app.command()
def verify(
    place: Annotated[
        Path,
        typer.Argument(help="A folder of results, or a part of one; a law file, recipe or backup.", show_default=False),
    ],
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of what was written and report each file that is damaged, with the remedy; exit 1 if any is.

    Takes a folder of results or a part of one (store, corpus, run, checkpoint, published model), a stage of items, an
    examination, a law file, a recipe, or a backup of a store's database.

    Example: armillary verify demo
    """
    from armillary.path import verify as check

    found = check(place, database)
    if as_json:
        show_json({**asdict(found), "problems": [{**asdict(p), "file": str(p.file)} for p in found.problems]})
    elif found.problems:
        for p in found.problems:
            out.print(escape(f"{p.file}: {p.what}; {p.remedy}"), highlight=False)
    else:
        parts = f": {len(found.checked)} parts, all" if len(found.checked) > 1 else ":"
        out.print(f"{found.kind} {escape(str(place))}{parts} as written", highlight=False)
    if found.problems:
        raise typer.Exit(1)
