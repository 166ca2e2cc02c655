"""Checks that another machine sees our files and locks in the store, the same corpus, and the same versions.

Two machines that train into one folder need more than a path that exists on both. One must read what the other writes,
and a lock held by one must stop the other, or both could train the same run. So this machine writes and locks a file.
Every other machine reads it, must be refused the lock, and writes a mark, which this machine then reads.

Trade-off: a file system that loses locks only sometimes passes the check.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from armillary import __version__
from armillary.recipe import ArmillaryError, lock


@dataclass(frozen=True)
class Proof:
    """The facts to check elsewhere: a file in the store's folder, locked by us; the corpus; and the versions."""

    store: Path
    corpus: Path
    token: str
    torch: str
    armillary: str

    @property
    def file(self) -> Path:
        """The file that we hold a lock on."""
        return self.store / f".proof-{self.token}"

    def _mark(self, machine: str) -> Path:
        return self.store / f".proof-{self.token}.{machine}"

    def problem_there(self, machine: str) -> str | None:
        """Run on another machine, under a unique name: the problem with that machine, or None."""
        import torch

        from armillary.corpus import Corpus

        for package, here in (("torch", str(torch.__version__)), ("armillary", __version__)):
            wanted = getattr(self, package)
            if here != wanted:
                return f"it has {package} {here}, but all nodes of a study need the same version, {wanted}"
        try:
            with open(self.file, "r+") as file:
                if file.read() != self.token:
                    return f"{self.store}: this node sees a different folder there; all nodes must share one folder"
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass
                else:
                    return (
                        f"{self.store}: this node does not see a lock held by another, so two nodes could train the "
                        "same run; mount the file system with locks across nodes (NFSv4; Lustre with -o flock)"
                    )
            self._mark(machine).write_text("seen", encoding="utf-8")
            Corpus.open(self.corpus)
        except FileNotFoundError as error:
            return (
                f"{error.filename}: not found; the store's folder and the corpus must be at the same path on every node"
            )
        except OSError as error:
            return f"{error.filename or self.store}: {error.strerror}"
        except ArmillaryError as error:
            return str(error)
        return None

    def problem_here(self, machine: str) -> str | None:
        """Run on the machine with the lock, after another machine passed: the problem if its mark is not visible, or
        None."""
        if self._mark(machine).exists():
            return None
        return (
            f"{self.store}: files written by this node do not appear on the head node; all nodes must share this folder"
        )


@contextlib.contextmanager
def proof(store: Path, corpus: Path) -> Iterator[Proof]:
    """Hold the lock while other machines run ``problem_there``; no files are left in the store."""
    import torch

    given = Proof(store, corpus, secrets.token_hex(8), str(torch.__version__), __version__)
    with open(given.file, "w") as file:
        lock(file.fileno(), given.file, wait=True)
        file.write(given.token)
        file.flush()
        os.fsync(file.fileno())
        try:
            yield given
        finally:
            for path in store.glob(f"{given.file.name}*"):
                path.unlink(missing_ok=True)
