"""An examination: lm_eval's tasks on a backend, with intervals, an extraction audit, and all raw outputs.

lm_eval builds the prompts and scores the answers, so the scores are identical to lm_eval's. This module adds the rest:
each item keeps its raw outputs and a stable id; each score has an interval, clustered if items share a passage; a
second extractor reads the same outputs; answers cut by the token limit are counted. A killed examination resumes from
the answers in its folder without repeating a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from armillary.evaluate.intervals import mean_interval
from armillary.evaluate.results import Examination, Item, Result, engine_of, item_id, named_model
from armillary.evaluate.tasks.catalog import Leaf, Named, build, check_sentences, find
from armillary.evaluate.tasks.code import METRIC as PASSES
from armillary.evaluate.tasks.extract import CODE, SECOND, Extractor
from armillary.evaluate.tasks.lm import Asked, Progress, language_model
from armillary.evaluate.tasks.variants import MOST, vary
from armillary.generate import Answers, Backend
from armillary.recipe import UsageError, canonical_hash

# Items share a passage if they have at least this many characters before their last line in common.
_PASSAGE = 100
_TEMPLATE = ("task", "description", "doc_to_text", "doc_to_target", "doc_to_choice", "target_delimiter", "gen_prefix")
_EXTRACTOR = ("filter_list", "metric_list", "process_results", "output_type")

# Returns the overlap of each text with the training data, in order.
Contamination = Callable[[Sequence[str]], Sequence[Mapping[str, Any] | None]]


@dataclass(frozen=True)
class ExamOptions:
    """Options of an examination.

    Attributes:
        limit: number of items per subset, taken from the start; None for all.
        shots: number of examples in the prompt; None for the number in lm_eval's configuration.
        max_new_tokens: longest answer in tokens; None for the number in lm_eval's configuration.
        variants: number of prompt formats; with several, the interval covers the formats too (``variants.py``).
        chat: whether prompts are chat messages, which the model's template turns into text.
        contamination: searches the training data for the items' texts; None skips the search.
        lineage: origin of the model, written next to its identity (``session.lineage_of``).
        note: called with notes for the user, such as subsets without files.
        progress: called with the number of answers so far and the number requested.

    Raises:
        UsageError: a number outside its range.
    """

    limit: int | None = None
    shots: int | None = None
    max_new_tokens: int | None = None
    variants: int = 1
    chat: bool = False
    contamination: Contamination | None = None
    lineage: Mapping[str, Any] | None = None
    note: Callable[[str], None] | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit is {self.limit}; give 1 item or more, or leave --limit out for all")
        if self.shots is not None and self.shots < 0:
            raise UsageError(f"shots is {self.shots}; give 0 or more")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"max new tokens is {self.max_new_tokens}; give 1 or more")
        if not 1 <= self.variants <= MOST:
            raise UsageError(f"variants is {self.variants}; give 1 to {MOST}")


@dataclass
class Prepared:
    """Tasks with their data, ready to run; ``settings`` holds the content behind each leaf's hash."""

    named: list[Named]
    objects: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def settings_of(self, named: Named) -> str:
        """Hash over the settings of all leaves of a task; for a single leaf, that leaf's hash."""
        parts = [self.settings[leaf.name] for leaf in named.leaves]
        return _hash(parts if len(parts) > 1 else parts[0])


def prepare(tasks: Sequence[str], data: Path, options: ExamOptions, variant: int = 0) -> Prepared:
    """The named tasks with their local data, in prompt format number ``variant``.

    Raises:
        UsageError: no task, an unknown task, a task named twice, or missing or wrong data.
    """
    if not tasks:
        raise UsageError("no tasks; name some with --tasks, such as gsm8k,cmmlu")
    if twice := sorted({name for name in tasks if list(tasks).count(name) > 1}):
        raise UsageError(f"task {', '.join(twice)} is given twice")
    prepared = Prepared([find(name, data) for name in tasks])
    for leaf in (leaf for named in prepared.named for leaf in named.leaves):
        if leaf.name not in prepared.objects:
            task = build(leaf, options.shots, leaf.splits())
            if options.max_new_tokens is not None and task.OUTPUT_TYPE == "generate_until":
                task.set_config("generation_kwargs", {"max_gen_toks": options.max_new_tokens}, update=True)
            check_sentences(leaf, islice(task.eval_docs, options.limit))
            if variant:
                vary(task, variant)
            prepared.objects[leaf.name] = task
            prepared.settings[leaf.name] = _settings(leaf, task, options, variant)
    if options.note is not None and not variant:
        for text in _notes(prepared, options):
            options.note(text)
    return prepared


