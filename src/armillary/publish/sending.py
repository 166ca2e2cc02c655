"""From a published model to a repository on a hub: prepare, check, send, and compare with the hub's hashes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from armillary.publish.hubs import HUBS, Target
from armillary.publish.leaving import Checked, check_leaving
from armillary.publish.plan import PlannedFile
from armillary.publish.stage import Additions, Staged, stage
from armillary.publish.transfer import Transferred, transfer
from armillary.recipe import UsageError, exclusive


@dataclass(frozen=True)
class SendOptions:
    """How to publish: the hub ``to``, the owner's additions, whether ``transformers`` loads the folder first,
    and whether anything is sent (not in a dry run)."""

    to: str
    target: Target
    additions: Additions = field(default_factory=Additions)
    load: bool = True
    dry_run: bool = False


@dataclass(frozen=True)
class Sent:
    """A publication: its files, the checks before sending, and the transfer (None in a dry run)."""

    files: tuple[PlannedFile, ...]
    checked: Checked
    transferred: Transferred | None


def send(
    model: Path, options: SendOptions, progress: Callable[[int, int, str], None] = lambda done, of, name: None
) -> Sent:
    """Publish the folder ``model``, which ``publish`` or another program wrote, to a hub.

    The plan and the other files of an interrupted transfer are in the hidden folder ``.NAME.HUB.OWNER--REPO`` beside
    it.

    Raises:
        UsageError: an unknown hub, no token, a folder that is not a publication, or one that holds a secret.
        DamagedFileError: a file was changed after publication, or the plan was.
        ArmillaryError: a check failed, or the transfer did; the same call resumes.
        BusyError: another process publishes the same model to the same repository.
    """
    if options.to not in HUBS:
        raise UsageError(f"--to {options.to}: unknown hub; give one of {', '.join(HUBS)}")
    if not model.is_dir():
        raise UsageError(f"{model}: not found; give the folder of a model")
    model = model.resolve()
    owner, _, name = options.target.repo.partition("/")
    work = model.with_name(f".{model.name}.{options.to}.{owner}--{name}")
    target = replace(options.target, licence=options.additions.licence)
    hub = None if options.dry_run else HUBS[options.to](target, work)
    try:
        with exclusive(work / "lock", "publishes this model"):
            staged = stage(model, work / "folder", name, options.additions)
            checked = check_leaving(staged.folder, load=options.load)
            files = tuple(_files(staged))
            transferred = None if hub is None else transfer(staged.folder, staged.digests, hub, progress)
            for place in ("folder", "git"):
                shutil.rmtree(work / place, ignore_errors=True)
    finally:
        if hub is None:
            shutil.rmtree(work / "folder", ignore_errors=True)
            with suppress(OSError):  # holds the plan of an interrupted transfer
                if {path.name for path in work.iterdir()} == {"lock"}:
                    shutil.rmtree(work)
    return Sent(files, checked, transferred)


def _files(staged: Staged) -> list[PlannedFile]:
    sizes = {name: (staged.folder / name).stat().st_size for name in staged.digests}
    return [PlannedFile(name, sizes[name], digest) for name, digest in sorted(staged.digests.items())]
