"""The verb ``serve``: a server with OpenAI's API."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from armillary.cli.app import JsonOption, app
from armillary.cli.backends import Engine, serves_models
from armillary.cli.show.screen import err, show_json


@app.command()
@serves_models
def serve(
    model: Annotated[str, typer.Argument(help="A model folder, a run or a .gguf file.", show_default=False)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; all but loopback addresses need ARMILLARY_SERVE_TOKEN.")
    ] = "127.0.0.1",
    name: Annotated[
        str | None, typer.Option(help="The model's name for clients (default: that of MODEL).", show_default=False)
    ] = None,
    queue: Annotated[
        int, typer.Option(min=0, help="Maximum number of waiting answers; further requests get status 429.")
    ] = 256,
    *,
    engine: Engine,
    as_json: JsonOption = False,
) -> None:
    """Serve a model with OpenAI's API until Ctrl-C or SIGTERM; running requests then finish.

    Example: armillary serve ./model --port 8000
    """
    from armillary.serve import Listening, ServeOptions
    from armillary.serve import serve as run

    def listening(facts: Listening) -> None:
        if as_json:
            show_json(asdict(facts))
            return
        token = " (with the token)" if facts.token else ""
        err.print(
            f"{facts.model} at {facts.url}{token}: {facts.backend}, context {facts.context}, {facts.slots} answers at "
            f"a time, {facts.queue} may wait; Ctrl-C stops the server",
            highlight=False,
            markup=False,
        )

    run(model, ServeOptions(host, port, name, queue, engine.options), engine.name or "auto", listening)
