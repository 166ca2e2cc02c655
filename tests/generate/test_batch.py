"""A batch that answers join and leave at any step: the same answers as alone, in little memory, and fairly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.generate import BackendOptions, Pair, Request, Sampling, open_backend
from armillary.generate import batch as batches
from armillary.generate import decoder as decoding
from armillary.generate.batch import Answer, Batch, Recorded
from armillary.generate.native import NativeBackend
from armillary.recipe import ArmillaryError

pytest.importorskip("transformers", reason="needs the extra export")

_PROMPTS = ["The sky", "def add(x", "天是", "One, two, three and four: 1 + 1 = 2, " * 2, "s"]


@pytest.fixture(scope="module")
def backend(tiny_hf: Path) -> NativeBackend:
    found = open_backend(str(tiny_hf), BackendOptions())
    assert isinstance(found, NativeBackend)
    return found


def start(backend: NativeBackend, number: int, tokens: int = 24, n: int = 1, **recorded: bool | int) -> Answer:
    prompt = backend.text.encode(_PROMPTS[number % len(_PROMPTS)], True)
    return backend.start(number, prompt, Sampling(tokens, 1.0, seed=number, n=n), Recorded(**recorded))  # type: ignore[arg-type]


def finish(batch: Batch) -> list[Answer]:
    done = list[Answer]()
    while not batch.idle:
        done += [answer for answer in batch.step() if answer.finish is not None]
    return done


def texts(backend: NativeBackend, number: int, tokens: int = 24, n: int = 1) -> list[list[int]]:
    """The tokens of the answers to request ``number``, computed alone."""
    found = finish_one(backend, start(backend, number, tokens, n))
    return [answer.tokens for answer in sorted(found, key=lambda one: one.number)]


def finish_one(backend: NativeBackend, first: Answer) -> list[Answer]:
    batch = backend.new_batch(4)
    batch.add(first)
    return finish(batch)


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.booleans()), min_size=3, max_size=9))
def test_answers_that_join_and_leave_change_no_other(
    backend: NativeBackend, visits: list[tuple[int, int, bool]]
) -> None:
    """Each visit: the step before which an answer joins, how long it stays, and whether it goes before its end."""
    batch, running, done = backend.new_batch(3), dict[int, Answer](), list[Answer]()
    for step in range(200):
        for number, (joins, stays, goes) in enumerate(visits):
            if joins == step:
                running[number] = start(backend, number, n=1 + number % 2)
                batch.add(running[number])
            if goes and joins + stays + 1 == step:
                batch.remove(running[number])
        done += [answer for answer in batch.step() if answer.finish is not None]
    assert batch.idle and batch.running == batch.waiting == 0
    for answer in done:
        assert answer.tokens == texts(backend, answer.request, n=1 + answer.request % 2)[answer.number]
    stayed = {number for number, (_, _, goes) in enumerate(visits) if not goes}
    assert stayed <= {answer.request for answer in done} and len(set(map(id, done))) == len(done)


def test_little_memory_postpones_answers_and_changes_none(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches grow; where all do not fit, the youngest answers are computed again later."""
    expected = {number: texts(backend, number, 60, n=2) for number in range(6)}
    scored = [one.scored for one in finish_one(backend, start(backend, 3, 30, top=2, echo=True))]
    monkeypatch.setattr(batches, "_FIRST_ROOM", 4)
    decoder = backend._decoder
    monkeypatch.setattr(decoder, "free_memory", lambda: 2 * decoder.cache_bytes(150))
    batch, postponed = backend.new_batch(12), list[Answer]()
    postpone = batch._postpone
    monkeypatch.setattr(batch, "_postpone", lambda answer: (postponed.append(answer), postpone(answer)))
    for number in range(6):
        batch.add(start(backend, number, 60, n=2))
    batch.add(start(backend, 3, 30, top=2, echo=True))
    done = finish(batch)
    assert len(postponed) > 3 and len(done) == 13
    for answer in done:
        if answer.top is not None:
            assert [answer.scored] == scored
        else:
            assert answer.tokens == expected[answer.request][answer.number]


