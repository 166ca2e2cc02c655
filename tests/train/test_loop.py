"""What a run measures and leaves behind, against direct computation; how it stops, goes on and refuses."""

import dataclasses
import math
import time

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from armillary.corpus import Batch, TokenOrder
from armillary.goodput import read_events, read_ledger
from armillary.model import Transformer, load_weights, mean_share
from armillary.recipe import ArmillaryError, DamagedFileError, OptimizerSpec, Schedule, Validation, read_result
from armillary.train import (
    DivergedError,
    InterruptedRunError,
    Trunk,
    build_optimizer,
    train_run,
    train_step,
    validate,
)


def batches(spec, corpus):
    sizes = {"context_length": spec.context_length, "batch_sequences": spec.batch_sequences}
    order = TokenOrder(corpus, spec.mixture, seed=spec.seed, **sizes)
    return [torch.from_numpy(order.batch(step).tokens) for step in range(spec.steps)]


def fresh(spec):
    model = Transformer(spec.model)
    model.init_weights(spec.seed)
    return model


def cross_entropy(model, windows, reduction="mean"):
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)


def test_the_losses_are_those_of_a_textbook_loop(make_spec, tiny_corpus, undisturbed):
    """Logits, PyTorch's own cross entropy and the plain (not fused) AdamW: equal but for rounding."""
    spec = make_spec(optimizer=OptimizerSpec(lr=1e-2, weight_decay=0.3, grad_clip=0.5))
    o, model = spec.optimizer, fresh(spec)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(o.beta1, o.beta2), eps=o.eps)
    metrics = undisturbed(spec)["metrics"]
    for step, batch in enumerate(batches(spec, tiny_corpus)):
        for group in optimizer.param_groups:
            group["lr"] = o.lr * spec.schedule.ratio(step, spec.steps)
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), o.grad_clip)
        optimizer.step()
        assert metrics[step]["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert metrics[step]["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert (metrics[step]["step"], metrics[step]["tokens"]) == (step + 1, (step + 1) * 64)
        assert metrics[step]["lr"] == spec.lr(step)


def test_validation_is_the_mean_over_fixed_windows_of_every_domain(make_spec, tiny_corpus, tmp_path):
    spec = make_spec(validation=Validation(windows=70))  # more than go through the model at once
    result = train_run(spec, tiny_corpus, tmp_path / "run")
    model = load_weights(tmp_path / "run" / "model.safetensors", spec.model)

    def entropy(windows):
        with torch.no_grad():
            return mean_share(model.loss(windows)[1], windows[:, 1:].numel(), 1).item()

    assert {d: pair[0] for d, pair in validate(entropy, spec, tiny_corpus).items()} == result.loss
    tokenizer = tiny_corpus.tokenizer()
    for domain in tiny_corpus.domains:
        windows = torch.from_numpy(tiny_corpus.validation(domain, spec.context_length, 70).tokens)
        with torch.no_grad():
            nats = cross_entropy(model, windows, reduction="sum").item()
        # in the byte-level alphabet one character stands for one byte; the end of a document stands for none
        predicted = windows[:, 1:].flatten().tolist()
        end = tiny_corpus.manifest.end_of_text_id
        size = sum(len(tokenizer.id_to_token(token)) for token in predicted if token != end)
        assert result.loss[domain] == pytest.approx(nats / len(predicted), rel=1e-6)
        assert result.bits_per_byte[domain] == pytest.approx(nats / math.log(2) / size, rel=1e-6)


def test_validations_stand_in_the_rows_of_their_steps(make_spec, undisturbed):
    metrics = undisturbed(make_spec())["metrics"]
    for domain in ("sky", "sea", "code", "voyage"):
        for what in ("loss", "bits_per_byte"):
            taken = [row["step"] for row in metrics if row[f"validation/{domain}/{what}"] is not None]
            assert taken == [5, 10, 12]


def test_a_result_speaks_of_the_whole_run(make_spec, tiny_corpus, tmp_path, undisturbed):
    spec = make_spec(steps=30)
    result = train_run(spec, tiny_corpus, tmp_path / "run")
    losses = [row["loss"] for row in undisturbed(spec)["metrics"]]
    assert result.train_loss == pytest.approx(sum(losses[-3:]) / 3)
    assert result.tokens == 30 * 4 * 16 and result.run == spec.id
    windows = {d: tiny_corpus.windows(d, 16) for d in tiny_corpus.training_domains}
    assert sum(result.epochs[d] * windows[d] for d in windows) == pytest.approx(30 * 4)
    events = list(read_events(tmp_path / "run" / "events.jsonl"))
    kinds = [e.kind for e in events if e.kind not in ("progress", "data_wait")]
    assert kinds == ["start", "running", *["validation"] * 6, "end"]
    assert result.wall_s == sum(e.duration_s or 0 for e in events if e.kind != "data_wait")
    memory = [e.data["memory_gib"] for e in events if e.kind == "progress"]
    assert memory and memory == sorted(memory) and 0.05 < memory[0] <= memory[-1] < 64


def test_a_run_that_is_done_is_not_trained_again(make_spec, tiny_corpus, tmp_path):
    folder, steps = tmp_path / "run", []
    assert read_result(folder) is None
    result = train_run(make_spec(), tiny_corpus, folder, keep=(4, 12), progress=steps.append)
    assert steps == list(range(1, 13))

    def files():
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}

    before = files()
    assert train_run(make_spec(), tiny_corpus, folder, progress=steps.append) == read_result(folder) == result
    assert files() == before and len(steps) == 12
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-12", "step-4"]


