"""Runs that start from weights: those of another run, of a checkpoint or of a file, under every layout."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from ranks import train
from safetensors.torch import load_file, save_file

from armillary.files import file_sha256
from armillary.goodput import read_events
from armillary.model import Transformer
from armillary.recipe import (
    ArmillaryError,
    Checkpoints,
    DamagedFileError,
    ForeignFileError,
    Layout,
    ModelShape,
    Schedule,
    Start,
)
from armillary.train import InterruptedRunError, read_metrics, start_from, train_run
from armillary.train.fleet import Assignment, Fleet

TOLERANCE = 5e-5  # what sums in another order come to, in nats


def losses(folder):
    return [row["loss"] for row in read_metrics(folder).to_pylist()]


@pytest.fixture(scope="module")
def parent(make_spec, tiny_corpus, tmp_path_factory):
    """A folder of runs with a finished run that keeps the checkpoint of step 5, and its specification."""
    shape = ModelShape(
        n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=32, vocab_size=tiny_corpus.vocab_size
    )
    spec = make_spec(model=shape, batch_sequences=8, schedule=Schedule(warmup_steps=2))
    runs = tmp_path_factory.mktemp("runs")
    train_run(spec, tiny_corpus, runs / spec.id, keep=(5,))
    return runs, spec


def child(parent, start, **changes):
    return parent[1].model_copy(update={"start": start, "seed": 11, "steps": 6, **changes})


@pytest.fixture
def runs(parent, tmp_path):
    return shutil.copytree(parent[0], tmp_path / "runs")


def test_a_run_starts_from_the_final_weights_of_another(parent, runs, tiny_corpus):
    folder = runs / parent[1].id
    spec = child(parent, Start(run=parent[1].id, sha256=file_sha256(folder / "model.safetensors")))
    assert spec.parents == (parent[1].id,)
    train_run(spec, tiny_corpus, runs / spec.id)
    assert losses(runs / spec.id)[0] < losses(folder)[0] - 0.5  # it does not begin at the beginning
    first = next(iter(read_events(runs / spec.id / "events.jsonl")))
    assert (first.kind, first.step, first.data["weights"]) == ("start", 0, spec.start.sha256)
    # the first loss is that of the parent's weights on the first batch
    from armillary.corpus import TokenOrder

    model = Transformer(spec.model)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    batch = torch.from_numpy(TokenOrder.of(spec, tiny_corpus).batch(0).tokens)
    assert losses(runs / spec.id)[0] == pytest.approx(model.loss(batch)[1].item() / spec.batch_tokens, abs=1e-5)


def test_the_place_of_the_weights_changes_no_number_and_no_id(parent, runs, tiny_corpus, tmp_path, outcome):
    file = tmp_path / "weights.safetensors"
    shutil.copy(runs / parent[1].id / "model.safetensors", file)
    digest = file_sha256(file)
    by_run, by_file = (
        child(parent, Start(sha256=digest, **p)) for p in ({"run": parent[1].id}, {"weights": str(file)})
    )
    assert by_run.id == by_file.id and by_run.prefix_id(3) == by_file.prefix_id(3)
    assert by_run.id != child(parent, Start(run=parent[1].id, sha256="0" * 64)).id != child(parent, None).id
    train_run(by_run, tiny_corpus, runs / by_run.id)
    train_run(by_file, tiny_corpus, tmp_path / "elsewhere" / by_file.id)
    assert outcome(runs / by_run.id) == outcome(tmp_path / "elsewhere" / by_file.id)
    # the folder of a run is the same run's, wherever its weights were found
    train_run(by_file, tiny_corpus, runs / by_run.id)


@pytest.mark.parametrize("what", ["checkpoint", "run", "file"])
def test_start_from_names_what_lies_at_a_path(what, parent, runs, tiny_corpus):
    folder = runs / parent[1].id
    path = {"checkpoint": folder / "checkpoints/step-5", "run": folder, "file": folder / "model.safetensors"}[what]
    start = start_from(path)
    assert start.run == (parent[1].id if what == "run" else None)
    spec = child(parent, start)
    train_run(spec, tiny_corpus, runs / spec.id)
    assert losses(runs / spec.id)[0] < losses(folder)[0] - 0.1


def test_a_start_is_read_alike_by_one_device_and_by_ranks(parent, runs, tiny_corpus, on_ranks):
    folder = runs / parent[1].id
    start = start_from(folder)
    spec = child(parent, start)
    train_run(spec, tiny_corpus, runs / spec.id)
    for name, layout in {"tp": Layout(tp=2), "pp": Layout(pp=2), "fsdp": Layout(dp_shard=2)}.items():
        place = runs / name
        on_ranks(2, train, spec, tiny_corpus.path, place, layout, None, Checkpoints())
        assert losses(place) == pytest.approx(losses(runs / spec.id), abs=TOLERANCE), name


def test_a_member_of_a_stack_starts_as_it_would_alone(parent, runs, tiny_corpus, outcome):
    spec, plain = child(parent, start_from(runs / parent[1].id)), child(parent, None)
    train_run(spec, tiny_corpus, runs / "alone")
    with Fleet(spec, tiny_corpus, 2) as fleet:
        for one in (spec, plain):
            fleet.add(Assignment(one, runs / one.id))
        while fleet.runs:
            fleet.step()
    assert outcome(runs / spec.id) == outcome(runs / "alone")
    assert losses(runs / plain.id) != losses(runs / spec.id)


def test_a_run_resumes_without_its_start_and_without_drawing(parent, runs, tiny_corpus, monkeypatch, outcome):
    spec = child(parent, start_from(runs / parent[1].id))
    train_run(spec, tiny_corpus, runs / "undisturbed")
    steps = []
    with pytest.raises(InterruptedRunError):
        train_run(spec, tiny_corpus, runs / spec.id, progress=steps.append, stop=lambda: len(steps) == 3)
    shutil.rmtree(runs / parent[1].id)
    monkeypatch.setattr(Transformer, "init_values", None)
    train_run(spec, tiny_corpus, runs / spec.id)
    assert outcome(runs / spec.id) == outcome(runs / "undisturbed")


def test_initial_weights_are_drawn_only_where_nothing_is_loaded(make_spec, tiny_corpus, tmp_path, monkeypatch):
    spec, drawn, steps = make_spec(), [], []
    draw = Transformer.init_weights
    monkeypatch.setattr(Transformer, "init_weights", lambda self, *args: (drawn.append(args), draw(self, *args)))
    with pytest.raises(InterruptedRunError):
        train_run(spec, tiny_corpus, tmp_path, progress=steps.append, stop=lambda: len(steps) == 3)
    assert len(drawn) == 1
    train_run(spec, tiny_corpus, tmp_path)
    assert len(drawn) == 1


def resume_without_drawing(spec, corpus, folder, layout):
    """As a rank: resume where drawing any weight raises."""
    draw, Transformer.init_values = Transformer.init_values, None
    try:
        return train(spec, corpus, folder, layout)
    finally:
        Transformer.init_values = draw


def test_ranks_that_resume_draw_nothing(parent, tiny_corpus, tmp_path, on_ranks):
    spec = child(parent, None)
    on_ranks(2, train, spec, tiny_corpus.path, tmp_path / "run", Layout(tp=2), 3, Checkpoints())
    on_ranks(2, resume_without_drawing, spec, tiny_corpus.path, tmp_path / "run", Layout(dp_shard=2))
    assert len(losses(tmp_path / "run")) == spec.steps


def harmed(parent, runs, way):
    """A start that cannot be used, the error that it raises, and what the error says."""
    folder = runs / parent[1].id
    weights = folder / "model.safetensors"
    start = start_from(folder)
    if way == "run gone":
        shutil.rmtree(folder)
        return Start(run=parent[1].id, sha256=start.sha256), ArmillaryError, f"{folder}: not found.*start.weights"
    if way == "file gone":
        weights.unlink()
        return start, DamagedFileError, f"{weights}: is missing.*restore"
    if way == "path gone":
        return Start(weights=str(runs / "no.safetensors"), sha256=start.sha256), ArmillaryError, r"no.safetensors: not"
    if way == "run not done":
        (folder / "result.json").unlink()
        weights.unlink()
        return Start(run=parent[1].id, sha256=start.sha256), ArmillaryError, r"not finished.*step-N"
    if way == "changed":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        return start, DamagedFileError, rf"{weights}: SHA-256 is {file_sha256(weights)}, but start.sha256 is"
    if way == "checkpoint changed":
        piece = folder / "checkpoints/step-5/rank-00000.safetensors"
        start = start_from(piece.parent)
        piece.write_bytes(piece.read_bytes()[:-1] + b"\x7f")
        return start, DamagedFileError, "rank-00000.safetensors: does not match its checksum"
    if way == "another run's result":
        document = json.loads((folder / "result.json").read_text())
        (runs / ("0" * 16)).mkdir()
        shutil.copy(folder / "result.json", runs / ("0" * 16))
        return Start(run="0" * 16, sha256=start.sha256), ForeignFileError, f"result of run {document['run']}"
    if way == "no weights":
        (runs / "empty").mkdir()
        return (
            Start(weights=str(runs / "empty"), sha256=start.sha256),
            ForeignFileError,
            "folder without checkpoint.json",
        )
    file = runs / "other.safetensors"
    tensors = load_file(weights)
    if way == "another shape":
        tensors["embedding.weight"] = tensors["embedding.weight"][:, :8].contiguous()
    elif way == "another model":
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
    elif way == "one more":
        tensors["extra.weight"] = torch.zeros(2)
    elif way == "integers":
        tensors["embedding.weight"] = tensors["embedding.weight"].long()
    save_file(tensors, file)
    if way == "not safetensors":
        torch.save(tensors, file)
    said = {
        "another shape": r"is a different model: 'embedding.weight' is \[\d+, 8\] there",
        "another model": "lacks the tensor 'embedding.weight'",
        "one more": "has a tensor 'extra.weight'",
        "integers": "'embedding.weight' is I64 there",
        "not safetensors": "cannot be read as weights",
    }
    return Start(weights=str(file), sha256=file_sha256(file)), ForeignFileError, said[way]


WAYS = ("run gone", "file gone", "path gone", "run not done", "changed", "checkpoint changed", "another run's result",
        "no weights", "another shape", "another model", "one more", "integers", "not safetensors")  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_start_that_cannot_be_used_is_named_with_the_remedy(way, parent, runs, tiny_corpus):
    start, kind, said = harmed(parent, runs, way)
    spec = child(parent, start)
    before = {path: path.read_bytes() for path in runs.rglob("*.safetensors")}
    with pytest.raises(kind, match=said) as caught:
        train_run(spec, tiny_corpus, runs / spec.id)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in runs.rglob("*.safetensors")} == before
    assert not (runs / spec.id / "result.json").exists()


def refused_by_ranks(spec, corpus, folder, layout):
    """As a rank: what the start was refused with."""
    try:
        train(spec, corpus, folder, layout)
    except ArmillaryError as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("way", ["changed", "another shape", "path gone"])
def test_every_rank_refuses_the_same_start(way, parent, runs, tiny_corpus, on_ranks):
    start, kind, said = harmed(parent, runs, way)
    found = on_ranks(2, refused_by_ranks, child(parent, start), tiny_corpus.path, runs / "new", Layout(tp=2))
    assert found[0] == found[1] and found[0].startswith(kind.__name__) and re.search(said, found[0])


def test_weights_of_bf16_become_fp32(parent, runs, tiny_corpus):
    file = runs / "half.safetensors"
    tensors = load_file(runs / parent[1].id / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, file)
    spec = child(parent, start_from(file))
    train_run(spec, tiny_corpus, runs / spec.id)
    assert {t.dtype for t in load_file(runs / spec.id / "model.safetensors").values()} == {torch.float32}
