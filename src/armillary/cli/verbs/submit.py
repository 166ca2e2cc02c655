"""`armillary submit`, `jobs`, `logs` and `cancel`: runs and recipes as jobs of a cluster."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import Reporter, err, out, show_json, show_table
from armillary.cli.workspaces import OutOption
from armillary.recipe import given, load_training, results_folder

JobArgument = Annotated[str, typer.Argument(help="The job's name, its beginning, or its id.", show_default=False)]


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="A recipe, or the file of one large run (YAML).", show_default=False)],
    on: Annotated[
        str,
        typer.Option("--on", help="local, slurm, kubernetes or ray; KIND:PROFILE takes a profile.", show_default=False),
    ],
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes for a large run (default: 1).")] = None,
    folder: OutOption = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Show the job file and the command; write and submit nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Submit a recipe or a large run as a job; the same command resumes it after it has ended.

    Example: armillary submit run.yaml --on slurm --nodes 16

    armillary submit recipe.yaml --on local

    armillary submit run.yaml --on slurm:big --nodes 16 --dry-run
    """
    from armillary.launch import Submission, prepare
    from armillary.launch import submit as send

    found = given(file)
    document = load_training(found.file)
    place = folder or getattr(document, "folder", None) or found.folder
    if place is None:
        place, note = results_folder(found.file, document.name)
        if note is not None:
            Reporter().say(note)
    wanted = Submission(document, found.file.resolve(), Path(place).resolve(), on, nodes)
    prepared = prepare(wanted)
    if dry:
        if as_json:
            return show_json({"file": prepared.job.name, "text": prepared.job.text, "command": prepared.job.command,
                              "excluded": prepared.excluded})  # fmt: skip
        out.print(prepared.job.text, markup=False, highlight=False, end="")
        return err.print(f"submitted with: {shlex.join(prepared.job.command)}", markup=False, highlight=False)
    if prepared.excluded:
        Reporter().say(f"left out, because they failed twice: {', '.join(prepared.excluded)}")
    state = send(prepared)
    if as_json:
        return show_json(asdict(state))
    out.print(f"{state.job}: {state.state}; armillary logs {state.job} --follow", markup=False, highlight=False)


@app.command()
def jobs(as_json: JsonOption = False) -> None:
    """List the jobs of this user, newest first: state, since when, nodes, exit code.

    Example: armillary jobs
    """
    from armillary.launch import list_jobs, read_jobs

    known, unreadable = read_jobs()
    states, silent = list_jobs(known)
    for problem in (*unreadable.values(), *silent):
        Reporter().say(problem)
    if as_json:
        return show_json([asdict(state) for state in states])
    columns = ["job", "state", "on", "id", "since", "nodes", "attempts", "exit", "excluded", "note"]
    show_table("jobs", columns, [_row(asdict(state)) for state in states])


@app.command()
def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more until the job has ended.")] = False,
) -> None:
    """Print the log of a job; Ctrl-C ends --follow and leaves the job alone.

    Example: armillary logs my-run-1f2e3d4c --follow
    """
    from armillary.launch import find_job, print_log

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        print_log(find_job(job), follow, write)
    except KeyboardInterrupt:
        if not follow:
            raise


@app.command()
def cancel(
    job: JobArgument,
    now: Annotated[bool, typer.Option("--now", help="Kill it without a checkpoint.")] = False,
    as_json: JsonOption = False,
) -> None:
    """End a job after a checkpoint; `armillary submit` with the same file resumes it.

    Example: armillary cancel my-run-1f2e3d4c
    """
    from armillary.launch import cancel as end
    from armillary.launch import find_job

    state = end(find_job(job), now)
    if as_json:
        return show_json(asdict(state))
    out.print(f"{escape(state.job)}: {state.state}", highlight=False)


def _row(state: dict[str, Any]) -> list[Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state["since_s"]))
    return [
        *(state["job"], state["state"], state["on"], state["native"], since, state["nodes"], state["attempts"]),
        *(state["exit"], ", ".join(state["excluded"]), state["note"]),
    ]