def examine(backend: Backend, prepared: Prepared, options: ExamOptions, saved: Answers | None = None) -> Examination:
    """Run the prepared tasks on ``backend`` and score its answers. Answers in ``saved`` are not requested again.

    Raises:
        UsageError: a prompt that is longer than the model's context, or a chat without a template.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.evaluator import evaluate

    # Examples are drawn while prompts are built, from the same seed each time, as in lm_eval.
    for task in prepared.objects.values():
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    asked = Asked(backend, saved, options.progress)
    found = evaluate(
        lm=language_model(asked),
        task_dict={"tasks": prepared.objects, "groups": {}, "group_map": {}},
        limit=options.limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=options.chat,
        fewshot_as_multiturn=options.chat,
    )
    results: list[Result] = []
    items: dict[str, tuple[Item, ...]] = {}
    of_leaf = {
        leaf.name: _Rows(leaf, prepared, found["samples"][leaf.name], asked)
        for named in prepared.named
        for leaf in named.leaves
    }
    if options.contamination is not None:
        # One search for all tasks, so that the training text is read once.
        known = iter(options.contamination([text for rows in of_leaf.values() for text in rows.texts]))
        for leaf_rows in of_leaf.values():
            leaf_rows.contaminated = [next(known) for _ in leaf_rows.texts]
    for named in prepared.named:
        rows = [of_leaf[leaf.name] for leaf in named.leaves]
        several = len({filter_ for part in rows for filter_ in part.filters}) > 1
        parts = [part.scored(named.name, several) for part in rows]
        items[named.name] = tuple(scored.item for part in parts for scored in part)
        whole = _results(named.name, named.name, [s for part in parts for s in part], prepared.settings_of(named))
        results += whole
        if len(parts) > 1:
            for leaf, part in zip(named.leaves, parts, strict=True):
                results += _results(named.name, leaf.subset, part, _hash(prepared.settings[leaf.name]))
    return Examination(
        tuple(results),
        items,
        model=named_model(backend.identity),
        backend=engine_of(backend.identity, _harness()),
        cost=asdict(backend.cost),
    )


@dataclass(frozen=True)
class _Scored:
    """An item, the values behind its scores, and by metric whether the extractors agree (None: no audit)."""

    item: Item
    values: dict[str, list[float]]
    agree: dict[str, bool | None]


class _Rows:
    """The samples that lm_eval returns for a leaf (one per filter and item), grouped by item."""

    def __init__(self, leaf: Leaf, prepared: Prepared, samples: list[dict[str, Any]], asked: Asked) -> None:
        self.leaf = leaf
        self.task = prepared.objects[leaf.name]
        self.settings = _hash(prepared.settings[leaf.name])
        self.asked = asked
        self.second = SECOND.get(leaf.config["dataset_path"]) if self.task.OUTPUT_TYPE == "generate_until" else None
        self.by_item: dict[int, list[dict[str, Any]]] = {}
        for sample in samples:
            self.by_item.setdefault(sample["doc_id"], []).append(sample)
        self.filters = list(dict.fromkeys(sample["filter"] for sample in samples))
        self.texts = [str(self.task.doc_to_text(samples[0]["doc"])) for samples in self.by_item.values()]
        self.contaminated: list[Mapping[str, Any] | None] = [None] * len(self.texts)

    def scored(self, task: str, several: bool) -> list[_Scored]:
        """Each item with its scores; with ``several`` filters, the metric names include the filter."""
        copies: dict[str, int] = {}
        scored = []
        for contaminated, cluster, samples in zip(
            self.contaminated, _passages(self.leaf, self.texts), self.by_item.values(), strict=True
        ):
            data = samples[0]["doc"]
            # A duplicate question in a data set is a second item, whose id includes a number.
            first = item_id(task, self.leaf.subset, data)
            copies[first] = copies.get(first, 0) + 1
            name = first if copies[first] == 1 else item_id(task, self.leaf.subset, {"copy": copies[first], "of": data})
            scored.append(self._scored(name, cluster or name, contaminated, samples, several))
        return scored

    def _scored(
        self,
        name: str,
        cluster: str,
        contaminated: Mapping[str, Any] | None,
        samples: list[dict[str, Any]],
        several: bool,
    ) -> _Scored:
        first = samples[0]
        gold = self._gold(first)
        outputs, truncated = self._outputs(first)
        read = self.second.read(_readable(self.second, first["doc"], outputs[0]), gold) if self.second else None
        values: dict[str, list[float]] = {}
        agree: dict[str, bool | None] = {}
        for sample in samples:
            for metric in sample["metrics"]:
                key = f"{metric},{sample['filter']}" if several else metric
                value = sample[metric]
                values[key] = [float(v) for v in value] if isinstance(value, list) else [float(value)]
                audited = self.second is not None and metric in ("exact_match", PASSES)
                agree[key] = self.second.agree(self._answer(sample), read) if self.second and audited else None
        item = Item(
            id=name,
            subset=self.leaf.subset,
            cluster=cluster,
            settings=self.settings,
            gold=gold,
            outputs=tuple(outputs),
            answer=self._answer(first),
            second_answer=read,
            scores={key: sum(value) / len(value) for key, value in values.items()},
            truncated=truncated,
            contaminated=contaminated,
            context_cut=self._cut(first),
        )
        return _Scored(item, values, agree)

    def _gold(self, sample: dict[str, Any]) -> Any:
        if self.task.OUTPUT_TYPE == "multiple_choice":
            target = sample["target"]
            return self.task.doc_to_choice(sample["doc"])[target] if isinstance(target, int) else target
        return sample["doc"].get("answer", sample["target"]) if "problem" in sample["doc"] else sample["target"]

    def _outputs(self, sample: dict[str, Any]) -> tuple[list[str], bool]:
        """Raw outputs, or log probabilities of the choices, and whether the token limit cut one."""
        if self.task.OUTPUT_TYPE != "generate_until":
            return [repr(float(response[0][0])) for response in sample["resps"]], False
        choices = [self.asked.choices[self.asked.request(*arguments).key] for arguments in sample["arguments"]]
        return [choice.text for choice in choices], any(choice.finish == "length" for choice in choices)

    def _cut(self, sample: dict[str, Any]) -> int:
        """Tokens cut from the start of the item's longest prompt to fit the context."""
        ask = self.asked.request if self.task.OUTPUT_TYPE == "generate_until" else self.asked.pair
        return max(self.asked.cut.get(ask(*arguments).key, 0) for arguments in sample["arguments"])

    def _answer(self, sample: dict[str, Any]) -> Any:
        """The scored answer: the output of the filter, or the likeliest choice."""
        if self.task.OUTPUT_TYPE == "multiple_choice":
            values = [float(response[0][0]) for response in sample["resps"]]
            return self.task.doc_to_choice(sample["doc"])[values.index(max(values))]
        left = sample["filtered_resps"][0]
        left = left[0] if isinstance(left, list) else left
        if "minerva_math" in self.leaf.name:
            from lm_eval.tasks.minerva_math.utils import get_unnormalized_answer, normalize_final_answer

            return normalize_final_answer(get_unnormalized_answer(left))
        return left


