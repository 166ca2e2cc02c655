"""The verb ``post sft``: supervised fine-tuning on a file of conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption
from armillary.cli.show.screen import Reporter, out, show_json
from armillary.cli.values import positive
from armillary.cli.verbs.post.training import (
    DecayOption,
    DtypeOption,
    LayoutOption,
    LoraAlphaOption,
    LoraOption,
    LoraRankOption,
    LoraTargetsOption,
    ModelOption,
    OutOption,
    PrecisionOption,
    RateOption,
    TemplateOption,
    adapter_of,
    check_types,
    layout_of,
    one_of,
)

TooLongOption = Annotated[
    str, typer.Option(help="What to do with a conversation longer than a sequence: refuse, cut (last turns) or drop.")
]
ContextLengthOption = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens per packed sequence (default: by data and model).", show_default=False),
]


def sft(
    model: ModelOption,
    data: Annotated[
        Path, typer.Option(help="Conversations: messages, Alpaca, ShareGPT or TeleChat2.", show_default=False)
    ],
    folder: OutOption,
    held_out: Annotated[
        Path | None, typer.Option("--eval", help="Held-out conversations to measure the loss on.", show_default=False)
    ] = None,
    epochs: Annotated[float, typer.Option(callback=positive, help="Passes over the data.")] = 3.0,
    lr: RateOption = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens per step (default: 8192, fewer for small sets).", show_default=False),
    ] = None,
    context_length: ContextLengthOption = None,
    weight_decay: DecayOption = 0.0,
    precision: PrecisionOption = None,
    dtype: DtypeOption = None,
    lora: LoraOption = False,
    lora_rank: LoraRankOption = 16,
    lora_alpha: LoraAlphaOption = None,
    lora_targets: LoraTargetsOption = None,
    template: TemplateOption = None,
    too_long: TooLongOption = "refuse",
    layout: LayoutOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of the data.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model on conversations, with the loss on the assistant's turns; the same command resumes.

    Example: armillary post sft --model ./base --data chats.jsonl --eval held-out.jsonl --out chat
    """
    check_types(precision, dtype)
    one_of("--too-long", too_long, ("refuse", "cut", "drop"))
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
    ranks = layout_of(layout)
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
