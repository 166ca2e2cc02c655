"""Verifies every byte of a corpus on demand, with its index and its sets of examples and pairs."""

from __future__ import annotations

from pathlib import Path

from armillary.corpus.examples import EXAMPLES
from armillary.corpus.index import check_index
from armillary.corpus.manifest import REMEDY, is_hash, read_manifest
from armillary.corpus.pairs import PAIRS
from armillary.corpus.sets import verify_sets
from armillary.corpus.stamp import compare_files
from armillary.recipe import ArmillaryError, FileProblem, problem_of


def verify_corpus(folder: Path) -> list[FileProblem]:
    """Read every byte of a corpus and return every problem; an empty list means that the corpus is as it was built.

    Nothing is written. ``folder`` is a corpus (``ROOT/HASH``) or a folder of corpora (``ROOT``), of which each corpus
    and each file of ``index/`` is checked. A corpus includes its sets of examples and pairs. An unfinished build is
    skipped.
    """
    if not folder.is_dir():
        return [FileProblem(folder, "is not a folder", "give the folder of a built corpus, or build one")]
    if (folder / "index").is_dir() and not (folder / "manifest.json").exists():
        corpora = sorted(path for path in folder.iterdir() if path.is_dir() and _names_a_corpus(path))
        found = [problem for path in corpora for problem in verify_corpus(path)]
        return found + [FileProblem(file, *wrong) for file, wrong in check_index(folder)]
    try:
        manifest = read_manifest(folder)
    except ArmillaryError as error:
        return [problem_of(folder / "manifest.json", error, REMEDY)]
    problems = [*compare_files(folder, manifest.files)]
    return problems + [found for kind in (EXAMPLES, PAIRS) for found in verify_sets(kind, folder, manifest.hash)]


def _names_a_corpus(path: Path) -> bool:
    return is_hash(path.name) or ((path / "manifest.json").exists() and not path.name.startswith("build-"))
