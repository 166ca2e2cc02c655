"""What only an accelerator can show; ``pytest -m accelerator`` runs these, benchmarks/accelerator.py measures more."""

import math

import pytest
import torch

from armillary.corpus import Batch
from armillary.model import Transformer
from armillary.recipe import Experts, Latent, Layout, NextToken, OptimizerSpec, Preference, ReLU2, Supervised
from armillary.train import InterruptedRunError, build_optimizer, default_device, train_fleet, train_run, train_step
from armillary.train.fleet import Assignment

pytestmark = pytest.mark.accelerator


@pytest.fixture
def device():
    if default_device().type == "cpu":
        pytest.skip("no accelerator is here")
    return default_device()


@pytest.fixture(params=["dense", "grouped, QK-norm", "experts", "latent"])
def shape(request, make_spec):
    model = make_spec().model
    changes = {
        "dense": {"n_kv_heads": model.n_heads},
        "grouped, QK-norm": {"qk_norm": True, "tied_embeddings": True},
        "experts": {"experts": Experts(count=4, active=2, d_ff=16, shared_d_ff=16)},
        "latent": {
            "n_kv_heads": model.n_heads,
            "attention": Latent(kv_rank=8, rope_head_dim=4),
            "feed_forward": ReLU2(),
        },
    }
    return model.model_copy(update=changes[request.param])


def text(tokens, spec):
    return Batch(tokens)


def documents(tokens, spec):
    """Two documents in each sequence, every third prediction without a weight."""
    place = torch.arange(spec.context_length).expand(len(tokens), -1)
    return Batch(tokens, (place % 3 > 0).float(), place // (spec.context_length // 2))


def pairs(tokens, spec):
    """A pair of answers in each sequence, whose second half a reference finds all tokens equally likely in."""
    length = spec.context_length // 2
    place = torch.arange(spec.context_length).expand(len(tokens), -1)
    weights = ((place % length >= length // 2) & (place % length < length - 1)).float()
    each = weights[:, :length].sum().item()  # answers of either kind have as many tokens in all
    reference = -math.log(spec.model.vocab_size) * weights
    return Batch(tokens, weights, place // length, reference, weight=float(len(tokens)), answers=(each, each))


OBJECTIVES = {text: NextToken(), documents: Supervised(examples="0" * 16), pairs: Preference(examples="0" * 16)}


def moved(spec, device, steps=5, batch_of=text):
    """By how much ``steps`` steps on random tokens move each parameter, and the losses."""
    spec = spec.model_copy(update={"objective": OBJECTIVES[batch_of]})
    model = Transformer(spec.model)
    model.init_weights(spec.seed, spec.optimizer)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.to(device)
    optimizer = build_optimizer(model, spec)
    random = torch.Generator().manual_seed(1)
    losses = []
    for step in range(steps):
        size = (spec.batch_sequences, spec.context_length + 1)
        batch = torch.randint(spec.model.vocab_size, size, generator=random)
        here = batch_of(batch, spec).map(lambda values: values.to(device))
        losses.append(train_step(model, optimizer, spec, step, here)[0].item())
    return losses, {name: p.detach().cpu() - start[name] for name, p in model.named_parameters()}


# Newton-Schulz iterates in bf16: on the CPU, a relative change of the gradients by 1e-4 moves a matrix by up to 5 %.
@pytest.mark.parametrize(("kind", "limit"), [("adamw", 5e-3), ("muon", 6e-2)])
@pytest.mark.parametrize("batch_of", OBJECTIVES)
def test_steps_are_those_of_the_cpu(shape, kind, limit, batch_of, device, make_spec):
    spec = make_spec(model=shape, optimizer=OptimizerSpec(lr=1e-3, kind=kind))
    losses, movements = moved(spec, torch.device("cpu"), batch_of=batch_of)
    found, here = moved(spec, device, batch_of=batch_of)
    assert found == pytest.approx(losses, rel=1e-4)
    for name, movement in movements.items():
        error = here[name] - movement
        if "router" in name:
            # The gradient of a router sums to 0 over the experts. Muon raises the rounding error in that direction to
            # the size of the other directions.
            error -= error.mean(0)
        assert error.norm() <= limit * movement.norm(), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopped_and_resumed_is_never_stopped(precision, device, make_spec, tiny_corpus, tmp_path, outcome):
    spec = make_spec(precision=precision)
    train_run(spec, tiny_corpus, tmp_path / "whole", device=device)
    steps = []
    with pytest.raises(InterruptedRunError):
        train_run(
            spec, tiny_corpus, tmp_path / "parts", device=device, progress=steps.append, stop=lambda: len(steps) == 6
        )
    train_run(spec, tiny_corpus, tmp_path / "parts", device=device)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_a_stack_ends_as_its_members_alone(device, make_spec, tiny_corpus, tmp_path):
    specs = [make_spec(seed=seed) for seed in range(4)]
    ended = dict(train_fleet([Assignment(s, tmp_path / s.id) for s in specs], tiny_corpus, 4, device=device))
    for spec in specs:
        alone = train_run(spec, tiny_corpus, tmp_path / f"{spec.id}-alone", device=device)
        assert ended[spec.id].loss == pytest.approx(alone.loss, rel=1e-4)


def test_the_peak_of_a_step_is_near_the_dry_run(device, make_spec):
    from armillary.parallel import dry_run
    from armillary.train import LocalOptimizer

    model = make_spec().model.model_copy(update={"n_layers": 8, "d_model": 512, "n_heads": 8, "n_kv_heads": 8})
    spec = make_spec(model=model.model_copy(update={"head_dim": 64, "d_ff": 1376, "vocab_size": 32768}))
    said = dry_run(spec, Layout(), LocalOptimizer).peak
    torch.accelerator.reset_peak_memory_stats(device)
    before = torch.accelerator.memory_allocated(device)
    moved(spec, device, steps=2)
    assert torch.accelerator.max_memory_allocated(device) - before == pytest.approx(said, rel=0.1)
