"""`armillary run` and `armillary demo`: the whole path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import Reporter, out
from armillary.cli.show.studies import show_arms, show_verdict
from armillary.cli.workspaces import LanguageOption, WorkspaceOptions, opens_workspace, refuse_unfinished, workspace
from armillary.recipe import Language


@app.command()
@opens_workspace("recipe", "folder", "budget", "workers", "database", "on")
def run(at: WorkspaceOptions, language: LanguageOption = "en", as_json: JsonOption = False) -> None:
    """Run the whole path: corpus, studies, prediction, target run, verdict, published model, report.

    Example: armillary run recipe.yaml --budget 2h
    """
    walk(at, language, as_json)


@app.command()
@opens_workspace("folder", "budget", "workers", "on")
def demo(
    at: WorkspaceOptions,
    offline: Annotated[bool, typer.Option("--offline", help="Use only text that ships with Python and torch.")] = False,
    language: LanguageOption = "en",
    as_json: JsonOption = False,
) -> None:
    """Run the whole path with the built-in recipe.

    Example: armillary demo --out demo
    """
    from armillary.path import demo_recipe

    walk(replace(at, recipe=demo_recipe(offline), folder=at.folder or Path("demo")), language, as_json)


def walk(at: WorkspaceOptions, language: Language, as_json: bool) -> None:
    """Run the whole path and print the results."""
    show = Reporter()
    try:
        place = workspace(at, show)
        evidence = place.report(language=language)
    finally:
        show.close()
    if as_json:
        print((place.folder / "summary.json").read_text(encoding="utf-8"))
        return refuse_unfinished(evidence)
    show_verdict(evidence.verdict)
    show_arms(evidence.target)
    for what, path in (
        ("report", place.report_file(language)),
        ("model", place.folder / "model"),
        ("numbers", place.folder / "summary.json"),
    ):
        if what != "model" or evidence.target.published is not None:
            out.print(f"{what:<8}{escape(str(path))}", highlight=False)
    if evidence.lesson is not None and evidence.lesson.published:
        out.print(f"chat    armillary chat {escape(str(place.folder / 'chat'))}", highlight=False)
    refuse_unfinished(evidence)
