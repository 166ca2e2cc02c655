"""Runs that share a beginning, runs that go wrong, and the arithmetic of a step against a plain loop."""

import json

import pytest
import torch

from armillary.corpus import Batch, TokenOrder
from armillary.goodput import read_events
from armillary.model import Transformer, mean_share
from armillary.recipe import MixturePhase, OptimizerSpec, Schedule
from armillary.train import DivergedError, InterruptedRunError, Trunk, build_optimizer, train_run, train_step


def test_a_branch_is_the_run_trained_whole(make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    stable = MixturePhase(start_step=0, weights={"sky": 0.5, "sea": 0.3, "code": 0.2})
    annealing = MixturePhase(start_step=8, weights={"sky": 0.1, "sea": 0.1, "code": 0.8})
    branch = make_spec(
        schedule=Schedule(kind="wsd", warmup_steps=2, decay_steps=4), mixture=(stable, annealing), steps=12
    )
    trunk = branch.model_copy(
        update={"steps": 8, "schedule": Schedule(kind="constant", warmup_steps=2), "mixture": (stable,)}
    )
    train_run(trunk, tiny_corpus, tmp_path / trunk.id, keep=(8,))
    train_run(branch, tiny_corpus, tmp_path / branch.id, trunk=Trunk(tmp_path / trunk.id, 8))
    assert next(iter(read_events(tmp_path / branch.id / "events.jsonl"))).step == 8
    assert outcome(tmp_path / branch.id) == undisturbed(branch)


def test_a_trunk_of_another_run_is_not_used(make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    other = make_spec(seed=99)
    train_run(other, tiny_corpus, tmp_path / "other", keep=(6,))
    spec = make_spec()
    train_run(spec, tiny_corpus, tmp_path / "run", trunk=Trunk(tmp_path / "other", 6))
    assert next(iter(read_events(tmp_path / "run" / "events.jsonl"))).step == 0
    assert outcome(tmp_path / "run") == undisturbed(spec)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_checkpoint_is_passed_over(damage, make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    spec, folder, steps = make_spec(), tmp_path / "run", []
    with pytest.raises(InterruptedRunError, match="start it again"):
        train_run(spec, tiny_corpus, folder, checkpoint_every_s=0, progress=steps.append, stop=lambda: len(steps) == 7)
    newest = folder / "checkpoints" / "step-7"
    file = newest / ("checkpoint.json" if damage == "manifest" else "rank-00000.safetensors")
    data = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.write_bytes(data[: len(data) // 2])
    train_run(spec, tiny_corpus, folder)
    events = list(read_events(folder / "events.jsonl"))
    assert [e.step for e in events if e.kind == "fault"] == [7]
    assert [e.step for e in events if e.kind == "resume"] == [6]
    assert outcome(folder) == undisturbed(spec)


def test_a_diverging_run_says_where(make_spec, tiny_corpus, tmp_path):
    spec = make_spec(optimizer=OptimizerSpec(lr=1e30, grad_clip=1e30))
    with pytest.raises(DivergedError, match=r"diverged: at step \d+.*lower the learning rate"):
        train_run(spec, tiny_corpus, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_step_is_the_plain_loop(make_spec, tiny_corpus):
    torch.set_num_threads(1)
    spec = make_spec()
    order = TokenOrder(tiny_corpus, spec.mixture, seed=spec.seed, context_length=spec.context_length,
                       batch_sequences=spec.batch_sequences)  # fmt: skip
    ours, plain = Transformer(spec.model), Transformer(spec.model)
    ours.init_weights(spec.seed)
    plain.init_weights(spec.seed)
    optimizer = build_optimizer(ours, spec)
    o = spec.optimizer
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": o.weight_decay},
            {"params": [p for p in plain.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(o.beta1, o.beta2),
        eps=o.eps,
        fused=True,
    )
    for step in range(6):
        batch = torch.from_numpy(order.batch(step).tokens)
        loss, norm = train_step(ours, optimizer, spec, step, Batch(batch))
        for group in reference.param_groups:
            group["lr"] = o.lr * spec.schedule.ratio(step, spec.steps)
        reference.zero_grad()
        expected = mean_share(plain.loss(batch)[0], batch[:, 1:].numel(), 1)
        expected.backward()
        expected_norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), o.grad_clip)
        reference.step()
        assert loss.item() == expected.item() and norm.item() == expected_norm.item()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_accumulation_changes_nothing_but_rounding(make_spec, tiny_corpus, tmp_path):
    losses = []
    for accumulation in (1, 2):
        spec = make_spec(accumulation=accumulation)
        losses.append(train_run(spec, tiny_corpus, tmp_path / spec.id).loss)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_folder_of_another_run_is_refused(make_spec, tiny_corpus, tmp_path):
    train_run(make_spec(), tiny_corpus, tmp_path / "run")
    with pytest.raises(Exception, match="belongs to run"):
        train_run(make_spec(seed=5), tiny_corpus, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["run"] == make_spec().id
