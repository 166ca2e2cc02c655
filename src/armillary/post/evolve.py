"""Evolves instructions in rounds: into harder ones (complexity) and different ones (breadth), with elimination.

Follows Evol-Instruct (Xu et al. 2023, arXiv 2304.12244), with two differences. First, programs decide correctness: an
item with a computed answer is changed by a program that computes the new answer, and an instruction without one gets a
rule for checking its replies. Second, difficulty is measured: the pass rate of a reference model must fall.

Complexity, for items with a computed answer: ``level`` (the same family, one level up), ``step`` (a further
calculation with the answer, using a rarer concept), ``form`` (an additional rule for the form of the reply). For free
instructions, a teacher rewrites the text (``constraint``, ``depth``, ``rare``, ``steps``), and a rule is added.
Breadth: ``family`` (another family of the domain, same level), or ``topic`` (a teacher writes about a topic of the
taxonomy). In each round an item is changed in one way; a harder child that stays is the parent of the next round.

A child is eliminated for the first reason that holds:

- ``no operation``: no change applies to its parent; ``refused``: the teacher cannot take the request;
- ``degenerate``: cut at its length limit, empty, without words, or repeating itself;
- ``leaked``: it contains words of the teacher's prompt; ``no request``: it asks for nothing;
- ``language``: its language differs from its parent's;
- ``only numbers``: its parent with other numbers; ``copy``: its parent, or nearly the same;
- ``not answerable``: its computed reply fails verification, or no sample of the teacher follows its rules;
- ``floor``: the reference model never solves the parent, so a lower pass rate cannot be measured;
- ``no gain``: the reference model solves it at least as often as its parent.

Originals are kept as round 0. A row that is not an item is dropped as ``tool calls`` or ``order of turns`` (`records`).
"""

from __future__ import annotations

import contextlib
import json
import random
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from armillary.corpus import masked_numbers, similarity
from armillary.evaluate import mean_interval
from armillary.generate import Answers, Backend, BadRequestError, Message, Request, Sampling
from armillary.post.evolutions import (
    BREADTH,
    DEEPER,
    FORMS,
    RULES,
    STEPS,
    TOPICS,
    asks_something,
    leaks_prompt,
    prompt_for,
)
from armillary.post.items import Item, read_items
from armillary.post.problems import LEVELS, Language, family_names, family_of, is_held_out
from armillary.post.records import read_records
from armillary.post.sampling import PassRate, Sample, SampleOptions, complete, draw
from armillary.post.stage import DROPPED, ITEMS, Stage, StageSpec, open_stage
from armillary.post.verify import verify
from armillary.recipe import UsageError

_GROUP = 16
# At or above this similarity, a rewritten text counts as its parent.
_COPY = 0.9
_DRAWS = 100
_WORD = re.compile(r"[\u3400-\u9fff]|\w+")
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_WHOLE = re.compile(r"-?\d{1,12}")


@dataclass(frozen=True)
class EvolveOptions:
    """Options of an evolution.

    Attributes:
        rounds: number of rounds.
        breadth: share of the changes for breadth.
        sampling: how pass rates are measured.
        new_tokens: token limit of a teacher's text.
        topics: topics for breadth; empty for the built-in topics of the item's language.
        held_out: share of the problems of each family that is held out, as in ``synthesize``; these are never
            generated.
        progress: called with the number of decided changes.

    Raises:
        UsageError: a value outside its range.
    """

    rounds: int = 2
    breadth: float = 0.25
    sampling: SampleOptions = field(default_factory=lambda: SampleOptions(4, (0.8,), 256))
    new_tokens: int = 256
    topics: tuple[str, ...] = ()
    held_out: float = 0.1
    progress: Callable[[int], None] = lambda done: None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"rounds is {self.rounds}; give 1 or more")
        for name in ("breadth", "held_out"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name.replace('_', ' ')} is {getattr(self, name)}; give a share from 0 to 1")
        if self.new_tokens < 1:
            raise UsageError(f"new tokens is {self.new_tokens}; give 1 or more")

    def to_json(self) -> dict[str, Any]:
        """The options as plain data."""
        return {name: value for name, value in asdict(self).items() if name != "progress"}


@dataclass
class _Change:
    """One change of one item in one round, with the child or the reason why there is none."""

    source: str
    round: int
    parent: Item
    operation: str = ""
    broader: bool = False
    request: Request | None = None
    child: Item | None = None
    reason: str = ""
    parent_rate: PassRate | None = None
    child_rate: PassRate | None = None

    @property
    def name(self) -> str:
        return f"{self.source} {self.round}"

    def drop(self, reason: str) -> None:
        self.reason = self.reason or reason