def test_an_answer_that_never_fits_fails_alone(backend: NativeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = backend._decoder
    monkeypatch.setattr(decoder, "free_memory", lambda: decoder.cache_bytes(64) - 1)
    batch = backend.new_batch(4)
    batch.add(start(backend, 0, 8))
    batch.add(start(backend, 1, 100))
    done = {answer.request: answer for answer in finish(batch)}
    assert done[0].error is None and done[0].tokens == texts(backend, 0, 8)[0]
    assert isinstance(done[1].error, ArmillaryError) and "ask for fewer new tokens" in str(done[1].error)


def test_a_common_beginning_is_computed_once(backend: NativeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a running answer and of a past one, also where a chat goes on; the answers are those of a fresh batch."""
    rows, step = list[int](), backend._decoder.step

    def counting(given: Any, caches: Any) -> Any:
        rows.append(len(given.tokens))
        return step(given, caches)

    question = backend.text.encode("The wide sea: one + two = three, 36 * 12. def sky(y): return four, 天海", True)
    fresh = {}
    for seed in (1, 2):
        (fresh[seed],) = finish_one(backend, backend.start(seed, question, Sampling(8, 1.0, seed=seed)))
    monkeypatch.setattr(backend._decoder, "step", counting)
    batch = backend.new_batch(4)
    first = backend.start(1, question, Sampling(8, 1.0, seed=1))
    batch.add(first)
    batch.step()
    assert rows == [len(question)]
    second = backend.start(2, question, Sampling(8, 1.0, seed=2))
    batch.add(second)
    batch.step()
    assert rows[1] <= 2 and batch.reused == len(question) - 1
    finish(batch)
    assert (first.tokens, second.tokens) == (fresh[1].tokens, fresh[2].tokens)
    turn = [*question, *first.tokens, *backend.text.encode(" and the sea", False)]
    rows.clear()
    (again,) = (batch.add(backend.start(3, turn, Sampling(4))), *finish(batch))[1:]
    assert rows[0] <= len(turn) - len(question) - max(len(first.tokens) - 1, 0)
    assert again.tokens == finish_one(backend, backend.start(3, turn, Sampling(4)))[0].tokens
    other = [*question[:20], *turn[-4:]]
    (third,) = (batch.add(backend.start(4, other, Sampling(4))), *finish(batch))[1:]
    assert third.tokens == finish_one(backend, backend.start(4, other, Sampling(4)))[0].tokens


def test_pages_of_an_accelerator_do_the_same(tiny_hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder of accelerators, here on the CPU: growing, shared and postponed caches change no answer."""
    folder = tiny_hf.parent / "paged"
    shutil.copytree(tiny_hf, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512, "eos_token_id": 9999}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 9999}))
    monkeypatch.setattr(decoding, "_library", lambda: None)
    backend = open_backend(str(folder), BackendOptions())
    assert isinstance(backend, NativeBackend)
    decoder = backend._decoder
    assert type(decoder).__name__ == "EagerDecoder"
    expected = [texts(backend, number, 140, 2) for number in (3, 8)]
    monkeypatch.setattr(batches, "_FIRST_ROOM", 4)
    monkeypatch.setattr(decoder, "free_memory", lambda: 8 * decoder.cache_bytes(128))
    batch, postponed = backend.new_batch(4), list[Answer]()
    postpone = batch._postpone
    monkeypatch.setattr(batch, "_postpone", lambda answer: (postponed.append(answer), postpone(answer)))
    for number in (3, 8):
        batch.add(start(backend, number, 140, 2))
    done = finish(batch)
    found = [
        [one.tokens for one in sorted(done, key=lambda one: one.number) if one.request == number] for number in (3, 8)
    ]
    assert found == expected and batch.reused > 0 and len(postponed) > 0


