"""The process behind ``symbolic.py``: reads pairs of formulas as JSON lists, and writes true, false or null."""

from __future__ import annotations

import json
import logging
import resource
import sys
from typing import Any


def main() -> None:
    """Compare pairs until the input ends."""
    if len(sys.argv) > 1:
        limit = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    logging.disable(logging.CRITICAL)
    import math_verify

    answers, sys.stdout = sys.stdout, sys.stderr  # output of a library must not count as an answer
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        gold, found = json.loads(line)
        try:
            same = _same(math_verify, gold, found)
        except Exception:  # any parser error means that the model's text cannot be read
            same = None
        answers.write(json.dumps(same) + "\n")
        answers.flush()


def _same(library: Any, gold: str, found: str) -> bool | None:
    def parsed(text: str) -> Any:
        marked = text if "$" in text or "\\boxed" in text else f"${text}$"
        return library.parse(marked, parsing_timeout=None)

    right, given = parsed(gold), parsed(found)
    if not right or not given:
        return None
    return bool(library.verify(right, given, timeout_seconds=None))


if __name__ == "__main__":
    main()
