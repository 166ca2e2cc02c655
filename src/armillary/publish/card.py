"""Writes the model card: a README.md for readers who find the published folder and do not know its history."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from armillary.recipe import ModelShape, RunSpec, Supervised, counted

# Up to this size a model demonstrates a method and knows almost nothing; GPT-2 small has 124 million parameters.
_VERY_SMALL = 100e6


_TAG = "tags:\n- armillary\n"


def is_card(text: str) -> bool:
    """Whether ``model_card`` wrote ``text``."""
    return text.startswith("---\n") and _TAG in text.partition("\n---")[0] + "\n"


def model_card(name: str, shape: ModelShape, context_length: int, lineage: dict[str, Any]) -> str:
    """The card in Markdown: description, loading, training data, measurements and limits.

    ``lineage`` is the document of ``lineage.json``.
    """
    run = RunSpec.model_validate(lineage["spec"])
    moe = "Moe" if shape.experts else ""
    kind = f"Qwen3{moe}ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"
    very_small = shape.parameters < _VERY_SMALL
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n{_TAG}---",
        f"# {name}",
        f"A decoder-only language model of {counted(shape.parameters, 'parameter')} "
        f"({shape.non_embedding_parameters:,} without "
        f"embedding and output matrix), trained on {counted(run.tokens, 'token')}: "
        f"{counted(shape.n_layers, 'layer')} of width "
        f"{shape.d_model}, {shape.n_heads} query and {shape.n_kv_heads} key-value heads of {shape.head_dim}, "
        f"feed-forward width {shape.d_ff}, vocabulary of {counted(shape.vocab_size, 'token')}, contexts of "
        f"{context_length} "
        f"tokens. To `transformers` it is a `{kind}`.",
        "## How to load it",
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # where this file lies\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        'tokens = tokenizer("The ", return_tensors="pt")\n'
        f"text = model.generate(**tokens, max_new_tokens={context_length // 2}, do_sample=True, temperature=0.8)\n"
        "print(tokenizer.decode(text[0]))\n```",
        "It continues text."
        + ("" if isinstance(run.objective, Supervised) else " It was not taught to chat or to follow instructions."),
        "## What it was trained on",
        *_text(run, lineage["corpus"]["domains"], lineage["passes"]),
        "## How it measured",
        *_measured(lineage),
        "## Where it comes from",
        _origin(lineage),
        "## Limits",
        ("This is a very small model, made to show how a training recipe is found and checked. " if very_small else "")
        + "It states false things fluently, repeats itself, and carries whatever bias its text has. It was neither "
        "examined nor tuned for safety; do not put it before users without doing both.",
    ]
    return "\n\n".join(parts) + "\n"


def chat_card(name: str, lineage: dict[str, Any]) -> str:
    """The card of a chat model in Markdown; ``lineage`` is as ``publish_chat`` writes it."""
    taught, base = lineage["teaching"], lineage["base"]
    scores = [
        (
            row["test"],
            f"{row['n']:,}",
            _share(row["before"]),
            _share(row["after"]),
            f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})",
        )
        for row in taught["scores"]
    ]
    forgotten = [
        (domain, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
        for domain, (before, after) in lineage["losses"].items()
    ]
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n{_TAG}---",
        f"# {name}",
        f"A small language model that was taught to answer short questions of {len(taught['families'])} kinds "
        f"({', '.join(taught['families'])}), in Chinese and English where the questions were. It is the base model of "
        f"run `{base['run']}`, fine-tuned on {counted(taught['items'], 'question')} whose answers a program computes.",
        "## How to talk to it",
        "```\narmillary chat .\n```",
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # where this file lies\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        f'turns = [{{"role": "user", "content": {json.dumps(taught["example"], ensure_ascii=False)}}}]\n'
        'tokens = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", '
        "return_dict=True)\n"
        "text = model.generate(**tokens, max_new_tokens=40)\n"
        'print(tokenizer.decode(text[0, tokens["input_ids"].shape[1]:], skip_special_tokens=True))\n```',
        "## How it measured",
        "Share of right answers before and after, on the same questions that it was not trained on, with the 95% "
        "interval of the paired difference in points:",
        _table(("questions", "n", "before", "after", "difference"), scores),
        _gain(taught["gain"]),
        "What it forgot: validation loss of the pretraining text in nats per token.",
        _table(("domain", "before", "after", "difference"), forgotten),
        "## Where it comes from",
        f"Run `{lineage['run']}`, which starts from the model with the weights `{base['weights'][:16]}…`. "
        "`lineage.json` holds its full specification, what it was trained on, the runs behind the base model, the "
        "version of the code and the SHA-256 of every file.",
        "## Limits",
        "It answers these kinds of questions and no others; to anything else it replies in the same form and is wrong. "
        "It was neither examined nor tuned for safety.",
    ]
    return "\n\n".join(parts) + "\n"


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _gain(gain: dict[str, Any] | None) -> str:
    if gain is None or gain["predicted"] is None:
        return "The gain was not predicted."
    inside = "inside" if gain["inside"] else "outside"
    return (
        f"From runs on parts of the questions {_share(gain['predicted'])} ({_share(gain['low'])} to "
        f"{_share(gain['high'])}) was predicted of the held-out questions and recorded before; "
        f"{_share(gain['measured'])} was measured: {inside}."
    )


def _text(run: RunSpec, domains: Mapping[str, Any], passes: Mapping[str, float]) -> list[str]:
    """Mixture by phase, passes and licence of each training domain, and the domains that were only examined."""
    phases = [phase.start_step for phase in run.mixture]
    ends = [*phases[1:], run.steps]
    lead = f"{counted(run.tokens, 'token')} in {counted(run.steps, 'step')}"
    if isinstance(run.objective, Supervised):
        read = [(name, f"{times:.2f}") for name, times in passes.items()]
        lead += f" of supervised examples ({run.objective.examples})."
        return [lead, _table(("examples", "passes over them"), read), *_examined(domains)]
    heads = ["domain"]
    if len(phases) == 1:
        lead += ", with one mixture throughout"
        heads.append("share of the tokens")
    else:
        lead += f", with {counted(len(phases), 'mixture')} one after the other"
        heads += [f"share in steps {a + 1:,} to {b:,}" for a, b in zip(phases, ends, strict=True)]
    heads += ["tokens trained on, about", "passes over its text", "licence", "source"]
    rows = []
    for name in dict.fromkeys(name for phase in run.mixture for name in phase.weights):
        shares = [phase.weights.get(name, 0.0) for phase in run.mixture]
        drawn = sum(
            share * (run.tokens_after(b) - run.tokens_after(a))
            for share, a, b in zip(shares, phases, ends, strict=True)
        )
        about = domains.get(name, {})
        rows.append(
            (
                name,
                *(f"{100 * share:.1f}%" for share in shares),
                f"{drawn:,.0f}",
                f"{passes[name]:.2f}" if name in passes else "not recorded",
                about.get("licence") or "not stated",
                about.get("source", ""),
            )
        )
    return [f"{lead}.", _table(tuple(heads), rows), *_examined(domains)]


def _examined(domains: Mapping[str, Any]) -> list[str]:
    """A sentence and a table of the domains that were only examined, if any."""
    examined = [
        (name, f"{about['validation_tokens']:,}", about["licence"] or "not stated", about["source"])
        for name, about in domains.items()
        if not about["train"]
    ]
    if not examined:
        return []
    return [
        "Not trained on, only examined:",
        _table(("domain", "validation tokens", "licence", "source"), examined),
    ]


def _measured(lineage: dict[str, Any]) -> list[str]:
    """A sentence and a table of the measured losses, with the predictions if there is a verdict."""
    held_out = sum(about["validation_tokens"] for about in lineage["corpus"]["domains"].values())
    text = f"Validation loss on held-out text ({counted(held_out, 'token')} in all domains), in nats per token."
    losses: dict[str, float] = lineage["losses"]
    verdict = {row["domain"]: row for row in lineage["verdict"] or ()}
    if not verdict:
        if (said := lineage["prediction"]) is not None:
            if said["run"] == lineage["run"]:
                text += " A prediction was recorded; no verdict on it is recorded."
            else:
                state = "diverged" if lineage["verdict_status"] == "diverged" else "has no result"
                text += (
                    f" What was predicted is another run, `{said['run']}`, which {state}: nothing was predicted of "
                    "these weights, which come from another seed."
                )
        return [text, _table(("domain", "loss"), [(domain, f"{loss:.4f}") for domain, loss in losses.items()])]
    hits = sum(bool(row["inside"]) for row in verdict.values())
    text += (
        " What the run would reach was predicted from the runs of the ladder and recorded before it began; "
        f"{hits} of {counted(len(verdict), 'prediction')} (the domains and the target, their weighted mean) lie "
        f"inside their "
        "intervals."
    )
    rows = []
    for domain, loss in (losses | {name: row["measured"] for name, row in verdict.items()}).items():
        predicted = interval = inside = ""
        if row := verdict.get(domain):
            predicted, interval = f"{row['predicted']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}"
            inside = "inside" if row["inside"] else "outside"
        rows.append((domain, f"{loss:.4f}", predicted, interval, inside))
    return [text, _table(("domain", "loss", "predicted", "interval", "verdict"), rows)]


def _origin(lineage: dict[str, Any]) -> str:
    studies = [
        f"{counted(len(runs), 'run')} of the {study} study" for study, runs in lineage["argued_by"].items() if runs
    ]
    argued = f" The recipe rests on {', '.join(studies)}." if studies else ""
    return (
        f"Run `{lineage['run']}` on corpus `{lineage['corpus']['hash']}`.{argued} `lineage.json` holds its full "
        "specification, the runs behind it, the version of the code and the SHA-256 of every file (of the weights: "
        f"`{lineage['weights']['sha256'][:16]}…`)."
    )


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [list(heads), ["---"] * len(heads), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
