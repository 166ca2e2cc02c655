"""``code``: a Python function by its tests, in the sandbox.

Parameters: ``tests`` (Python that raises an exception if the function is wrong), ``entry`` (the name of the function),
``cpu_s`` (CPU seconds, default 5). The program is the last fenced block that defines ``entry``, or the whole reply if
it is a program. The sandbox proves that the tests ran to their end; output and exit codes do not count.
"""

from __future__ import annotations

import ast
import re

from armillary.evaluate import SandboxLimits, run_checked
from armillary.post.verify.registry import Task, Verdict, register_verifier
from armillary.recipe import UsageError

_BLOCK = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


@register_verifier("code", ("tests", "entry", "cpu_s"))
def verify_code(task: Task, reply: str) -> Verdict:
    """Run the program of ``reply`` with the tests."""
    tests, entry, cpu_s = task.text("tests"), task.text("entry"), task.check.get("cpu_s", 5)
    if not isinstance(cpu_s, int | float) or isinstance(cpu_s, bool) or not 0 < cpu_s <= 600:
        raise UsageError(f"check.cpu_s: must be a number of seconds up to 600, given {cpu_s!r}")
    program = next(
        (block for block in [*reversed(_BLOCK.findall(reply)), reply] if entry in _defined(block)),
        None,
    )
    if program is None:
        return Verdict("unreadable", note=f"no Python program that defines {entry}")
    passed, outcome = run_checked(program, tests, SandboxLimits(cpu_s=float(cpu_s), wall_s=10.0 * float(cpu_s)))
    note = "" if passed else outcome.limit or outcome.stderr.strip().rpartition("\n")[2][:200]
    return Verdict("right" if passed else "wrong", program, note)


def _defined(program: str) -> set[str]:
    """The names that a program defines at its top level; empty if it is not Python."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return names
