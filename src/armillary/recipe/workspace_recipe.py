"""The copy of its recipe that a workspace keeps, and how a verb finds recipe and results from its path argument.

``OUT/recipe.yaml`` is an ordinary recipe with every default written out. Its first line marks it as a copy and holds a
hash of the rest, which detects an edit by hand. Sources below the workspace's parent folder are written relative to the
copy, so that both can be moved together. All other sources are absolute.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from armillary.files import write_file
from armillary.recipe.document import Recipe, load_recipe
from armillary.recipe.errors import ArmillaryError, UsageError
from armillary.recipe.written import kept_state, mark

NAME = "recipe.yaml"

_EXPLAINED = (
    "# `armillary report FOLDER` and every other verb of a recipe take this folder in its place. Changes made here\n"
    "# apply to such calls; the next call with another recipe for this folder writes its own copy here.\n"
)
# Entries that only a workspace has. A kept copy without any of them beside it was copied elsewhere, and is an ordinary
# recipe.
_PARTS = ("store", "plan.json", "corpus")


@dataclass(frozen=True)
class Given:
    """A verb's resolved argument: the recipe's file, and the results folder if the recipe lies in one."""

    file: Path
    folder: Path | None
    edited: bool = False


def given(path: Path) -> Given:
    """Find the recipe of ``path``: a recipe file, a workspace, or a folder in a workspace such as its store.

    Raises:
        UsageError: ``path`` is a folder without a recipe.
    """
    if path.is_dir():
        file = path / NAME
        if not file.is_file() and is_workspace(path.resolve().parent) and kept_state(path.resolve().parent / NAME):
            file = _short(path.resolve().parent / NAME)  # the store, say, in a folder of results
            return Given(file, file.parent, kept_state(file) == "edited")
        if not file.is_file():
            raise UsageError(
                f"{path}: is a folder without a {NAME}; give the path of a YAML file, and the folder with --out"
                if is_workspace(path)
                else f"{path}: cannot be read (Is a directory); give the path of a YAML file, or the folder of results"
            )
    else:
        file = path
    state = kept_state(file)
    inside = is_workspace(file.parent) and file.name == NAME and (state is not None or path.is_dir())
    return Given(file, file.parent if inside else None, inside and state == "edited")


def is_workspace(folder: Path) -> bool:
    """Whether ``folder`` has an entry that only a workspace has."""
    return any((folder / part).exists() for part in _PARTS)


def keep_recipe(recipe: Recipe, folder: Path) -> str | None:
    """Write the copy of ``recipe`` into ``folder``. A copy of the same recipe is not changed.

    A copy that was edited by hand is renamed, not lost; a ``recipe.yaml`` that is not a copy is not changed.

    Returns:
        A message for the user, or None.
    """
    file = folder / NAME
    state = kept_state(file)
    if file.exists():
        if _same(file, recipe):
            return None
        if state is None:
            return (
                f"{file} is a different recipe and was not changed; no copy of the current recipe is kept in this "
                "folder"
            )
    note = None
    if state == "edited":
        aside = next(p for n in range(1, 1000) if not (p := folder / f"recipe.edited-{n}.yaml").exists())
        file.rename(aside)
        note = f"{file} was edited by hand; the edited copy is now {aside}"
    document = recipe.model_dump(mode="json", exclude_none=True)
    base = folder.resolve()
    for domain in document["corpus"]["domains"].values():
        domain["source"] = _portable(domain["source"], base)
    if "file" in document["corpus"]["tokenizer"]:
        document["corpus"]["tokenizer"]["file"] = _portable(document["corpus"]["tokenizer"]["file"], base)
    text = _EXPLAINED + yaml.safe_dump(document, allow_unicode=True, sort_keys=False, width=110)
    write_file(file, (mark(text) + text).encode())
    return note


def results_folder(file: Path, name: str) -> tuple[Path, str | None]:
    """The default results folder of the document in ``file``: the folder ``name`` beside it.

    Earlier versions used the current directory. If results exist only there, that folder is returned.

    Returns:
        The folder, and a message for the user about an older one, or None.
    """
    place, older = _short(file.resolve().parent / name), Path(name)
    if not older.exists() or (place.exists() and place.samefile(older)) or not _has_results(older):
        return place, None
    copy = older / NAME
    if copy.is_file() and not _same_question(copy, file):
        return place, None
    if place.exists():
        return place, f"{older.resolve()} also has results of that name; read them with --out {older}"
    return older, (
        f"the results are in {older.resolve()}, where an earlier version put them; to move them next to "
        f"the recipe: mv {older} {place}"
    )


def _has_results(folder: Path) -> bool:
    return is_workspace(folder) or (folder / "spec.json").exists() or (folder / "checkpoints").exists()


def _same_question(copy: Path, file: Path) -> bool:
    """Whether both recipes have the same ``corpus`` section; True if one of them cannot be read."""
    try:
        return load_recipe(copy).corpus == load_recipe(file).corpus
    except ArmillaryError:
        return True


def _same(file: Path, recipe: Recipe) -> bool:
    """Whether ``file`` holds ``recipe``; the number of ranks of the target run is ignored."""
    try:
        return _without_layout(load_recipe(file)) == _without_layout(recipe)
    except ArmillaryError:
        return False


def _without_layout(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"layout": None})})


def _portable(source: str, folder: Path) -> str:
    """``source`` relative to ``folder`` if it is beside or below it."""
    if source.startswith("demo:") or "://" in source or not Path(source).is_relative_to(folder.parent):
        return source
    return os.path.relpath(source, folder)


def _short(path: Path) -> Path:
    """``path`` relative to the current directory if it is below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
