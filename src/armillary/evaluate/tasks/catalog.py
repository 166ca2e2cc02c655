"""Task names, and lm_eval's configuration of each task on local data.

Prompts, few-shot examples, filters and metrics are those of lm_eval's own configuration files; only the data set is
replaced. A configuration that would run model-written code in this process (HumanEval, MBPP) is read without its
functions, and scored in the sandbox instead (``code.py``).
"""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from armillary.evaluate.tasks.code import sandboxed
from armillary.evaluate.tasks.data import SOURCES, Source, Splits
from armillary.recipe import ArmillaryError, UsageError

# Short names for lm_eval's tasks and groups.
ALIASES = {"ceval": "ceval-valid", "math500": "minerva_math500", "math-500": "minerva_math500", "c-eval": "ceval-valid"}
# Folders of lm_eval configurations whose data sets have a local layout (``data.SOURCES``).
_FOLDERS = ("bbh", "ceval", "cmmlu", "gsm8k", "humaneval", "ifeval", "mbpp", "minerva_math", "mmlu")
# IFEval instructions for which lm_eval splits text with NLTK's punkt_tab.
_SENTENCES = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
# Template for a C-Eval subject without a configuration in lm_eval.
_CEVAL_DESCRIPTION = "以下是中国关于{subject}的单项选择题，请选出其中的正确答案。\n\n"


@dataclass(frozen=True)
class Leaf:
    """One task of lm_eval with local data.

    Attributes:
        name: lm_eval's name, such as ``cmmlu_agronomy``.
        subset: name of the data subset; the task's name if it has no subsets.
        config: lm_eval's configuration without data.
        describe: the same with functions as text, for hashing.
        source: the data set.
        folder: folder of its files.
    """

    name: str
    subset: str
    config: dict[str, Any]
    describe: dict[str, Any]
    source: Source
    folder: Path

    def splits(self) -> Splits:
        """Rows of each split, read from the files."""
        return self.source.read(self.folder, self.subset if self.source.parts else "")


@dataclass(frozen=True)
class Named:
    """A requested task and its leaves; ``absent`` lists subsets without files."""

    name: str
    leaves: tuple[Leaf, ...]
    absent: tuple[str, ...]


def find(name: str, data: Path) -> Named:
    """The task or group ``name``, with those subsets that have files in ``data``.

    Raises:
        UsageError: unknown name, no local layout for its data set, no files.
    """
    index = _index()
    entry = index.get(ALIASES.get(name.lower(), name))
    if entry is None:
        close = difflib.get_close_matches(name, [*index, *ALIASES], 1, 0.5)
        raise UsageError(
            f"task {name!r} is unknown"
            + (f"; did you mean {close[0]!r}?" if close else "")
            + " (`armillary evaluate run --help` lists the tasks; lm_eval's other tasks over their data work too)"
        )
    entries = list(_leaves(entry, {}))
    source = _source(entries[0][0], entries[0][1])
    folder = source.locate(data, name)
    present = source.subsets(folder)
    leaves = [_leaf(entry, overrides, source, folder) for entry, overrides in entries]
    absent: tuple[str, ...] = ()
    if source.parts:
        absent = tuple(leaf.subset for leaf in leaves if leaf.subset not in present)
        known = {leaf.subset for leaf in leaves}
        leaves = [leaf for leaf in leaves if leaf.subset in present]
        if entry.name == "ceval-valid":
            leaves += [_new_subject(subject, source, folder) for subject in present if subject not in known]
        if not leaves:
            raise UsageError(f"{name}: none of its subsets has a file in {folder}; needed: {', '.join(absent[:5])} …")
    return Named(name, tuple(leaves), absent)


def dataset_of(name: str) -> str | None:
    """lm_eval's name for the data set of a task or group; None for other tasks, such as a contest."""
    entry = _index().get(ALIASES.get(name.lower(), name))
    return str(next(_leaves(entry, {}))[0].cfg["dataset_path"]) if entry else None


def build(leaf: Leaf, shots: int | None, data: Splits) -> Any:
    """lm_eval's task object of ``leaf`` over the rows ``data``.

    Raises:
        UsageError: more shots than examples.
    """
    datasets = _lm_eval("datasets")
    datasets.disable_progress_bars()
    from lm_eval.api import task as lm_eval_task

    # lm_eval's progress bar per subset would interfere with that of the whole examination.
    lm_eval_task.tqdm = lambda rows, **_: rows
    tables = {split: datasets.Dataset.from_list(rows) for split, rows in data.items() if rows}
    config = {**leaf.config, "custom_dataset": lambda **_: tables}
    # The examples come from a split that a folder with questions only does not have.
    split = config.get("fewshot_split") or (config.get("fewshot_config") or {}).get("split")
    wanted = shots if shots is not None and config.get("num_fewshot") != 0 else config.get("num_fewshot") or 0
    if split is not None and split not in tables:
        if wanted:
            raise UsageError(
                f"{leaf.name}: {wanted} few-shot examples come from its {split} split, which {leaf.folder} does "
                f"not have; add the file, or pass --shots 0"
            )
        config |= {"fewshot_split": None}
        if config.get("fewshot_config"):
            config["fewshot_config"] = {k: v for k, v in config["fewshot_config"].items() if k != "split"}
    if config.get("training_split") not in (None, *tables):
        config["training_split"] = None
    task = lm_eval_task.ConfigurableTask(config=config)
    if wanted and wanted > (available := len(task.sampler.df)):
        raise UsageError(f"{leaf.name}: {wanted} few-shot examples requested, but only {available} available")
    task.set_config(key="num_fewshot", value=wanted)
    return task


