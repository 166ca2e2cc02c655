"""The app with all its verbs, in the order of typical use."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from armillary import __version__
from armillary.cli.app import app
from armillary.cli.values import of_option
from armillary.cli.verbs import (
    chat,
    console,
    convert,
    corpus,
    evaluate,
    forecast,
    generate,
    goodput,
    import_runs,
    laws,
    leaderboard,
    lineage,
    logits,
    plan,
    post,
    predict,
    publish,
    report,
    run,
    serve,
    store,
    study,
    submit,
    train,
    verdict,
    verify,
)

__all__ = [
    "PANELS",
    "app",
    "chat",
    "console",
    "convert",
    "corpus",
    "evaluate",
    "forecast",
    "generate",
    "goodput",
    "import_runs",
    "laws",
    "leaderboard",
    "lineage",
    "logits",
    "plan",
    "post",
    "predict",
    "publish",
    "report",
    "run",
    "serve",
    "store",
    "study",
    "submit",
    "train",
    "verdict",
    "verify",
]

# The sections of `armillary --help`, in order. Verbs in none of them come last, under "Others".
PANELS = {
    "From text to a model": ("run", "demo", "report", "corpus", "predict", "train", "verdict"),
    "On a cluster": ("submit", "jobs", "logs", "cancel"),
    "Post-training": ("post",),
    "Results": ("console", "runs", "rates", "verify", "store"),
    "Planning and goodput": ("plan", "goodput"),
    "Inference and evaluation": ("chat", "generate", "serve", "evaluate", "leaderboard", "forecast"),
    "Conversion and publishing": ("convert", "logits", "publish", "lineage"),
    "Single studies": ("study",),
    "Laws fitted to any runs": (
        *(
            "import",
            "fit",
            "predict-law",
            "optimise-mixture",
            "best-schedule",
            "best-lr",
            "compare",
            "next-run",
            "reproduce",
        ),
    ),
}
_ORDER = [name for names in PANELS.values() for name in names]


class InOrder(TyperGroup):
    """Lists the verbs in the order of ``PANELS``, and reports option errors in this program's wording."""

    def invoke(self, ctx: Any) -> Any:
        """Parse and call the verb; Typer's errors about values come from pydantic."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if error.__cause__ is not None:
                error.message = of_option(error.__cause__, error.message)
            raise

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the verbs, main path first."""
        return sorted(
            super().list_commands(ctx), key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER)
        )


def version(value: bool) -> None:
    """Print the version and end."""
    if value:
        print(f"armillary {__version__}")
        raise typer.Exit


@app.callback(cls=InOrder)
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Handle options before the verb."""


def _panel(name: str) -> str:
    return next((panel for panel, names in PANELS.items() if name in names), "Others")


for _verb in app.registered_commands:
    _verb.rich_help_panel = _panel(_verb.name or (_verb.callback.__name__ if _verb.callback else ""))
for _group in app.registered_groups:
    _group.rich_help_panel = _panel(_group.name or "")
