"""Hubs that are git repositories with git-LFS: large files go to LFS one by one, then one commit adds all of them.

There is no working tree and no copy of a file: a bare repository has hard links as LFS objects, and
the tree is built from blobs. The token reaches git through a credential helper that reads the environment, so neither
command lines nor files contain it.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import httpx2

from armillary.publish.hubs.hub import Hub, Outgoing, PassingError, Target, is_large, retry_after
from armillary.recipe import ArmillaryError, UsageError

_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n")
_STATUS = re.compile(r"(?:HTTP|error:|returned error:|status)\s*:?\s*(\d{3})\b", re.IGNORECASE)
_DENIED = re.compile(
    r"authentication (?:failed|required)|could not read (?:username|password)|access denied|authorization error",
    re.IGNORECASE,
)
# Variables that would print what git sends, or lead it to another repository.
_DROPPED = ("GIT_TRACE", "GIT_CURL_VERBOSE", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX", "GIT_OBJECT", "GIT_ASKPASS")
# Answers git with what the environment holds.
_HELPER = '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" "$ARMILLARY_USER" "$ARMILLARY_TOKEN"; }; f'
_MEDIA = "application/vnd.git-lfs+json"


class GitLfs(Hub):
    """A repository under ``ENDPOINT/OWNER/NAME.git``.

    Attributes:
        user: the user name that goes with a token.
        new: the page that creates a repository.
    """

    user: ClassVar[str] = "oauth2"
    new: ClassVar[str]

    def __init__(self, target: Target, work: Path) -> None:
        super().__init__(target, work)
        missing = [program for program in ("git", "git-lfs") if shutil.which(program) is None]
        if missing:
            raise ArmillaryError(f"{self.name} needs the program {missing[0]}; install git and git-lfs")
        self.url = f"{self.endpoint}/{target.repo}.git"
        self._git_folder = work / "git"
        self._branch = target.revision

    def prepare(self) -> None:
        """Create the repository if the hub supports it, check that it can be read, and find its default branch."""
        if not (self._git_folder / "HEAD").exists():
            shutil.rmtree(self._git_folder, ignore_errors=True)  # of a process that was killed
            self._run("init", "--quiet", "--bare", str(self._git_folder))
        self._git("config", "remote.origin.url", self.url)
        self._git("config", "lfs.locksverify", "false")
        try:
            head = self._git("ls-remote", "--symref", "origin", "HEAD")
        except UsageError as error:
            self.create(error)
            head = self._git("ls-remote", "--symref", "origin", "HEAD")
        found = re.search(r"^ref: refs/heads/(\S+)\tHEAD$", head, re.MULTILINE)
        self._branch = self.target.revision or (found[1] if found else "master")

    def create(self, missing: UsageError) -> None:
        """Create the repository, which cannot be read (``missing``); by default only the hub's web site can."""
        raise UsageError(f"{missing}; a new repository is created at {self.endpoint}{self.new}") from None

    def send(self, file: Outgoing) -> None:
        """As ``Hub.send``; small files travel with the commit."""
        if not is_large(file):
            return
        stored = self._git_folder / "lfs" / "objects" / file.sha256[:2] / file.sha256[2:4] / file.sha256
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.unlink(missing_ok=True)
        try:
            os.link(file.path, stored)
        except OSError:  # another file system
            shutil.copyfile(file.path, stored)
        self._git("lfs", "push", "--object-id", "origin", file.sha256)

    def commit(self, files: Sequence[Outgoing]) -> str:
        """As ``Hub.commit``; if the branch has moved, the next attempt reads it again."""
        head = self._fetch()
        self._git("read-tree", head or "--empty")
        attributes = self._git("cat-file", "-p", f"{head}:.gitattributes") if self._has_attributes(head) else ""
        rows = []
        for file in files:
            if is_large(file):
                pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n"
                blob = self._git("hash-object", "-w", "--stdin", given=pointer)
                line = f"{_quoted(file.name)} filter=lfs diff=lfs merge=lfs -text"
                if line not in attributes.splitlines():
                    attributes = f"{attributes.rstrip()}\n{line}\n".lstrip()
            else:
                blob = self._git("hash-object", "-w", "--no-filters", str(file.path.resolve()))
            rows.append((blob, file.name))
        if attributes:
            rows.append((self._git("hash-object", "-w", "--stdin", given=attributes), ".gitattributes"))
        index = "".join(f"100644 {blob.strip()}\t{name}\0" for blob, name in rows)
        self._git("update-index", "-z", "--index-info", given=index)
        tree = self._git("write-tree").strip()
        if head is not None and tree == self._git("rev-parse", f"{head}^{{tree}}").strip():
            return f"{self.endpoint}/{self.target.repo}/commit/{head}"
        parents = ["-p", head] if head is not None else []
        message = f"Publish {self.target.repo.partition('/')[2]}"
        commit = self._git("commit-tree", tree, *parents, "-m", message).strip()
        self._git("push", "--quiet", "origin", f"{commit}:refs/heads/{self._branch}")
        return f"{self.endpoint}/{self.target.repo}/commit/{commit}"

    def remote(self) -> Mapping[str, str]:
        """As ``Hub.remote``; an LFS object counts only if the server offers its download."""
        head = self._fetch()
        if head is None:
            return {}
        found, objects = {}, {}
        for row in self._git("ls-tree", "-r", "-l", "-z", head).split("\0"):
            if not row:
                continue
            about, _, name = row.partition("\t")
            _, kind, blob, size = about.split()
            if kind != "blob":
                continue
            pointer = _POINTER.fullmatch(self._git("cat-file", "-p", blob).encode()) if int(size) < 1024 else None
            if pointer:
                found[name], objects[pointer[1].decode()] = f"sha256:{pointer[1].decode()}", int(pointer[2])
            else:
                found[name] = f"git:{blob}"
        offered = self._offered(objects)
        return {
            name: digest
            for name, digest in found.items()
            if digest.startswith("git:") or digest.removeprefix("sha256:") in offered
        }

    def _offered(self, objects: Mapping[str, int]) -> set[str]:
        """Which of the LFS ``objects`` (SHA-256: bytes) the server has with this size."""
        if not objects:
            return set()
        basic = base64.b64encode(f"{self.user}:{self._token}".encode()).decode()
        request = {
            "operation": "download",
            "transfers": ["basic"],
            "objects": [{"oid": oid, "size": size} for oid, size in objects.items()],
        }
        headers = {"Accept": _MEDIA, "Content-Type": _MEDIA, "Authorization": f"Basic {basic}"}
        try:
            answer = httpx2.post(f"{self.url}/info/lfs/objects/batch", json=request, headers=headers, timeout=60)
            if answer.status_code != 200:
                wait = retry_after(answer.headers.get("retry-after"))
                raise self.refused(answer.status_code, answer.text, wait)
            rows = answer.json()["objects"]
            return {
                row["oid"]
                for row in rows
                if "download" in (row.get("actions") or {}) and objects.get(row["oid"]) == row.get("size")
            }
        except httpx2.TransportError as error:
            raise self.unreachable(error) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArmillaryError(f"{self.name} {self.target.repo}: the LFS server answers {error!r}") from None

    def _fetch(self) -> str | None:
        """The commit of the branch, read from the hub; None if the hub does not have the branch."""
        if not self._git("ls-remote", "origin", f"refs/heads/{self._branch}").strip():
            return None
        self._git("fetch", "--quiet", "--depth", "1", "--no-tags", "origin", f"+refs/heads/{self._branch}:refs/there")
        return self._git("rev-parse", "refs/there").strip()

    def _has_attributes(self, head: str | None) -> bool:
        return head is not None and bool(self._git("ls-tree", head, ".gitattributes").strip())

    def _git(self, *words: str, given: str | None = None) -> str:
        """The output of ``git`` in our repository."""
        return self._run("--git-dir", str(self._git_folder), *words, given=given)

    def _run(self, *words: str, given: str | None = None) -> str:
        command = ["git", "-c", "credential.helper=", "-c", f"credential.helper={_HELPER}", *words]
        known = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
        environment = {
            **known,
            "LC_ALL": "C",
            "GIT_TERMINAL_PROMPT": "0",
            "ARMILLARY_USER": self.user,
            "ARMILLARY_TOKEN": self._token,
            **{
                f"GIT_{role}_{what}": value
                for role in ("AUTHOR", "COMMITTER")
                for what, value in (("NAME", "armillary"), ("EMAIL", "armillary@localhost"))
            },
        }
        ended = subprocess.run(
            command, input=None if given is None else given.encode(), env=environment, capture_output=True, check=False
        )
        if ended.returncode == 0:
            return ended.stdout.decode("utf-8", "replace")
        raise self._explained(ended.stderr.decode("utf-8", "replace") or ended.stdout.decode("utf-8", "replace"))

    def _explained(self, output: str) -> ArmillaryError:
        lines = [line for line in output.splitlines() if line.strip() and not line.startswith(("hint:", "Uploading"))]
        words = " ".join(lines[-3:])
        status = _STATUS.search(words)
        if status:
            return self.refused(int(status[1]), words)
        if _DENIED.search(words):
            return self.refused(401, words)
        if re.search(r"not found|does not exist", words, re.IGNORECASE):
            return self.refused(404, words)
        return PassingError(f"{self.name} {self.target.repo}: git: {self.scrubbed(words)[:300] or 'failed'}")


def _quoted(name: str) -> str:
    """A file name as a pattern of ``.gitattributes``."""
    return f'"{name}"' if any(c.isspace() for c in name) else name
