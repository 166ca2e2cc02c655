"""The whole post-training on a tiny model, carried out once in a session; to be copied, not changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from armillary.path.predicted import teach_and_judge
from armillary.path.teach import Step
from armillary.recipe import Teaching, load_teaching

QUESTIONS = {"items": 24, "held_out": 6, "harder": 4, "families": ["expression"], "languages": ["en"], "levels": [1]}
SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "questions": QUESTIONS,
    "evolve": {"items": 3, "samples": 1, "breadth": 0},
    "sft": {"epochs": 2, "batch_tokens": 512, "precision": "fp32"},
    "gain": {},
    "reject": {"questions": 8, "samples": 2},
    "dpo": {},
    "merge": {"evaluations": 3},
    "examine": {"max_new_tokens": 6, "texts": {"prose": "prose.jsonl"}},
}


def make(folder: Path, model: Path, **changes: Any) -> Teaching:
    path = folder / "teach.yaml"
    (folder / "prose.jsonl").write_text('{"text": "The sky is blue."}\n{"text": "The sea is wide."}\n')
    path.write_text(yaml.safe_dump({**SETTINGS, "model": str(model), **changes}))
    return load_teaching(path)


@pytest.fixture(scope="session")
def taught(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Step]]:
    folder = tmp_path_factory.mktemp("taught")
    return folder, teach_and_judge(make(folder, tiny_hf), folder / "out")