def _leaves(entry: Any, overrides: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Configuration entries below a task, group or tag, with the overrides of its groups."""
    index = _index()
    if entry.kind.name == "TASK":
        yield entry, overrides
    elif entry.kind.name == "TAG":
        for name in sorted(entry.tags):
            yield index[name], overrides
    else:
        for member in entry.cfg["task"]:
            name = member if isinstance(member, str) else member.get("task", member.get("group"))
            own = {} if isinstance(member, str) else {k: v for k, v in member.items() if k not in ("task", "group")}
            yield from _leaves(index[name], {**overrides, **own})


def _source(entry: Any, overrides: dict[str, Any]) -> Source:
    path = overrides.get("dataset_path", entry.cfg.get("dataset_path"))
    if path not in SOURCES:
        raise UsageError(
            f"task {entry.name!r} reads {path}, which has no local layout; supported: {', '.join(SOURCES)}"
        )
    return SOURCES[path]


def _leaf(entry: Any, overrides: dict[str, Any], source: Source, folder: Path) -> Leaf:
    unsafe = bool(entry.cfg.get("unsafe_code"))
    plain = {**deepcopy(entry.cfg), **overrides}
    config = {**deepcopy(_configuration(entry.yaml_path, not unsafe)), **overrides}
    describe = {key: _portable(value) for key, value in plain.items() if key not in ("tag", "group", "task_list")}
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    if unsafe:
        config = sandboxed(config)
    subset = str(config.get("dataset_name") or "") if source.parts else entry.name
    return Leaf(entry.name, subset, config, describe, source, folder)


@cache
def _configuration(path: Path, functions: bool) -> dict[str, Any]:
    """A configuration file of lm_eval; its functions are imported only if ``functions`` is set."""
    from lm_eval.tasks._yaml_loader import load_yaml  # private API, but the extra pins the version

    with _offline():
        return dict(load_yaml(path, resolve_func=functions))


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Stops the NLTK download that importing lm_eval's IFEval starts, and its messages on standard output."""
    nltk = _lm_eval("nltk")
    download = nltk.download
    nltk.download = lambda *_, **__: False
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        nltk.download = download


def check_sentences(leaf: Leaf, docs: Iterable[Mapping[str, Any]]) -> None:
    """Check that the IFEval instructions in ``docs`` can be scored without a download.

    Raises:
        ArmillaryError: some instructions count sentences or capital words, and NLTK's sentence model is not installed.
    """
    needing = sum(not _SENTENCES.isdisjoint(doc.get("instruction_id_list", ())) for doc in docs)
    if needing:
        try:
            _lm_eval("nltk").data.find("tokenizers/punkt_tab")
        except LookupError:
            raise ArmillaryError(
                f"{leaf.name}: {needing} items count sentences or capital words with NLTK's punkt_tab, which is not "
                "installed on this machine; unpack it below a folder of NLTK_DATA (where there is a network: python -m "
                "nltk.downloader punkt_tab)"
            ) from None


def _new_subject(subject: str, source: Source, folder: Path) -> Leaf:
    template = _leaf(_index()["ceval-valid_accountant"], {}, source, folder)
    own = {
        "task": f"ceval-valid_{subject}",
        "dataset_name": subject,
        "description": _CEVAL_DESCRIPTION.format(subject=subject),
    }
    return Leaf(own["task"], subject, {**template.config, **own}, {**template.describe, **own}, source, folder)


def _portable(value: Any) -> Any:
    """``value`` with functions as text, named by their path below lm_eval's task folder."""
    if isinstance(value, str):
        return re.sub(r"^.*[/\\]lm_eval[/\\]tasks[/\\]", "", value) if ".py" in value or "utils." in value else value
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    return [_portable(item) for item in value] if isinstance(value, list) else value


@cache
def _index() -> dict[str, Any]:
    tasks = _lm_eval("lm_eval.tasks")
    root = Path(tasks.__file__).parent
    manager = tasks.TaskManager(include_path=[root / name for name in _FOLDERS], include_defaults=False)
    return dict(manager.task_index)


def _lm_eval(module: str) -> Any:
    """An imported module of the extra ``evaluate``.

    Raises:
        ArmillaryError: the extra is not installed.
    """
    import importlib

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ArmillaryError(
            f"{module} is needed for examinations ({error}): pip install 'armillary[evaluate]'"
        ) from error
