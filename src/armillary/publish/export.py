"""Publishes a model: one folder with the weights, their lineage (contract 5) and a model card.

The folder loads in Hugging Face ``transformers``. ``lineage.json`` holds a seal over itself and the SHA-256 of every
other file. It also holds the run, the runs behind its recipe, the corpus with licences, the prediction and its verdict,
and the code version. The folder appears in one step: a killed publication leaves the older folder, or none.

Trade-off: hashes show that files belong together and were not changed by accident. They are not a signature: anyone who
rewrites a file can also rewrite the hashes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import armillary
from armillary.model import Transformer, export_hf, replace_folder
from armillary.publish import ledger
from armillary.publish.card import chat_card, is_card, model_card
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    UsageError,
    read_sealed,
    write_sealed,
)

# 1: no seal, and a hash of only the weight file.
FORMAT = 2
LINEAGE = "lineage.json"
WEIGHTS = "model.safetensors"
REQUIRED = frozenset(
    {"run", "spec", "corpus", "edges", "argued_by", "prediction", "verdict", "verdict_status", "losses", "passes"}
)
CHAT_REQUIRED = frozenset({"run", "spec", "base", "corpus", "edges", "argued_by", "teaching", "losses"})
_REMEDY = "publish the model again (`armillary run`), or fetch the folder again"


def publish(
    model: Transformer,
    folder: Path,
    *,
    tokenizer_file: Path,
    end_token: str,
    context_length: int,
    lineage: dict[str, Any],
) -> Path | None:
    """Write the published model into ``folder``, which appears (or replaces an older one) at the very end.

    ``lineage`` has the keys ``run`` (id), ``spec`` (the run's specification as JSON), ``corpus`` (``{hash, domains:
    {name: {source, licence, train, train_tokens, validation_tokens}}}``), ``edges`` (a list of ``recipe.Edge``: what
    made the run, and what made that), ``argued_by`` (``{study: [run ids]}``),
    ``prediction`` (or None), ``verdict`` (a list of ``{domain, predicted, low, high, measured, inside}``, or None where
    the prediction is of another run), ``verdict_status`` (``judged``, ``diverged``, ``pending`` or None), ``losses``
    (``{domain: nats per token}``) and ``passes`` (``{domain: passes over its text in the run}``). Format, hashes of the
    files and version of the code are added.

    Returns:
        The new path of an earlier publication that was changed after it was written here, or None.

    Raises:
        UsageError: a key of the lineage is missing or unknown, the tokenizer does not fit the model, or ``folder``
            holds files that were not published there.
    """
    _check_keys(lineage, REQUIRED)

    def export(aside: Path) -> None:
        export_hf(model, aside, tokenizer_file=tokenizer_file, end_token=end_token, context_length=context_length)

    return _publish(
        folder, lineage, export, lambda document: model_card(folder.name, model.shape, context_length, document)
    )


def publish_chat(source: Path, folder: Path, lineage: dict[str, Any]) -> Path | None:
    """Publish the chat model in the folder ``source`` into ``folder``, like ``publish``.

    ``lineage`` has ``run``, ``spec``, ``corpus``, ``edges`` and ``argued_by`` as for ``publish``, of the fine-tuning;
    ``base`` (``{run, weights}``: the id and the SHA-256 of the model that was taught), ``teaching`` (what the card
    shows: ``families``, ``items``, ``scores`` of ``{test, n, before, after, difference, low, high}``, and ``gain`` of
    ``{predicted, low, high, measured, inside}`` or None) and ``losses`` (``{domain: [before, after]}``).

    Returns:
        As ``publish``.

    Raises:
        UsageError: as ``publish``.
        ArmillaryError: a file of ``source`` cannot be copied.
    """
    _check_keys(lineage, CHAT_REQUIRED)

    def copy(aside: Path) -> None:
        for path in sorted(source.iterdir()):
            if path.is_file():
                shutil.copyfile(path, aside / path.name)

    return _publish(folder, lineage, copy, lambda document: chat_card(folder.name, document))


def _check_keys(lineage: dict[str, Any], required: frozenset[str]) -> None:
    wrong = required.symmetric_difference(lineage)
    if wrong:
        raise UsageError(
            f"lineage: missing or unknown: {', '.join(sorted(wrong))}; it has exactly {', '.join(sorted(required))}"
        )


def _publish(
    folder: Path,
    lineage: dict[str, Any],
    fill: Callable[[Path], None],
    card: Callable[[dict[str, Any]], str],
) -> Path | None:
    """Write the output of ``fill``, the card and the lineage into ``folder``, which appears at the very end."""
    folder = folder.resolve()
    earlier = ledger.set_aside(folder) if ledger.state(folder, lineage["run"]) == "changed" else None
    try:
        with replace_folder(folder) as aside:
            fill(aside)
            document = {
                "format": FORMAT,
                "weights": {"file": WEIGHTS, "sha256": ledger.sha256(aside / WEIGHTS)},
                "code": {"armillary": armillary.__version__, "commit": _commit()},
                **lineage,
            }
            (aside / "README.md").write_text(card(document), encoding="utf-8")
            write_sealed(aside / LINEAGE, {**document, "files": ledger.fingerprints(aside)})
            ledger.enter(folder, ledger.fingerprints(aside))
    except BaseException:
        if earlier is not None and not folder.exists():
            earlier.rename(folder)
        raise
    return earlier


def check_publishable(folder: Path) -> None:
    """Raise UsageError if ``publish`` would refuse ``folder``, before hours of training."""
    ledger.state(folder.resolve())


def is_published(folder: Path, lineage: dict[str, Any]) -> bool:
    """Whether ``folder`` is, byte for byte, the publication with exactly this ``lineage``.

    If the record of a publication was lost but its files match the hashes in its lineage, it is recorded again.

    Raises:
        UsageError: as ``publish``, for a folder with other content.
    """
    folder = folder.resolve()
    state = ledger.state(folder, lineage["run"])
    if state == "nothing":
        return False
    try:
        document = check_lineage(folder)
    except ArmillaryError:
        return False
    files = ledger.fingerprints(folder)
    if document.get("files") != {name: files[name] for name in files if name != LINEAGE}:
        return False
    plain = json.loads(json.dumps(lineage))  # in its written form, where tuples are lists
    if any(document.get(key) != value for key, value in plain.items()):
        return False
    if state == "changed":  # intact by its own hashes, so only its record was lost
        ledger.enter(folder, files)
    return True


def check_lineage(folder: Path) -> dict[str, Any]:
    """The lineage of a published model, after checking its files against their hashes.

    Publications of format 1 have a hash of only the weight file.

    Raises:
        UsageError: ``folder`` has no ``lineage.json``.
        DamagedFileError: the lineage, or a file that it names, is torn, missing or changed; one line per file.
        ForeignFileError: the lineage has a newer format.
    """
    path = folder / LINEAGE
    try:
        document = read_sealed(path, "lineage of a published model", FORMAT, _REMEDY, sealed_since=2)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: not found; give the folder of a published model") from error
    except OSError as error:
        raise ArmillaryError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        weights = document["weights"]
        files = {str(weights["file"]): str(weights["sha256"])} if document["format"] == 1 else document["files"]
        wanted = {str(name): str(digest) for name, digest in files.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path}: lineage without the hashes of the files ({error!r}); {_REMEDY}") from error
    ledger.check_files(folder, wanted, LINEAGE, _REMEDY)
    return document


def is_publication(folder: Path) -> bool:
    """Whether ``folder`` holds a published model, even one that has lost its ``lineage.json``."""
    folder = folder.resolve()
    if (folder / LINEAGE).exists() or ledger.ledger_file(folder).exists():
        return True
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return is_card(card) and any((folder / name).exists() for name in (WEIGHTS, "config.json"))


def _commit() -> str | None:
    """Commit of the checkout that this code runs from, with ``+changes`` if files differ; None if installed."""
    source = Path(armillary.__file__).parent
    try:
        # our own checkout tracks this file; a site-packages inside another repository does not
        command = ["git", "-C", str(source), "ls-files", "--error-unmatch", "__init__.py"]
        subprocess.run(command, check=True, capture_output=True)
        command = ["git", "-C", str(source), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
