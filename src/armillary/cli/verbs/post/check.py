"""The verb ``post check``: checks a file of conversations for a model before training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from armillary.cli.app import JsonOption
from armillary.cli.show.screen import Reporter, out, show_json
from armillary.cli.verbs.post.sft import ContextLengthOption, TooLongOption
from armillary.cli.verbs.post.training import TemplateOption, one_of


def check(
    data: Annotated[
        Path, typer.Argument(help="Conversations: messages, Alpaca, ShareGPT or TeleChat2.", show_default=False)
    ],
    model: Annotated[Path, typer.Option(help="A Hugging Face folder.", show_default=False)],
    template: TemplateOption = None,
    context_length: ContextLengthOption = None,
    too_long: TooLongOption = "refuse",
    sample: Annotated[int, typer.Option(min=1, help="Number of the conversation to show, from 1.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Check conversations like `post sft`, and show one with its trained tokens coloured.

    Example: armillary post check chats.jsonl --model ./base
    """
    one_of("--too-long", too_long, ("refuse", "cut", "drop"))
    from armillary.launch import stopping
    from armillary.post.plan import SftOptions
    from armillary.post.sft import check_data
    from armillary.post.tuning import Handling

    reporter = Reporter()
    options = SftOptions(template=template, context_length=context_length, too_long=too_long)  # type: ignore[arg-type]
    try:
        with stopping() as stop:
            found = check_data(model, data, options, sample=sample, handling=Handling(progress=reporter, stop=stop))
    finally:
        reporter.close()
    if as_json:
        return show_json(found.to_json())
    shown = Text()
    for text, trained in found.pieces:
        shown.append(text, style="bold green" if trained else "dim")
    out.print(f"conversation {sample} ({found.sample.where}), trained tokens [bold green]coloured[/bold green]:\n")
    out.print(shown, highlight=False)
    if not out.is_terminal:  # without colours, list the trained parts
        out.print("\ntrained:", highlight=False)
        for text, trained in found.pieces:
            if trained:
                out.print(Text(f"  {text!r}"), highlight=False)
    out.print("")
    for line in found.lines():
        out.print(line, highlight=False, markup=False)
