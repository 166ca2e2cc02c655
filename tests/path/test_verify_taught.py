"""What post-training leaves is checked file by file: whatever is damaged or gone is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from armillary.path import verify
from armillary.path.teach import Step
from armillary.path.verify_taught import kind_of
from armillary.post.merge import MergeOptions, merge
from armillary.recipe import UsageError, read_sealed, write_sealed


@pytest.fixture
def out(taught: tuple[Path, list[Step]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught[0] / "out", tmp_path / "out"))


def ours(folder: Path) -> list[Path]:
    """Every file but locks, pages made of the others, and a database, whose pages may be unused."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".html", ".sqlite"))
    return sorted(path for path in files if not path.name.startswith("."))


def is_record(path: Path) -> bool:
    return path.suffix == ".json" and "model" not in path.parts


def test_a_whole_post_training_has_no_problems_and_every_part_is_listed(out: Path) -> None:
    found = verify(out)
    assert (found.kind, found.problems) == ("post-training", [])
    assert {
        "record out/record.json",
        "stage of items out/verified",
        "fine-tuning out/sft",
        "run out/sft/run",
        "examination out/examined/sft",
        "answers out/examined/sft/answers.jsonl",
        "record out/gain/prediction.json",
        "items out/gain/0.5.jsonl",
    } <= set(found.checked)
    for part, kind in {"verified": "stage of items", "sft": "fine-tuning", "examined/base": "examination"}.items():
        assert (verify(out / part).kind, verify(out / part).problems) == (kind, [])


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes({"empty": b"", "torn": bytes(data[: len(data) // 2]), "flipped": bytes(data)}[how])


@pytest.mark.parametrize("how", ["empty", "torn", "flipped"])
def test_every_damaged_file_is_named(out: Path, how: str) -> None:
    """All at once, while the records by which they are found are whole."""
    damaged = [path for path in ours(out) if not is_record(path) and path.stat().st_size]
    assert len(damaged) > 20
    for path in damaged:
        damage(path, how)
    problems = verify(out).problems
    assert {problem.file for problem in problems} >= set(damaged)
    assert all(problem.what and problem.remedy for problem in problems)


@pytest.mark.parametrize("how", ["empty", "torn", "flipped"])
def test_every_damaged_record_is_named(out: Path, how: str) -> None:
    records = [path for path in ours(out) if is_record(path)]
    assert len(records) > 20
    for path in records:
        place = next(folder for folder in path.parents if kind_of(folder) is not None)
        content = path.read_bytes()
        damage(path, how)
        assert path in {problem.file for problem in verify(place).problems}
        path.write_bytes(content)


def test_every_folder_that_is_gone_is_named(out: Path) -> None:
    for name in ("held-out", "questions", "verified", "sft", "examined/sft", "sft/run", "sft/corpus", "sft/model"):
        (out / name).rename(out.parent / "away")
        assert any(problem.file.is_relative_to(out / name) for problem in verify(out).problems), name
        (out.parent / "away").rename(out / name)
    assert verify(out).problems == []


def test_a_torn_last_answer_is_named_with_its_line(out: Path) -> None:
    path = out / "examined" / "sft" / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = verify(out).problems
    assert problem.file == path and "its last line, " in problem.what and "requests that answer again" in problem.remedy


def test_the_model_of_an_older_record_is_compared_as_one(out: Path) -> None:
    record = read_sealed(out / "sft" / "record.json", "record", 1, "")
    del record["files"]
    write_sealed(out / "sft" / "record.json", dict(record))
    assert verify(out).problems == []
    weights = out / "sft" / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (problem,) = verify(out).problems
    assert problem.file == weights.parent and "were changed after training" in problem.what


def test_files_of_a_newer_version_are_not_called_damaged(out: Path) -> None:
    for name in ("record.json", "sft/data.json", "gain/prediction.json"):
        write_sealed(out / name, {**read_sealed(out / name, "", 1, ""), "format": 2})
    problems = verify(out).problems
    assert {p.file.name for p in problems} == {"record.json", "data.json", "prediction.json"}
    assert all("format 2" in problem.what for problem in problems)


def test_a_merge_is_compared_with_its_record(out: Path, tiny_hf: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    merge(tiny_hf, [out / "sft" / "model", tiny_hf], merged, MergeOptions("linear"))
    assert (verify(merged).kind, verify(merged).problems) == ("merge", [])
    for path in ours(merged):
        data = path.read_bytes()
        path.write_bytes(data[:-3])
        assert [problem.file for problem in verify(merged).problems] == [path]
        if path.name != "record.json":
            path.unlink()
            assert [problem.file for problem in verify(merged).problems] == [path]
        path.write_bytes(data)


def test_a_folder_with_settings_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"editor.fontSize": 14}')
    with pytest.raises(UsageError, match="verify does not"):
        verify(tmp_path)
