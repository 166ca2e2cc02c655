"""The interface of a hub: create a repository, send files one by one, commit them together, and list its files.

A hub is one file in this folder with a registered class (``register``). Files are sent before the commit, so readers of
the repository see the older publication or the new one. The token comes from the environment, and ``Hub.scrubbed``
removes it from every message of a hub.
"""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from armillary.recipe import ArmillaryError, UsageError, without_passwords

_T = TypeVar("_T")
# Waits between attempts, if the hub names none; and the longest wait that it may name.
WAITS_S = (1.0, 4.0, 15.0)
_LONGEST_WAIT_S = 300.0
_LARGE = frozenset({".safetensors", ".gguf", ".ckpt", ".bin", ".pt", ".model"})
_LARGE_BYTES = 5 * 2**20
# Statuses after which another attempt may succeed.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524})


class PassingError(ArmillaryError):
    """A transient failure. ``wait_s`` is the delay that the hub requested."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Target:
    """The target of a model: the repository ``OWNER/NAME``, its branch (None: the default one), and whether a new
    repository is private. ``licence`` is the licence of a new repository.

    Raises:
        UsageError: the repository is not ``OWNER/NAME``.
    """

    repo: str
    revision: str | None = None
    private: bool = False
    licence: str | None = None

    def __post_init__(self) -> None:
        owner, _, name = self.repo.partition("/")
        if not owner or not name or "/" in name or any(c.isspace() or c in "\\:@?#" for c in self.repo):
            raise UsageError(f"{self.repo}: not the name of a repository; give OWNER/NAME")


@dataclass(frozen=True)
class Outgoing:
    """A file to send: its name in the repository, its path, size and SHA-256."""

    name: str
    path: Path
    size: int
    sha256: str


class Hub(ABC):
    """A hub to publish models to.

    Attributes:
        name: as given to ``--to``.
        variable: the environment variable that holds the token.
        site: the default address; ``site_variable`` is the environment variable that replaces it.
    """

    name: ClassVar[str]
    variable: ClassVar[str]
    site: ClassVar[str]
    site_variable: ClassVar[str]

    def __init__(self, target: Target, work: Path) -> None:
        """``work`` is a folder for the hub's working files, which stays until the publication is complete.

        Raises:
            UsageError: there is no token.
            ArmillaryError: a program or package that the transfer needs is missing.
        """
        self.target, self.work = target, work
        self.endpoint = os.environ.get(self.site_variable, self.site).rstrip("/")
        token = os.environ.get(self.variable, "").strip()
        if not token:
            raise UsageError(f"{self.variable}: not set; set it to a token of {self.endpoint} with write access")
        self._token = token

    @abstractmethod
    def prepare(self) -> None:
        """Create the repository and the branch if they are missing."""

    @abstractmethod
    def send(self, file: Outgoing) -> None:
        """Send the bytes of ``file``, if the hub does not have them; readers do not see it yet."""

    @abstractmethod
    def commit(self, files: Sequence[Outgoing]) -> str:
        """Make ``files`` visible in one commit; returns its address."""

    @abstractmethod
    def remote(self) -> Mapping[str, str]:
        """The files of the branch: ``sha256:HEX``, or ``git:HEX`` (the id of a git blob) for each name."""

    def licence(self) -> str:
        """The licence of a new repository; raises UsageError if none is given."""
        if self.target.licence is None:
            raise UsageError(f"--licence: {self.name} requires a licence for every new repository; give one")
        return self.target.licence

    def scrubbed(self, text: str) -> str:
        """``text`` without the token and without passwords."""
        return without_passwords(text.replace(self._token, "***"))

    def refused(self, status: int, message: str, wait_s: float | None = None) -> ArmillaryError:
        """The error for a response of the hub with an HTTP ``status``."""
        message = " ".join(self.scrubbed(message).split())[:300]
        what = f"{self.name} {self.target.repo}: status {status}{f' ({message})' if message else ''}"
        if status in (401, 403):
            return UsageError(f"{what}; give {self.variable} a token that may write to the repository")
        if status == 404:
            return UsageError(f"{what}: not found; check the name, and that {self.variable} may see the repository")
        if status in _PASSING:
            return PassingError(what, wait_s)
        return ArmillaryError(what)

    def unreachable(self, error: BaseException) -> PassingError:
        """The error for a connection that failed or was interrupted."""
        message = " ".join(self.scrubbed(str(error)).split())[:300] or type(error).__name__
        return PassingError(f"{self.name} {self.target.repo}: {self.endpoint} cannot be reached ({message})")


def is_large(file: Outgoing) -> bool:
    """Whether ``file`` goes to git-LFS: weights, and any file of at least 5 MiB."""
    return file.size >= _LARGE_BYTES or file.path.suffix in _LARGE


HUBS: dict[str, type[Hub]] = {}


def register(hub: type[Hub]) -> type[Hub]:
    """Register ``hub`` under its name."""
    HUBS[hub.name] = hub
    return hub


def attempt(act: Callable[[], _T]) -> _T:
    """The value of ``act``, which is retried after a ``PassingError``, with growing delays.

    Raises:
        ArmillaryError: the last attempt failed too, or the error is permanent.
    """
    for wait in (*WAITS_S, None):
        try:
            return act()
        except PassingError as error:
            if wait is None:
                raise ArmillaryError(f"{error}, in {len(WAITS_S) + 1} attempts; the same command resumes") from error
            time.sleep(min(error.wait_s if error.wait_s is not None else wait, _LONGEST_WAIT_S))
    raise AssertionError("the last attempt returns or raises")


def retry_after(value: str | None) -> float | None:
    """The seconds in a ``Retry-After`` header; None for a date or nonsense."""
    try:
        return max(0.0, float(value or ""))
    except ValueError:
        return None


def differences(files: Sequence[Outgoing], remote: Mapping[str, str]) -> dict[str, str]:
    """The problem of each of ``files`` that differs from ``remote`` (``Hub.remote``)."""
    found = {}
    for file in files:
        there = remote.get(file.name)
        if there is None:
            found[file.name] = "is missing on the hub"
        elif there != (here := _digest(file, there)):
            found[file.name] = f"is {there} on the hub and {here} locally"
    return found


def _digest(file: Outgoing, like: str) -> str:
    """The digest of ``file`` of the kind of ``like``."""
    if like.startswith("sha256:"):
        return f"sha256:{file.sha256}"
    content = file.path.read_bytes()  # a plain blob of git is small
    digest = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    digest.update(content)
    return f"git:{digest.hexdigest()}"
