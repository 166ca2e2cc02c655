"""Checks before the first step that a run can be trained to its end.

Corpus, layout and schedule are compared with the specification here. So a run that would fail at its last validation is
refused before it costs anything. The trainer, a study and the dry run call the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pydantic import ValidationError

from armillary.corpus import Corpus, data_order
from armillary.recipe import Layout, RunSpec, UsageError, all_problems


def check_run(spec: RunSpec, corpus: Corpus, layout: Layout | None = None) -> None:
    """Check a run against its corpus and, if it has one, its layout.

    Raises:
        UsageError: all reasons why it cannot be trained to its end, with names, numbers and remedies: another corpus; a
            vocabulary below the corpus's; phases, schedule or batch that do not fit; a domain of the mixture that is
            missing or too short; examples that are missing or too long; an objective that this version does not train;
            a validation domain shorter than one window of any length at which it is validated; a layout that does not
            divide the run.
    """
    if corpus.hash != spec.corpus:
        raise UsageError(
            f"run {spec.id} belongs to corpus {spec.corpus}, but {corpus.path} is {corpus.hash}; give the folder of "
            "its own corpus"
        )
    problems: list[str] = []
    try:
        # pydantic does not check a specification that was copied from another one
        RunSpec.model_validate(spec.model_dump(mode="json"))
    except ValidationError as error:
        problems += all_problems(error)
    if spec.model.vocab_size < corpus.vocab_size:
        problems.append(
            f"model.vocab_size ({spec.model.vocab_size}) is below the corpus's {corpus.vocab_size}; it must be at "
            "least that"
        )
    if not problems:
        checks: list[Callable[[], object]] = [lambda: data_order(spec, corpus)]
        if layout is not None:
            checks.append(partial(layout.check, spec))
        for check in checks:
            try:
                check()
            except UsageError as error:
                problems.append(str(error))
        problems += _validation_problems(spec, corpus)
    if problems:
        raise UsageError(f"run {spec.id}: " + "; ".join(problems))


def _validation_problems(spec: RunSpec, corpus: Corpus) -> list[str]:
    """Domains shorter than one window of the longest length at which the run is validated."""
    longest: dict[int, int] = {}
    for start, end, run in spec.stretches():
        every = spec.validation.every
        if end == spec.steps or (every is not None and end // every > start // every):
            longest.setdefault(run.context_length, start)
    length = max(longest)
    problems = []
    for domain in corpus.domains:
        try:
            corpus.validation(domain, length, 1)
        except UsageError as error:
            begin = longest[length]
            problems.append(f"validation from step {begin} on: {error}" if begin else f"validation: {error}")
    return problems
