"""Records examinations in a store: the model, its run, the scores, and the hash of the folder with the items.

The row is an outcome of the stage ``examination``: it is in the journal and never rewritten. Its key is the hash of
``results.json``, which holds the hash of each file of items, so row and folder can be checked against each other.
"""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from armillary.evaluate import read_examination
from armillary.evaluate.results import RESULTS
from armillary.recipe import UsageError
from armillary.store import EXAMINATION, Reader, Store


def open_store(folder: Path, url: str | None = None) -> Store:
    """The store in ``folder``, which must exist; ``url`` is its database if that is not its SQLite file.

    Raises:
        UsageError: there is no store, or ``url`` is not a usable database.
        ArmillaryError: the database at ``url`` cannot be reached, or contains no store.
    """
    if url is None and not (folder / "store.sqlite").is_file():
        raise UsageError(
            f"{folder}: no store.sqlite; give the folder of a store, such as results/store, or its database with "
            "--database"
        )
    if url is not None:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder; give the folder of the store, such as results/store")
        with Reader(folder, url).database.reading():  # a store would be created in the wrong database
            pass
    return Store(folder, url)


def record_examination(store: Store, folder: Path) -> dict[str, Any]:
    """Record the examination in ``folder``, and return its row. An examination is recorded only once.

    Raises:
        UsageError: no examination is in the folder.
        DamagedFileError: its files are torn, edited, or do not belong together.
    """
    examination = read_examination(folder)
    digest = sha256((folder / RESULTS).read_bytes()).hexdigest()
    model = dict(examination.model)
    lineage = model.pop("lineage", None) or {}
    row = {
        "model": model,
        "run": model.get("run") or lineage.get("run"),
        "corpus": model.get("corpus") or lineage.get("corpus"),
        "results": [asdict(result) for result in examination.results],
        "cost": dict(examination.cost),
        "folder": folder.name,
        "sha256": digest,
    }
    store.record_stage(EXAMINATION, digest[:16], row)
    return {"examination": digest[:16], **row}
