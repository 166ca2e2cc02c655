"""Accuracy of the laws on published measurements: ours, the published figures, and a trivial rule, in one table.

Reproduces every result of ``armillary reproduce``, two at a time, and prints figures and the coverage of the
intervals. The measured data are not part of this repository; give their folder with ``--data`` or ARMILLARY_PUBLISHED.

    python benchmarks/laws.py [--data DIR] [--docs docs/laws.md]

With ``--docs`` both tables are also written into that page, between its markers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two results at a time, one thread each

from armillary.laws.reproduce import REPRODUCTIONS, Evaluation, coverage_table, figure_table, reproduce
from armillary.recipe import UsageError

BEGIN, END = "<!-- tables of benchmarks/laws.py: begin -->", "<!-- tables of benchmarks/laws.py: end -->"


def timed(name: str, folder: Path | None) -> tuple[Evaluation, float]:
    """A result and the seconds it took."""
    begun = time.perf_counter()
    return reproduce(name, folder), time.perf_counter() - begun


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A table as Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def main() -> None:
    """Run, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the measured data")
    parser.add_argument("--docs", type=Path, help="page to write the tables into")
    options = parser.parse_args()
    begun = time.perf_counter()
    results: dict[str, tuple[Evaluation, float]] = {}
    with ProcessPoolExecutor(2) as pool:
        waiting = {pool.submit(timed, name, options.data): name for name in REPRODUCTIONS}
        for future in as_completed(waiting):
            results[waiting[future]] = future.result()
            print(f"{waiting[future]}: {results[waiting[future]][1]:.0f} s", file=sys.stderr)
    evaluations = [results[name][0] for name in REPRODUCTIONS]
    page = "\n\n".join(markdown(*table(evaluations)) for table in (figure_table, coverage_table))
    took = time.perf_counter() - begun
    print(f"{page}\n\n{took:.0f} s on 2 cores")
    if options.docs:
        text = options.docs.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        _, found, tail = rest.partition(END)
        if not found:
            raise UsageError(f"{options.docs} lacks the lines '{BEGIN}' and '{END}' between which the tables belong")
        options.docs.write_text(f"{head}{BEGIN}\n{page}\n{END}{tail}", encoding="utf-8")
    rows = [asdict(e) | {"seconds": results[e.name][1]} for e in evaluations]
    print(json.dumps({"benchmark": "laws", "seconds": took, "rows": rows}))


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error {error}")
