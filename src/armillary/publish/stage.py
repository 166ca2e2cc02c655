"""Prepares the folder to send: a publication with a card for its repository, and ``SHA256SUMS``.

The published model itself is not changed. The new folder has hard links to its files, so a large model is not copied.
The same model with the same additions gives the same bytes, so a killed transfer resumes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from armillary.evaluate import Examination, read_examination
from armillary.publish import ledger
from armillary.publish.card import chat_card, is_card, model_card, plain_card
from armillary.publish.export import LINEAGE, check_lineage
from armillary.publish.plain import plain_lineage
from armillary.publish.sums import SUMS, sums
from armillary.recipe import RunSpec, UsageError, write_sealed

CARD = "README.md"
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)  # the front matter of a card
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
    """Write the files of the model ``model`` for the repository ``name`` into the folder ``into``.

    A model without lineage gets one that states what its files prove (``plain.py``), and its own card follows ours.
    An older folder ``into`` is removed. Files are hard links if the file system supports them, else copies.

    Raises:
        UsageError: ``model`` contains files that are not of the publication or model, or an examination is of another
            model.
        DamagedFileError: a file of it was changed or damaged; one line per file.
    """
    notes, stated = "", dict[str, Any]()
    if (model / LINEAGE).exists():
        document = check_lineage(model)
        if document["format"] == 1:
            raise UsageError(f"{model}: was published by an older version; publish it again (`armillary run`)")
        digests: dict[str, str] = {file: digest for file, digest in document["files"].items() if file != SUMS}
        _check_foreign(model, {*digests, LINEAGE, SUMS})
    else:
        document, digests = plain_lineage(model)
        notes, stated = _owners(model / CARD)
    lineage = {key: value for key, value in document.items() if key not in ("files", "publication")}
    added = {**stated, **_added(additions, lineage, digests)}
    if added:
        lineage["publication"] = added
    card = card_of(name, lineage) + notes
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
    if "spec" not in lineage:
        return plain_card(name, lineage)
    run = RunSpec.model_validate(lineage["spec"])
    return model_card(name, run.model, run.longest, lineage)


def _owners(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of the owner's card under a heading that says so, and what its front matter states of the model.

    Both are empty without a card, or if this program wrote it.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        front = _FRONT.match(text)
        stated = yaml.safe_load(front[1]) if front else {}
    except FileNotFoundError:
        return "", {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: cannot be read as a card ({reason}); correct it or move it away") from error
    if is_card(text):
        return "", {}
    stated = stated if isinstance(stated, dict) else {}
    licence, languages, base = (stated.get(key) for key in ("license", "language", "base_model"))
    found = {
        "licence": stated.get("license_name") if licence == "other" else licence,
        "languages": [languages] if isinstance(languages, str) else languages,
        "base_model": base if isinstance(base, str | list) else None,
    }
    body = text[front.end() :].strip() if front else text.strip()
    notes = f"\n## From the owner · 所有者说明\n\n{body}\n" if body else ""
    return notes, {key: value for key, value in found.items() if value}


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
    same_run = lineage["run"] is not None and identity.get("run") == lineage["run"]
    if not same_run and identity.get("sha256") not in hashes:
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
