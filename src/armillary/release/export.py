"""Publishes a model: one folder with the weights, the walk back from them (contract 5) and a card for people.

The folder loads in Hugging Face ``transformers``. ``lineage.json`` names the SHA-256 of the weight file, so that
whoever holds the weights can tell whether this is their lineage, and then the run, the runs that argued for its
recipe, the corpus with licences, the prediction and its verdict, and the code. Everything appears at once: a publish
that is killed leaves the older folder, or none.

Trade-off: the lineage vouches for the weights by their hash, not by a signature; it tells an honest mistake, not a
forger.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import armillary
from armillary.model import Transformer, export_hf, replace_folder
from armillary.recipe import ArmillaryError, UsageError
from armillary.release.card import model_card

FORMAT = 1
WEIGHTS = "model.safetensors"
REQUIRED = frozenset({"run", "spec", "corpus", "argued_by", "prediction", "verdict", "losses"})


def publish(
    model: Transformer,
    folder: Path,
    *,
    tokenizer_file: Path,
    end_token: str,
    context_length: int,
    lineage: dict[str, Any],
) -> None:
    """Write the published model into ``folder``, which appears (or takes the place of an older one) at the very end.

    ``lineage`` has the keys ``run`` (id), ``spec`` (the run's specification as JSON), ``corpus``
    (``{hash, domains: {name: {source, licence, train_tokens}}}``), ``argued_by`` (``{study: [run ids]}``),
    ``prediction`` (or None), ``verdict`` (a list of ``{domain, predicted, low, high, measured, inside}``, or None) and
    ``losses`` (``{domain: nats per token}``). Format, hash of the weights and version of the code are added.

    Raises:
        UsageError: a key of the lineage is missing or unknown, the tokenizer does not fit the model, or ``folder``
            holds files that are no publication.
    """
    wrong = REQUIRED.symmetric_difference(lineage)
    if wrong:
        raise UsageError(
            f"lineage: missing or unknown: {', '.join(sorted(wrong))}; it has exactly {', '.join(sorted(REQUIRED))}"
        )
    with replace_folder(folder) as aside:
        export_hf(model, aside, tokenizer_file=tokenizer_file, end_token=end_token, context_length=context_length)
        document = {
            "format": FORMAT,
            "weights": {"file": WEIGHTS, "sha256": _sha256(aside / WEIGHTS)},
            "code": {"armillary": armillary.__version__, "commit": _commit()},
            **lineage,
        }
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        (aside / "lineage.json").write_text(text + "\n", encoding="utf-8")
        card = model_card(folder.absolute().name, model.shape, context_length, document)
        (aside / "README.md").write_text(card, encoding="utf-8")


def check_lineage(folder: Path) -> dict[str, Any]:
    """The lineage of a published model, after checking that the weights are still those it speaks of.

    Raises:
        UsageError: ``folder`` has no readable ``lineage.json``, or one of a newer format.
        ArmillaryError: the weight file is missing or is not the one recorded.
    """
    path = folder / "lineage.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, weights = int(document["format"]), document["weights"]
        name, recorded = weights["file"], weights["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not the lineage of a published model ({error}); give its folder") from error
    if version > FORMAT:
        raise UsageError(f"{path}: format {version} is newer than this version reads ({FORMAT}); update armillary")
    try:
        found = _sha256(folder / name)
    except OSError as error:
        raise ArmillaryError(f"{folder / name}: cannot be read ({error.strerror}); publish the model again") from error
    if found != recorded:
        raise ArmillaryError(
            f"{folder / name}: SHA-256 is {found}, the lineage speaks of {recorded}; the weights were changed or "
            "damaged after publication: fetch the folder again"
        )
    return document


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit() -> str | None:
    """Commit of the checkout this code runs from, with ``+changes`` where files differ from it; None if installed."""
    source = Path(armillary.__file__).parent
    try:
        # a checkout of ours tracks this very file; a site-packages inside some other repository does not
        command = ["git", "-C", str(source), "ls-files", "--error-unmatch", "__init__.py"]
        subprocess.run(command, check=True, capture_output=True)
        command = ["git", "-C", str(source), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
