"""Writes the folder of a chat model: weights, tokenizer, chat template, and the tokens that end generation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from armillary.model import Transformer, export_adapter, export_hf
from armillary.post.plan import Dtype, TuningOptions
from armillary.post.template import Renderer
from armillary.recipe import model_json
from armillary.train import ADAPTER

_TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model")


def export_chat(model: Transformer, source: Path, folder: Path, renderer: Renderer, dtype: Dtype | None = None) -> None:
    """Write ``model``, trained from the folder ``source``, with its tokenizer and chat template.

    The other files are copied from ``source``. The token that ends a turn is added to the tokens that stop generation,
    and the template is written as ``chat_template.jinja``. ``dtype`` defaults to that of ``source``.

    Raises:
        UsageError, ArmillaryError: as ``export_hf``.
    """
    config = model_json(source / "config.json")
    end = str(renderer.text.tokenizer.id_to_token(renderer.end))
    ends = sorted({renderer.end, *renderer.text.ends}, key=lambda token: token != renderer.end)
    stored = dtype or config.get("dtype") or config.get("torch_dtype") or "float32"
    generation = {**model_json(source / "generation_config.json"), "eos_token_id": ends[0] if len(ends) == 1 else ends}
    config |= {"eos_token_id": renderer.end, "dtype": stored, "torch_dtype": stored}
    tokenizer = {**model_json(source / "tokenizer_config.json"), "chat_template": renderer.chat.source}
    if "eos_token" not in renderer.chat.source:  # else the template would render a different text
        tokenizer["eos_token"] = end
    documents = {"config.json": config, "generation_config.json": generation, "tokenizer_config.json": tokenizer}
    files = {name: (json.dumps(d, ensure_ascii=False, indent=2) + "\n").encode() for name, d in documents.items()}
    files["chat_template.jinja"] = renderer.chat.source.encode()
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            files[name] = (source / name).read_bytes()
    export_hf(
        model,
        folder,
        tokenizer_file=source / "tokenizer.json",
        end_token=end,
        context_length=longest_context(source),
        dtype=stored,
        files=files,
    )


@dataclass(frozen=True)
class Tuned:
    """A training of the model in the folder ``source``, with its run in ``out/run``."""

    source: Path
    out: Path
    renderer: Renderer
    options: TuningOptions


def export_tuned(tuned: Tuned, model: Transformer) -> None:
    """Write the trained ``model`` to ``out/model``, and with ``lora`` also the adapter to ``out/adapter``.

    Raises:
        UsageError, ArmillaryError: as ``export_hf``.
    """
    export_chat(model, tuned.source, tuned.out / "model", tuned.renderer, tuned.options.dtype)
    if tuned.options.lora is not None:
        state = load_file(tuned.out / "run" / ADAPTER)
        where = str(tuned.source.resolve())
        export_adapter(model.shape, tuned.options.lora, state, tuned.out / "adapter", where)


def longest_context(folder: Path) -> int:
    """The longest context of a model in tokens."""
    value = model_json(folder / "config.json").get("max_position_embeddings")
    return value if isinstance(value, int) and value > 1 else 2048
