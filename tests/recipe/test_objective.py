"""What a run learns is part of its id; a run of plain text has the id that it always had."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from armillary.recipe import NextToken, RunSpec, Supervised

HASH = "0123456789abcdef"


def fields(make_spec: Any, **changes: Any) -> dict[str, Any]:
    return make_spec().model_dump(mode="json") | changes


def test_plain_text_is_the_default_and_is_not_written(make_spec: Any) -> None:
    plain = make_spec()
    assert plain.objective == NextToken()
    assert "objective" not in plain.model_dump(mode="json")
    named = RunSpec.model_validate(fields(make_spec, objective={"kind": "next-token"}))
    assert named.id == plain.id and named.prefix_id(2) == plain.prefix_id(2)


def test_supervised_runs_have_ids_of_their_own_and_return_from_json(make_spec: Any) -> None:
    one, other = (
        RunSpec.model_validate(fields(make_spec, mixture=[], objective={"kind": "supervised", "examples": name}))
        for name in (HASH, HASH[::-1])
    )
    assert len({one.id, other.id, make_spec().id}) == 3
    assert one.prefix_id(2) != other.prefix_id(2)
    assert RunSpec.model_validate_json(one.model_dump_json()) == one
    assert one.objective == Supervised(examples=HASH)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"objective": {"kind": "supervised", "examples": HASH}}, "belongs to objective 'next-token'"),
        ({"objective": {"kind": "supervised", "examples": "x"}, "mixture": []}, "examples"),
        ({"objective": {"kind": "supervised"}, "mixture": []}, "examples"),
        ({"objective": {"kind": "reward"}}, "reward"),
        ({"mixture": []}, "mixture"),
        ({"objective": {"kind": "next-token", "examples": HASH}}, "examples"),
    ],
)
def test_what_does_not_fit_is_named(make_spec: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RunSpec.model_validate(fields(make_spec, **changes))