@pytest.mark.parametrize("after", [1, 5, 11])
def test_a_stopped_run_goes_on_as_if_it_had_not(after, make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    spec, folder, steps = make_spec(), tmp_path / "run", []
    with pytest.raises(InterruptedRunError, match=f"after step {after} of 12; start it again to resume"):
        train_run(spec, tiny_corpus, folder, progress=steps.append, stop=lambda: len(steps) == after)
    assert read_result(folder) is None
    train_run(spec, tiny_corpus, folder, progress=steps.append)
    assert steps == list(range(1, 13))  # no step is taken twice
    assert outcome(folder) == undisturbed(spec)
    events = list(read_events(folder / "events.jsonl"))
    kinds = [e.kind for e in events]
    stop = kinds.index("stop")
    assert kinds[stop - 3 : stop + 3] == [
        "checkpoint_begin",
        "checkpoint_durable",
        "checkpoint",
        "stop",
        "pause",
        "resume",
    ]
    assert events[stop + 1].duration_s == pytest.approx(events[stop + 1].time_s - events[stop].time_s, abs=1e-3)


def test_waits_for_a_batch_are_told_where_they_happen(make_spec, tiny_corpus, tmp_path, monkeypatch):
    """A long one has its own event, and short ones have one for all; they are no work of their own."""
    spec, read = make_spec(), TokenOrder.batch

    def slowly(order, step):
        time.sleep({3: 0.15, 5: 0.005, 6: 0.005}.get(step, 0))
        return read(order, step)

    monkeypatch.setattr(TokenOrder, "batch", slowly)
    result = train_run(spec, tiny_corpus, tmp_path)
    events = list(read_events(tmp_path / "events.jsonl"))
    waits = [(e.step, e.duration_s) for e in events if e.kind == "data_wait"]
    assert [step for step, seconds in waits if seconds >= 0.15] == [3]
    assert sum(seconds for _, seconds in waits) >= 0.16
    assert read_ledger(tmp_path).seconds["data_wait"] == pytest.approx(sum(seconds for _, seconds in waits), abs=1e-6)
    assert result.wall_s == pytest.approx(sum(e.duration_s or 0 for e in events if e.kind != "data_wait"))


def test_stopped_after_the_last_step_is_done(make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    steps = []
    train_run(make_spec(), tiny_corpus, tmp_path, progress=steps.append, stop=lambda: len(steps) == 12)
    assert outcome(tmp_path) == undisturbed(make_spec())


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "metrics.parquet", "checkpoint.json", "all"])
def test_bad_bytes_in_any_file_of_a_checkpoint(file, make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    spec, folder, steps = make_spec(), tmp_path / "run", []
    with pytest.raises(InterruptedRunError):
        train_run(spec, tiny_corpus, folder, checkpoint_every_s=0, progress=steps.append, stop=lambda: len(steps) == 7)
    for path in (folder / "checkpoints").rglob("*" if file == "all" else f"step-7/{file}"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            data[len(data) // 3] ^= 0x10
            path.write_bytes(data)
    if file == "all":
        before = sorted(path.name for path in (folder / "checkpoints").iterdir())
        for _ in range(2):
            with pytest.raises(DamagedFileError, match=r"all 2 checkpoints are damaged: .*step-7.*move the step-"):
                train_run(spec, tiny_corpus, folder)
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before
        return
    train_run(spec, tiny_corpus, folder)
    assert outcome(folder) == undisturbed(spec)
    events = [(e.kind, e.step) for e in read_events(folder / "events.jsonl") if e.kind in ("fault", "resume", "start")]
    assert events == [("start", 0), ("fault", 7), ("resume", 6)]
    assert (folder / "checkpoints" / "step-7.damaged").is_dir()


@pytest.mark.parametrize("changes", [{}, {"steps": 8}, {"steps": 6}])
def test_a_trunk_that_is_damaged_or_as_long_as_the_run(changes, make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    trunk = make_spec(schedule=Schedule(kind="constant"))
    train_run(trunk, tiny_corpus, tmp_path / "trunk", keep=(8,))
    spec = make_spec(schedule=Schedule(kind="constant"), **changes)
    if not changes:
        spec = make_spec(schedule=Schedule(decay_steps=4))
        (tmp_path / "trunk" / "checkpoints" / "step-8" / "metrics.parquet").write_bytes(b"")
    train_run(spec, tiny_corpus, tmp_path / "run", trunk=Trunk(tmp_path / "trunk", 8))
    assert outcome(tmp_path / "run") == undisturbed(spec)
    assert next(read_events(tmp_path / "run" / "events.jsonl")).step == 0


def test_a_branch_that_is_stopped_goes_on_from_its_own_checkpoint(
    make_spec, tiny_corpus, tmp_path, undisturbed, outcome
):
    trunk = make_spec(steps=9, schedule=Schedule(kind="constant"))
    branch = make_spec(schedule=Schedule(decay_steps=4, decay="1-sqrt"))
    train_run(trunk, tiny_corpus, tmp_path / "trunk", keep=(8,))
    steps = []
    for _ in range(2):
        try:
            train_run(
                branch,
                tiny_corpus,
                tmp_path / "run",
                trunk=Trunk(tmp_path / "trunk", 8),
                progress=steps.append,
                stop=lambda: len(steps) == 2,
            )
        except InterruptedRunError:
            assert steps == [9, 10]
    assert steps == [9, 10, 11, 12]
    assert outcome(tmp_path / "run") == undisturbed(branch)


def test_a_run_that_diverges_names_the_step_and_does_so_again(make_spec, tiny_corpus, tmp_path):
    spec = make_spec(optimizer=OptimizerSpec(lr=1e6, grad_clip=1e9, weight_decay=1.0))
    said = []
    for _ in range(2):
        with pytest.raises(DivergedError, match=r"diverged: at step \d+ the loss is .* gradient norm nan") as caught:
            train_run(spec, tiny_corpus, tmp_path / "run", checkpoint_every_s=0)
        said.append(str(caught.value))
    assert said[0] == said[1] and "lower the learning rate (1e+06)" in said[0]
    fault = next(e for e in read_events(tmp_path / "run" / "events.jsonl") if e.kind == "fault")
    assert f"at step {fault.step} " in said[0]
    # a checkpoint of a broken model would be gone on from for ever
    assert all(int(p.name[5:]) < fault.step for p in (tmp_path / "run" / "checkpoints").glob("step-*"))


def test_a_last_update_that_breaks_the_model_is_a_divergence(make_spec, tiny_corpus, tmp_path):
    """The training loss is taken before the update and looks fine."""
    spec = make_spec(steps=1, schedule=Schedule(kind="constant"), optimizer=OptimizerSpec(lr=1e38))
    with pytest.raises(DivergedError, match="at step 1 the validation loss on 'sky' is nan"):
        train_run(spec, tiny_corpus, tmp_path / "run")
    assert read_result(tmp_path / "run") is None


def test_accumulation_adds_up_to_the_whole_batch(make_spec, tiny_corpus):
    gradients = []
    for accumulation in (1, 2, 4):
        spec = make_spec(accumulation=accumulation, optimizer=OptimizerSpec(lr=1e-2, grad_clip=1e9, z_loss=1e-3))
        model = fresh(spec)
        loss, norm = train_step(model, build_optimizer(model, spec), spec, 3, Batch(batches(spec, tiny_corpus)[0]))
        gradients.append(torch.stack([loss, norm]))
        assert all(p.grad is None for p in model.parameters())
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-5, atol=0)


def test_bf16_stays_near_fp32(make_spec, tiny_corpus, tmp_path):
    single, half = (train_run(make_spec(precision=p), tiny_corpus, tmp_path / p) for p in ("fp32", "bf16"))
    for domain in tiny_corpus.domains:
        assert half.loss[domain] == pytest.approx(single.loss[domain], rel=0.02)
    assert half.loss != single.loss
    weights = load_weights(tmp_path / "bf16" / "model.safetensors", make_spec().model)
    assert {p.dtype for p in weights.parameters()} == {torch.float32}


def test_the_z_loss_is_trained_on_and_not_reported(make_spec, undisturbed):
    plain = undisturbed(make_spec())["metrics"]
    bound = undisturbed(make_spec(optimizer=OptimizerSpec(lr=1e-2, z_loss=0.1)))["metrics"]
    assert bound[0]["loss"] == plain[0]["loss"]  # the same weights, and the cross entropy alone
    assert bound[0]["grad_norm"] != plain[0]["grad_norm"]
    assert bound[-1]["loss"] != plain[-1]["loss"]


def test_another_corpus_or_a_folder_that_is_in_use_is_refused(make_spec, tiny_corpus, tmp_path):
    spec = make_spec(corpus="0123456789abcdef")
    with pytest.raises(ArmillaryError, match=f"belongs to corpus 0123456789abcdef, but .* is {tiny_corpus.hash}"):
        train_run(spec, tiny_corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read .*remove it"),
        ("", "cannot be read .*remove it"),
        ("[]", "is a JSON list, not an object"),
        ('{"format": 1}', "is not a run's result"),
        ('{"format": 2}', "does not match its checksum"),
        ('{"format": 4}', "result of format 4, but this version reads formats up to 3"),
    ],
)
def test_a_result_that_cannot_be_read_is_not_taken_for_none(content, said, tmp_path):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ArmillaryError, match=f"result.json: .*{said}"):
        read_result(tmp_path)


def test_metrics_of_a_finished_run_are_a_table_without_gaps(make_spec, tiny_corpus, tmp_path):
    result = train_run(make_spec(), tiny_corpus, tmp_path)
    table = pq.read_table(tmp_path / "metrics.parquet")
    assert table.num_rows == 12
    assert [f.type for f in table.schema][:2] == ["int64", "int64"]
    last = table.to_pylist()[-1]
    assert {d: last[f"validation/{d}/loss"] for d in result.loss} == result.loss
    assert dataclasses.asdict(result)["loss"] == result.loss
