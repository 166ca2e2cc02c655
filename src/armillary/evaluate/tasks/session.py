"""Runs an examination in a folder: checks before opening the model, locks the folder, and resumes after a kill.

``examination.json`` is written first. It names the model and the settings of each task, so that answers of another
model, or of the same task with different settings, are refused and never mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from armillary.evaluate.results import ANSWERS, RESULTS, Examination, read_examination, write_examination
from armillary.evaluate.tasks.examine import ExamOptions, Prepared, examine, prepare
from armillary.evaluate.tasks.variants import over_variants
from armillary.generate import Backend, open_answers
from armillary.recipe import ArmillaryError, UsageError, exclusive, read_json, read_sealed, write_sealed

FORMAT = 1
PLAN = "examination.json"


def hold_examination(
    opened: Callable[[], Backend], tasks: Sequence[str], data: Path, folder: Path, options: ExamOptions
) -> Examination:
    """Examine the model that ``opened`` opens, and write the results into ``folder``.

    Results of other tasks in ``folder`` are kept. Tasks and data are checked before the model is opened.

    Raises:
        UsageError: wrong tasks, data or options; or the folder belongs to another model, or has a task with different
            settings or more items.
        BusyError: another process works in the folder.
        ArmillaryError: the folder cannot be written.
    """
    formats = [prepare(tasks, data, options, variant) for variant in range(options.variants)]
    # The model is opened first, so that a missing model leaves no folder behind.
    with closing(opened()) as backend, exclusive(folder / ".lock", "examines a model into this folder"):
        _begin(folder, backend.identity, formats)
        _check_sizes(folder, formats[0], options.limit)
        with open_answers(folder / ANSWERS, backend.identity) as saved:
            held = [examine(backend, prepared, options, saved) for prepared in formats]
        examination = held[0] if len(held) == 1 else over_variants(held)
        if options.lineage is not None:
            examination = replace(examination, model={**examination.model, "lineage": dict(options.lineage)})
        if (folder / RESULTS).exists():
            examination = _with_others(read_examination(folder), examination)
        write_examination(folder, examination)
    return examination


def default_folder(target: str) -> Path:
    """The default folder for results: ``exam-`` and the name of the model or its server."""
    name = urlsplit(target).hostname if "://" in target else Path(target).name.removesuffix(".gguf")
    return Path(f"exam-{name or 'model'}")


def lineage_of(target: str) -> dict[str, Any] | None:
    """The run and the corpus behind a model that Armillary published; None for any other model.

    Raises:
        DamagedFileError: its lineage cannot be read.
    """
    path = Path(target) / "lineage.json"
    if not path.is_file():
        return None
    found = read_json(path, "lineage of the model", "publish the model again")
    corpus = found.get("corpus")
    if "run" not in found or not isinstance(corpus, dict):
        return None  # another program's file
    return {"run": found["run"], "corpus": corpus.get("hash")}


def _begin(folder: Path, identity: Mapping[str, Any], formats: Sequence[Prepared]) -> None:
    """Write the plan, or check that the one in ``folder`` has the same model and settings."""
    path = folder / PLAN
    wanted: dict[str, dict[str, Any]] = {named.name: {} for named in formats[0].named}
    for variant, prepared in enumerate(formats):
        for named in prepared.named:
            for leaf in named.leaves:
                name = f"{leaf.name}, variant {variant}" if variant else leaf.name
                wanted[named.name][name] = prepared.settings[leaf.name]
    known: dict[str, Any] = {}
    try:
        plan = read_sealed(path, "plan of an examination", FORMAT, "choose another --out")
    except FileNotFoundError:
        pass
    else:
        known = plan["tasks"]
        if plan["model"] != dict(identity):
            changed = [key for key in {**plan["model"], **identity} if plan["model"].get(key) != identity.get(key)]
            raise UsageError(
                f"{folder}: contains an examination of another model ({', '.join(changed)} differs: "
                f"{plan['model'].get(changed[0])} there, {identity.get(changed[0])} now); choose another --out"
            )
        for task in wanted.keys() & known.keys():
            for part_of, settings in wanted[task].items():
                parts = [part for part in settings if known[task].get(part_of, settings).get(part) != settings[part]]
                if parts:
                    raise UsageError(
                        f"{folder}: contains answers of {part_of} with other settings ({', '.join(parts)}); choose "
                        "another --out, or the settings of that run"
                    )
    try:
        write_sealed(path, {"format": FORMAT, "model": dict(identity), "tasks": {**known, **wanted}})
    except OSError as error:
        raise ArmillaryError(f"{path}: cannot be written ({error.strerror})") from error


def _check_sizes(folder: Path, prepared: Prepared, limit: int | None) -> None:
    """Refuse to replace a task's results in ``folder`` by results on fewer items."""
    if not (folder / RESULTS).exists():
        return
    earlier = read_examination(folder).items
    for named in prepared.named:
        sizes = [len(prepared.objects[leaf.name].eval_docs) for leaf in named.leaves]
        now = sum(size if limit is None else min(size, limit) for size in sizes)
        if (before := len(earlier.get(named.name, ()))) > now:
            raise UsageError(
                f"{folder}: contains {named.name} with {before} items, which {now} would replace; raise --limit to "
                f"{before} items in all, leave it out, or choose another --out"
            )


def _with_others(earlier: Examination, new: Examination) -> Examination:
    """``new``, and those tasks of ``earlier`` that it does not repeat."""
    others = {task: items for task, items in earlier.items.items() if task not in new.items}
    results = tuple(result for result in earlier.results if result.task in others)
    return replace(new, results=results + new.results, items={**others, **new.items})
