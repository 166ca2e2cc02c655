"""Kept answers: nothing is asked twice, whatever happened to the file or the process in between."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.generate import (
    BackendOptions,
    BadRequestError,
    Completion,
    Pair,
    Request,
    Sampling,
    open_answers,
    open_backend,
)
from armillary.generate import answers as answers_module
from armillary.recipe import ArmillaryError, BusyError, DamagedFileError, ForeignFileError

_REQUESTS = [
    Request(prompt, Sampling(max_new_tokens=4, temperature=1.0, seed=seed, n=2))
    for prompt in ("The sky", "天是")
    for seed in (1, 2)
]
_PAIRS = [Pair("The sky is", text) for text in (" blue", " wide", " 2", "")[:3]]


@pytest.fixture(scope="module")
def backend(tiny_hf: Path) -> Any:
    return open_backend(str(tiny_hf), BackendOptions(batch_size=1))


@pytest.fixture(scope="module")
def whole(backend: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with four completions and three likelihoods."""
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    everything(path, backend)
    return path.read_bytes()


@pytest.fixture(scope="module")
def expected(backend: Any) -> tuple[list[Completion], Any]:
    return list(backend.complete(_REQUESTS)), backend.loglikelihood(_PAIRS)


def everything(path: Path, backend: Any) -> tuple[list[Completion], Any]:
    with open_answers(path, backend.identity) as answers:
        completions = sorted(answers.complete(backend, _REQUESTS), key=lambda completion: completion.index)
        return completions, answers.loglikelihood(backend, _PAIRS, at_a_time=2)


def asked(backend: Any) -> int:
    return backend.cost.prompt_tokens


def test_what_is_kept_is_not_asked_again(backend: Any, tmp_path: Path, expected: Any) -> None:
    path = tmp_path / "answers.jsonl"
    assert everything(path, backend) == expected
    before, content = asked(backend), path.read_bytes()
    assert everything(path, backend) == expected
    assert asked(backend) == before and path.read_bytes() == content


def test_equal_requests_are_asked_once(backend: Any, tmp_path: Path, expected: Any) -> None:
    before = asked(backend)
    with open_answers(tmp_path / "answers.jsonl", backend.identity) as answers:
        found = list(answers.complete(backend, [_REQUESTS[0]] * 3))
    assert asked(backend) - before == expected[0][0].prompt_tokens
    assert [completion.index for completion in found] == [0, 1, 2]
    assert {completion.choices for completion in found} == {expected[0][0].choices}


def test_a_run_that_is_left_early_keeps_what_came(backend: Any, tmp_path: Path, expected: Any) -> None:
    path = tmp_path / "answers.jsonl"
    with open_answers(path, backend.identity) as answers:
        running = answers.complete(backend, _REQUESTS)
        next(running), next(running)
        running.close()
    before = asked(backend)
    assert everything(path, backend) == expected
    assert asked(backend) - before == sum(
        [
            *(c.prompt_tokens for c in expected[0][2:]),
            *(len(backend.tokenize(p.context + p.continuation)) for p in _PAIRS),
        ]
    )


