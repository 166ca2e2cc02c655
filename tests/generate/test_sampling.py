"""Draws: the distribution they follow, and the short way against the long one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.generate import Sampling
from armillary.generate import sampling as module
from armillary.generate.sampling import Sampler
from armillary.recipe import ArmillaryError


def kept(logits: np.ndarray, sampling: Sampling) -> dict[int, float]:
    """The tokens that may be drawn and their probabilities, from the definition."""
    weights = np.exp((logits - logits.max()) / sampling.temperature)
    order = np.argsort(-weights, kind="stable")[: sampling.top_k]
    shares = weights[order] / weights[order].sum()
    size = next((i + 1 for i in range(len(order)) if shares[: i + 1].sum() >= sampling.top_p - 1e-12), len(order))
    return dict(zip(order[:size].tolist(), (shares[:size] / shares[:size].sum()).tolist(), strict=True))


@settings(max_examples=12)
@given(st.integers(0, 99), st.sampled_from([0.3, 0.8, 1.0]), st.sampled_from([None, 1, 4]), st.floats(0.3, 2))
def test_draws_follow_the_definition(seed: int, top_p: float, top_k: int | None, heat: float) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, 12)
    sampling = Sampling(temperature=heat, top_p=top_p, top_k=top_k, seed=seed)
    expected, sampler = kept(logits, sampling), Sampler(sampling, 0)
    drawn = [sampler.draw(logits) for _ in range(300)]
    assert set(drawn) <= set(expected)
    for token, share in expected.items():
        assert abs(drawn.count(token) / 300 - share) < 5 * (share * (1 - share) / 300) ** 0.5 + 1e-9


@settings(max_examples=25)
@given(
    st.integers(0, 999),
    st.sampled_from([0.2, 0.9, 0.999, 1.0]),
    st.sampled_from([None, 3, 5, 30]),
    st.sampled_from([0.5, 3.0]),
    st.booleans(),
)
def test_the_short_way_draws_what_sorting_all_would(
    seed: int, top_p: float, top_k: int | None, spread: float, ties: bool
) -> None:
    logits = np.random.default_rng(seed).normal(0, spread, 60).astype(np.float32)
    if ties:
        logits = np.round(logits)
    sampling = Sampling(temperature=1.0, top_p=top_p, top_k=top_k, seed=seed)

    def drawn(likely: int) -> list[int]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_LIKELY", likely)
            sampler = Sampler(sampling, 1)
            return [sampler.draw(logits) for _ in range(20)]

    assert drawn(6) == drawn(60)


def test_temperature_zero_takes_the_first_of_equals() -> None:
    assert Sampler(Sampling(), 0).draw(np.array([1.0, 3.0, 3.0, 2.0])) == 1


def test_a_temperature_near_zero_is_no_overflow() -> None:
    for heat in (1e-300, 1e-30):
        assert Sampler(Sampling(temperature=heat), 0).draw(np.array([1.0, 3.0, 2.9], np.float32)) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    logits = np.full(3, bad) if bad == -np.inf else np.array([1.0, bad, 0.0])
    for heat in (0.0, 1.0):
        with pytest.raises(ArmillaryError, match="logits contain"):
            Sampler(Sampling(temperature=heat), 0).draw(logits)
