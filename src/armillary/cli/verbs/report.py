"""`armillary report`."""

from __future__ import annotations

from typing import Annotated

import typer

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import Reporter, show_json
from armillary.cli.workspaces import LanguageOption, WorkspaceOptions, opens_workspace, refuse_unfinished, workspace
from armillary.recipe import Goal


@app.command()
@opens_workspace("recipe", "folder", "workers", "database", "on")
def report(
    at: WorkspaceOptions,
    until: Annotated[Goal, typer.Option(help="The last stage to show; it runs if its result is missing.")] = "release",
    language: LanguageOption = "en",
    as_json: JsonOption = False,
) -> None:
    """Write the report again, for example in Chinese, or for the first stages only.

    Example: armillary report recipe.yaml --language zh
    """
    show = Reporter()
    try:
        place = workspace(at, show)
        evidence = place.report(until, language)
    finally:
        show.close()
    path = str(place.report_file(language, until))
    show_json({"report": path}) if as_json else print(path)
    refuse_unfinished(evidence)
