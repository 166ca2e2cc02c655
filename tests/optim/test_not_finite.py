"""A gradient that is not finite changes neither weights nor state, without a read of its value."""

import copy

import pytest
import torch

from armillary.model import Transformer
from armillary.optim import LocalOptimizer


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_gradient_that_is_not_finite_changes_nothing_and_a_finite_one_the_same_as_ever(kind, make_spec):
    spec = make_spec()
    spec = spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update={"kind": kind})})
    model = Transformer(spec.model)
    model.init_weights(0, spec.optimizer)
    guarded, plain = model, copy.deepcopy(model)
    optimizers = [LocalOptimizer(one.named_parameters(), spec) for one in (guarded, plain)]
    torch.manual_seed(0)

    def give(factor=1.0):
        for one, other in zip(guarded.parameters(), plain.parameters(), strict=True):
            one.grad = factor * torch.randn_like(one)
            other.grad = one.grad.clone()

    def values(optimizer):
        states = [value for state in optimizer.state.values() for value in state.values()]
        return [value.clone() for value in (*optimizer.local.values(), *states)]

    for _ in range(2):
        give()
        optimizers[0].step(1e-2, torch.tensor(1.0))
        optimizers[1].step(1e-2)
        assert all(torch.equal(a, b) for a, b in zip(*map(values, optimizers), strict=True))
    before = values(optimizers[0])
    give(float("nan"))
    optimizers[0].step(1e-2, torch.tensor(float("nan")))
    assert all(torch.equal(a, b) for a, b in zip(before, values(optimizers[0]), strict=True))