def evolve(items: Path, out: Path, teacher: Backend, reference: Backend, options: EvolveOptions) -> dict[str, Any]:
    """Evolve ``items`` into ``out``; return the record of the stage, with counts by round and reason.

    After a kill, the next call resumes without losing or repeating anything. ``reference`` may be the ``teacher``.

    Raises:
        UsageError: a wrong row, or a folder of other settings or inputs.
        RequestError: a server refused a request.
    """
    settings = {"teacher": teacher.identity, "reference": reference.identity, **options.to_json()}
    with open_stage(out, StageSpec("evolve", settings, {"items": items})) as stage:
        if stage.finished:
            return stage.finish()
        with contextlib.ExitStack() as stack:
            asked = stack.enter_context(stage.answers(teacher))
            same = teacher.identity == reference.identity
            measured = asked if same else stack.enter_context(stage.answers(reference, "reference"))
            work = _Work(stage, (teacher, asked), (reference, measured), options)
            reader = _items(stage, items)
            while group := list(islice(reader, _GROUP)):
                work.evolve({item.id: item for item in group})
                options.progress(stage.decisions)
        return stage.finish(_counts(out))


def _items(stage: Stage, path: Path) -> Iterator[Item]:
    """The items of a file; a row that is not an item is dropped."""
    for one in read_records(path):
        if not one.refusal:
            yield one.item
        elif not stage.decided(f"{one.id} 0"):
            rates = {"parent": None, "child": None}
            about = {"round": 0, "operation": "", "pass_rate": rates, "parent": one.id, "text": None}
            stage.drop(f"{one.id} 0", one.refusal, about)


@dataclass(frozen=True)
class _Work:
    stage: Stage
    teacher: tuple[Backend, Answers]
    reference: tuple[Backend, Answers]
    options: EvolveOptions

    def evolve(self, group: Mapping[str, Item]) -> None:
        """All rounds of some items. After a kill, earlier decisions are recomputed from the kept answers."""
        last = self.options.rounds
        parents = {name: item for name, item in group.items() if not self.stage.decided(f"{name} {last}")}
        for name, item in parents.items():
            if not self.stage.decided(f"{name} 0"):
                # Notes of an earlier evolution would be counted as notes of this one.
                notes = {note: value for note, value in item.notes.items() if note != "evolve"}
                self.stage.keep(f"{name} 0", replace(item, notes=notes))
        for number in range(1, last + 1):
            changes = [self._change(name, number, parent) for name, parent in parents.items()]
            self._write(changes)
            for change in changes:
                _eliminate(change)
            self._answer(changes)
            self._measure([change for change in changes if change.child is not None and not change.reason])
            for change in changes:
                self._decide(change)
                if not change.reason and not change.broader and change.child is not None:
                    parents[change.source] = change.child

    def _change(self, source: str, number: int, parent: Item) -> _Change:
        """The change of ``parent``, drawn from its source and round, so that every run draws the same."""
        drawn = random.Random(f"{self.options.sampling.seed} {source} {number}")
        change = _Change(source, number, parent, broader=drawn.random() < self.options.breadth)
        free = parent.check is None or parent.check["kind"] == "rules"
        if free:
            self._free(change, drawn)
        elif change.broader:
            others = [name for name in family_names() if family_of(name).domain == parent.domain != ""]
            families = [name for name in others if name != parent.family]
            _made(change, drawn, families, parent.level, self.options.held_out)
        else:
            for operation in drawn.sample(("level", "step", "form"), 3):
                if operation == "level":
                    _level(change, drawn, self.options.held_out)
                else:
                    {"step": _step, "form": _form}[operation](change, drawn)
                if change.child is not None:
                    break
        if change.child is None and change.request is None:
            change.drop("no operation")
        return change

    def _free(self, change: _Change, drawn: random.Random) -> None:
        """Ask a teacher for the text; a rule for checking replies is added when the text arrives."""
        language = _language(change.parent)
        change.operation = "topic" if change.broader else drawn.choice(sorted(DEEPER[language]))
        topic = drawn.choice(self.options.topics or TOPICS[language])
        template = BREADTH[language].format(topic=topic) if change.broader else DEEPER[language][change.operation]
        prompt = prompt_for(language, template, change.parent.text)
        sampling = Sampling(self.options.new_tokens, temperature=0.8, seed=drawn.getrandbits(31))
        change.request = Request((Message("user", prompt),), sampling)

    def _write(self, changes: Sequence[_Change]) -> None:
        """The texts of the teacher, as children with a rule."""
        asked = [(change, change.request) for change in changes if change.request is not None]
        found = complete(*self.teacher, [[request] for _, request in asked])
        for (change, request), completions in zip(asked, found, strict=True):
            if isinstance(completions, BadRequestError):
                change.drop("refused")
                continue
            choice = completions[0].choices[0]
            text = _unquoted(choice.text)
            language = _language(change.parent)
            old = [] if change.broader or change.parent.check is None else list(change.parent.check["rules"])
            known = {rule["rule"] for rule in old}
            free = [one for one in RULES if one.rule["rule"] not in known]
            if not free:
                change.drop("no operation")
                continue
            rule = random.Random(change.name).choice(free)
            if choice.finish == "length" or _is_degenerate(text):
                change.drop("degenerate")
            if leaks_prompt(text, language, change.parent.text):
                change.drop("leaked")
            if not asks_something(text):
                change.drop("no request")
            messages = (*change.parent.question[:-1], Message("user", f"{text}{rule.text(text, language)}"))
            change.child = _child(
                change,
                messages,
                check={"kind": "rules", "rules": [*old, dict(rule.rule)]},
                answer=None,
                origin={"request": request.key},
            )
            if not change.reason and (wrong := _unlike(text, change.parent)):
                change.drop(wrong)

    def _answer(self, changes: Sequence[_Change]) -> None:
        """Free instructions get the teacher's first reply that follows their rules."""
        free = [change for change in changes if change.request is not None and change.child and not change.reason]
        children = [change.child for change in free if change.child is not None]
        for change, samples in zip(free, draw(*self.teacher, children, self.options.sampling), strict=True):
            right = [] if isinstance(samples, BadRequestError) else _right(samples)
            if not right or change.child is None:
                change.drop("not answerable")
            else:
                messages = (*change.child.question, Message("assistant", right[0].text.strip()))
                origin, check = dict(change.child.origin), change.child.check
                change.child = _child(change, messages, origin=origin, check=check, answer=None)

    def _measure(self, changes: Sequence[_Change]) -> None:
        """Measure pass rates of parents and children; drop a harder child whose pass rate did not fall."""
        harder = [change for change in changes if not change.broader]
        items = [item for change in harder for item in (change.parent, change.child) if item is not None]
        checked = [item for item in items if item.check is not None]
        samples = iter(draw(*self.reference, checked, self.options.sampling))
        rates = {item.id: PassRate.of(s) for item in checked if not isinstance(s := next(samples), BadRequestError)}
        for change in harder:
            if change.child is None or change.child.id not in rates:
                change.drop("refused")
                continue
            change.child_rate = rates[change.child.id]
            # Without a check, no reply can fail.
            change.parent_rate = rates.get(change.parent.id)
            before = 1.0 if change.parent_rate is None else change.parent_rate.rate
            if before == 0:
                change.drop("floor")
            elif change.child_rate.rate >= before:
                change.drop("no gain")

    def _decide(self, change: _Change) -> None:
        if self.stage.decided(change.name):
            return
        rates = {
            "parent": change.parent_rate and change.parent_rate.to_json(),
            "child": change.child_rate and change.child_rate.to_json(),
        }
        about = {"round": change.round, "operation": change.operation, "pass_rate": rates}
        if change.reason or change.child is None:
            text = None if change.child is None else change.child.text
            self.stage.drop(change.name, change.reason, {**about, "parent": change.parent.id, "text": text})
        else:
            notes = {**change.child.notes, "evolve": about}
            self.stage.keep(change.name, replace(change.child, notes=notes))


