"""Requests to a backend: their keys, and the values they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.generate import Message, Pair, Request, Sampling
from armillary.recipe import UsageError

_SAMPLINGS = st.builds(
    Sampling,
    max_new_tokens=st.integers(1, 3),
    temperature=st.sampled_from([0.0, 0.5]),
    top_p=st.sampled_from([0.5, 1.0]),
    top_k=st.sampled_from([None, 1]),
    stop=st.sampled_from([(), ("a",), ("a", "b")]),
    seed=st.integers(0, 1),
    n=st.integers(1, 2),
)
_REQUESTS = st.builds(
    Request,
    st.one_of(
        st.sampled_from(["a", "b", "数"]),
        st.builds(
            lambda role, text: (Message(role, text),), st.sampled_from(["user", "system"]), st.sampled_from("ab")
        ),
    ),
    _SAMPLINGS,
    st.sampled_from([None, 1, 2]),
)


@given(_REQUESTS, _REQUESTS)
def test_two_requests_have_one_key_if_and_only_if_they_are_equal(one: Request, other: Request) -> None:
    assert (one.key == other.key) == (one == other)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", 0),
        ("stop", ("",)),
        ("n", 0),
    ],
)
def test_a_value_outside_its_range_is_refused_with_its_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field):
        Sampling(**{field: value})


def test_a_number_of_last_tokens_is_part_of_the_key_only_where_there_is_one() -> None:
    assert Request("a").to_json().keys() == {"prompt", "sampling"}
    assert Pair("a", "b").to_json().keys() == {"context", "continuation"}
    assert Pair("a", "b").key != Pair("a", "b", 2).key
    for bad in (lambda: Request("a", last_tokens=0), lambda: Pair("a", "b", -1)):
        with pytest.raises(UsageError, match="last_tokens must be 1 or more"):
            bad()
