"""Synthesizes questions with computed answers; a teacher may reword them, and the answers are then recomputed.

Each number from 0 to ``n`` is one piece of work: a family, a language and a level in turn, and a problem drawn from the
seed. Its answer is computed twice: by the generator, and by the family's reader from the text alone. A teacher then
rewords the question, and the reader computes the answer of the new text. If it does not understand the text or finds
another answer, the item is dropped and the reason counted. Answers never come from the teacher.

The result depends only on the options and the teacher's answers. Each question text occurs once. The parameters of a
problem decide whether it is held out (``is_held_out``): ``train`` and ``held-out`` share no problem in any wording.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from armillary.generate import Backend, Choice, Completion, Message, Request, Sampling
from armillary.post.gym import PREFIX, gym_item
from armillary.post.items import Item, read_items
from armillary.post.problems import LANGUAGES, LEVELS, Language, family_names, family_of, is_held_out
from armillary.post.problems.wording import language_of, numbers_in
from armillary.post.stage import ITEMS, Keys, Stage, StageSpec, open_stage
from armillary.post.verify import share_interval, verify
from armillary.recipe import UsageError

SPLITS = ("all", "train", "held-out")

# Increased when a family's draws change for the same seed.
_VERSION = 1
# After this many draws without a new problem, a family has no more.
_DRAWS = 200
_WINDOW = 64
_ASK: dict[str, str] = {
    "en": "Rewrite the last question in other words. Keep every number, name and unit, and keep what is asked. Do not "
    "answer it. Write only the new question.\n\nQuestion: Tom has 3 kites. He gets 2 more. How many kites does he have "
    "now?\nRewritten: Tom had 3 kites and then got 2 more. What is the number of kites that he has now?\n\n"
    "Question: {}\nRewritten:",
    "zh": "请用别的说法改写最后一道题目。保留所有数字、人名和单位，问的内容不变。不要解答，只写出改写后的题目。\n\n"
    "题目：小田有3只风筝，又得到2只。小田现在有几只风筝？\n改写：小田原来有风筝3只，后来又得到了2只，那么小田现在"
    "一共有几只风筝？\n\n题目：{}\n改写：",
}
_STOP = ("\nQuestion:", "\n题目：")
# A question, or a request in the families' wording.
# A question, or an imperative at the start of a clause: "to find the mean, you would add them" asks nothing.
_REQUEST = re.compile(
    r"[?？]|(?:^|[.!:;,)]\s+)(?:(?:then|now|next|please|and)\s+)*"
    r"(?:find|calculate|compute|convert|express|solve|write|define|work out|divide|determine|list|put|give|"
    r"tell|arrange|show|state|create|implement)\b|求|解|计算|算|把|将|请|写|编|填|排列|找",
    re.IGNORECASE | re.MULTILINE,
)
_LEAKED = re.compile(
    r"in other words|rewr(?:ite|itten)|rephrase|the answer is|改写|题目[：:]|答案是|other words[:：]|new question",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class SynthesisOptions:
    """Options of a synthesis.

    Attributes:
        n: pieces of work, divided evenly among families, languages and levels.
        families: names of families, and ``gym:NAME`` for data sets of reasoning-gym; empty: all families.
        languages: languages of the questions.
        levels: levels of difficulty, from 1.
        seed: seed of the draws.
        split: ``train``, ``held-out``, or all.
        held_out: share of held-out problems.

    Raises:
        UsageError: a value outside its range, an unknown name.
    """

    n: int
    families: tuple[str, ...] = ()
    languages: tuple[str, ...] = LANGUAGES
    levels: tuple[int, ...] = tuple(range(1, LEVELS + 1))
    seed: int = 0
    split: str = "all"
    held_out: float = 0.1

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("n", self.n >= 1, "1 or more"),
            ("languages", self.languages and set(self.languages) <= set(LANGUAGES), f"out of {', '.join(LANGUAGES)}"),
            ("levels", self.levels and set(self.levels) <= set(range(1, LEVELS + 1)), f"from 1 to {LEVELS}"),
            ("split", self.split in SPLITS, f"one of {', '.join(SPLITS)}"),
            ("held_out", 0 < self.held_out < 1, "between 0 and 1"),
        ):
            if not good:
                raise UsageError(f"{name.replace('_', '-')}: must be {wanted}, given {getattr(self, name)!r}")
        for name in self.families:
            if not name.startswith(PREFIX):
                family_of(name)

    @property
    def kinds(self) -> list[tuple[str, str, int]]:
        """Family, language and level of piece 0, 1, …, in a cycle."""
        found: dict[tuple[str, str, int], None] = {}
        for level in self.levels:
            for family in self.families or family_names():
                for language in self.languages:
                    # reasoning-gym is only in English, and its data sets do not have our levels.
                    found[(family, "en", 0) if family.startswith(PREFIX) else (family, language, level)] = None
        return list(found)


def parse_levels(text: str) -> tuple[int, ...]:
    """Levels from a text such as "1,2".

    Raises:
        UsageError: a part that is not a whole number.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"levels: must be whole numbers with commas, given {text!r}") from None


