"""The model card: a README.md for people who find the published folder and know nothing of how it came to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from armillary.recipe import ModelShape


def model_card(name: str, shape: ModelShape, context_length: int, lineage: dict[str, Any]) -> str:
    """Markdown with what the model is, how to load it, what it was trained on, how it measured, and its limits."""
    domains = lineage["corpus"]["domains"]
    moe = "Moe" if shape.experts else ""
    kind = f"Qwen3{moe}ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"
    argued = ", ".join(f"{len(runs)} runs of the {study} study" for study, runs in lineage["argued_by"].items() if runs)
    argued = argued and f", argued for by {argued}"
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- armillary\n---",
        f"# {name}",
        f"A decoder-only language model of {shape.parameters:,} parameters ({shape.non_embedding_parameters:,} without "
        f"embedding and output matrix): {shape.n_layers} layers of width {shape.d_model}, {shape.n_heads} query and "
        f"{shape.n_kv_heads} key-value heads of {shape.head_dim}, feed-forward width {shape.d_ff}, vocabulary of "
        f"{shape.vocab_size:,} tokens, contexts of {context_length} tokens. To `transformers` it is a `{kind}`.",
        "## How to load it",
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # where this file lies\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        'tokens = tokenizer("The ", return_tensors="pt")\n'
        f"text = model.generate(**tokens, max_new_tokens={context_length // 2}, do_sample=True, temperature=0.8)\n"
        "print(tokenizer.decode(text[0]))\n```",
        "It continues text. It was not taught to chat or to follow instructions.",
        "## What it was trained on",
        _table(
            ("domain", "training tokens", "licence", "source"),
            [
                (domain, f"{about['train_tokens']:,}", about["licence"] or "not stated", about["source"])
                for domain, about in domains.items()
            ],
        ),
        "Training tokens are those the corpus holds of a domain; how often each was drawn follows from the mixture in "
        "`lineage.json`. A domain with none was only examined.",
        "## How it measured",
        *_measured(lineage),
        "## Where it comes from",
        f"Run `{lineage['run']}` on corpus `{lineage['corpus']['hash']}`{argued}. `lineage.json` holds its full "
        f"specification, the runs behind it, the version of the code and the SHA-256 of the weight file "
        f"(`{lineage['weights']['sha256'][:16]}…`).",
        "## Limits",
        "This is a very small model, made to show how a training recipe is found and checked. It has little knowledge, "
        "states false things fluently, repeats itself, and carries whatever bias its text has. It was not made safe "
        "for anything; do not put it before users.",
    ]
    return "\n\n".join(parts) + "\n"


def _measured(lineage: dict[str, Any]) -> list[str]:
    """A sentence and a table of the measured losses; with a verdict also what was predicted."""
    text = "Validation loss on held-out text, in nats per token."
    losses: dict[str, float] = lineage["losses"]
    verdict = {row["domain"]: row for row in lineage["verdict"] or ()}
    if not verdict:
        return [text, _table(("domain", "loss"), [(domain, f"{loss:.4f}") for domain, loss in losses.items()])]
    hits = sum(bool(row["inside"]) for row in verdict.values())
    text += f" The prediction was recorded before the run began; {hits} of {len(verdict)} lie inside its interval."
    rows = []
    for domain, loss in (losses | {name: row["measured"] for name, row in verdict.items()}).items():
        predicted = interval = inside = ""
        if row := verdict.get(domain):
            predicted, interval = f"{row['predicted']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}"
            inside = "inside" if row["inside"] else "outside"
        rows.append((domain, f"{loss:.4f}", predicted, interval, inside))
    return [text, _table(("domain", "loss", "predicted", "interval", "verdict"), rows)]


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [list(heads), ["---"] * len(heads), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
