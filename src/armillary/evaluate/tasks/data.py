"""Reads local files of the standard tasks into the rows that lm_eval's task configurations expect. No hub is used.

Each data set is searched for in ``FOLDER/NAME`` under its usual names, then in ``FOLDER`` itself. Multiple-choice
questions are CSV files: ``SPLIT/SUBJECT.csv``, ``SPLIT/SUBJECT_SPLIT.csv`` or ``SUBJECT_SPLIT.csv``, with a header
(C-Eval, CMMLU, converted MMLU) or without one (the original MMLU: question, four choices, letter).
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.recipe import UsageError

Row = dict[str, Any]
Splits = Mapping[str, list[Row]]

LETTERS = ("A", "B", "C", "D")
# lm_eval scores MBPP on these task ids; the others are few-shot examples and training data.
_MBPP_TEST = range(11, 511)


@dataclass(frozen=True)
class Source:
    """The source of a data set's rows.

    Attributes:
        folders: usual folder names of the data set.
        subsets: returns the names of the subsets in a folder; empty if the data set is one file or not in this folder.
        read: returns the splits of a subset in a folder.
        parts: whether the data set has subsets.
    """

    folders: tuple[str, ...]
    read: Callable[[Path, str], Splits]
    subsets: Callable[[Path], list[str]]
    parts: bool = False

    def locate(self, data: Path, what: str) -> Path:
        """The folder below ``data`` that holds this data set.

        Raises:
            UsageError: there is none.
        """
        if not data.is_dir():
            raise UsageError(f"{data}: no such folder; give the folder of the tasks' files with --data")
        candidates = [data / name for name in self.folders if (data / name).is_dir()] + [data]
        for folder in candidates:
            if self.subsets(folder):
                return folder
        raise UsageError(
            f"{what}: no data in {data}; its files must be in {data / self.folders[0]} or in the folder itself "
            f"(layouts: docs/evaluate.md)"
        )


# Choice questions in CSV files.


def _csv_places(folder: Path, subset: str, split: str) -> list[Path]:
    return [
        folder / split / f"{subset}_{split}.csv",
        folder / split / f"{subset}.csv",
        folder / f"{subset}_{split}.csv",
    ]


def _csv_subsets(splits: tuple[str, ...]) -> Callable[[Path], list[str]]:
    def subsets(folder: Path) -> list[str]:
        found = set()
        for split in splits:
            for path in (*(folder / split).glob("*.csv"), *folder.glob(f"*_{split}.csv")):
                found.add(path.stem.removesuffix(f"_{split}"))
        return sorted(found)

    return subsets


def _first(places: Iterable[Path]) -> Path | None:
    return next((path for path in places if path.is_file()), None)


def read_choices(path: Path) -> list[Row]:
    """Rows ``{"question", "A", "B", "C", "D", "answer"}`` of a CSV file; ``answer`` is a letter.

    Raises:
        UsageError: a missing column, a row of a different length, an empty question, or an answer that is not a choice.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[Row] = []
    places: dict[str, int] = {}
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if not places:
                places, header = _columns(path, fields)
                if header:
                    continue
            rows.append(_choice(f"{path}:{reader.line_num}", fields, places))
    except csv.Error as error:
        raise UsageError(f"{path}:{reader.line_num}: not CSV ({error})") from error
    if not rows:
        raise UsageError(f"{path}: has no questions")
    return rows


def _columns(path: Path, fields: list[str]) -> tuple[dict[str, int], bool]:
    """Index of each column, and whether ``fields`` is a header."""
    names = [field.strip().lower() for field in fields]
    if "question" not in names and len(fields) == 6 and fields[5].strip() in LETTERS:
        return {"question": 0, "a": 1, "b": 2, "c": 3, "d": 4, "answer": 5}, False
    places = {name: place for place, name in enumerate(names)}
    places |= {
        letter.lower(): places[name] for place, letter in enumerate(LETTERS) if (name := f"choice{place}") in places
    }
    missing = [name for name in ("question", "a", "b", "c", "d", "answer") if name not in places]
    if missing:
        hint = "; C-Eval's test files carry no answers: use the _val files" if missing == ["answer"] else ""
        raise UsageError(
            f"{path}:1: no column {', '.join(name.upper() if len(name) == 1 else name for name in missing)} "
            f"(found: {', '.join(fields)}){hint}"
        )
    return places, True


