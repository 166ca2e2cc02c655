"""The verb ``generate``: completions of prompts."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption, app
from armillary.cli.backends import Engine, ModelArgument, opens_models
from armillary.cli.show.screen import Reporter, err, show_json
from armillary.cli.values import not_negative, nucleus
from armillary.recipe import UsageError, counted


@app.command()
@opens_models
def generate(
    model: ModelArgument,
    prompt: Annotated[str | None, typer.Option(help="One prompt; the answer is printed.", show_default=False)] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Prompts, one JSON object per line: prompt or messages, id.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Completions of the prompts in --file.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(callback=not_negative, help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(callback=nucleus, help="Sample from the nucleus with this probability.")
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Sample from this many most likely tokens.", show_default=False)
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends an answer; repeatable.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    n: Annotated[int, typer.Option("--n", min=1, help="Answers to each prompt.")] = 1,
    chat: Annotated[bool, typer.Option("--chat", help="Send prompts as chat messages.")] = False,
    system: Annotated[str | None, typer.Option(help="The system message of a chat.", show_default=False)] = None,
    *,
    engine: Engine,
    as_json: JsonOption = False,
) -> None:
    """Generate text: one answer on the terminal, or a file of completions; resumes after an interruption.

    Example: armillary generate ./model --prompt "The sky is" --max-new-tokens 50
    """
    if (prompt is None) == (file is None):
        raise UsageError("give --prompt, or --file with --out")
    if (file is None) != (out is None):
        raise UsageError("--file and --out belong together")
    from armillary.generate import (
        PromptOptions,
        Sampling,
        open_backend,
        read_prompts,
    )

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, tuple(stop or ()), seed, n)
    options = PromptOptions(sampling, chat, system)
    # Read before the model is loaded, so that a wrong prompt is reported at once.
    prompts = None if file is None else read_prompts(file, options)
    opened = open_backend(model, engine.options, engine.name)
    try:
        if prompts is not None and out is not None:
            _file(opened, prompts, out, as_json)
        elif as_json:
            (completion,) = opened.complete([options.request(prompt or "")])
            show_json({**asdict(completion), "backend": opened.identity, "cost": asdict(opened.cost)})
        else:
            _stream(opened, options.request(prompt or ""))
    finally:
        opened.close()


def _stream(backend: Any, request: Any) -> None:
    """Print the first answer as it grows, then the others."""
    with closing(backend.stream(request)) as pieces:
        try:
            while True:
                print(next(pieces), end="", flush=True)
        except StopIteration as end:
            others = end.value.choices[1:]
    print()
    for number, choice in enumerate(others, 2):
        print(f"--- {number}\n{choice.text}")


def _file(backend: Any, prompts: Any, out: Path, as_json: bool) -> None:
    from armillary.generate import complete_file

    reporter, begun = Reporter(), time.monotonic()

    def progress(done: int, total: int, resumed: int) -> None:
        # Kept answers take no time, so the time left counts only the others.
        rate = backend.cost.new_tokens / max(time.monotonic() - begun, 1e-9)
        if total > resumed:
            reporter(
                "generate",
                done - resumed,
                total - resumed,
                f"{done} of {counted(total, 'prompt')}, {rate:.0f} tokens/s",
            )

    try:
        written = complete_file(backend, prompts, out, progress)
    finally:
        reporter.close()
    cost = backend.cost
    for line in written.damaged:
        reporter.say(f"{written.answers}:{line} was damaged; its answer was requested again")
    if as_json:
        return show_json({"out": str(out), **asdict(written), "backend": backend.identity, "cost": asdict(cost)})
    money = "" if cost.money is None else f", cost {cost.money:.4f}"
    err.print(
        f"{escape(str(out))}: {counted(written.rows, 'completion')}, {written.kept} kept from before; "
        f"{cost.prompt_tokens:,} "
        f"tokens read and {cost.new_tokens:,} written in {cost.seconds:.1f} s{money}",
        highlight=False,
    )
