"""Every file of a finished workspace, damaged in every way: ``verify`` names it, and the next call loses nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from finished import Here, quick_report

from armillary.path import Evidence, verify, workspace
from armillary.recipe import ArmillaryError, given, load_recipe, write_sealed

# What every call may write anew; a lock holds nothing.
RENEWED = {".written.json", "cost.json", "report.html", "recipe.found.yaml", "target.yaml", "summary.json"}
# Caches and records: without them the same is computed or written again, so a missing one is not a fault.
CACHES = ("corpus/index/", ".written.json")
# SQLite has no checksums: a flipped bit is found in the pages' structure and in what the journal covers, not elsewhere.
UNCOVERED = ("store/store.sqlite", "flipped")


@dataclass(frozen=True)
class Made:
    """A finished workspace, what it found, and one run of each study."""

    folder: Path
    found: Any
    runs: dict[str, str]


def found_in(evidence: Evidence) -> Any:
    """The numbers that must not change."""
    assert evidence.prediction and evidence.verdict and evidence.target and evidence.found and evidence.ladder
    return (
        evidence.prediction,
        evidence.verdict,
        [(arm.name, arm.runs, arm.loss) for arm in evidence.target.arms],
        [(point.run, point.loss) for point in evidence.ladder.points],
        evidence.found,
    )


@pytest.fixture(scope="module")
def made(finished: tuple[Path, Evidence]) -> Made:
    folder, evidence = finished
    assert evidence.target and evidence.target.published and evidence.ladder and evidence.mixture
    runs = {
        "TARGET": evidence.target.published,
        "RUNG": evidence.ladder.points[0].run,
        "PROXY": evidence.mixture.runs[0],
    }
    return Made(folder, found_in(evidence), runs)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "write_report", quick_report)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def newer(path: Path) -> None:
    document = json.loads(path.read_bytes())
    document.pop("sha256", None)
    write_sealed(path, {**document, "format": 99})


def zeroed(path: Path) -> None:
    """As a crash leaves a file whose size reached the disk before its data."""
    path.write_bytes(bytes(path.stat().st_size))


def doubled(path: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


def swapped(path: Path) -> None:
    """The file of the same name elsewhere in the workspace, such as another run's, else one of its kind."""
    root = next(
        folder for folder in path.parents if (folder / "plan.json").exists() or (folder / "recipe.yaml").exists()
    )
    others = [*sorted(root.rglob(path.name)), *sorted(root.rglob(f"*{path.suffix}"))]
    other = next((one for one in others if one.is_file() and one.read_bytes() != path.read_bytes()), None)
    if other is not None:
        shutil.copyfile(other, path)


def covered_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


WAYS: dict[str, Callable[[Path], None]] = {
    "truncated": truncated,
    "flipped": flipped,
    "emptied": emptied,
    "removed": Path.unlink,
    "newer": newer,
    "zeroed": zeroed,
    "doubled": doubled,
    "swapped": swapped,
    "a folder": covered_by_a_folder,
}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but locks and what SQLite keeps beside its database while it is open."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock" and ".owners" not in path.parts and "sqlite-" not in path.name
    }


def names(made: Made) -> list[str]:
    """Every file of the workspace, of the runs those of one of each study."""
    all_runs = {path.name for path in (made.folder / "store" / "runs").iterdir()} - set(made.runs.values())
    return sorted(name for name in contents(made.folder) if not all_runs & set(name.split("/")))


def made_with(name: str, other: str) -> bool:
    """Whether ``other`` is written again with ``name``: the results of an examination, the record of a publication."""
    folder = "/".join(name.split("/")[:2])
    return (name.startswith("examination/") and other == f"{folder}/results.json") or (
        name.startswith("model/") and other == ".model.published.json"
    )


