"""The verb ``post dpo``: direct preference optimization on a file of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption
from armillary.cli.show.screen import Reporter, out, show_json
from armillary.cli.values import not_negative, positive, share
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

LOSSES = ("sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "ipo_sequence")


def dpo(
    model: ModelOption,
    data: Annotated[Path, typer.Option(help="Pairs: prompt, chosen and rejected.", show_default=False)],
    folder: OutOption,
    held_out: Annotated[Path | None, typer.Option("--eval", help="Pairs to compare on.", show_default=False)] = None,
    beta: Annotated[
        float, typer.Option(callback=positive, help="Strength of the pull towards the starting model (beta).")
    ] = 0.1,
    loss: Annotated[str, typer.Option(help=f"{', '.join(LOSSES)}; the names are TRL's.")] = "sigmoid",
    label_smoothing: Annotated[float, typer.Option(callback=share, help="Assumed share of mislabelled pairs.")] = 0.0,
    sft_weight: Annotated[
        float, typer.Option(callback=not_negative, help="Weight of the cross-entropy loss on the chosen answers.")
    ] = 0.0,
    epochs: Annotated[float, typer.Option(callback=positive, help="Passes over the pairs.")] = 1.0,
    lr: RateOption = None,
    batch_pairs: Annotated[
        int | None,
        typer.Option(min=1, help="Approximate pairs per step (default: 32, fewer for small sets).", show_default=False),
    ] = None,
    context_length: Annotated[
        int | None,
        typer.Option(
            min=4,
            help="Tokens per sequence, which contains both answers (default: the longest pair's).",
            show_default=False,
        ),
    ] = None,
    weight_decay: DecayOption = 0.0,
    precision: PrecisionOption = None,
    dtype: DtypeOption = None,
    lora: LoraOption = False,
    lora_rank: LoraRankOption = 16,
    lora_alpha: LoraAlphaOption = None,
    lora_targets: LoraTargetsOption = None,
    template: TemplateOption = None,
    too_long: Annotated[
        str, typer.Option(help="What to do with a pair longer than a sequence: refuse or drop.")
    ] = "refuse",
    layout: LayoutOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of the pairs.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a model to prefer the chosen answer of each pair to the rejected one; the same command resumes.

    Example: armillary post dpo --model ./chat --data pairs.jsonl --eval held-out.jsonl --out preferred
    """
    one_of("--loss", loss, LOSSES)
    check_types(precision, dtype)
    one_of("--too-long", too_long, ("refuse", "drop"))
    from armillary.launch import stopping
    from armillary.post.dpo import DpoOptions, prefer
    from armillary.post.tuning import Handling

    options = DpoOptions(
        beta=beta,
        loss=loss,  # type: ignore[arg-type]
        label_smoothing=label_smoothing,
        sft_weight=sft_weight,
        epochs=epochs,
        lr=lr,
        batch_pairs=batch_pairs,
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
            handling = Handling(progress=reporter, stop=stop, layout=ranks, reporter=Reporter)
            found = prefer(model, data, folder, options, held_out=held_out, handling=handling)
    finally:
        reporter.close()
    if as_json:
        return show_json(found.to_json())
    if found.before is not None and found.after is not None and found.after.accuracy is not None:
        before, after, accuracy = found.before.likelier, found.after.likelier, found.after.accuracy
        out.print(
            f"held out: the chosen answer is more likely in {before.value:.1%} of the pairs before and "
            f"{after.value:.1%} after; it has the higher reward in {accuracy.value:.1%} ({accuracy.low:.1%} to "
            f"{accuracy.high:.1%}), margin {found.after.margin:.3f}",
            highlight=False,
        )
    measured = found.run.measured
    out.print(
        f"{escape(str(found.model))}: trained loss {found.run.train_loss:.4f}, reward accuracy "
        f"{measured['preference/accuracy']:.1%}, margin {measured['preference/margin']:.3f}, {found.run.wall_s:.0f} s; "
        f"armillary generate {escape(str(found.model))} --chat --prompt …",
        highlight=False,
    )