def _readable(extractor: Extractor, doc: Mapping[str, Any], output: str) -> str:
    """The text for the second extractor: a function's body alone is not a program, so its head is added in front."""
    return doc["prompt"] + output if extractor is CODE and "prompt" in doc and "```" not in output else output


def _passages(leaf: Leaf, texts: Sequence[str]) -> list[str | None]:
    """The passage of each question: the text before its last line, if it is long and shared with other questions."""
    if leaf.config.get("output_type") != "multiple_choice":
        return [None] * len(texts)
    # The template ends with the choices, so repetition is searched for in the question before them.
    heads = [text.rpartition("\nA. ")[0].rpartition("\n")[0] for text in texts]
    shared = {head for head in heads if len(head) >= _PASSAGE and heads.count(head) > 1}
    return [sha256(head.encode()).hexdigest()[:32] if head in shared else None for head in heads]


def _results(task: str, subset: str, scored: Sequence[_Scored], settings: str) -> Iterable[Result]:
    for metric in dict.fromkeys(metric for one in scored for metric in one.values):
        rows = [one for one in scored if metric in one.values]
        # A metric with several values per item, such as IFEval's instructions, is their mean, clustered by item.
        values = [value for one in rows for value in one.values[metric]]
        clusters = [one.item.cluster for one in rows for _ in one.values[metric]]
        interval = mean_interval(values, clusters)
        audited = [agrees for one in rows if (agrees := one.agree[metric]) is not None]
        yield Result(
            task=task,
            subset=subset,
            metric=metric,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            n=len(rows),
            truncated=sum(one.item.truncated for one in rows) / len(rows),
            extraction_disagreement=1 - sum(audited) / len(audited) if audited else None,
            settings=settings,
            context_cut=sum(one.item.context_cut > 0 for one in rows) / len(rows),
        )


def _notes(prepared: Prepared, options: ExamOptions) -> Iterator[str]:
    for named in prepared.named:
        if named.absent:
            total = len(named.absent) + len(named.leaves)
            yield f"{named.name}: {len(named.leaves)} of {total} subsets have files; the score covers only these"
        fixed = [
            leaf.name for leaf in named.leaves if options.shots and not prepared.objects[leaf.name].config.num_fewshot
        ]
        if fixed:
            yield f"{named.name}: has no examples in its prompt, so --shots does not apply"


def _settings(leaf: Leaf, task: Any, options: ExamOptions, variant: int) -> dict[str, Any]:
    """The content behind the hash of a leaf's settings."""
    second = SECOND.get(leaf.config["dataset_path"])
    shots = task.config.num_fewshot
    sampler = getattr(task, "sampler", None)
    return {
        "harness": _harness(),
        "template": {key: leaf.describe.get(key) for key in _TEMPLATE} | {"chat": options.chat, "variant": variant},
        "few_shot": {
            "shots": shots,
            "sampler": type(sampler).__name__ if shots else None,
            "examples": _hash(list(sampler.df)) if shots and sampler else None,
        },
        "extractor": {key: leaf.describe.get(key) for key in _EXTRACTOR} | {"second": second.name if second else None},
        "generation": task.config.generation_kwargs if task.OUTPUT_TYPE == "generate_until" else None,
    }


def _harness() -> str:
    return f"lm_eval {version('lm_eval')}"


def _hash(value: Any) -> str:
    return canonical_hash({"settings": value})
