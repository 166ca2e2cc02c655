"""The common part of trainings on a user's file: the folder, its settings and files, the start, and the run.

The folder is locked during a training and belongs to one set of settings. The next call reuses the results of an
interrupted one: the corpus of the tokenizer, the start with its hash, the run with its checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from armillary.corpus import Corpus, write_vocabulary
from armillary.launch import launch, launched
from armillary.post.formats import AnswerPair, Conversation
from armillary.post.template import Renderer
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    Edge,
    LargeRun,
    Layout,
    RunResult,
    RunSpec,
    Start,
    UsageError,
    exclusive,
    read_sealed,
    write_sealed,
)
from armillary.train import Hook, InterruptedRunError, start_from, train_run

if TYPE_CHECKING:
    import torch

FORMAT = 1
REMEDY = "remove it, and the same command makes it again"
_AGAIN = "restore it from a copy, or run the same command again into another folder"
# files in the folder before the run begins
_PREPARED = ("data.json", "held-out.json", "before.json", "start.json", "start.safetensors")

_LEAST_S = 30.0
_BYTES_PER_S = 5e8  # assumed rate for hashing and writing checkpoints

Progress = Callable[[str, float, float, str], None]
RowT = TypeVar("RowT", Conversation, AnswerPair)


class Silent:
    """A silent reporter for ranks."""

    def __call__(self, stage: str, done: float, total: float, note: str) -> None:
        """Progress."""

    def say(self, text: str) -> None:
        """A line of text."""

    def close(self) -> None:
        """The end."""


@dataclass(frozen=True)
class Handling:
    """How to run the work, without effect on the numbers: ``progress`` gets the stage, units done, all units, and a
    note; ``stop`` is asked after each step and conversation; ``hooks`` act in the run. ``planned`` gets the
    specification of a run before it begins or resumes. With a ``layout`` its ranks are
    started on this machine, and the first reports to what ``reporter()`` makes (``launch``).
    """

    progress: Progress = lambda stage, done, total, note: None
    stop: Callable[[], bool] = lambda: False
    hooks: tuple[Hook, ...] = ()
    planned: Callable[[RunSpec], None] = lambda spec: None
    device: torch.device | None = None
    layout: Layout | None = None
    reporter: Callable[[], Any] = Silent

    def advance(self, stage: str, done: float, total: float, note: str) -> None:
        """Report progress outside the run.

        Raises:
            InterruptedRunError: ``stop()`` returned true.
        """
        self.progress(stage, done, total, note)
        if self.stop():
            raise InterruptedRunError(f"stopped during '{stage}'; the same call resumes")


def vocabulary(model: Path, root: Path, renderer: Renderer) -> Corpus:
    """The corpus of a training: the tokenizer of ``model``, without text, below ``root``."""
    end = str(renderer.text.tokenizer.id_to_token(renderer.end))
    return write_vocabulary(root, (model / "tokenizer.json").read_text(encoding="utf-8"), end)


def read_along(rows: Iterator[RowT], path: Path, handling: Handling) -> Iterator[RowT]:
    """The conversations or pairs in ``path``, with progress by lines of the file."""
    with open(path, "rb") as file:
        lines = 1 + sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    for number, one in enumerate(rows, 1):
        line = int(one.where.rpartition(":")[2])
        handling.advance(path.name, min(line, lines), lines, f"{number} rows")
        yield one


def start_of(out: Path, weights: Path) -> Start:
    """The start of the run; its hash is kept separately, since the weights are removed at the end."""
    record = out / "start.json"
    try:
        return Start(weights=str(weights.resolve()), sha256=read_sealed(record, "start", FORMAT, REMEDY)["weights"])
    except FileNotFoundError:
        start = start_from(weights)
        write(record, {"format": FORMAT, "weights": start.sha256})
        return start


@dataclass(frozen=True)
class Work:
    """A run to train: the verb it is for, its specification and corpus, and its folder."""

    name: str
    spec: RunSpec
    corpus: Corpus
    folder: Path


def refuse_ranks() -> None:
    """Check that no launcher started this process: a training starts its ranks itself.

    Raises:
        UsageError: a launcher started this process as one of several.
    """
    if launched():
        raise UsageError(
            "a launcher has started this process as a rank; start one process without a launcher, and it starts the "
            "ranks of the layout"
        )


def train(work: Work, handling: Handling) -> RunResult:
    """Train the run in this process or in the ranks of the layout; resume it, or return its result.

    Raises:
        UsageError: the layout does not fit the run.
        InterruptedRunError, DivergedError, DamagedFileError, ForeignFileError, ArmillaryError: as ``train_run``.
    """
    if handling.layout is not None:
        large = LargeRun(name=work.name, corpus=str(work.corpus.path), run=work.spec, layout=handling.layout)
        return cast(RunResult, launch(large, work.folder, reporter=handling.reporter))
    total = work.spec.steps
    return train_run(
        work.spec,
        work.corpus,
        work.folder,
        device=handling.device,
        progress=lambda step: handling.progress("train", step, total, f"step {step} of {total}"),
        stop=handling.stop,
        checkpoint_every_s=_between_checkpoints(work.spec),
        hooks=handling.hooks,
    )


def _between_checkpoints(spec: RunSpec) -> float:
    """Seconds between two checkpoints: a large model's block the training for long, so they take at most 5 % of it."""
    weights = spec.model.parameters
    trained = weights if spec.adapter is None else 0
    return max(_LEAST_S, 19 * (4 * weights + 8 * trained) / _BYTES_PER_S)


