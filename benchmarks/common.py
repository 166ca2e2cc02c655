"""Shared parts of the benchmarks: small models, runs over a fixed mixture, the demonstration's texts, and tables.

Every benchmark has its own sizes. This module only turns them into documents, so the same sizes give the same run in
all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from armillary.corpus import Corpus, build_corpus
from armillary.launch import Executor, Job, Progress
from armillary.recipe import (
    ArmillaryError,
    CorpusSpec,
    DomainSpec,
    MixturePhase,
    ModelShape,
    OptimizerSpec,
    RunResult,
    RunSpec,
    TokenizerSpec,
)


def shape(layers: int, width: int, hidden: int, vocab_size: int) -> ModelShape:
    """A model with heads of 32."""
    return ModelShape(
        n_layers=layers,
        d_model=width,
        n_heads=width // 32,
        n_kv_heads=width // 32,
        head_dim=32,
        d_ff=hidden,
        vocab_size=vocab_size,
    )


def run_spec(model: ModelShape, mixture: Mapping[str, float], lr: float, **fields: Any) -> RunSpec:
    """A run over one mixture from its first step to its last; ``fields`` are those of RunSpec."""
    phases = (MixturePhase(start_step=0, weights=dict(mixture)),)
    return RunSpec(model=model, mixture=phases, optimizer=OptimizerSpec(lr=lr), **fields)


def corpus_of(sources: Mapping[str, str], vocab_size: int, folder: Path) -> Corpus:
    """A corpus in ``folder`` of the texts at ``sources`` (files, or ``demo:`` names), by domain."""
    domains = {name: DomainSpec(source=source) for name, source in sources.items()}
    return build_corpus(CorpusSpec(domains=domains, tokenizer=TokenizerSpec(vocab_size=vocab_size)), folder)


def run_all(
    executor: Executor,
    study: str,
    specs: Sequence[RunSpec],
    progress: Progress = lambda stage, done, total, note: None,
) -> list[RunResult]:
    """Run ``specs`` and return their results in the same order (an executor returns them in order of completion).

    Raises:
        ArmillaryError: a run has none.
    """
    outcomes = executor.run(study, [Job(spec) for spec in specs], progress)
    results = []
    for spec in specs:
        outcome = outcomes[spec.id]
        if not isinstance(outcome, RunResult):
            raise ArmillaryError(f"run {outcome.run} of the benchmark has no result: {outcome.error}")
        results.append(outcome)
    return results


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *rows])


def write_json(path: Path | None, benchmark: str, **measured: Any) -> None:
    """Write what was measured, where a file was asked for."""
    if path is not None:
        path.write_text(json.dumps({"benchmark": benchmark, **measured}), encoding="utf-8")
