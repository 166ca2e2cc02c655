"""A run that changes its context length, against direct computation, across a stop, and where it is refused."""

from dataclasses import asdict, replace

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from armillary.corpus import TokenOrder
from armillary.model import Transformer, load_weights
from armillary.recipe import LengthPhase, RopeScaling, UsageError, Validation
from armillary.train import InterruptedRunError, Stack, stack_key, train_run, validate

SWITCH = 6
LONGER = LengthPhase(
    start_step=SWITCH,
    context_length=64,
    batch_sequences=2,
    rope_theta=2e4,
    rope_scaling=RopeScaling(kind="yarn", factor=4, original_length=16),
)


@pytest.fixture
def spec(make_spec):
    return make_spec(steps=12, lengths=(LONGER,), validation=Validation(every=4, windows=5))


def batches(spec, corpus):
    sizes = {"context_length": spec.context_length, "batch_sequences": spec.batch_sequences}
    order = TokenOrder(corpus, spec.mixture, seed=spec.seed, lengths=spec.lengths, steps=spec.steps, **sizes)
    return [torch.from_numpy(order.batch(step).tokens) for step in range(spec.steps)]


def test_the_losses_are_those_of_a_loop_with_two_models(spec, tiny_corpus, tmp_path):
    """One model for each length, the second with the weights and moments of the first."""
    result = train_run(spec, tiny_corpus, tmp_path / "run")
    metrics = pq.read_table(tmp_path / "run" / "metrics.parquet").to_pylist()
    o = spec.optimizer
    models = [Transformer(run.model) for _, _, run in spec.stretches()]
    models[0].init_weights(spec.seed)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        other.data = one.data
    groups = models[0].optimizer_groups(o.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=(o.beta1, o.beta2), eps=o.eps)
    for step, batch in enumerate(batches(spec, tiny_corpus)):
        assert batch.shape == ((4, 17) if step < SWITCH else (2, 65))
        model = models[step >= SWITCH]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        grads = torch.autograd.grad(loss, list(model.parameters()))
        for parameter, grad in zip(models[0].parameters(), grads, strict=True):
            parameter.grad = grad
        torch.nn.utils.clip_grad_norm_(models[0].parameters(), o.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = spec.lr(step)
        optimizer.step()
        assert metrics[step]["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert metrics[step]["tokens"] == (step + 1) * 64 + max(step + 1 - SWITCH, 0) * 64
        # a validation has the length and the positions of the step that it follows
        if step + 1 in (4, 8, 12):
            run = spec.during(step)

            def entropy(windows, model=model):
                return model.loss(windows)[1].item() / windows[:, 1:].numel()

            found = validate(entropy, run, tiny_corpus)
            for domain, (nats, _) in found.items():
                assert metrics[step][f"validation/{domain}/loss"] == pytest.approx(nats, rel=1e-4)
    assert result.tokens == spec.tokens == 6 * 64 + 6 * 128
    last = load_weights(tmp_path / "run" / "model.safetensors", spec.during(11).model)
    # AdamW turns the rounding of a gradient near zero, which differs between processors, into a step of its own
    assert all(torch.allclose(a, b, atol=5e-5) for a, b in zip(last.parameters(), models[0].parameters(), strict=True))


@pytest.mark.parametrize("after", [SWITCH - 1, SWITCH, SWITCH + 2])
def test_a_run_that_stops_near_the_switch_goes_on_bit_for_bit(after, spec, tiny_corpus, tmp_path):
    expected = train_run(spec, tiny_corpus, tmp_path / "whole")
    steps = []
    with pytest.raises(InterruptedRunError, match=f"after step {after} "):
        train_run(spec, tiny_corpus, tmp_path / "run", progress=steps.append, stop=lambda: len(steps) >= after)
    result = train_run(spec, tiny_corpus, tmp_path / "run")
    assert replace(result, wall_s=0) == replace(expected, wall_s=0), asdict(result)
    for name in ("metrics.parquet", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_such_a_run_is_no_member_of_a_stack(spec, make_spec):
    other = spec.model_copy(update={"seed": spec.seed + 1})
    assert len({stack_key(spec), stack_key(other), stack_key(make_spec())}) == 3
    with pytest.raises(UsageError, match="have one context length"):
        Stack(spec, 2, torch.device("cpu"))
