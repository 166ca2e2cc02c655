"""Checks of names that become file names, folder names and table keys."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from armillary.recipe.errors import FieldError

# Names of devices on Windows, with any ending.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in "123456789")}
_NOT_IN_FILES = frozenset('/\\:*?"<>|')
# A file name has 255 bytes, and names are given endings; characters of a domain's name are percent-encoded.
_MAX_BYTES = 160
_MAX_RECIPE_BYTES = 120
_MAX_ENCODED = 200


def check_folder_name(name: str) -> str:
    """Return ``name`` unchanged if it is valid as the name of a results folder.

    Raises:
        ValueError: it leads elsewhere, is hidden, or is not a valid file name on every system.
    """
    return _checked(name, _folder_trouble(name), "give a plain name, such as my-recipe; --out names any folder")


def check_recipe_name(name: str) -> str:
    """As ``check_folder_name``, and short enough to be the prefix of the target run's name.

    Raises:
        ValueError: as ``check_folder_name``, or it is too long.
    """
    if len(name.encode(errors="replace")) > _MAX_RECIPE_BYTES:
        raise ValueError(f"the name is longer than {_MAX_RECIPE_BYTES} bytes; give a shorter one")
    return check_folder_name(name)


def check_domain_name(name: str) -> str:
    """Return ``name`` unchanged if it is valid for a domain.

    Raises:
        ValueError: it is ``target`` (the name of the weighted sum of all), or is not a valid file name.
    """
    trouble = _trouble(name)
    if trouble is None and name.casefold() == "target":
        trouble = "is the name of the weighted sum of the domains' losses"
    if trouble is None and any(part.strip(". ") == "" for part in name.replace("\\", "/").split("/")):
        trouble = "points to another folder"
    if trouble is None and len(quote(name, safe="")) > _MAX_ENCODED:
        trouble = "is too long for a file name"
    return _checked(name, trouble, "give the domain another name")


def check_path(path: str) -> str:
    """Return ``path`` unchanged if it is valid for a file or folder.

    Raises:
        ValueError: it is empty, holds invisible characters, or begins with the home folder of no user.
    """
    trouble = "is empty" if not path.strip() else _invisible(path)
    if trouble is None:
        try:
            Path(path).expanduser()
        except RuntimeError:
            trouble = "begins with the home folder of a user that does not exist"
    if trouble is not None:
        raise ValueError(f"the path {trouble}; give the path of a file or folder")
    return path


def check_twins(names: Iterable[str], *where: str) -> list[FieldError]:
    """A problem for each name that differs from an earlier one only in case or in how its characters are composed."""
    seen: dict[str, str] = {}
    problems = []
    for name in names:
        first = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if first != name:
            message = f"differs from '{first}' only in case or in the encoding of accents; rename one of the two"
            problems.append(FieldError(message, *where, name))
    return problems


def _folder_trouble(name: str) -> str | None:
    trouble = _trouble(name)
    if trouble is not None:
        return trouble
    bad = sorted(_NOT_IN_FILES & set(name))
    if bad:
        return f"contains {' '.join(bad)}"
    if name.startswith((".", "-", "~")):
        return f"begins with '{name[0]}'"
    if name.endswith("."):
        return "ends with '.'"
    if name.split(".", maxsplit=1)[0].strip().casefold() in _DEVICES:
        return "is the name of a device on Windows"
    if len(name.encode()) > _MAX_BYTES:
        return f"is longer than {_MAX_BYTES} bytes"
    return None


def _trouble(name: str) -> str | None:
    """Why a name is invalid for every use, or None."""
    if not name.strip():
        return "is empty"
    if name != name.strip():
        return "begins or ends with a space"
    return _invisible(name)


def _invisible(name: str) -> str | None:
    for character in name:
        # control and format characters, halves of characters, line and paragraph ends
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            return f"contains the invisible character U+{ord(character):04X}"
    return None


def _checked(name: str, trouble: str | None, remedy: str) -> str:
    if trouble is not None:
        raise ValueError(f"the name {trouble}; {remedy}")
    return name
