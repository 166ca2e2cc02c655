"""Verifies the files of post-training and examinations in every folder below a place.

The kind of a folder is recognised by its files, and the room that wrote it checks it. This module checks the rest:
sealed files, answers, and files of items that a record names by their hash.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from armillary.corpus import verify_corpus
from armillary.evaluate.results import read_examination
from armillary.generate import check_answers
from armillary.post import DROPPED, ITEMS, RECORD, check_stage, merge, tuning
from armillary.recipe import ArmillaryError, DamagedFileError, FileProblem, problem_of, read_sealed
from armillary.store import verify_database
from armillary.train import verify_run

_REMEDY = "restore it from a copy, or run the same command into another folder"
_FORMAT = 1
# Sealed files beside folders; those of a stage, a fine-tuning or a merge are checked with it.
_SEALED = {RECORD, "search.json", "examination.json", "contest.json"}
# Folders whose JSON files are all sealed.
_FOLDERS = ("gain", "plans")
# The folders that every finished post-training has.
_SETS = ("held-out", "questions", "verified")
_HASH = re.compile(rb'"(?:sha256:)?([0-9a-f]{64})"')


def kind_of(folder: Path) -> str | None:
    """The kind of post-training or examination folder, even if a part of it is missing; None for another folder."""

    def has(*names: str) -> bool:
        return any((folder / name).exists() for name in names)

    if has("stage.json", "decided.jsonl") or (has("items.jsonl") and has(RECORD)):
        return "stage of items"
    if has("results.json") and has("items"):
        return "examination"
    if has("settings.json", RECORD) and has("start.json", "data.json", "run"):
        return "fine-tuning"
    if has(RECORD) and (has("config.json") or any(folder.glob("*.safetensors"))):
        return "merge"
    if has("search.json") and has("scores.jsonl"):
        return "search of a merge"
    if has("examination.json") and any(folder.glob("*answers.jsonl")):
        return "examination"
    if has(*_SETS) and has(RECORD, "examined", *(f"{name}/stage.json" for name in _SETS)):
        return "post-training"
    return None


def verify_taught(root: Path) -> tuple[list[str], list[FileProblem]]:
    """Check every file of post-training or examinations below ``root``; return the checked parts and all problems."""
    found = _Found(root)
    for name, below, files in os.walk(root):
        below[:] = sorted(entry for entry in below if not entry.startswith("."))
        found.folder(Path(name), below, sorted(files))
    found.loose_files()
    return found.checked, found.problems


def _check_database(file: Path) -> None:
    """Raise DamagedFileError if the records of a store do not fit its journal; one line per problem."""
    if problems := verify_database(file):
        raise DamagedFileError("\n".join(problems))


class _Found:
    """The checked parts below ``root``, the problems, and the files whose hash should be in a record."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checked: list[str] = []
        self.problems: list[FileProblem] = []
        self._loose: list[Path] = []
        self._hashes: dict[Path, set[bytes]] = {}  # the hashes in each record

    def folder(self, place: Path, below: list[str], files: list[str]) -> None:
        """Check one folder; remove the names of folders that are checked with it from ``below``."""
        if "spec.json" in files or "result.json" in files:
            self._add("run", place, verify_run(place))
            return below.clear()
        if place.parent.name == "corpus" or "manifest.json" in files:
            self._add("corpus", place, verify_corpus(place))
            return below.clear()
        kind, own = kind_of(place), set[str]()
        if kind == "stage of items":
            self._try(kind, place, check_stage)
            own = {"stage.json", RECORD, ITEMS, DROPPED, "decided.jsonl"}
        elif kind == "examination" and ("results.json" in files or "items" in below):
            self._try(kind, place, read_examination)
        elif kind == "fine-tuning":
            self._try(kind, place, tuning.check_tuning)
            own = {name for name in files if name.endswith(".json")}
            below[:] = [name for name in below if name != "model"]
        elif kind == "merge":
            self._try(kind, place, merge.read_record)
            own = {RECORD}
        elif kind == "post-training":
            self._lacking(place)
        if "store.sqlite" in files:
            self._try("store", place / "store.sqlite", _check_database)
        for name in files:
            path = place / name
            if name.endswith(".json") and (name in _SEALED or place.name in _FOLDERS) and name not in own:
                self._try("record", path, lambda path: read_sealed(path, path.name, _FORMAT, _REMEDY))
            if name.endswith("answers.jsonl"):
                self._try("answers", path, check_answers)
            elif name.endswith(".jsonl") and name not in own and name != "scores.jsonl":
                self._loose.append(path)
            if name.endswith(".json"):
                self._hashes[path] = set(_HASH.findall(path.read_bytes()))

    def loose_files(self) -> None:
        """Compare the files of items beside the folders with the hashes in all records."""
        for path in self._loose:
            data = path.read_bytes()
            places = [place for place in path.parents if place.is_relative_to(self.root)]
            finished = any((place / name).exists() for place in places for name in (RECORD, "results.json"))
            problems = []
            if not data.endswith(b"\n"):
                problems.append(FileProblem(path, "is empty, or its last line is torn", _REMEDY))
            elif finished and hashlib.sha256(data).hexdigest().encode() not in self._recorded(path):
                problems.append(FileProblem(path, "is not what was written: no record here has its hash", _REMEDY))
            self._add("items", path, problems)

    def _recorded(self, path: Path) -> set[bytes]:
        """The possible hashes of a file of items: those in records of its name, or in all records if there are none."""
        own = path.with_suffix("")
        named = [record for record in self._hashes if own in (record.with_suffix(""), record.parent)]
        return {found for record in named or self._hashes for found in self._hashes[record]}

    def _lacking(self, place: Path) -> None:
        """The folders in the record of a post-training that are missing."""
        try:
            record = read_sealed(place / RECORD, "record of a post-training", _FORMAT, _REMEDY)
        except (FileNotFoundError, ArmillaryError):  # unfinished, or reported with the files of the folder
            return
        names = [*_SETS]
        for step in record["steps"]:
            names.append(f"examined/{step['name']}/results.json")
            if not step["model"].startswith(".."):
                names.append(step["model"].split("/")[0])
        self.problems += [
            FileProblem(place / name, f"is missing, and {RECORD} names it", _REMEDY)
            for name in names
            if not (place / name).exists()
        ]

    def _try(self, kind: str, place: Path, check: Callable[[Path], Any]) -> None:
        try:
            check(place)
        except OSError as error:
            self._add(kind, place, [problem_of(place, error, _REMEDY)])
        except ArmillaryError as error:
            self._add(kind, place, [problem_of(place, line, _REMEDY) for line in str(error).splitlines()])
        else:
            self._add(kind, place, [])

    def _add(self, kind: str, place: Path, problems: list[FileProblem]) -> None:
        self.checked.append(f"{kind} {place.relative_to(self.root.parent)}")
        self.problems += problems
