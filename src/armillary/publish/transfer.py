"""Sends a folder to a hub: file by file, then one commit, then a comparison of the hub's hashes with ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from armillary.publish.hubs.hub import Hub, Outgoing, attempt, differences
from armillary.publish.plan import FILE, Plan, PlannedFile, read_plan
from armillary.recipe import ArmillaryError

# Written by the hubs themselves.
_THEIRS = frozenset({".gitattributes", ".gitignore", "configuration.json"})


@dataclass(frozen=True)
class Transferred:
    """The outcome of a transfer.

    Attributes:
        address: of the commit.
        sent: names of the files that were sent in this call; the hub already had the others.
        strangers: files of the repository that are not part of this publication.
    """

    address: str
    sent: tuple[str, ...]
    strangers: tuple[str, ...]


def transfer(
    folder: Path,
    digests: Mapping[str, str],
    hub: Hub,
    progress: Callable[[int, int, str], None] = lambda done, of, name: None,
) -> Transferred:
    """Send the files of ``folder`` with their SHA-256 ``digests`` to ``hub``.

    ``progress`` receives the bytes done, the bytes in total, and the name of the next file. The plan is
    in ``hub.work``.

    Raises:
        UsageError: the hub refuses the token or the repository.
        DamagedFileError: the plan of an earlier call is torn or edited.
        ArmillaryError: the hub fails, or its hashes differ from ours; the next call sends these files again.
    """
    files = [Outgoing(name, folder / name, (folder / name).stat().st_size, digest) for name, digest in digests.items()]
    target, path = hub.target, hub.work / FILE
    plan = Plan(hub.name, hub.endpoint, target.repo, target.revision)
    plan.files = [PlannedFile(file.name, file.size, file.sha256) for file in files]
    older = read_plan(path)
    if older is not None:
        plan.take_over(older)
    plan.write(path)
    attempt(hub.prepare)
    there = attempt(hub.remote)
    lacking = differences(files, there)
    sent = []
    done, total = 0, sum(file.size for file in files)
    for row, file in zip(plan.files, files, strict=True):
        progress(done, total, file.name)
        if not row.sent and file.name in lacking:
            attempt(lambda file=file: hub.send(file))  # type: ignore[misc]
            sent.append(file.name)
        row.sent = True
        plan.write(path)
        done += file.size
    progress(total, total, "commit")
    if lacking or plan.commit is None:
        plan.commit = attempt(lambda: hub.commit(files))
        plan.write(path)
        there = attempt(hub.remote)
        lacking = differences(files, there)
    if lacking:
        for row in plan.files:
            row.sent = row.name not in lacking
        plan.commit = None
        plan.write(path)
        listed = "; ".join(f"{name} {condition}" for name, condition in lacking.items())
        raise ArmillaryError(
            f"{hub.name} {target.repo}: differs from what was sent: {listed}; the same command sends it again"
        )
    plan.checked = True
    plan.write(path)
    return Transferred(plan.commit, tuple(sent), tuple(sorted(set(there) - set(digests) - _THEIRS)))
