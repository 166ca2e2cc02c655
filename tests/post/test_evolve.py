"""Evolution keeps what became harder, computes each new answer, names why the rest was dropped, and survives kills."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from scripted_backend import Scripted, until_killed

from armillary.generate import Message
from armillary.post import EvolveOptions, Item, SampleOptions, evolve, read_items, to_line
from armillary.post.evolutions import BREADTH, DEEPER, FORMS, RULES, STEPS, TOPICS, leaks_prompt, prompt_for
from armillary.post.problems import family_names, family_of
from armillary.post.verify import verify
from armillary.recipe import UsageError

DEEP = EvolveOptions(2, 0.0, SampleOptions(4, (0.8,), 64))


def problem(family: str, language: str, level: int = 1, seed: int = 0) -> Item:
    of = family_of(family)
    return of.item(of.make(random.Random(seed), level, language), level, language)  # type: ignore[arg-type]


def plain(text: str, language: str = "en", **more: Any) -> Item:
    return Item((Message("user", text),), language=language, **more)


def written(path: Path, *items: Item) -> Path:
    path.write_bytes(b"".join(to_line(item.to_json()) for item in items))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Solver:
    """Solves the first ``easy`` questions it knows with all samples, and others with every second one."""

    def __init__(self, *known: Item, share: int = 2) -> None:
        self.known, self.share = {item.text for item in known}, share
        self.answers: dict[str, str] = {item.text: item.reply or "" for item in known}

    def __call__(self, text: str, temperature: float, number: int) -> str:
        if text in self.known:
            return self.answers[text]
        return "I cannot say."


def test_what_programs_made_harder_has_a_verified_answer_and_a_lower_pass_rate(tmp_path: Path) -> None:
    items = [problem(name, language) for name in family_names()[::3] for language in ("en", "zh")]
    backend = Scripted(Solver(*items), tmp_path / "log")
    record = evolve(written(tmp_path / "in.jsonl", *items), tmp_path / "out", backend, backend, DEEP)
    kept = list(read_items(tmp_path / "out/items.jsonl"))
    children = [item for item in kept if item.origin.get("stage") == "evolve"]
    assert [item.id for item in kept if item not in children] == [item.id for item in items]
    assert {item.notes["evolve"]["operation"].split()[0] for item in children} == {"level", "step", "form"}
    for child in children:
        assert verify(child, child.reply).outcome == "right", child
        rates = child.notes["evolve"]["pass_rate"]
        assert rates["child"]["rate"] < rates["parent"]["rate"]
    # the solver knows no child, so that none of them can become harder still
    assert set(record["counts"]["rounds"]["2"]) == {"floor"}
    assert record["counts"]["pass_rate"]["after"]["value"] == 0
    assert record["counts"]["rounds"]["1"]["kept"] == len(children)


def test_no_held_out_problem_is_made(tmp_path: Path) -> None:
    items = [problem("purchase", "en", seed=seed) for seed in range(12)]
    backend = Scripted(Solver(*items), tmp_path / "log")
    source = written(tmp_path / "in.jsonl", *items)
    options = EvolveOptions(1, 1.0, DEEP.sampling, held_out=1.0)  # all of them
    record = evolve(source, tmp_path / "out", backend, backend, options)
    assert record["counts"]["rounds"] == {"1": {"no operation": 12}}


def test_breadth_is_another_family_of_the_domain(tmp_path: Path) -> None:
    items = [problem("purchase", "zh", seed=seed) for seed in range(6)]
    backend = Scripted(Solver(), tmp_path / "log")
    options = EvolveOptions(1, 1.0, DEEP.sampling)
    evolve(written(tmp_path / "in.jsonl", *items), tmp_path / "out", backend, backend, options)
    children = [item for item in read_items(tmp_path / "out/items.jsonl") if item.origin.get("stage") == "evolve"]
    assert len(children) == 6 and all(item.domain == "math" and item.language == "zh" for item in children)
    assert "purchase" not in {item.family for item in children}
    assert not (tmp_path / "log").exists()  # breadth is not measured


TOLD = {
    "good": "Explain to a child how a river forms its delta near the sea, and name two rivers that have one",
    "cut": "CUT",
    "again": "river river river river river river river river",
    "told": "New instruction: explain a river with every one of its branches",
    "rewrite": "Rewrite the instruction, adding a new key element: describe a river with its branches",
    "answer": "Rivers form deltas by carrying sand and mud into the sea, where they settle in many layers",
    "other": "请解释河流的三角洲是怎样形成的",
    "same": "Explain how rivers form deltas in 3 sentences for class 5",
    "numbers": "Explain how rivers form deltas in 7 sentences for class 9",
}
PARENT = TOLD["same"]


@pytest.mark.parametrize(
    ("teacher", "reply", "reason"),
    [
        ("good", "", "not answerable"),
        ("good", "kept", "kept"),
        ("cut", "kept", "degenerate"),
        ("again", "kept", "degenerate"),
        ("told", "kept", "leaked"),
        ("rewrite", "kept", "leaked"),
        ("answer", "kept", "no request"),
        ("other", "kept", "language"),
        ("same", "kept", "copy"),
        ("numbers", "kept", "only numbers"),
    ],
)
def test_why_a_rewritten_instruction_is_dropped(tmp_path: Path, teacher: str, reply: str, reason: str) -> None:
    keeps = "- one thing here.\n\n- and more there.\n- last"

    def says(text: str, temperature: float, number: int) -> str:
        if text.startswith("Rewrite the instruction"):
            return TOLD[teacher]
        return (keeps if number == 0 else "a, b") if reply else "a, b"

    backend = Scripted(says, tmp_path / "log")
    options = EvolveOptions(1, 0.0, DEEP.sampling)
    record = evolve(written(tmp_path / "in.jsonl", plain(PARENT)), tmp_path / "out", backend, backend, options)
    assert record["counts"]["rounds"] == {"1": {reason: 1}}
    if reason == "kept":
        child = list(read_items(tmp_path / "out/items.jsonl"))[1]
        assert child.text.startswith(TOLD[teacher]) and child.reply == keeps and child.check is not None
        assert verify(child, child.reply).outcome == "right"
    else:
        (row,) = rows(tmp_path / "out/dropped.jsonl")
        assert row["reason"] == reason and row["parent"] == plain(PARENT).id


def test_an_item_that_is_no_harder_is_dropped(tmp_path: Path) -> None:
    item = problem("expression", "en")
    record = evolve(
        written(tmp_path / "in.jsonl", item),
        tmp_path / "out",
        backend := Scripted(
            lambda text, _, number: "The answer is 1." if number else item.reply or "", tmp_path / "log"
        ),
        backend,
        DEEP,
    )
    assert record["counts"]["kept"] >= 1
    reasons = {reason for counts in record["counts"]["rounds"].values() for reason in counts}
    assert reasons <= {"kept", "no gain", "floor"} and reasons & {"no gain", "floor"}


def test_another_reference_has_answers_of_its_own(tmp_path: Path) -> None:
    item = problem("expression", "en")
    teacher = Scripted(Solver(), tmp_path / "teacher", name="teacher")
    reference = Scripted(Solver(item), tmp_path / "reference", name="reference")
    evolve(written(tmp_path / "in.jsonl", item), tmp_path / "out", teacher, reference, DEEP)
    assert not (tmp_path / "teacher").exists() and (tmp_path / "out/reference.jsonl").exists()


def test_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    items = [problem("expression", "en", seed=n) for n in range(20)] + [plain(f"{PARENT} {n}") for n in range(4)]
    source = written(tmp_path / "in.jsonl", *items)
    solver = Solver(*items)

    def says(text: str, temperature: float, number: int) -> str:
        return TOLD["good"] if text.startswith("Rewrite the instruction") else solver(text, temperature, number)

    def run(folder: str, log: str, after: int | None = None) -> dict[str, Any]:
        backend = Scripted(says, tmp_path / log, after)
        return evolve(source, tmp_path / folder, backend, backend, DEEP)

    whole = run("whole", "whole.log")
    for after in (0, 5, 11, 23):
        assert until_killed(lambda n=after: run("out", "log", n)) == -signal.SIGKILL  # type: ignore[misc]
    record = run("out", "log")
    assert (record["files"], record["counts"]) == (whole["files"], whole["counts"])
    asked = (tmp_path / "log").read_text().split()
    assert len(set(asked)) == len(asked) and sorted(asked) == sorted((tmp_path / "whole.log").read_text().split())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_prompts_name_the_instruction_and_their_words_are_leaks(language: str) -> None:
    for how in (*DEEPER[language].values(), BREADTH[language].format(topic=TOPICS[language][0])):
        prompt = prompt_for(language, how, PARENT)
        assert PARENT in prompt and how in prompt
        assert leaks_prompt(prompt.replace(PARENT, ""), language, PARENT) and leaks_prompt(
            f"x {how} y", language, PARENT
        )
    assert not leaks_prompt(PARENT, language, PARENT)
    assert DEEPER["en"].keys() == DEEPER["zh"].keys() and len(TOPICS["en"]) == len(TOPICS["zh"])


def test_steps_are_computed() -> None:
    found = {step.name: step.work(84, 9).value for step in STEPS}
    assert found == {"multiple": 747, "remainder": 3, "digits": 12, "gcd": 6, "divisors": 12, "binary": 3}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_rules_and_forms_are_known_to_their_verifier(language: str) -> None:
    for check in [dict(one.rule) for one in RULES] + [form.rule(language) for form in FORMS]:
        item = plain("x", check={"kind": "rules", "rules": [check]})
        assert verify(item, "some text").outcome in ("right", "wrong")


@pytest.mark.parametrize(("wrong", "problem"), [({"rounds": 0}, "rounds"), ({"breadth": 2}, "breadth")])
def test_wrong_options_are_named(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        EvolveOptions(**wrong)
