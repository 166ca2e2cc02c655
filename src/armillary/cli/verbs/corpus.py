"""`armillary corpus`."""

from __future__ import annotations

from rich.markup import escape

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import Reporter, err, show_json, show_table
from armillary.cli.workspaces import WorkspaceOptions, opens_workspace, workspace


@app.command()
@opens_workspace("recipe", "folder", "workers")
def corpus(at: WorkspaceOptions, as_json: JsonOption = False) -> None:
    """Build the corpus of a recipe: token shards from its domains.

    Example: armillary corpus recipe.yaml
    """
    show = Reporter()
    try:
        built = workspace(at, show).corpus()
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