def check(made: Made, name: str, how: str, folder: Path) -> None:
    """Damage one file of a copy in ``folder``; assert what ``verify`` and the next call do."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made.folder, folder)
    file, case = folder / name, f"{name} {how}"
    good = contents(folder)
    WAYS[how](file)
    before = contents(folder)
    if before == good and not file.is_dir():  # nothing of its kind to swap it with, or nothing in it
        return

    found = verify(folder)
    assert contents(folder) == before, f"{case}: verify changed something"
    cache = name.startswith(CACHES) and (how == "removed" or "verified" in name)
    assert cache or file in [problem.file for problem in found.problems], f"{case}: {found.problems}"
    assert all(problem.what and problem.remedy for problem in found.problems), case

    said: list[str] = []
    refused = None
    try:
        source = given(folder)
        place = Here(load_recipe(source.file), folder, workers=1, say=said.append)
        evidence = place.report()
        place.store().close()
        assert source.edited or found_in(evidence) == made.found, f"{case}: another result"  # an edit is reported
    except (ArmillaryError, OSError) as error:  # the command line prints an OSError in one line with its file
        refused = str(error)
        # A launched run's folder without the database is what is seen of a database that was removed.
        assert file.name in refused or (folder / "store" / "store.sqlite").name in refused, f"{case}: {refused}"

    after = contents(folder)
    for other in before.keys() - {name} - RENEWED - {"store/store.sqlite"}:
        kept = after.get(other) == good[other] or good[other] in after.values()
        assert kept or other.startswith(CACHES) or made_with(name, other), f"{case}: {other} was changed"
    if how == "newer" and name not in RENEWED | {"cost.json"}:
        assert before[name] in after.values(), f"{case}: a newer file was lost"
    if refused is not None:
        assert after.get(name) == before.get(name) or name == "store/store.sqlite", f"{case}: refused and changed"
    elif after.get(name) == before.get(name) and not cache:  # not needed, so still damaged, and still named
        assert file in [problem.file for problem in verify(folder).problems], f"{case}: accepted as it is"
    else:
        assert not [problem for problem in verify(folder).problems if problem.file == file], f"{case}: not rebuilt"


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("plan.json", "newer"),
        ("report.html", "truncated"),
        (".model.published.json", "removed"),
        ("store/store.sqlite", "truncated"),
        ("store/runs/TARGET/metrics.parquet", "flipped"),
        ("store/runs/TARGET/events.jsonl", "flipped"),
        ("store/runs/TARGET/events.jsonl", "doubled"),
        ("store/store.sqlite", "doubled"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_lost(name: str, how: str, made: Made, tmp_path: Path) -> None:
    for study, run in made.runs.items():
        name = name.replace(study, run)
    check(made, name, how, tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS)
def test_every_file_that_is_damaged_is_named_and_nothing_is_lost(how: str, made: Made, tmp_path: Path) -> None:
    failed = []
    for name in names(made):
        if (name, how) == UNCOVERED or (how == "newer" and not _has_format(made.folder / name)):
            continue
        try:
            check(made, name, how, tmp_path / "copy")
        except AssertionError as error:
            failed.append(str(error).splitlines()[0])
    assert not failed, "\n".join(failed)


def _has_format(path: Path) -> bool:
    return path.suffix == ".json" and (path.name == "spec.json" or "format" in json.loads(path.read_bytes()))


def test_a_report_of_the_first_stages_does_not_replace_one_of_more(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "copy"))
    place = Here(load_recipe(given(folder).file), folder, workers=1)
    whole = place.report_file()
    before = whole.read_bytes()
    whole.write_bytes(before + b" ")  # whatever it holds
    place.report("mixture")
    place.store().close()
    assert whole.read_bytes() == before + b" " and place.report_file("en", "mixture").name == "report.mixture.html"
    assert (folder / "report.mixture.html").exists()
    place.report("anneal", "zh")  # the first in that language
    assert (folder / "report.zh.html").exists() and place.report_file("zh", "anneal").name == "report.zh.html"
    place.report("release")
    place.store().close()
    assert whole.read_bytes() == before and verify(folder).problems == []


def test_every_part_that_is_gone_is_named(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "copy"))
    corpus = next((folder / "corpus").glob("*/manifest.json")).parent
    for part in (corpus, folder / "store", folder / "model"):
        shutil.rmtree(part)
    gone = {corpus, folder / "store" / "store.sqlite", folder / "store" / "runs", folder / "model"}
    assert gone == {problem.file for problem in verify(folder).problems}