def synthesize(
    out: Path,
    options: SynthesisOptions,
    teacher: Backend | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    sampling: Sampling | None = None,
) -> dict[str, Any]:
    """Run the stage in ``out``; return its record.

    Args:
        teacher: rewords the questions; without a teacher the families' wording stays.
        progress: called with the numbers of decided pieces, of all pieces, and of kept items.
        sampling: sampling of the teacher; the seed comes from the options.

    Raises:
        UsageError, DamagedFileError, ForeignFileError, BusyError: see ``open_stage``.
        ArmillaryError: a file cannot be written, or the teacher failed; earlier decisions are kept.
    """
    sampling = replace(
        sampling or Sampling(max_new_tokens=300, temperature=0.8, top_p=0.95), seed=options.seed, stop=_STOP
    )
    settings = {**asdict(options), "version": _VERSION, "teacher": teacher and teacher.identity}
    if teacher is not None:
        settings["sampling"] = asdict(sampling)
    with open_stage(out, StageSpec("synthesize", settings)) as stage, contextlib.ExitStack() as opened:
        if stage.record is not None:
            return stage.record
        answers = None if teacher is None else opened.enter_context(stage.answers(teacher))

        def show(answered: int) -> None:
            progress(stage.decisions + answered, options.n, f"{stage.kept} kept")

        def ask(window: Sequence[tuple[str, Item]]) -> dict[int, Choice]:
            if teacher is None or answers is None:
                return {}
            return _choices(window, lambda requests: answers.complete(teacher, requests), sampling, show)

        taken = Keys()
        if teacher is not None:
            for kept in read_items(out / ITEMS):
                taken.add(kept.text)
        window: list[tuple[str, Item]] = []
        for source, item in _drawn(options):
            if stage.decided(source):
                continue
            if item is None:
                stage.drop(source, "no new problem")
            elif (problem := _own_problem(item)) is not None:
                stage.drop(source, problem, {"item": item.to_json()})
            else:
                window.append((source, item))
            if len(window) == _WINDOW:
                _decide(stage, window, ask(window), taken)
                window = []
                show(0)
        _decide(stage, window, ask(window), taken)
        progress(stage.decisions, options.n, f"{stage.kept} kept")
        return stage.finish(_counts(out, stage))


def rewritten(item: Item, choice: Choice) -> Item | str:
    """The item in the teacher's wording, or the reason for dropping it.

    Answer and worked solution stay valid, because the answer computed from the new text is the same.
    """
    text = choice.text.strip().strip('"“”').strip()
    if choice.finish == "length":
        return "rewriting was cut"
    if not text:
        return "rewriting is empty"
    if _folded(text) == _folded(item.text):
        return "rewriting changed nothing"
    if not _REQUEST.search(text):
        return "rewriting asks nothing"
    if language_of(text) != item.language:
        return "rewriting changed the language"
    if _LEAKED.search(text):
        return "rewriting holds the instruction or an answer"
    if sorted(numbers_in(text)) != sorted(numbers_in(item.text)):
        return "rewriting changed the numbers"
    same = family_of(item.family).same(text, item)
    if same is None:
        return "rewriting is not understood"
    if not same:
        return "rewriting changed the answer"
    return item.derived(
        "synthesize",
        messages=(Message("user", text), *item.messages[len(item.question) :]),
        origin={"wording": "teacher"},
    )


