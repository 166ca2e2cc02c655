"""Profiles of clusters: partition, account, image and the like, one YAML file for each.

``--on slurm`` reads ``clusters/slurm.yaml``, ``--on slurm:big`` reads ``clusters/slurm-big.yaml``; beside the submitted
file first, then in the user's configuration folder. Without a profile of the kind's own name the defaults hold.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError

from armillary.recipe import (
    Document,
    UsageError,
    first_problem,
    load_document,
    passwords_in,
)

FOLDER = "clusters"
_PROFILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"TOKEN|SECRET|PASS|CREDENTIAL|(^|_)KEY(_|$)|DATABASE", re.IGNORECASE)


def _word(text: str) -> str:
    if not text or not text.isprintable() or any(c.isspace() or c in "\"'\\`$" for c in text):
        raise ValueError("must be one word without blanks, quotes, '$' and backslashes")
    return text


def _line(text: str) -> str:
    if not text.strip() or not text.replace("\t", " ").isprintable():
        raise ValueError("must be one line of printable characters")
    return text


def _variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ValueError("must be the name of an environment variable, such as HF_HOME; its value is not written here")
    return name


def _harmless(values: dict[str, str]) -> dict[str, str]:
    for name, value in values.items():
        if _SECRET.search(name) or passwords_in(value):
            raise ValueError(f"{name} looks like a secret; job files hold no secrets: see docs/submit.md#secrets")
        _line(value)
    return values


Word = Annotated[str, AfterValidator(_word)]
Line = Annotated[str, AfterValidator(_line)]
Variable = Annotated[str, AfterValidator(_variable)]
Variables = Annotated[dict[Variable, str], AfterValidator(_harmless)]
Count = Annotated[int, Field(ge=1)]


class ClusterProfile(Document):
    """What all kinds of clusters have in common.

    ``python`` is the interpreter on the nodes (default: the one of this command). ``ranks_per_node`` is the number of
    processes on each node for a large run (default: its layout's ranks divided by the nodes). ``variables`` are set for
    the job. A job may be restarted ``max_restarts`` times in a row without progress, and has ``stop_s`` seconds to
    write a checkpoint when it is stopped.
    """

    format: Literal[1] = 1
    python: Line | None = None
    ranks_per_node: Count | None = None
    variables: Variables = Field(default_factory=dict)
    max_restarts: int = Field(default=3, ge=0)
    stop_s: int = Field(default=300, ge=10)


P = TypeVar("P", bound=ClusterProfile)


def user_folder() -> Path:
    """The user's folder of profiles."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "armillary" / FOLDER


def load_profile(kind: str, name: str | None, beside: Path, document: type[P]) -> P:
    """The profile ``name`` of a ``kind`` of cluster, for a file in the folder ``beside``.

    Raises:
        UsageError: there is no such profile, or it is wrong: file, line and field of each problem.
    """
    if name is not None and not _PROFILE_NAME.fullmatch(name):
        raise UsageError(f"--on {kind}:{name}: a profile's name has letters, digits, '.', '_' and '-'")
    file = f"{kind}.yaml" if name is None else f"{kind}-{name}.yaml"
    folders = (beside / FOLDER, user_folder())
    for folder in folders:
        if (folder / file).exists():
            return load_document(folder / file, document)
    needed = [field for field, of in document.model_fields.items() if of.is_required()]
    if name is None and needed:
        raise UsageError(f"--on {kind}: needs a profile with {', '.join(needed)}; write {folders[0] / file}")
    if name is None:
        return document()
    known = sorted(
        {found.stem.removeprefix(f"{kind}-") for folder in folders for found in folder.glob(f"{kind}-*.yaml")}
    )
    others = f"; profiles of {kind}: {', '.join(known)}" if known else ""
    raise UsageError(f"--on {kind}:{name}: there is neither {folders[0] / file} nor {folders[1] / file}{others}")


def kept_profile(document: type[P], values: dict[str, Any]) -> P:
    """The profile that a job's record holds.

    Raises:
        UsageError: it is not valid for this version.
    """
    try:
        return document.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"the profile in the job's record: {first_problem(error)}") from error