def _choice(where: str, fields: list[str], places: dict[str, int]) -> Row:
    if len(fields) <= max(places[name] for name in ("question", "a", "b", "c", "d", "answer")):
        raise UsageError(f"{where}: {len(fields)} fields, fewer than the columns; quote fields that contain commas")
    row = {name: fields[places[name.lower()]] for name in ("question", *LETTERS)}
    answer = fields[places["answer"]].strip()
    answer = LETTERS[int(answer)] if answer in ("0", "1", "2", "3") else answer.upper()
    if answer not in LETTERS:
        raise UsageError(f"{where}: answer is {fields[places['answer']]!r}; write A, B, C or D (or 0 to 3)")
    if not row["question"].strip():
        raise UsageError(f"{where}: question is empty")
    return {**row, "answer": answer}


def _choices(rename: Callable[[Row], Row], test: tuple[str, ...], target: str) -> Callable[[Path, str], Splits]:
    """Reader of a CSV set: the first split of ``test`` that exists becomes ``target``; dev is read too."""

    def read(folder: Path, subset: str) -> Splits:
        path = _first(place for split in test for place in _csv_places(folder, subset, split))
        if path is None:
            wanted = " or ".join(f"{subset}_{split}.csv" for split in test)
            raise UsageError(f"{folder}: no {wanted} (nor {test[0]}/{subset}.csv)")
        examples = _first(_csv_places(folder, subset, "dev"))
        return {
            target: [rename(row) for row in read_choices(path)],
            "dev": [rename(row) for row in read_choices(examples)] if examples else [],
        }

    return read


# Files of JSON objects.


def _json_rows(path: Path, needed: tuple[str, ...]) -> list[Row]:
    """Objects of a JSON Lines file or of a JSON list, plain or compressed with gzip.

    Raises:
        UsageError: a line that is not a JSON object, a missing field, no rows.
    """
    text = read_text(path)
    listed = text.lstrip().startswith("[")
    pieces = [(str(path), text)] if listed else [(f"{path}:{n}", line) for n, line in enumerate(text.split("\n"), 1)]
    rows: list[tuple[str, Any]] = []
    for where, piece in pieces:
        if piece.strip():
            try:
                value = json.loads(piece)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{where}: not JSON ({error})") from error
            rows += [(f"{where}: item {n}", row) for n, row in enumerate(value, 1)] if listed else [(where, value)]
    for where, row in rows:
        if not isinstance(row, dict):
            raise UsageError(f"{where}: is {type(row).__name__}, not an object")
        if lacking := [name for name in needed if name not in row]:
            raise UsageError(f"{where}: no field {', '.join(lacking)} (found: {', '.join(row)})")
    if not rows:
        raise UsageError(f"{path}: has no items")
    return [row for _, row in rows]


def read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start}); convert it first") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error


def _one_file(names: tuple[str, ...]) -> Callable[[Path], list[str]]:
    return lambda folder: [""] if _first(folder / name for name in names) else []


def _file(folder: Path, names: tuple[str, ...]) -> Path:
    path = _first(folder / name for name in names)
    if path is None:
        raise UsageError(f"{folder}: no {' or '.join(names)}")
    return path


_GSM8K = ("test.jsonl", "gsm8k_test.jsonl")
_MATH = ("math500.jsonl", "MATH-500.jsonl", "test.jsonl")
_HUMANEVAL = ("HumanEval.jsonl.gz", "HumanEval.jsonl", "humaneval.jsonl", "test.jsonl")
_MBPP = ("sanitized-mbpp.json", "mbpp_sanitized_for_code_generation.jsonl", "mbpp.jsonl", "test.jsonl")
_IFEVAL = ("input_data.jsonl", "ifeval.jsonl", "train.jsonl")


def _gsm8k(folder: Path, subset: str) -> Splits:
    train = folder / "train.jsonl"
    return {
        "test": _json_rows(_file(folder, _GSM8K), ("question", "answer")),
        "train": _json_rows(train, ("question", "answer")) if train.is_file() else [],
    }


def _math(folder: Path, subset: str) -> Splits:
    rows = _json_rows(_file(folder, _MATH), ("problem", "answer"))
    # If the file has only answers, the boxed answer is a solution from which the same answer is read.
    return {"test": [{"solution": f"\\boxed{{{row['answer']}}}", **row} for row in rows]}


def _humaneval(folder: Path, subset: str) -> Splits:
    return {"test": _json_rows(_file(folder, _HUMANEVAL), ("task_id", "prompt", "test", "entry_point"))}


def _mbpp(folder: Path, subset: str) -> Splits:
    path = _file(folder, _MBPP)
    rows = [_mbpp_row(f"{path}: item {number}", row) for number, row in enumerate(_json_rows(path, ("task_id",)), 1)]
    if path.name == "mbpp.jsonl":
        rows = [row for row in rows if row["task_id"] in _MBPP_TEST]
    return {"test": rows}


