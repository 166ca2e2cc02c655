"""Every file of a run's folder, truncated, flipped, emptied, removed, swapped and aged: no wrong result, no loss.

The outcome is that of the run to which nothing happened, bit for bit, or an error of ours that names the file; and
whatever was good is still there.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from armillary.files import file_sha256
from armillary.goodput import read_events
from armillary.recipe import ArmillaryError, DamagedFileError, ForeignFileError, UsageError, read_result, write_sealed
from armillary.recipe.sealed import read_json
from armillary.train import BusyRunError, InterruptedRunError, Trunk, load_trained, read_metrics, train_run, verify_run
from armillary.train.checkpoint import CheckpointReader, checkpoint_steps, verify_checkpoint
from armillary.train.rows import metrics_table

CHECKPOINT = ("checkpoint.json", "metrics.parquet", "rank-00000.safetensors")
UNFINISHED = (
    "spec.json",
    "events.jsonl",
    *(f"checkpoints/step-{step}/{name}" for step in (6, 7) for name in CHECKPOINT),
)
FINISHED = ("spec.json", "events.jsonl", "metrics.parquet", "model.safetensors", "result.json")
WAYS = ("truncate", "flip", "empty", "remove", "swap", "age", "folder")


@pytest.fixture(scope="module")
def folders(make_spec, tiny_corpus, tmp_path_factory):
    """Runs of two seeds, stopped after step 7 and finished."""
    base = tmp_path_factory.mktemp("folders")
    for name, seed in (("ours", 3), ("theirs", 4)):
        spec, steps = make_spec(seed=seed), []
        with pytest.raises(InterruptedRunError):
            train_run(
                spec, tiny_corpus, base / name / "unfinished", checkpoint_every_s=0, progress=steps.append,
                stop=lambda steps=steps: len(steps) == 7,
            )  # fmt: skip
        train_run(spec, tiny_corpus, base / name / "finished")
    return base


def harm(path: Path, way: str, other: Path) -> bool:
    """Do to the file what ``way`` says; False where it has no meaning for such a file."""
    data = path.read_bytes()
    if way == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif way == "flip":
        path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    elif way == "empty":
        path.write_bytes(b"")
    elif way == "swap":
        shutil.copy(other, path)
    elif way == "folder":
        path.unlink()
        path.mkdir()
    elif way == "remove":
        path.unlink()
    elif path.suffix == ".jsonl":
        path.write_text(path.read_text().replace('"format":2', '"format":99', 1))
    elif path.suffix == ".json":
        document = {**json.loads(data), "format": 99, "new": True}
        document.pop("sha256", None)
        write_sealed(path, document)
    else:
        return False
    return True


def good_files(folder: Path, harmed: Path) -> dict[str, bytes]:
    """What may not be lost: all but the harmed file and what every attempt appends to."""
    keep = [p for p in folder.rglob("*") if p.is_file() and p != harmed and p.name not in ("events.jsonl", ".lock")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in keep}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", UNFINISHED)
def test_an_unfinished_run(file, way, folders, make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    folder, spec = tmp_path / "run", make_spec()
    shutil.copytree(folders / "ours" / "unfinished", folder)
    harmed = folder / file
    if not harm(harmed, way, folders / "theirs" / "unfinished" / file):
        return
    before = good_files(folder, harmed)
    changed = harmed.read_bytes() if harmed.is_file() else None
    try:
        train_run(spec, tiny_corpus, folder)
    except ArmillaryError as error:
        assert file in str(error) or str(harmed.parent) in str(error)
        assert good_files(folder, harmed) == before
        assert changed is None or harmed.read_bytes() == changed
        return
    assert outcome(folder) == undisturbed(spec)
    starts = [e.step for e in read_events(folder / "events.jsonl") if e.kind in ("start", "resume")]
    assert starts[-1] == (6 if "step-7" in file else 7)  # nothing was trained again that a good checkpoint holds
    if "step-7" in file:
        kept = {p.name: p.read_bytes() for p in (folder / "checkpoints" / "step-7.damaged").iterdir() if p.is_file()}
        assert kept.items() >= {p.rsplit("/", 1)[1]: d for p, d in before.items() if "step-7/" in p}.items()
    # only an older checkpoint that was never needed can still be there as it is
    assert {problem.file for problem in verify_run(folder)} <= {harmed, harmed.parent}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", FINISHED)
def test_a_finished_run(file, way, folders, make_spec, tiny_corpus, tmp_path, outcome, undisturbed):
    folder, spec = tmp_path / "run", make_spec()
    shutil.copytree(folders / "ours" / "finished", folder)
    assert verify_run(folder) == []
    harmed = folder / file
    if not harm(harmed, way, folders / "theirs" / "finished" / file):
        return
    before = good_files(folder, harmed)
    torn_line = file == "events.jsonl" and way in ("truncate", "flip")  # of which a kill leaves the same
    problems = verify_run(folder)
    assert torn_line or (file, way) == ("result.json", "remove") or file in {p.file.name for p in problems}
    assert all(problem.remedy and str(problem.file) in str(problem) for problem in problems)
    if file == "model.safetensors":
        with pytest.raises(ArmillaryError, match=r"model\.safetensors"):
            load_trained(folder, spec)
    if file == "metrics.parquet" and way not in ("flip", "swap"):
        with pytest.raises(DamagedFileError, match=r"metrics\.parquet"):
            read_metrics(folder)
    try:
        train_run(spec, tiny_corpus, folder)
    except ArmillaryError as error:
        assert file in str(error) or str(folder) in str(error)
    else:
        assert read_result(folder).loss == undisturbed(spec)["result"]["loss"]
    if (file, way) != ("result.json", "remove"):
        assert good_files(folder, harmed).items() >= before.items()


def test_what_lies_beside_the_checkpoints_is_left_alone(
    folders, make_spec, tiny_corpus, tmp_path, undisturbed, outcome
):
    folder = tmp_path / "run"
    shutil.copytree(folders / "ours" / "unfinished", folder)
    checkpoints = folder / "checkpoints"
    strays = ("step-7.bak", "step-x", "step-", "step-07", "step--1", "step-7 (copy)", ".step-x", ".step-9", "best")
    for name in strays:
        shutil.copytree(checkpoints / "step-7", checkpoints / name)
    for name in ("step-11", "step-12", "notes.txt", ".step-8"):
        (checkpoints / name).write_text("a plain file")
    (checkpoints / "step-10").symlink_to("nowhere")
    assert checkpoint_steps(checkpoints) == [6, 7]
    # a checkpoint is written under the names that the plain files and the link have
    train_run(make_spec(), tiny_corpus, folder, checkpoint_every_s=0, keep=(10, 11, 12))
    assert outcome(folder) == undisturbed(make_spec())
    assert {path.name for path in checkpoints.iterdir()} >= {*strays, "notes.txt", ".step-8"}
    assert (checkpoints / "step-12.damaged").read_text() == "a plain file"


def aged(path: Path, form: int) -> None:
    document = {**read_json(path, "", ""), "format": form}
    document.pop("sha256")
    if form < 3:
        document.pop("run"), document.pop("prefix")
    write_sealed(path, document)


@pytest.mark.parametrize("how", ["a broken link", "a file"])
def test_checkpoints_that_cannot_be_reached_do_not_start_the_run_over(how, folders, make_spec, tiny_corpus, tmp_path):
    folder = Path(shutil.copytree(folders / "ours" / "unfinished", tmp_path / "run"))
    checkpoints = folder / "checkpoints"
    checkpoints.rename(tmp_path / "unmounted")
    if how == "a file":
        checkpoints.write_text("moved to the other disk")
    else:
        checkpoints.symlink_to(tmp_path / "disk")
    with pytest.raises(ArmillaryError, match=f"{re.escape(str(checkpoints))}: not a folder .*mount its target"):
        train_run(make_spec(), tiny_corpus, folder)
    assert checkpoints in [problem.file for problem in verify_run(folder)]
    if how != "a file":
        (tmp_path / "unmounted").rename(tmp_path / "disk")
        assert verify_run(folder) == []


@pytest.mark.parametrize(
    ("opened", "name"),
    [("armillary.goodput.events.open", "events.jsonl"), ("armillary.recipe.result.read_json", "spec.json")],
)
def test_a_file_that_cannot_be_read_now_is_not_set_aside_as_damaged(
    opened, name, folders, make_spec, tiny_corpus, tmp_path, monkeypatch
):
    def refuse(path, *rest, **named):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    folder = Path(shutil.copytree(folders / "ours" / "unfinished", tmp_path / "run"))
    before = (folder / name).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(opened, refuse, raising=False)
        with pytest.raises(ArmillaryError, match=f"{name}: cannot be read now .*make it readable"):
            train_run(make_spec(), tiny_corpus, folder)
    assert (folder / name).read_bytes() == before and not list(folder.glob("*.damaged"))


def test_a_file_system_without_locks_is_not_taken_for_another_process(make_spec, tiny_corpus, tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ArmillaryError, match=r"\.lock: this file system does not support locks .*NFSv4") as caught:
        train_run(make_spec(), tiny_corpus, tmp_path)
    assert not isinstance(caught.value, BusyRunError)


def test_a_checkpoint_of_a_newer_format_stops_the_run_and_stays(folders, make_spec, tiny_corpus, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(folders / "ours" / "unfinished", folder)
    aged(folder / "checkpoints" / "step-7" / "checkpoint.json", 5)
    before = good_files(folder, folder)
    for _ in range(2):
        with pytest.raises(
            ForeignFileError, match=r"step-7.checkpoint\.json: .* of format 5, but this version reads formats up to 4"
        ):
            train_run(make_spec(), tiny_corpus, folder, checkpoint_every_s=0)
    assert good_files(folder, folder) == before


def test_a_format_is_what_its_number_says(folders, make_spec, tiny_corpus, tmp_path):
    """A manifest under the number of this version, without what this version writes."""
    folder = tmp_path / "run"
    shutil.copytree(folders / "ours" / "unfinished", folder)
    manifest = folder / "checkpoints" / "step-7" / "checkpoint.json"
    document = read_json(manifest, "", "")
    del document["sha256"], document["run"]
    write_sealed(manifest, document)
    with pytest.raises(ForeignFileError, match=r"of format 3 without a run"):
        train_run(make_spec(), tiny_corpus, folder)
    assert checkpoint_steps(folder / "checkpoints") == [6, 7]


def test_foreign_checkpoints_before_the_last_are_never_removed(folders, make_spec, tiny_corpus, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(folders / "ours" / "unfinished", folder)
    aged(folder / "checkpoints" / "step-6" / "checkpoint.json", 5)
    shutil.copytree(folders / "theirs" / "unfinished" / "checkpoints" / "step-6", folder / "checkpoints" / "step-5")
    train_run(make_spec(), tiny_corpus, folder, checkpoint_every_s=0)
    assert checkpoint_steps(folder / "checkpoints") == [5, 6]


@pytest.mark.parametrize("form", [2, 3])
def test_a_checkpoint_of_another_run_is_refused_by_name(form, folders, make_spec, tiny_corpus, tmp_path):
    folder = tmp_path / "run"
    spec = make_spec(seed=4, schedule=make_spec().schedule.model_copy(update={"decay_steps": 6}))
    shutil.copytree(folders / "ours" / "unfinished" / "checkpoints", folder / "checkpoints")
    aged(folder / "checkpoints" / "step-7" / "checkpoint.json", form)
    said = (
        f"step-7: is a checkpoint of run {make_spec().id}, not of {spec.id}" if form == 3 else "of another run: after"
    )
    with pytest.raises(ForeignFileError, match=said):
        train_run(spec, tiny_corpus, folder)
    assert checkpoint_steps(folder / "checkpoints") == [6, 7]


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize(("field", "size"), [("d_ff", 16), ("d_ff", 64), ("n_layers", 2), ("vocab_size", 320)])
def test_a_model_of_another_size_is_refused_with_its_tensor(field, size, form, make_spec, tiny_corpus, tmp_path):
    """Smaller and larger: slices of a larger tensor would fit."""
    spec, steps = make_spec(), []
    other = make_spec(model=spec.model.model_copy(update={field: size}))
    with pytest.raises(InterruptedRunError):
        train_run(other, tiny_corpus, tmp_path / "other", progress=steps.append, stop=lambda: len(steps) == 3)
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    manifest = tmp_path / "run" / "checkpoints" / "step-3" / "checkpoint.json"
    if form == 2:
        aged(manifest, 2)
    else:  # somebody gave it the right id
        document = {**read_json(manifest, "", ""), "run": spec.id}
        document.pop("sha256")
        write_sealed(manifest, document)
    with pytest.raises(ForeignFileError, match=r"of a different model: .*'(layers|embedding|output)"):
        train_run(spec, tiny_corpus, tmp_path / "run")
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [3]


@pytest.mark.parametrize("form", [1, 2])
def test_checkpoints_of_older_formats_are_resumed(
    form, folders, make_spec, tiny_corpus, tmp_path, undisturbed, outcome
):
    folder = tmp_path / "run"
    shutil.copytree(folders / "ours" / "unfinished", folder)
    path = folder / "checkpoints" / "step-7"
    if form == 2:
        aged(path / "checkpoint.json", 2)
    else:
        reader = CheckpointReader(path)
        names = list(read_json(path / "checkpoint.json", "", "")["tensors"])
        for file, kept in (
            ("model", [n for n in names if "/" not in n]),
            ("optimizer", [n for n in names if "/" in n]),
        ):
            save_file({name: reader.whole(name) for name in kept}, path / f"{file}.safetensors")
        (path / "rank-00000.safetensors").unlink()
        files = ("model.safetensors", "optimizer.safetensors", "metrics.parquet")
        manifest = {"format": 1, "step": 7, "sha256": {name: file_sha256(path / name) for name in files}}
        (path / "checkpoint.json").write_text(json.dumps(manifest))
    verify_checkpoint(path)
    train_run(make_spec(), tiny_corpus, folder)
    assert outcome(folder) == undisturbed(make_spec())
    assert [e.step for e in read_events(folder / "events.jsonl") if e.kind == "resume"] == [7]


def test_a_trunk_that_cannot_be_used_is_said_and_left_alone(
    folders, make_spec, tiny_corpus, tmp_path, undisturbed, outcome
):
    trunk = tmp_path / "trunk"
    shutil.copytree(folders / "ours" / "unfinished", trunk)
    aged(trunk / "checkpoints" / "step-7" / "checkpoint.json", 5)
    before = good_files(trunk, trunk)
    train_run(make_spec(), tiny_corpus, tmp_path / "run", trunk=Trunk(trunk, 7))
    fault = next(e for e in read_events(tmp_path / "run" / "events.jsonl") if e.kind == "fault")
    assert "of format 5" in fault.data["problem"] and fault.data["remedy"] == "the run starts at step 0"
    assert outcome(tmp_path / "run") == undisturbed(make_spec())
    assert good_files(trunk, trunk) == before


def test_a_result_of_format_1_is_read_and_checked_as_far_as_it_goes(folders, make_spec, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(folders / "ours" / "finished", folder)
    document = json.loads((folder / "result.json").read_text())
    del document["files"], document["sha256"]
    (folder / "result.json").write_text(json.dumps({**document, "format": 1}))
    assert read_result(folder, make_spec().id) == read_result(folders / "ours" / "finished")
    assert verify_run(folder) == []
    load_trained(folder, make_spec())
    shutil.copy(folders / "theirs" / "finished" / "metrics.parquet", folder)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-4])
    assert {problem.file.name for problem in verify_run(folder)} == {"metrics.parquet", "model.safetensors"}


def test_a_digit_changed_in_a_result_is_noticed(folders, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(folders / "ours" / "finished", folder)
    text = (folder / "result.json").read_text()
    document = json.loads(text)
    (folder / "result.json").write_text(json.dumps({**document, "tokens": document["tokens"] + 1}))
    with pytest.raises(DamagedFileError, match=r"result\.json: .*does not match its checksum.*copy it from a backup"):
        read_result(folder)


def test_what_is_no_run_is_not_verified(tmp_path):
    with pytest.raises(UsageError, match="not the folder of a run"):
        verify_run(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.parquet", "result.json", "step-7"])
def test_a_full_disk_costs_nothing_that_was_reported(
    name, folders, make_spec, tiny_corpus, tmp_path, undisturbed, outcome, monkeypatch
):
    """Every write of the file finds no room, until there is some again."""
    folder, spec = tmp_path / "run", make_spec()
    shutil.copytree(folders / "ours" / "unfinished", folder)
    place = {"step-7": "step-8"}.get(name, name)
    rename, replace = Path.rename, Path.replace

    def full(move):
        def moved(path, target):
            if Path(target).name == place:
                raise OSError(28, "No space left on device")
            return move(path, target)

        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full(rename))
        patch.setattr(Path, "replace", full(replace))
        with pytest.raises(ArmillaryError, match=f"{place}: could not be written .No space left.*; free space"):
            train_run(spec, tiny_corpus, folder, checkpoint_every_s=0)
    assert not (folder / "result.json").exists()
    assert max(checkpoint_steps(folder / "checkpoints")) >= 7
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]
    train_run(spec, tiny_corpus, folder)
    assert outcome(folder) == undisturbed(spec)


def test_a_table_of_rows_with_gaps_has_every_column():
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "validation/a/loss": 3.0}, {"step": 3, "loss": 0.5}]
    table = metrics_table(rows)
    assert table.to_pylist() == [{**row, "validation/a/loss": row.get("validation/a/loss")} for row in rows]
    assert [str(field.type) for field in table.schema] == ["int64", "double", "double"]
