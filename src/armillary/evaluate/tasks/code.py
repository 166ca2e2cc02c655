"""Programming tasks: model-written code runs in the sandbox, never in lm_eval's own ``code_eval``.

lm_eval's ``humaneval`` and ``mbpp`` import functions that run code in this process. The functions here replace them and
treat the text in the same way; tests/evaluate/tasks/test_code.py compares them with the originals.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from armillary.evaluate.sandbox import Limits, run_checked
from armillary.recipe import ArmillaryError

# lm_eval's ``code_eval`` gives each program 3 seconds of wall time. Here it is CPU time, so that a busy machine does
# not lower a score.
_LIMITS = Limits(cpu_s=3.0, wall_s=30.0)
METRIC = "pass@1"


def sandboxed(config: dict[str, Any]) -> dict[str, Any]:
    """``config``, which was read without its functions, with ours in place of those that run code.

    Raises:
        ArmillaryError: a function without a counterpart here.
    """
    filters = []
    for pipeline in config.get("filter_list", []):
        steps = [
            {**step, "filter_fn": _function(config, step["filter_fn"])} if "filter_fn" in step else step
            for step in pipeline["filter"]
        ]
        filters.append({**pipeline, "filter": steps})
    few_shot = config.get("fewshot_config")
    if few_shot and isinstance(few_shot.get("samples"), str):
        few_shot = {**few_shot, "samples": _literal(few_shot["samples"])}
    metric = {"metric": METRIC, "aggregation": "mean", "higher_is_better": True}
    changed = {"unsafe_code": False, "process_results": _score, "metric_list": [metric]}
    if filters:
        changed["filter_list"] = filters
    if few_shot:
        changed["fewshot_config"] = few_shot
    return {**config, **changed}


def _literal(function: str) -> Any:
    """The return value of lm_eval's function ``/FOLDER/utils.NAME``, read from its source without running it."""
    file, _, name = function.rpartition(".")
    tree = ast.parse(Path(f"{file}.py").read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    returned = body[-1]
    if not isinstance(returned, ast.Return) or returned.value is None:
        raise ArmillaryError(f"{function}: does not return plain data, and may not run outside the sandbox")
    return ast.literal_eval(returned.value)


def _function(config: dict[str, Any], name: str) -> Callable[..., Any]:
    found = _FUNCTIONS.get((config["dataset_path"], name.rpartition(".")[2]))
    if found is None:
        raise ArmillaryError(
            f"task {config['task']}: its filter {name} would run outside the sandbox and has no counterpart"
        )
    return found


def _complete(resps: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    return [[doc["prompt"] + r for r in resp] for resp, doc in zip(resps, docs, strict=True)]


def _complete_fenced(resps: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    return [[doc["prompt"] + r.split("```")[0] for r in resp] for resp, doc in zip(resps, docs, strict=True)]


def _fenced(resps: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    return [[fenced_block(r) for r in resp] for resp in resps]


def fenced_block(text: str) -> str:
    """The first fenced block of a text that continues an open fence, like ``extract_code_blocks`` in lm_eval's MBPP."""
    pattern = r"```(?:\w+)?\n?(.*?)\n?```"
    matches = re.findall(pattern, "```" + text, re.DOTALL)
    matches = matches or re.findall(pattern, text.replace("```python", "```"), re.DOTALL)
    return str(matches[0]) if matches else ""


_FUNCTIONS = {
    ("openai/openai_humaneval", "build_predictions"): _complete,
    ("openai/openai_humaneval", "build_predictions_instruct"): _complete_fenced,
    ("google-research-datasets/mbpp", "build_predictions"): _fenced,
}


def tests_of(doc: dict[str, Any]) -> str:
    """The test program that follows the model's code."""
    if "entry_point" in doc:
        return f"{doc['test']}\ncheck({doc['entry_point']})"
    return "\n".join(doc["test_list"])


def passes(code: str, doc: dict[str, Any]) -> bool:
    """Whether ``code`` passes the tests of ``doc`` in the sandbox."""
    passed, _ = run_checked(f"{doc.get('test_setup', '')}\n{code}", tests_of(doc), _LIMITS)
    return passed


def _score(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    code = results[0] if isinstance(results[0], str) else results[0][0]
    return {METRIC: float(passes(code, doc))}