def _level(change: _Change, drawn: random.Random, held_out: float) -> None:
    """The same family, one level up."""
    if change.parent.family in family_names() and 0 < change.parent.level < LEVELS:
        _made(change, drawn, [change.parent.family], change.parent.level + 1, held_out)
        change.operation = "level"


def _made(change: _Change, drawn: random.Random, families: Sequence[str], level: int, held_out: float) -> None:
    """A problem of one of ``families``, with its computed answer."""
    if not families:
        return
    family, language = family_of(drawn.choice(families)), _language(change.parent)
    level = min(max(level, 1), LEVELS)
    draws = (family.make(drawn, level, language) for _ in range(_DRAWS))
    # A problem from the held-out part would make measurements on that part worthless.
    problem = next((one for one in draws if not is_held_out(family.name, one, held_out)), None)
    if problem is None:
        return
    new = family.item(problem, level, language)
    change.operation = "family"
    change.child = _child(
        change, new.messages, answer=new.answer, check=new.check, domain=new.domain, family=new.family, level=level
    )


def _step(change: _Change, drawn: random.Random) -> None:
    """A further calculation with the answer, which must be a whole number."""
    parent = change.parent
    plain = parent.check is not None and parent.check.keys() == {"kind"} and parent.check["kind"] == "math"
    if not plain or not _WHOLE.fullmatch(parent.answer or ""):
        return
    language = _language(parent)
    steps = [
        one for one in STEPS if one.applies(int(parent.answer or 0)) and one.name not in parent.notes.get("steps", [])
    ]
    if not steps:
        return
    step = drawn.choice(steps)
    found = step.work(int(parent.answer or 0), drawn.randint(3, 19))
    question = f"{parent.text.rstrip()}\n{found.question[language]}"
    conclusion = {"zh": "答案是{}。", "en": "The answer is {}."}[language].format(found.value)
    before = [] if parent.reply is None else [_without_answer(parent.reply)]
    reply = "\n".join([*before, f"N = {parent.answer}", found.steps, conclusion])
    change.operation = f"step {step.name}"
    change.child = _child(
        change,
        (*parent.question[:-1], Message("user", question), Message("assistant", reply)),
        answer=str(found.value),
        notes={**parent.notes, "steps": [*parent.notes.get("steps", []), step.name]},
    )