@settings(max_examples=15)
@given(st.data())
def test_a_file_that_was_cut_anywhere_goes_on(
    backend: Any, whole: bytes, expected: Any, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    path = tmp_path_factory.mktemp("cut") / "answers.jsonl"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    assert everything(path, backend) == expected
    assert path.read_bytes() == whole


@settings(max_examples=15)
@given(st.data())
def test_a_changed_byte_is_reported_with_its_line_and_asked_again(
    backend: Any, whole: bytes, expected: Any, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    path = tmp_path_factory.mktemp("damage") / "answers.jsonl"
    header = whole.index(b"\n") + 1
    place = data.draw(st.integers(header, len(whole) - 2))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
    with open_answers(path, backend.identity) as answers:
        damaged, held = answers.damaged, len(answers)
    line = whole[:place].count(b"\n") + 1
    if whole[place : place + 1] == b"\n":
        assert damaged[0] == line and held == 5
    else:
        assert damaged[0] == line and held == 6
    assert everything(path, backend) == expected
    assert len(path.read_bytes().splitlines()) > len(whole.splitlines()) - 1


@pytest.mark.parametrize("cut", [0, 20, 60])
def test_a_damaged_first_line_or_another_file_is_left_as_it_is(
    backend: Any, whole: bytes, tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "answers.jsonl"
    content = whole[:cut] + b"?" + whole[cut + 1 :]
    path.write_bytes(content)
    with (
        pytest.raises((DamagedFileError, ForeignFileError), match=r"answers\.jsonl: "),
        open_answers(path, backend.identity),
    ):
        pass
    for content in (b"hello", b"{}\n", b'{"prompt": "a"}\n', b"\n", b"\0" * 100, b"[" * 5000 + b"\n"):
        path.write_bytes(content)
        with pytest.raises(ForeignFileError, match="not a file of answers"), open_answers(path, backend.identity):
            pass
        assert path.read_bytes() == content


def test_a_newer_format_and_another_model_are_refused(backend: Any, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    first, rest = whole.split(b"\n", 1)
    path.write_bytes(json.dumps({**json.loads(first), "format": 2}).encode() + b"\n" + rest)
    with (
        pytest.raises(ForeignFileError, match="format 2, but this version reads formats up to 1"),
        open_answers(path, backend.identity),
    ):
        pass
    path.write_bytes(whole)
    with (
        pytest.raises(ForeignFileError, match="precision is 'float32' there and 'bfloat16' now"),
        open_answers(path, {**backend.identity, "precision": "bfloat16"}),
    ):
        pass
    assert path.read_bytes() == whole


def test_two_processes_at_once_are_refused(backend: Any, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with open_answers(path, backend.identity):
        child = os.fork()
        if child == 0:
            try:
                with open_answers(path, backend.identity):
                    os._exit(1)
            except BusyError as error:
                os._exit(0 if str(os.getppid()) in str(error) else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with open_answers(path, backend.identity):
        pass


@contextmanager
def limited(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_costs_no_answer_before(backend: Any, whole: bytes, tmp_path: Path, expected: Any) -> None:
    path = tmp_path / "answers.jsonl"
    lines = whole.splitlines(keepends=True)
    for size in (10, len(b"".join(lines[:3])) + 20):
        with limited(size), pytest.raises(ArmillaryError, match=r"answers\.jsonl: File too large"):
            everything(path, backend)
        # half a line is not left behind
        assert path.read_bytes() in (b"", b"".join(lines[:3]))
    assert everything(path, backend) == expected
    assert path.read_bytes() == whole


def test_an_error_names_the_place_among_all_requests(backend: Any, tmp_path: Path) -> None:
    requests = [*_REQUESTS, Request("word " * 300)]
    with open_answers(tmp_path / "answers.jsonl", backend.identity) as answers:
        list(answers.complete(backend, _REQUESTS))
        with pytest.raises(BadRequestError, match=r"^request 5: the prompt has"):
            list(answers.complete(backend, requests))
        answers.loglikelihood(backend, _PAIRS)
        with pytest.raises(BadRequestError, match=r"^pair 4: "):
            answers.loglikelihood(backend, [*_PAIRS, Pair("a", "word " * 300)])


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10**12), st.integers(1, 10**6)), max_size=200))
def test_places_are_those_of_a_dictionary(added: list[tuple[int, int, int]]) -> None:
    """Also where the newest places are merged into the sorted ones, and a key is added again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers_module, "_BUFFER", 5)
        places, wanted = answers_module._Places(), dict[str, tuple[int, int]]()
        for number, start, length in added:
            places.add(str(number), start, length)
            wanted[str(number)] = start, length
            assert len(places) == len(wanted)
        for number in range(45):
            assert places.get(str(number)) == wanted.get(str(number)) and (str(number) in places) == (
                str(number) in wanted
            )
