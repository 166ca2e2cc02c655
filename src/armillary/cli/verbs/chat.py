"""The verb ``chat``: a conversation with a model."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict
from typing import Annotated, Any

import typer

from armillary.cli.app import JsonOption, app
from armillary.cli.backends import Engine, ModelArgument, opens_models
from armillary.cli.show.screen import err, show_json
from armillary.cli.values import not_negative, nucleus
from armillary.recipe import counted


@app.command()
@opens_models
def chat(
    model: ModelArgument,
    system: Annotated[str | None, typer.Option(help="The system message.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(callback=not_negative, help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(callback=nucleus, help="Sample from the nucleus with this probability.")
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Sample from this many most likely tokens.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    *,
    engine: Engine,
    as_json: JsonOption = False,
) -> None:
    """Chat with a model: one line per turn, on the terminal or from a pipe. /clear starts over, Ctrl-D quits.

    Example: armillary chat ./model --system "Answer briefly."
    """
    from armillary.generate import Dialogue, Sampling, open_backend

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed=seed)
    opened = open_backend(model, engine.options, engine.name)
    try:
        _talk(Dialogue(opened, sampling, system), as_json)
    finally:
        opened.close()


def _talk(dialogue: Any, as_json: bool) -> None:
    person = sys.stdin.isatty()
    if person:
        err.print("/clear starts over, Ctrl-C stops an answer, Ctrl-D quits", highlight=False)
        import readline  # noqa: F401 (input() then edits its line)
    while (text := _line(person)) is not None:
        if text == "/clear":
            dialogue.clear()
        elif text:
            _turn(dialogue, text, person, as_json)


def _line(person: bool) -> str | None:
    """The next line without surrounding white space; None at the end."""
    try:
        return input("> " if person else "").strip()
    except EOFError:
        return None


def _turn(dialogue: Any, text: str, person: bool, as_json: bool) -> None:
    forgotten = dialogue.forgotten
    with closing(dialogue.say(text)) as pieces:
        try:
            while True:
                piece = next(pieces)
                if not as_json:
                    print(piece, end="", flush=True)
        except StopIteration as end:
            (choice,) = end.value.choices
            if as_json:
                show_json(asdict(choice))
            elif choice.finish == "length":
                err.print(" (truncated by --max-new-tokens or the model's context)", end="", highlight=False)
        except KeyboardInterrupt:
            if not person:
                raise
    if not as_json:
        print()
    if dialogue.forgotten > forgotten:
        err.print(f"the context is full: {counted(dialogue.forgotten, 'old message')} dropped", highlight=False)