def test_kept_caches_yield_to_running_answers(backend: NativeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = backend._decoder
    monkeypatch.setattr(decoder, "free_memory", lambda: 2 * decoder.cache_bytes(100))
    batch = backend.new_batch(1)
    for number in range(8):
        batch.add(start(backend, number, 60))
        finish(batch)
        assert sum(cache.bytes for _, cache in batch._kept) <= decoder.cache_bytes(100)


def test_a_request_with_many_answers_leaves_places_to_others(backend: NativeBackend) -> None:
    batch = backend.new_batch(4)
    batch.add(start(backend, 0, 20, n=40))
    for _ in range(6):
        batch.step()
    assert (batch.running, batch.waiting) == (4, 36)
    single = start(backend, 1, 1)
    batch.add(single)
    steps = 0
    while single.finish is None:
        batch.step()
        steps += 1
    assert steps <= 25 and batch.waiting > 28


def test_a_long_prompt_gets_on_while_short_ones_keep_coming(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend._decoder, "max_rows", 8)
    batch = backend.new_batch(40)
    tokens = backend.text.encode("The sky is blue and the sea is wide. " * 3, True)[:80]
    long = backend.start(999, tokens, Sampling(3), Recorded())
    batch.add(long)
    steps = 0
    while long.finish is None:
        for number in range(3):
            batch.add(start(backend, steps * 3 + number, 2))
        batch.step()
        steps += 1
        assert steps < 60
    monkeypatch.undo()
    alone = finish_one(backend, backend.start(0, tokens, Sampling(3), Recorded()))
    assert long.tokens == alone[0].tokens


def test_every_answer_gets_on_where_a_step_has_few_rows(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend._decoder, "max_rows", 4)
    batch = backend.new_batch(12)
    answers = [start(backend, number, 30) for number in range(12)]
    for answer in answers:
        batch.add(answer)
    for _ in range(120):
        batch.step()
    counts = [len(answer.tokens) for answer in answers if answer.finish is None]
    assert not counts or max(counts) - min(counts) <= 6


def test_scores_are_likelihoods(backend: NativeBackend) -> None:
    pair = Pair("The sky is", " blue and wide, 天是")
    tokens = backend.text.encode(pair.context + pair.continuation, True)
    split = len(backend.text.encode(pair.context, True))
    (expected,) = backend.loglikelihood([pair])
    first = backend.start(0, tokens, Sampling(3, 1.0, n=2), Recorded(top=4, echo=True))
    for answer in finish_one(backend, first):
        scored = answer.scored
        ends = [one.token for one in scored[len(tokens) + len(answer.tokens) :]]
        assert [one.token for one in scored] == tokens + answer.tokens + ends and scored[0].value is None
        assert len(ends) == (len(answer.tokens) < 3) and set(ends) <= answer.ends
        value = 0.0
        for one in scored[split : len(tokens)]:
            value += one.value or 0.0
        assert value == expected.value
        for one in scored[1:]:
            assert len(one.top) == 4 and one.top == tuple(sorted(one.top, key=lambda pair: (-pair[1], pair[0])))
            assert one.value is not None and (one.value <= one.top[-1][1] or (one.token, one.value) in one.top)
    (read,) = finish_one(backend, backend.start(0, tokens, Sampling(1), Recorded(top=0, echo=True, answer=False)))
    assert (read.tokens, read.finish) == ([], "length")
    assert [one.value for one in read.scored] == [one.value for one in scored[: len(tokens)]]


def test_two_tokens_of_several_answers_come_once(backend: NativeBackend) -> None:
    """The second answer draws its first token when it joins, and its last in the same step."""
    (found,) = backend.complete([Request("The sky", Sampling(2, 1.0, seed=4, n=3))])
    assert len(found.choices) == 3 and all(choice.tokens <= 2 for choice in found.choices)
