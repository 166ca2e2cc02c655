"""The verb ``post sft``: supervised fine-tuning on a file of conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from armillary.cli.screen import JsonOption, Reporter, out, show_json
from armillary.cli.values import not_negative, positive
from armillary.recipe import Layout, Lora, UsageError, first_problem

TemplateOption = Annotated[
    str | None,
    typer.Option(
        help="folder (the model's own), chatml, telechat2, plain, or a Jinja file (default: the model's own, else by "
        "its vocabulary).",
        show_default=False,
    ),
]
TooLongOption = Annotated[
    str, typer.Option(help="A conversation longer than a sequence: refuse, cut (turns from its end) or drop.")
]
ContextLengthOption = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens of a packed sequence (default: by data and model).", show_default=False),
]


def one_of(option: str, value: str | None, known: tuple[str, ...]) -> None:
    """Refuse a value that an option does not have; None is its default."""
    if value is not None and value not in known:
        raise UsageError(f"{option}: must be one of {', '.join(known)}, given {value!r}")


def layout_of(text: str) -> Layout:
    """The layout that ``NAME=VALUE,NAME=VALUE`` says."""
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    try:
        return Layout.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"--layout {text}: {first_problem(error)}; give one such as dp_shard=2,tp=2") from error


def adapter_of(rank: int, alpha: float | None, targets: str | None) -> Lora:
    """The adapter that the options say."""
    fields = {} if targets is None else {"targets": [name.strip() for name in targets.split(",")]}
    try:
        return Lora.model_validate({"rank": rank, "alpha": alpha or 2.0 * rank, **fields})
    except ValidationError as error:
        raise UsageError(f"--lora-targets {targets}: {first_problem(error)}") from error


def sft(
    model: Annotated[Path, typer.Option(help="A Hugging Face folder.", show_default=False)],
    data: Annotated[
        Path, typer.Option(help="Conversations: messages, Alpaca, ShareGPT or TeleChat2.", show_default=False)
    ],
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where run and trained model go.", show_default=False)],
    held_out: Annotated[
        Path | None, typer.Option("--eval", help="Conversations to take the loss on.", show_default=False)
    ] = None,
    epochs: Annotated[float, typer.Option(callback=positive, help="Passes over the data.")] = 3.0,
    lr: Annotated[
        float | None, typer.Option(callback=positive, help="Peak learning rate (default: by size).", show_default=False)
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a step (default: 8192, fewer for few data).", show_default=False),
    ] = None,
    context_length: ContextLengthOption = None,
    weight_decay: Annotated[float, typer.Option(callback=not_negative, help="Decay of matrices.")] = 0.0,
    precision: Annotated[
        str | None, typer.Option(help="fp32 or bf16 (default: bf16 where it is faster).", show_default=False)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the written model (default: as the model's).", show_default=False)
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train an adapter of low rank in place of all weights.")] = False,
    lora_rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 16,
    lora_alpha: Annotated[
        float | None,
        typer.Option(
            callback=positive, help="Its scale is alpha / rank (default: twice the rank).", show_default=False
        ),
    ] = None,
    lora_targets: Annotated[
        str | None, typer.Option(help="Its matrices, such as q,v (default: all of a layer).", show_default=False)
    ] = None,
    template: TemplateOption = None,
    too_long: TooLongOption = "refuse",
    layout: Annotated[
        str | None,
        typer.Option(help="Ranks to start here, such as dp_shard=2,tp=2 (default: one device).", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the data.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model on conversations, with the loss on what the assistant says; the same command resumes.

    Example: armillary post sft --model ./base --data chats.jsonl --eval held-out.jsonl --out chat
    """
    one_of("--precision", precision, ("fp32", "bf16"))
    one_of("--too-long", too_long, ("refuse", "cut", "drop"))
    one_of("--dtype", dtype, ("float32", "bfloat16", "float16"))
    from armillary.launch import stopping
    from armillary.post.plan import SftOptions
    from armillary.post.sft import fine_tune
    from armillary.post.tuning import Handling

    options = SftOptions(
        epochs=epochs,
        lr=lr,
        batch_tokens=batch_tokens,
        context_length=context_length,
        weight_decay=weight_decay,
        precision=precision,  # type: ignore[arg-type]
        seed=seed,
        too_long=too_long,  # type: ignore[arg-type]
        template=template,
        dtype=dtype,  # type: ignore[arg-type]
        lora=adapter_of(lora_rank, lora_alpha, lora_targets) if lora else None,
    )
    ranks = None if layout is None else layout_of(layout)
    reporter = Reporter()
    try:
        with stopping() as stop:
            found = fine_tune(
                model,
                data,
                folder,
                options,
                held_out=held_out,
                handling=Handling(progress=reporter, stop=stop, layout=ranks, reporter=Reporter),
            )
    finally:
        reporter.close()
    if as_json:
        return show_json(found.to_json())
    if found.before is not None and found.after is not None:
        out.print(f"held out: {found.before:.4f} nats per token before, {found.after:.4f} after", highlight=False)
    out.print(
        f"{escape(str(found.model))}: trained loss {found.run.train_loss:.4f}, {found.run.wall_s:.0f} s; "
        f"armillary generate {escape(str(found.model))} --chat --prompt …",
        highlight=False,
    )
