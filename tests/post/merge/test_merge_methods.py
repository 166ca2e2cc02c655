"""Each method equals mergekit 0.1.5 on the same tensors; random drops equal it under the same mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from armillary.post.merge import MergeOptions, methods
from armillary.post.merge.methods.dare import kept_entries
from armillary.post.merge.methods.ties import trim
from armillary.post.merge.registry import Group, read_weights
from armillary.recipe import UsageError

mergekit = pytest.importorskip("mergekit.merge_methods.base", reason="needs mergekit, the oracle")

THEIRS = {"task": "task_arithmetic", "ties": "ties", "dare": "dare_linear"}


def drawn(count: int, shape: tuple[int, ...], seed: int = 0, apart: float = 0.3) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return base, [base + apart * torch.randn(shape, generator=generator) for _ in range(count)]


def group(base: Tensor, models: list[Tensor], options: MergeOptions, name: str = "a.weight") -> Group:
    ids = [f"{float(model.sum()):.6f}" for model in models]
    weights = methods()[options.method].weights(options, len(models))
    return Group(name, base, models, ids, weights, options)


def ours(base: Tensor, models: list[Tensor], options: MergeOptions) -> Tensor:
    return methods()[options.method].combine(group(base, [model.clone() for model in models], options))


def theirs(base: Tensor, models: list[Tensor], options: MergeOptions, **more: Any) -> Tensor:
    from mergekit.merge_methods.registry import registered_methods

    method: Any = next(m for m in registered_methods() if m.spec.name == THEIRS[options.method])
    weights = methods()[options.method].weights(options, len(models))
    parameters = {
        "weight": dict(zip(range(1, 1 + len(models)), weights, strict=True)),
        "density": dict.fromkeys(range(1, 1 + len(models)), options.density),
        "normalize": method.default_normalize,
        "rescale": method.default_rescale,
        "lambda": options.scale,
        "int8_mask": False,
    }
    found: Tensor = method.merge_group(
        mergekit.TensorGroup.from_tensors([base, *models], base_index=0), **parameters | more
    )
    return found


shapes = st.sampled_from([(1,), (7,), (5, 3), (16, 33), (3, 4, 5)])
weights = st.lists(st.floats(-2, 2).map(lambda w: round(w, 3)), min_size=1, max_size=4)


@given(shape=shapes, weights=weights, scale=st.sampled_from([1.0, 0.4, -1.0]), seed=st.integers(0, 99))
def test_task_arithmetic_equals_mergekit(shape: tuple[int, ...], weights: list[float], scale: float, seed: int) -> None:
    base, models = drawn(len(weights), shape, seed)
    options = MergeOptions("task", tuple(weights), scale=scale)
    torch.testing.assert_close(ours(base, models, options), theirs(base, models, options), rtol=1e-6, atol=1e-6)


@given(
    shape=shapes,
    weights=st.lists(st.sampled_from([1.0, 0.5, 0.3, 2.0]), min_size=1, max_size=4),
    density=st.sampled_from([0.01, 0.2, 0.5, 0.77, 1.0]),
    seed=st.integers(0, 99),
)
def test_ties_equals_mergekit(shape: tuple[int, ...], weights: list[float], density: float, seed: int) -> None:
    base, models = drawn(len(weights), shape, seed)
    options = MergeOptions("ties", tuple(weights), density=density, scale=0.7)
    torch.testing.assert_close(ours(base, models, options), theirs(base, models, options), rtol=1e-6, atol=1e-6)


@given(shape=shapes, count=st.integers(1, 4), seed=st.integers(0, 99))
def test_linear_and_weighted_equal_mergekit(shape: tuple[int, ...], count: int, seed: int) -> None:
    from mergekit.merge_methods.linear import linear_merge

    base, models = drawn(count, shape, seed)
    given_weights = tuple(0.1 + 0.3 * i for i in range(count))
    batch = mergekit.TensorBatch(tuple(model[None] for model in models))
    wanted = linear_merge.merge_batch(batch, weight=torch.tensor([given_weights]), normalize=True)[0]
    for method in ("linear", "weighted"):
        found = ours(base, models, MergeOptions(method, given_weights))
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@given(shape=shapes, way=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), apart=st.sampled_from([0.0, 1e-3, 0.3, 1.5]))
def test_slerp_equals_mergekit(shape: tuple[int, ...], way: float, apart: float) -> None:
    from mergekit.merge_methods.slerp import slerp

    base, models = drawn(2, shape, 3, apart)
    wanted = slerp(torch.tensor([way]), models[0][None], models[1][None])[0]
    found = ours(base, models, MergeOptions("slerp", (1 - way, way)))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_slerp_averages_where_there_is_no_circle() -> None:
    base = torch.zeros(4)
    for pair in ([base, torch.ones(4)], [torch.ones(4), -torch.ones(4)], [torch.ones(4), torch.ones(4)]):
        assert torch.equal(ours(base, pair, MergeOptions("slerp")), (pair[0] + pair[1]) / 2)


@pytest.mark.parametrize(("rescale", "their_rescale"), [("norm", True), ("density", False)])
def test_dare_equals_mergekit_under_the_same_mask(
    monkeypatch: pytest.MonkeyPatch, rescale: str, their_rescale: bool
) -> None:
    base, models = drawn(3, (40, 30))
    options = MergeOptions("dare", (0.2, 0.5, 0.9), density=0.3, scale=0.8, rescale=rescale)
    here = group(base, models, options)
    masks = [kept_entries(here, i).float() for i in range(3)]
    found = ours(base, models, options)
    monkeypatch.setattr(torch, "bernoulli", lambda _: masks.pop(0))
    if rescale == "density":  # mergekit has no such rule; its weights can hold the factor
        options = MergeOptions("dare", tuple(w / 0.3 for w in options.weights), density=0.3, scale=0.8)
    wanted = theirs(base, models, options, rescale=their_rescale)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_dare_keeps_the_share_that_mergekit_keeps_and_the_mean_difference() -> None:
    from mergekit.sparsify import bernoulli

    base, models = drawn(1, (400, 250), apart=1.0)
    options = MergeOptions("dare", density=0.2)
    kept = kept_entries(group(base, models, options), 0)
    torch.manual_seed(0)
    other = bernoulli(models[0] - base, 0.2) != 0
    # 100,000 entries: a share has a standard error of 0.0013
    assert abs(float(kept.float().mean()) - 0.2) < 0.005
    assert abs(float(kept.float().mean()) - float(other.float().mean())) < 0.006
    found = ours(torch.zeros(400, 250), [torch.ones(400, 250)], MergeOptions("dare", (1.0,), density=0.2))
    assert float(found.mean()) == pytest.approx(1.0, abs=0.03)
    # neither rows nor neighbours share their fate
    assert abs(float(torch.corrcoef(torch.stack([kept[:-1].reshape(-1), kept[1:].reshape(-1)]).float())[0, 1])) < 0.02


def test_dare_draws_by_tensor_and_model_and_not_by_their_order() -> None:
    base, models = drawn(2, (30, 20))
    options = MergeOptions("dare", density=0.5, seed=4)
    both, swapped = group(base, models, options), group(base, models[::-1], options)
    assert torch.equal(kept_entries(both, 0), kept_entries(swapped, 1))
    assert not torch.equal(kept_entries(both, 0), kept_entries(both, 1))
    assert not torch.equal(kept_entries(both, 0), kept_entries(group(base, models, options, "b.weight"), 0))
    other_seed = group(base, models, MergeOptions("dare", density=0.5, seed=5))
    assert not torch.equal(kept_entries(both, 0), kept_entries(other_seed, 0))
    torch.testing.assert_close(ours(base, models, options), ours(base, models[::-1], options), rtol=1e-6, atol=1e-6)


@given(
    numbers=st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0]), min_size=1, max_size=12), density=st.floats(0.01, 1)
)
def test_trim_keeps_exactly_its_share_where_magnitudes_are_equal(numbers: list[float], density: float) -> None:
    from mergekit.sparsify import magnitude

    found = trim(torch.tensor(numbers), density)
    assert torch.equal(found.abs().sort().values, magnitude(torch.tensor(numbers), density).abs().sort().values)


@pytest.mark.parametrize("method", ["linear", "task", "ties", "dare"])
def test_a_model_alone_comes_back(method: str) -> None:
    base, models = drawn(1, (6, 5))
    found = ours(base, models, MergeOptions(method, (1.0,), density=1.0))
    torch.testing.assert_close(found, models[0], rtol=0, atol=1e-6)
    if method == "linear":
        assert torch.equal(found, models[0])


@pytest.mark.parametrize(
    ("options", "count", "said"),
    [
        (MergeOptions("linear", (1.0, -1.0)), 2, "sum to 0"),
        (MergeOptions("linear", (1.0,)), 2, "1 weights for 2 models"),
        (MergeOptions("task", (float("nan"),)), 1, "finite"),
        (MergeOptions("slerp"), 3, "needs two models, but 3"),
        (MergeOptions("slerp", (-1.0, 2.0)), 2, "shares from 0 to 1"),
        (MergeOptions("ties", density=0.0), 2, "density is 0"),
        (MergeOptions("dare", density=1.5), 2, "density is 1.5"),
        (MergeOptions("dare", rescale="l3"), 2, "rescale is 'l3'"),
        (MergeOptions("weighted"), 2, "needs the models' scores"),
        (MergeOptions("weighted", (0.3, 0.4), base_score=0.5), 2, "do not merge"),
    ],
)
def test_options_out_of_range_are_refused(options: MergeOptions, count: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        methods()[options.method].weights(options, count)


def test_scores_weigh_by_the_gain_over_the_base() -> None:
    weights: Callable[..., tuple[float, ...]] = methods()["weighted"].weights
    assert weights(MergeOptions("weighted", (0.5, 0.3, 0.1), base_score=0.2), 3) == pytest.approx((0.75, 0.25, 0.0))


def test_weights_of_a_command_line_are_numbers() -> None:
    assert read_weights("0.5, 2") == (0.5, 2.0)
    with pytest.raises(UsageError, match="one number per model"):
        read_weights("0.5,x")
