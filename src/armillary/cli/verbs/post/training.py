"""Options shared by the verbs that train a model (``post sft``, ``post dpo``) or render its training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from armillary.cli.values import not_negative, positive
from armillary.recipe import Layout, Lora, UsageError, first_problem

ModelOption = Annotated[Path, typer.Option(help="A Hugging Face folder.", show_default=False)]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="Folder for the run and the trained model.", show_default=False)
]
RateOption = Annotated[
    float | None,
    typer.Option(callback=positive, help="Peak learning rate (default: by model size).", show_default=False),
]
DecayOption = Annotated[float, typer.Option(callback=not_negative, help="Weight decay of matrices.")]
PrecisionOption = Annotated[
    str | None, typer.Option(help="fp32 or bf16 (default: bf16 where it is faster).", show_default=False)
]
DtypeOption = Annotated[
    str | None, typer.Option(help="dtype of the written model (default: the model's own).", show_default=False)
]
LoraOption = Annotated[bool, typer.Option("--lora", help="Train a low-rank adapter instead of all weights.")]
LoraRankOption = Annotated[int, typer.Option(min=1, help="Rank of the adapter.")]
LoraAlphaOption = Annotated[
    float | None,
    typer.Option(
        callback=positive,
        help="Alpha of the adapter; its scale is alpha / rank (default: twice the rank).",
        show_default=False,
    ),
]
LoraTargetsOption = Annotated[
    str | None, typer.Option(help="Matrices of the adapter, such as q,v (default: all of a layer).", show_default=False)
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        help="folder (the model's own), chatml, telechat2, telechat2-115b, plain, or a Jinja file (default: the "
        "model's own, otherwise by its vocabulary).",
        show_default=False,
    ),
]
LayoutOption = Annotated[
    str | None,
    typer.Option(
        help="Layout of the ranks to start on this machine, such as dp_shard=2,tp=2 (default: one device).",
        show_default=False,
    ),
]


def check_types(precision: str | None, dtype: str | None) -> None:
    """Refuse an unknown precision or dtype."""
    one_of("--precision", precision, ("fp32", "bf16"))
    one_of("--dtype", dtype, ("float32", "bfloat16", "float16"))


def one_of(option: str, value: str | None, known: tuple[str, ...]) -> None:
    """Refuse an unknown value of an option; None is its default."""
    if value is not None and value not in known:
        raise UsageError(f"{option}: must be one of {', '.join(known)}, given {value!r}")


def layout_of(text: str | None) -> Layout | None:
    """The layout parsed from ``NAME=VALUE,NAME=VALUE``."""
    if text is None:
        return None
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    try:
        return Layout.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"--layout {text}: {first_problem(error)}; give one such as dp_shard=2,tp=2") from error


def adapter_of(rank: int, alpha: float | None, targets: str | None) -> Lora:
    """The adapter specified by the options."""
    fields = {} if targets is None else {"targets": [name.strip() for name in targets.split(",")]}
    try:
        return Lora.model_validate({"rank": rank, "alpha": alpha or 2.0 * rank, **fields})
    except ValidationError as error:
        raise UsageError(f"--lora-targets {targets}: {first_problem(error)}") from error
