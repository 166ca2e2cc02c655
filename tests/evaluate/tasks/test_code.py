"""Programming tasks: prompts of lm_eval, scores of the sandbox, and lm_eval's own code runner never imported."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from armillary.evaluate.tasks.catalog import build, find
from armillary.evaluate.tasks.code import fenced_block, passes

pytest.importorskip("lm_eval")

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def add(a, b):\n",
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n" + "    assert candidate(2, 3) == 5\n" * 3,
}
MBPP = {"task_id": 11, "text": "Add two numbers.", "code": "", "test_list": ["assert add(2, 3) == 5"] * 3}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One problem of HumanEval and of MBPP in two layouts."""
    for name, row in (
        ("humaneval/HumanEval.jsonl", HUMANEVAL),
        ("mbpp/mbpp.jsonl", MBPP),
        (
            "rewritten/mbpp/test.jsonl",
            {**HUMANEVAL, "prompt": "def add(a, b):\n    '''\n    Add two numbers.\n    '''\n"},
        ),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("body", "right"),
    [
        ("    return a + b\n", True),
        ("    return a - b\n", False),
        ("    return a +\n", False),
        ("    import os; os._exit(0)\n", False),
        ("    raise SystemExit(0)\n", False),
    ],
)
def test_a_program_passes_where_its_tests_do(body: str, right: bool) -> None:
    assert passes(HUMANEVAL["prompt"] + body, HUMANEVAL) is right


def test_filters_and_scores_are_those_of_the_sandbox(data: Path) -> None:
    (leaf,) = find("humaneval", data).leaves
    task = build(leaf, None, leaf.splits())
    (doc,) = task.eval_docs
    assert task.doc_to_text(doc) == HUMANEVAL["prompt"] and task.doc_to_target(doc).endswith("check(add)")
    built = task._filters[0].filters[0]().apply([["    return a + b\n"]], [doc])
    assert task.process_results(doc, [next(iter(built))]) == {"pass@1": 1.0}
    (leaf,) = find("mbpp", data).leaves
    task = build(leaf, None, leaf.splits())
    (doc,) = task.eval_docs
    assert task.process_results(doc, ["def add(a, b): return a + b"]) == {"pass@1": 1.0}
    prompt = task.fewshot_context(doc, 3)
    assert prompt.count("[DONE]") == 3 and prompt.endswith("[BEGIN]\n") and "similar_elements" in prompt


def test_problems_in_the_form_of_humaneval_have_the_prompt_of_mbpp(data: Path) -> None:
    (leaf,) = find("mbpp", data / "rewritten").leaves
    (row,) = leaf.splits()["test"]
    assert row["text"] == "Add two numbers." and row["test_list"] == ["assert add(2, 3) == 5"] * 3


def test_the_block_is_that_of_lm_eval() -> None:
    import lm_eval.tasks

    source = (Path(lm_eval.tasks.__file__).parent / "mbpp" / "utils.py").read_text()
    tree = ast.parse(source)
    (original,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "extract_code_blocks"]
    space: dict[str, Any] = {"re": re}
    exec(ast.unparse(original), space)
    for text in (
        "python\nx = 1\n```\nDone",
        "x = 1\n```",
        "no end",
        "a\n```\n```python\nb\n```",
        "```python\nc\n```",
        "",
    ):
        assert fenced_block(text) == space["extract_code_blocks"](text)


def test_the_runner_of_lm_eval_is_never_imported(data: Path) -> None:
    for name in ("humaneval", "humaneval_instruct", "mbpp", "mbpp_instruct"):
        leaf = find(name, data).leaves[0]
        build(leaf, None, leaf.splits())
    loaded = [name for name in sys.modules if name.startswith("lm_eval.tasks.") or name.startswith("evaluate.")]
    assert not [name for name in loaded if "humaneval" in name or "mbpp" in name or name.startswith("evaluate.")]