def _mbpp_row(where: str, row: Row) -> Row:
    """A problem of MBPP, of its sanitized edition, or in HumanEval's form, as the row that lm_eval's task reads."""
    if "test_list" in row and ("text" in row or "prompt" in row):
        text, tests, setup = row.get("text", row.get("prompt")), row["test_list"], row.get("test_imports", [])
        setup = [*setup, row["test_setup_code"]] if row.get("test_setup_code") else setup
    elif "prompt" in row and "test" in row:
        try:
            # The prompt is a signature and a docstring, which parse only with a body.
            prompt, check = ast.parse(row["prompt"] + "    pass\n"), ast.parse(row["test"])
            head = next(node for node in reversed(prompt.body) if isinstance(node, ast.FunctionDef))
            body = next(node for node in check.body if isinstance(node, ast.FunctionDef)).body
        except (SyntaxError, StopIteration, ValueError, RecursionError) as error:
            raise UsageError(f"{where}: prompt or test is not Python in the format of HumanEval ({error})") from error
        text = ast.get_docstring(head) or ""
        name = str(row.get("entry_point", head.name))
        tests = [re.sub(r"\bcandidate\b", name, ast.unparse(node)) for node in body if isinstance(node, ast.Assert)]
        setup = [ast.unparse(node) for node in check.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    else:
        raise UsageError(f"{where}: needs text (or prompt) and test_list, or prompt and test (found: {', '.join(row)})")
    if not text or not isinstance(tests, list) or len(tests) < 3:
        raise UsageError(f"{where}: needs a text and three tests for lm_eval's prompt")
    return {"task_id": row["task_id"], "text": text, "test_list": tests, "test_setup": "\n".join(setup)}


def _ifeval(folder: Path, subset: str) -> Splits:
    needed = ("key", "prompt", "instruction_id_list", "kwargs")
    return {"train": _json_rows(_file(folder, _IFEVAL), needed)}


def _bbh(folder: Path, subset: str) -> Splits:
    path = _file(folder, (f"{subset}.json",))
    try:
        document = json.loads(read_text(path))
        rows = [{"input": row["input"], "target": row["target"]} for row in document["examples"]]
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({error})") from error
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: needs examples: [{{input, target}}] ({error!r})") from error
    if not rows:
        raise UsageError(f"{path}: has no items")
    return {"test": rows}


def _bbh_subsets(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.json") if _starts_as_bbh(path))


def _starts_as_bbh(path: Path) -> bool:
    with open(path, "rb") as file:
        return b'"examples"' in file.read(4096)


def _cmmlu_row(row: Row) -> Row:
    return {"Question": row["question"], **{letter: row[letter] for letter in LETTERS}, "Answer": row["answer"]}


def _mmlu_row(row: Row) -> Row:
    choices = [row[letter] for letter in LETTERS]
    return {"question": row["question"], "choices": choices, "answer": LETTERS.index(row["answer"])}


# By the ``dataset_path`` of lm_eval's task configurations.
SOURCES: dict[str, Source] = {
    "ceval/ceval-exam": Source(
        ("ceval", "C-Eval", "ceval-exam"),
        _choices(lambda row: row, ("val", "test"), "val"),
        _csv_subsets(("val", "test")),
        True,
    ),
    "haonan-li/cmmlu": Source(
        ("cmmlu", "CMMLU"), _choices(_cmmlu_row, ("test",), "test"), _csv_subsets(("test",)), True
    ),
    "cais/mmlu": Source(("mmlu", "MMLU"), _choices(_mmlu_row, ("test",), "test"), _csv_subsets(("test",)), True),
    "SaylorTwift/bbh": Source(("bbh", "BBH", "BIG-Bench-Hard"), _bbh, _bbh_subsets, True),
    "openai/gsm8k": Source(("gsm8k", "GSM8K"), _gsm8k, _one_file(_GSM8K)),
    "HuggingFaceH4/MATH-500": Source(("math500", "MATH-500"), _math, _one_file(_MATH)),
    "openai/openai_humaneval": Source(("humaneval", "HumanEval"), _humaneval, _one_file(_HUMANEVAL)),
    "google-research-datasets/mbpp": Source(("mbpp", "mbpp_sanitized", "MBPP"), _mbpp, _one_file(_MBPP)),
    "google/IFEval": Source(("ifeval", "IFEval"), _ifeval, _one_file(_IFEVAL)),
}
