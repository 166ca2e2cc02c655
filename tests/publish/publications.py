"""A publication of a model that is drawn at random, and what its lineage says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from armillary.model import Transformer
from armillary.publish import publish
from armillary.recipe import Family, MixturePhase, OptimizerSpec, RunSpec, Schedule


def about(source: str, licence: str | None, tokens: int) -> dict[str, Any]:
    return {
        "source": source,
        "licence": licence,
        "train": tokens > 0,
        "train_tokens": tokens,
        "validation_tokens": 1000,
    }


SHAPE = Family(width_per_layer=8, head_dim=8).shape(1, 300)
SPEC = RunSpec(
    corpus="feedc0de",
    model=SHAPE,
    context_length=32,
    batch_sequences=4,
    steps=100,
    mixture=(
        MixturePhase(start_step=0, weights={"news": 0.75, "code": 0.25}),
        MixturePhase(start_step=80, weights={"news": 0.5, "code": 0.5}),
    ),
    schedule=Schedule(kind="wsd", warmup_steps=5, decay_steps=20),
    optimizer=OptimizerSpec(lr=1e-3),
    seed=1,
)
LINEAGE: dict[str, Any] = {
    "run": SPEC.id,
    "spec": SPEC.model_dump(mode="json"),
    "corpus": {
        "hash": "feedc0de",
        "domains": {
            "news": about("demo:news", "MIT", 1234567),
            "code": about("src", "Apache-2.0", 500),
            "novel | 小说": about("novel", None, 0),
        },
    },
    "edges": [[f"run:{SPEC.id}", "trained on", "corpus:feedc0de"]],
    "argued_by": {"mixture": ["aa", "bb"], "ladder": ["cc"], "anneal": []},
    "prediction": {"run": SPEC.id, "recorded_at": "2030-01-01T00:00:00Z"},
    "verdict_status": "judged",
    "verdict": [
        {"domain": "news", "predicted": 2.5, "low": 2.4, "high": 2.6, "measured": 2.45, "inside": True},
        {"domain": "novel | 小说", "predicted": 4.0, "low": 3.9, "high": 4.1, "measured": 4.3, "inside": False},
        {"domain": "target", "predicted": 3.0, "low": 2.9, "high": 3.1, "measured": 3.05, "inside": True},
    ],
    "losses": {"news": 2.45, "novel | 小说": 4.3, "code": 1.5},
    "passes": {"news": 0.0073, "code": 7.68},
}


def built(seed: int = 0) -> Transformer:
    model = Transformer(SHAPE)
    model.init_weights(seed)
    return model


def published(folder: Path, tokenizer_file: Path, seed: int = 0, **changed: Any) -> Path:
    lineage = {**copy.deepcopy(LINEAGE), **changed}
    publish(built(seed), folder, tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=32, lineage=lineage)
    return folder
