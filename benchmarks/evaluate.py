"""Examinations compared with plain lm_eval: the same model, items and settings, in one run.

    python benchmarks/evaluate.py HF_FOLDER --data EVALUATION --limit 50

Prints, for each task, both scores, the items with equal scores, the share truncated by the token limit, and the audit's
disagreement. Exits with code 1 if an item differs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

# Of each task: lm_eval's configuration, the files of its splits, examples, and the longest answer in tokens.
TASKS: dict[str, tuple[str, dict[str, str], int, int]] = {
    "cmmlu_anatomy": (
        "cmmlu/cmmlu_anatomy.yaml",
        {"test": "cmmlu/test/anatomy.csv", "dev": "cmmlu/dev/anatomy.csv"},
        0,
        8,
    ),
    "bbh_fewshot_navigate": ("bbh/fewshot/navigate.yaml", {"test": "bbh/navigate.json"}, 3, 16),
    "bbh_fewshot_boolean_expressions": (
        "bbh/fewshot/boolean_expressions.yaml",
        {"test": "bbh/boolean_expressions.json"},
        3,
        16,
    ),
    "gsm8k": ("gsm8k/gsm8k.yaml", {"test": "gsm8k/test.jsonl", "train": "gsm8k/train.jsonl"}, 1, 192),
}


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("ARMILLARY_EVALUATION"))
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.data is None:
        parser.error("give --data, or set ARMILLARY_EVALUATION")
    rows = [_compared(task, given) for task in given.tasks.split(",")]
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))
    sys.exit(any(row["equal"] != row["items"] for row in rows))


def _compared(task: str, given: argparse.Namespace) -> dict[str, Any]:
    from armillary.evaluate.tasks import ExamOptions, examine, prepare
    from armillary.generate import BackendOptions, open_backend

    _, _, shots, tokens = TASKS[task]
    begun = time.monotonic()
    options = ExamOptions(limit=given.limit, shots=shots, max_new_tokens=tokens)
    opening = BackendOptions(batch_size=given.batch_size, device=given.device, precision="float32")
    backend = open_backend(str(given.model), opening, "transformers")
    examination = examine(backend, prepare([task], given.data, options), options)
    backend.close()
    ours_s = time.monotonic() - begun
    begun = time.monotonic()
    alone = _alone(task, given)
    result = examination.results[0]
    filter_ = result.metric.partition(",")[2] or alone["samples"][task][0]["filter"]
    metric = result.metric.partition(",")[0]
    samples = [sample for sample in alone["samples"][task] if sample["filter"] == filter_]
    equal = sum(
        bool(item.scores[result.metric] == sample[metric])
        for item, sample in zip(examination.items[task], samples, strict=True)
    )
    row = {
        "task": task,
        "metric": result.metric,
        "armillary": result.value,
        "low": result.low,
        "high": result.high,
        "lm_eval": float(alone["results"][task][f"{metric},{filter_}"]),
        "items": result.n,
        "equal": equal,
        "truncated": result.truncated,
        "disagreement": {r.metric: r.extraction_disagreement for r in examination.results},
        "armillary_s": ours_s,
        "lm_eval_s": time.monotonic() - begun,
    }
    print(json.dumps(row), flush=True)
    return row


def _alone(task: str, given: argparse.Namespace) -> dict[str, Any]:
    import lm_eval.tasks
    from lm_eval import simple_evaluate

    original, files, shots, tokens = TASKS[task]
    with tempfile.TemporaryDirectory() as place:
        arguments: dict[str, Any] = {
            "data_files": {split: str(given.data / file) for split, file in files.items()},
            "cache_dir": f"{place}/cache",
        }
        if original.startswith("bbh"):
            arguments["field"] = "examples"
        config = {
            "include": str(Path(lm_eval.tasks.__file__).parent / original),
            "dataset_path": "csv" if original.startswith("cmmlu") else "json",
            "dataset_name": None,
            "dataset_kwargs": arguments,
        }
        (Path(place) / "task.yaml").write_text(yaml.safe_dump(config))
        found = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(given.model), "dtype": "float32"},
            tasks=[f"{place}/task.yaml"],
            num_fewshot=shots,
            gen_kwargs={"max_gen_toks": tokens},
            batch_size=given.batch_size,
            limit=given.limit,
            bootstrap_iters=0,
            device=given.device,
            task_manager=lm_eval.tasks.TaskManager(include_path=place, include_defaults=False),
        )
    return dict(found or {})


if __name__ == "__main__":
    main()