def _form(change: _Change, drawn: random.Random) -> None:
    """A rule for the form of the reply, in addition to the check of its answer."""
    parent = change.parent
    if parent.reply is None or parent.check is None or parent.check["kind"] == "all":
        return
    form = drawn.choice(FORMS)
    language = _language(parent)
    question = f"{parent.text.rstrip()}\n{form.question[language]}"
    reply = form.apply(parent.reply, language)
    checks = [dict(parent.check), {"kind": "rules", "rules": [form.rule(language)]}]
    change.operation = f"form {form.name}"
    change.child = _child(
        change,
        (*parent.question[:-1], Message("user", question), Message("assistant", reply)),
        check={"kind": "all", "checks": checks},
    )


def _child(change: _Change, messages: Sequence[Message], **changed: Any) -> Item:
    origin = {**changed.pop("origin", {}), "stage": "evolve", "parents": [change.parent.id], "round": change.round}
    return change.parent.derived("evolve", messages=tuple(messages), origin=origin, **changed)


def _eliminate(change: _Change) -> None:
    """Drop items of programs whose reply fails its own check, and children equal to their parent."""
    if change.request is not None or change.child is None or change.reason:
        return
    if change.child.text == change.parent.text:
        change.drop("copy")
    elif verify(change.child, change.child.reply).outcome != "right":
        change.drop("not answerable")


def _unlike(text: str, parent: Item) -> str:
    """The reason why a rewritten ``text`` is not a new instruction; "" if it is one."""
    if bool(_CHINESE.search(text)) != bool(_CHINESE.search(parent.text)):
        return "language"
    if similarity([text, parent.text])[0, 1] >= _COPY:
        return "copy"
    return "only numbers" if masked_numbers(text).split() == masked_numbers(parent.text).split() else ""


def _is_degenerate(text: str) -> bool:
    """Whether a text has too few words, or repeats itself: under half of its three-word sequences are distinct."""
    words = _WORD.findall(text.lower())
    grams = list(zip(words, words[1:], words[2:], strict=False))
    return len(words) < 4 or 2 * len(set(grams)) < len(grams)


def _unquoted(text: str) -> str:
    """A teacher's text without quotation marks around the whole text."""
    text = text.strip()
    for left, right in (('"', '"'), ("“", "”"), ("「", "」")):
        if len(text) > 1 and text[0] == left and text[-1] == right and left not in text[1:-1]:
            return text[1:-1].strip()
    return text


def _without_answer(reply: str) -> str:
    """A computed reply without its last line, which gives the answer."""
    return reply.rpartition("\n")[0] or reply


def _language(item: Item) -> Language:
    if item.language in ("zh", "en"):
        return "zh" if item.language == "zh" else "en"
    return "zh" if _CHINESE.search(item.text) else "en"


def _right(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.verdict.outcome == "right"]


def _counts(out: Path) -> dict[str, Any]:
    """Counts by round and operation, and the pass rates of harder items before and after."""
    rounds: dict[str, Counter[str]] = {}
    operations: dict[str, Counter[str]] = {}
    before, after = array("d"), array("d")
    for reason, about in _decisions(out):
        rounds.setdefault(str(about["round"]), Counter())[reason] += 1
        operations.setdefault(about["operation"].split(" ")[0] or "none", Counter())[reason] += 1
        rates = about["pass_rate"]
        if reason == "kept" and rates["child"] is not None:
            before.append(1.0 if rates["parent"] is None else rates["parent"]["rate"])
            after.append(rates["child"]["rate"])
    found: dict[str, Any] = {
        "rounds": {name: dict(sorted(counts.items())) for name, counts in sorted(rounds.items())},
        "operations": {name: dict(sorted(counts.items())) for name, counts in sorted(operations.items())},
    }
    if after:
        found["pass_rate"] = {"before": asdict(mean_interval(before)), "after": asdict(mean_interval(after))}
    return found


def _decisions(out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for item in read_items(out / ITEMS):
        if "evolve" in item.notes:
            yield "kept", dict(item.notes["evolve"])
    with open(out / DROPPED, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield row["reason"], row