def _drawn(options: SynthesisOptions) -> Iterator[tuple[str, Item | None]]:
    """Name and item of each piece; None if the family has no new problem."""
    kinds, seen = options.kinds, Keys()
    exhausted: set[tuple[str, str, int]] = set()
    for number in range(options.n):
        kind = kinds[number % len(kinds)]
        item: Item | None = None
        for draw in range(0 if kind in exhausted else _DRAWS):
            item = _draw(options, kind, f"{options.seed} {number} {draw}")
            if item is not None and item.text not in seen:
                break
            item = None
        if item is None:
            exhausted.add(kind)
        else:
            seen.add(item.text)
        yield str(number), item


def _draw(options: SynthesisOptions, kind: tuple[str, str, int], seed: str) -> Item | None:
    """A problem of this family, language and level; None if it belongs to the other split."""
    name, language, level = kind
    rng = random.Random(f"{name} {language} {level} {seed}")
    if name.startswith(PREFIX):
        drawn = gym_item(name.removeprefix(PREFIX), rng.getrandbits(31))
        if drawn is None:
            return None
        item = drawn
        held_out = random.Random(f"split {item.text}").random() < options.held_out
    else:
        chosen: Language = "zh" if language == "zh" else "en"
        family = family_of(name)
        problem = family.make(rng, level, chosen)
        item = family.item(problem, level, chosen)
        held_out = is_held_out(name, problem, options.held_out)
    split = "held-out" if held_out else "train"
    if options.split not in ("all", split):
        return None
    return replace(item, origin={"stage": "synthesize", "parents": [], "wording": "family"}, notes={"split": split})


def _own_problem(item: Item) -> str | None:
    """The problem with a drawn item, if any: generator, reader and verifier must agree."""
    if not item.family.startswith(PREFIX) and not family_of(item.family).same(item.text, item):
        return "generator and reader disagree"
    # Programs are run against their tests in the tests of the families; here each would need a sandbox.
    if item.domain != "code" and verify(item, item.reply).outcome != "right":
        return "own answer is not verified"
    return None


def _choices(
    window: Sequence[tuple[str, Item]],
    complete: Callable[[Sequence[Request]], Iterator[Completion]],
    sampling: Sampling,
    show: Callable[[int], None],
) -> dict[int, Choice]:
    """The teacher's wording of the questions, by their index in the window."""
    # Tasks of reasoning-gym have no reader to recompute their answer, so they are not reworded.
    places = [place for place, (_, item) in enumerate(window) if not item.family.startswith(PREFIX)]
    requests = [
        Request((Message("user", _ASK[window[place][1].language].format(window[place][1].text)),), sampling)
        for place in places
    ]
    choices: dict[int, Choice] = {}
    for completion in complete(requests):
        choices[places[completion.index]] = completion.choices[0]
        show(len(choices))
    return choices


def _decide(stage: Stage, window: Sequence[tuple[str, Item]], choices: Mapping[int, Choice], taken: Keys) -> None:
    """Keep or drop the pieces of a window, in order; ``taken`` holds earlier texts of the teacher."""
    for place, (source, item) in enumerate(window):
        if place not in choices:
            stage.keep(source, item)
            continue
        found = rewritten(item, choices[place])
        if isinstance(found, Item) and found.text in taken:
            found = "rewriting repeats another"
        if isinstance(found, str):
            stage.drop(source, found, {"item": item.to_json(), "rewriting": choices[place].text})
        else:
            taken.add(found.text)
            stage.keep(source, found)


def _counts(out: Path, stage: Stage) -> Mapping[str, Any]:
    """Entries of the record: kept items by family, language and level, and the verified share."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("family", "language", "level", "domain", "split")}
    for item in read_items(out / ITEMS):
        for name, counter in counts.items():
            counter[str(item.notes["split"] if name == "split" else getattr(item, name))] += 1
    judged = stage.kept + sum(count for reason, count in stage.dropped.items() if reason != "no new problem")
    share = share_interval(stage.kept, judged) if judged else None
    return {
        "by": {name: dict(sorted(counter.items())) for name, counter in counts.items()},
        "verified": share and {"share": share.value, "low": share.low, "high": share.high, "of": judged},
    }


def _folded(text: str) -> str:
    return re.sub(r"\W+", "", text).casefold()
