"""lm_eval's client of OpenAI's completions over the server, against our own examination of the same model."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from armillary.evaluate.tasks import ExamOptions, examine, prepare
from armillary.generate import BackendOptions, open_backend
from server_process import Server, serving

pytest.importorskip("lm_eval", reason="needs the extra evaluate")
pytest.importorskip("tenacity", reason="needs the extra dev")

CONTEXT = 2048


@pytest.fixture(scope="module")
def examined(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server of the tiny model with a context for examples, and its folder."""
    folder = tmp_path_factory.mktemp("examined") / "tiny"
    shutil.copytree(tiny_hf, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"model_max_length": CONTEXT}))
    with serving(folder) as server:
        yield server, folder


def write_tasks(place: Path) -> None:
    """Questions of CMMLU and GSM8K."""
    for split in ("dev", "test"):
        (place / "cmmlu" / split).mkdir(parents=True)
        with open(place / "cmmlu" / split / "anatomy.csv", "w", newline="", encoding="utf-8") as file:
            rows = [[n, f"第{n}题", "1", "2", "3", "4", "ABCD"[n % 4]] for n in range(12)]
            csv.writer(file).writerows([["", "Question", "A", "B", "C", "D", "Answer"], *rows])
    (place / "gsm8k").mkdir()
    for split in ("train", "test"):
        lines = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(1, 9)]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (place / "gsm8k" / f"{split}.jsonl").write_text(text)


def through_the_server(examined: tuple[Server, Path], place: Path, original: str, **splits: str) -> dict[str, Any]:
    import lm_eval.tasks
    from lm_eval import simple_evaluate

    server, folder = examined
    config = {
        "include": str(Path(lm_eval.tasks.__file__).parent / original),
        "dataset_path": "csv" if original.startswith("cmmlu") else "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(place / file) for split, file in splits.items()},
            "cache_dir": str(place / "cache"),
        },
    }
    (place / "alone").mkdir()
    path = place / "alone" / "task.yaml"
    path.write_text(yaml.safe_dump(config))
    found = simple_evaluate(
        model="local-completions",
        model_args={
            "model": "tiny", "base_url": f"{server.url}/completions", "tokenizer": str(folder),
            "tokenizer_backend": "huggingface", "num_concurrent": 4, "max_length": CONTEXT - 1, "max_retries": 1,
        },
        tasks=[str(path)],
        num_fewshot=2,
        gen_kwargs={"max_gen_toks": 24} if original.startswith("gsm8k") else None,
        batch_size=3,
        bootstrap_iters=0,
        task_manager=lm_eval.tasks.TaskManager(include_path=str(place / "alone"), include_defaults=False),
    )  # fmt: skip
    assert found is not None
    return dict(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("original", "task", "splits"),
    [
        ("cmmlu/cmmlu_anatomy.yaml", "cmmlu", {"dev": "cmmlu/dev/anatomy.csv", "test": "cmmlu/test/anatomy.csv"}),
        ("gsm8k/gsm8k.yaml", "gsm8k", {"train": "gsm8k/train.jsonl", "test": "gsm8k/test.jsonl"}),
    ],
)
def test_lm_eval_scores_as_we_do(
    examined: tuple[Server, Path], tmp_path: Path, original: str, task: str, splits: dict[str, str]
) -> None:
    write_tasks(tmp_path)
    options = ExamOptions(shots=2, max_new_tokens=24)
    backend = open_backend(str(examined[1]), BackendOptions(), "native")
    ours = examine(backend, prepare([task], tmp_path, options), options)
    found = through_the_server(examined, tmp_path, original, **splits)
    (name,) = found["results"]
    samples = found["samples"][name]
    items = ours.items[task]
    assert len(items) == len({sample["doc_id"] for sample in samples}) > 5
    for sample in samples:
        item = items[sample["doc_id"]]
        if task == "cmmlu":
            values = [response[0][0] for response in sample["resps"]]
            assert [float(output) for output in item.outputs] == pytest.approx(values, rel=1e-9)
            assert item.scores["acc"] == sample["acc"]
        else:
            assert item.outputs == tuple(sample["resps"][0])
    totals = {result.metric: result.value for result in ours.results if result.subset in (task, name)}
    checked = 0
    for key, value in found["results"][name].items():
        metric, _, filter_ = key.partition(",")
        for mine in (metric, key):
            if filter_ and "stderr" not in metric and mine in totals:
                assert totals[mine] == value
                checked += 1
    assert checked
