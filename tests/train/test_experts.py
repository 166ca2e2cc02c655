"""Runs of a mixture of experts: the biases that balance it are part of what a run goes on from."""

from __future__ import annotations

import pytest
import torch
from ranks import train
from safetensors.torch import load_file

from armillary.recipe import Experts, Layout, ModelShape, Schedule, UsageError
from armillary.train import Fleet, InterruptedRunError, stack_key, train_run


@pytest.fixture(scope="module")
def spec(make_spec, tiny_corpus):
    shape = ModelShape(
        n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=32, vocab_size=tiny_corpus.vocab_size,
        experts=Experts(count=8, active=2, d_ff=8, shared_d_ff=8, scores="sigmoid", bias_rate=0.01),
    )  # fmt: skip
    return make_spec(model=shape, batch_sequences=8, schedule=Schedule(warmup_steps=2))


def test_a_stopped_run_goes_on_as_if_it_had_not(spec, tiny_corpus, tmp_path, undisturbed, outcome):
    steps = []
    with pytest.raises(InterruptedRunError):
        train_run(spec, tiny_corpus, tmp_path, progress=steps.append, stop=lambda: len(steps) == 5)
    train_run(spec, tiny_corpus, tmp_path)
    assert outcome(tmp_path) == undisturbed(spec)
    biases = [t for name, t in load_file(tmp_path / "model.safetensors").items() if name.endswith("feed_forward.bias")]
    assert len(biases) == 2 and all(bias.abs().max() > 0 for bias in biases)


@pytest.mark.slow
def test_experts_are_dealt_out_anew_when_a_run_goes_on(spec, tiny_corpus, tmp_path, on_ranks):
    for layout, stop_after in ((Layout(dp_shard=2, ep=2), 3), (Layout(tp=2), 3), (Layout(), None)):
        on_ranks(layout.ranks, train, spec, tiny_corpus.path, tmp_path / "run", layout, stop_after)
    train_run(spec, tiny_corpus, tmp_path / "single")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "single"))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if name.endswith("feed_forward.bias"):
            assert torch.equal(tensor, expected[name])  # sums of whole numbers, up to ties (see tests/parallel)
        assert tensor.sub(expected[name]).abs().max() < 1e-3, name


def test_a_stack_takes_no_mixtures(spec, make_spec, tiny_corpus):
    assert stack_key(spec) != stack_key(spec.model_copy(update={"seed": spec.seed + 1}))
    with pytest.raises(UsageError, match="does not support mixtures of experts; train such a run by itself"):
        Fleet(spec, tiny_corpus, 2)