@contextlib.contextmanager
def claimed(out: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Lock the folder ``out``, and check that it belongs to these ``settings``."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; name a folder with --out")
    with exclusive(out / ".lock", "fine-tunes there"):
        path = out / "settings.json"
        try:
            found = read_sealed(path, "settings of a fine-tuning", FORMAT, REMEDY)
        except FileNotFoundError:
            if foreign := sorted(entry.name for entry in out.iterdir() if entry.name != ".lock"):
                raise UsageError(
                    f"{out}: contains {foreign[0]!r} but no fine-tuning; give a new folder with --out"
                ) from None
            write(path, {"format": FORMAT, **settings})
        else:
            wanted = json.loads(json.dumps({"format": FORMAT, **settings}))
            other = [name for name in wanted if found.get(name) != wanted[name]]
            if other and not (out / "run").exists():  # nothing is trained yet, so the preparations are discarded
                for name in _PREPARED:
                    (out / name).unlink(missing_ok=True)
                write(path, {"format": FORMAT, **settings})
            elif other:
                raise UsageError(
                    f"{out}: contains a fine-tuning with another {' and '.join(other)} ({found.get(other[0])!r:.80}, "
                    f"now {wanted[other[0]]!r:.80}); give the same, another --out, or remove the folder"
                )
        yield


def conclude(out: Path, settings: Mapping[str, Any], run: str, found: Mapping[str, Any]) -> None:
    """Write the record of a finished training, with the lineage of ``out/model``; remove its start."""
    files = {path.name: digest(path) for path in sorted((out / "model").iterdir())}
    lineage = [
        Edge(f"model:{digest_of(files)}", "trained by", f"run:{run}"),
        Edge(f"run:{run}", "starts from", f"model:{settings['model']}"),
        Edge(f"run:{run}", "trained on", f"data:{settings['data']}"),
    ]
    record = {**found, "model": "model", "files": files, "settings": dict(settings), "edges": lineage}
    write(out / "record.json", {"format": FORMAT, **record})
    with contextlib.suppress(OSError):
        (out / "start.safetensors").unlink()


def finished(out: Path) -> dict[str, Any] | None:
    """The record of ``out`` if its model exists too."""
    try:
        record = read_sealed(out / "record.json", "record of a fine-tuning", FORMAT, REMEDY)
    except FileNotFoundError:
        return None
    return record if (out / "model" / "config.json").exists() else None


def check_tuning(out: Path) -> None:
    """Compare the files of a fine-tuning with their records; its run and corpus have separate checks.

    Every file of the model is compared with its own hash; with an older record the weights, ``config.json`` and
    ``tokenizer.json`` are compared as one.

    Raises:
        DamagedFileError: a file is missing, torn or changed; one line for each.
        ForeignFileError: one is of a newer format.
    """
    wrong = []
    if not (out / "settings.json").exists():
        wrong.append(f"{out / 'settings.json'}: is missing, although it is written first; {_AGAIN}")
    for path in sorted(out.glob("*.json")):
        try:
            read_sealed(path, "file of a fine-tuning", FORMAT, _AGAIN)
        except DamagedFileError as error:
            wrong.append(str(error))
    record = out / "record.json"
    if record.exists() and not any(line.startswith(f"{record}:") for line in wrong):
        wrong += _differing(out / "model", read_sealed(record, "record of a fine-tuning", FORMAT, _AGAIN))
    if wrong:
        raise DamagedFileError("\n".join(wrong))


def _differing(model: Path, record: Mapping[str, Any]) -> list[str]:
    """The differences between the model and its record, and missing files beside it."""
    needed = {"run": "run/result.json", "corpus": "corpus/*/manifest.json"}
    wrong = [
        f"{model.with_name(name)}: is missing or empty; {_AGAIN}"
        for name, pattern in needed.items()
        if not any(model.parent.glob(pattern))
    ]
    for name, wanted in record.get("files", {}).items():
        try:
            if digest(model / name) != wanted:
                wrong.append(f"{model / name}: was changed after it was written; {_AGAIN}")
        except UsageError:
            wrong.append(f"{model / name}: is missing, or cannot be read; {_AGAIN}")
    if "files" in record:
        return wrong
    trained = next((edge[0] for edge in record["edges"] if edge[1] == "trained by"), None)
    try:
        same = f"model:{digest_model(model)}" == trained
    except UsageError as error:
        return [*wrong, str(error)]
    changed = f"{model}: its weights, config.json or tokenizer.json were changed after training; {_AGAIN}"
    return wrong if same else [*wrong, changed]


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a sealed file; raise ArmillaryError if that fails."""
    try:
        write_sealed(path, document)
    except OSError as error:
        raise ArmillaryError(f"{path}: cannot be written ({error.strerror}); free space and call again") from error


def digest(path: Path) -> str:
    """The SHA-256 of a data file; raises UsageError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give an existing file") from error


def digest_model(folder: Path) -> str:
    """A hash of the files that determine the model."""
    names = [*(path.name for path in folder.glob("*.safetensors")), "config.json", "tokenizer.json"]
    return digest_of({name: digest(folder / name) for name in names})


def digest_of(files: Mapping[str, str]) -> str:
    """``digest_model`` of files with these hashes, by name; other files are ignored."""
    total = hashlib.sha256()
    weights = sorted(name for name in files if name.endswith(".safetensors"))
    for name in (*weights, "config.json", "tokenizer.json"):
        total.update(f"{name} {files[name]}\n".encode())
    return total.hexdigest()
