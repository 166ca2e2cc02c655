"""Prepares the folder to send: a publication with a card for its repository, and ``SHA256SUMS``.

The published model itself is not changed. The new folder has hard links to its files, so a large model is not copied.
The same model with the same additions gives the same bytes, so a killed transfer resumes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from armillary.evaluate import Examination, read_examination
from armillary.publish import ledger
from armillary.publish.card import chat_card, model_card
from armillary.publish.export import LINEAGE, check_lineage
from armillary.publish.sums import SUMS, sums
from armillary.recipe import RunSpec, UsageError, write_sealed

CARD = "README.md"
# The files that engines hash as the identity of a folder (`Backend.identity`).
_ANSWERING = ((".safetensors", ".json", ".jinja"), (".safetensors", ".json", ".jinja", ".model", ".txt"))


@dataclass(frozen=True)
class Additions:
    """The owner's additions to the lineage.

    Attributes:
        licence: of the model, as an SPDX identifier; None: not stated.
        languages: codes of its languages, such as ``en`` and ``zh``.
        results: folders of examinations of this model.
    """

    licence: str | None = None
    languages: tuple[str, ...] = ()
    results: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Staged:
    """A folder ready to check and send, and the SHA-256 of each of its files."""

    folder: Path
    digests: Mapping[str, str]


def stage(model: Path, into: Path, name: str, additions: Additions) -> Staged:
    """Write the files of the publication ``model`` for the repository ``name`` into the folder ``into``.

    An older folder ``into`` is removed. Files are hard links if the file system supports them, else copies.

    Raises:
        UsageError: ``model`` is not a publication, contains other files, or an examination is of another
            model.
        DamagedFileError: a file of it was changed or damaged; one line per file.
    """
    document = check_lineage(model)
    if document["format"] == 1:
        raise UsageError(f"{model}: was published by an older version; publish it again (`armillary run`)")
    digests: dict[str, str] = {file: digest for file, digest in document["files"].items() if file != SUMS}
    _check_foreign(model, {*digests, LINEAGE, SUMS})
    lineage = {key: value for key, value in document.items() if key not in ("files", "publication")}
    added = _added(additions, lineage, digests)
    if added:
        lineage["publication"] = added
    card = card_of(name, lineage)
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for file in sorted(digests.keys() - {CARD}):
        try:
            os.link(model / file, into / file)
        except OSError:  # another file system, or one without links
            shutil.copyfile(model / file, into / file)
    (into / CARD).write_text(card, encoding="utf-8")
    digests[CARD] = ledger.sha256(into / CARD)
    write_sealed(into / LINEAGE, {**lineage, "files": digests})
    digests[LINEAGE] = ledger.sha256(into / LINEAGE)
    (into / SUMS).write_text(sums(digests), encoding="utf-8")
    return Staged(into, {**digests, SUMS: ledger.sha256(into / SUMS)})


def card_of(name: str, lineage: dict[str, Any]) -> str:
    """The card of a model with this ``lineage``, under the title ``name``."""
    if "teaching" in lineage:
        return chat_card(name, lineage)
    run = RunSpec.model_validate(lineage["spec"])
    return model_card(name, run.model, run.longest, lineage)


def _check_foreign(model: Path, known: set[str]) -> None:
    found = sorted(path.name for path in model.iterdir() if path.name not in known or path.is_symlink())
    if found:
        raise UsageError(f"{model}: contains '{found[0]}', which is not part of the publication; move it away")


def _added(additions: Additions, lineage: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """The additions in the form of the lineage."""
    rows: list[dict[str, Any]] = []
    for folder in additions.results:
        examination = read_examination(folder)
        _check_examined(folder, examination, lineage, digests)
        keys = ("task", "subset", "metric", "value", "low", "high", "n")
        rows += [{key: asdict(row)[key] for key in keys} for row in examination.results]
    added = {"licence": additions.licence, "languages": list(additions.languages), "evaluation": rows}
    return {key: value for key, value in added.items() if value}


def _check_examined(
    folder: Path, examination: Examination, lineage: Mapping[str, Any], digests: Mapping[str, str]
) -> None:
    """Raise UsageError unless the examination in ``folder`` is of this model."""
    identity = examination.model
    hashes = {_identity(digests, suffixes) for suffixes in _ANSWERING}
    if identity.get("run") != lineage["run"] and identity.get("sha256") not in hashes:
        raise UsageError(
            f"{folder}: is an examination of {identity.get('model')!r}, whose files differ from this model's; examine "
            "the folder that you publish"
        )


def _identity(digests: Mapping[str, str], suffixes: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(digests):
        if Path(name).suffix in suffixes and name != LINEAGE:
            digest.update(f"{name} {digests[name]}\n".encode())
    return digest.hexdigest()
