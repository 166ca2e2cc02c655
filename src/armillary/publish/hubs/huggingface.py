"""Hugging Face, through ``huggingface_hub``.

Large files are uploaded one by one before the commit (over Xet if ``hf_xet`` is installed, otherwise over git-LFS), and
the hub skips files that it already has. ``huggingface_hub`` retries single requests, the caller of this class retries
whole steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from armillary.publish.hubs.hub import Hub, Outgoing, Target, register, retry_after
from armillary.recipe import ArmillaryError

_T = TypeVar("_T")


@register
class HuggingFace(Hub):
    """A model repository of huggingface.co, or of a hub with its API under ``HF_ENDPOINT``."""

    name = "huggingface"
    variable = "HF_TOKEN"
    site = "https://huggingface.co"
    site_variable = "HF_ENDPOINT"

    def __init__(self, target: Target, work: Path) -> None:
        super().__init__(target, work)
        try:
            from huggingface_hub import HfApi
            from huggingface_hub.utils.tqdm import disable_progress_bars
        except ImportError as error:
            raise ArmillaryError("huggingface needs an extra: pip install 'armillary[publish]'") from error
        disable_progress_bars()
        self._api = HfApi(endpoint=self.endpoint, token=self._token)

    def prepare(self) -> None:
        """As ``Hub.prepare``."""
        repo, branch = self.target.repo, self.target.revision
        self._call(lambda: self._api.create_repo(repo, private=self.target.private or None, exist_ok=True))
        if branch is not None:
            self._call(lambda: self._api.create_branch(repo, branch=branch, exist_ok=True))

    def send(self, file: Outgoing) -> None:
        """As ``Hub.send``; small files travel with the commit."""
        self._call(
            lambda: self._api.preupload_lfs_files(
                self.target.repo, [self._addition(file)], revision=self.target.revision, free_memory=False
            )
        )

    def commit(self, files: Sequence[Outgoing]) -> str:
        """As ``Hub.commit``; files that the hub has lost since they were sent are sent again."""
        return self._call(
            lambda: str(
                self._api.create_commit(
                    self.target.repo,
                    [self._addition(file) for file in files],
                    commit_message=f"Publish {self.target.repo.partition('/')[2]}",
                    revision=self.target.revision,
                ).commit_url
            )
        )

    def remote(self) -> Mapping[str, str]:
        """As ``Hub.remote``."""
        entries = self._call(
            lambda: list(self._api.list_repo_tree(self.target.repo, recursive=True, revision=self.target.revision))
        )
        files: list[Any] = [entry for entry in entries if hasattr(entry, "blob_id")]
        return {file.path: f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}" for file in files}

    def _addition(self, file: Outgoing) -> Any:
        from huggingface_hub import CommitOperationAdd

        addition = CommitOperationAdd(file.name, file.path)
        addition.upload_info.sha256 = bytes.fromhex(file.sha256)
        return addition

    def _call(self, act: Callable[[], _T]) -> _T:
        try:
            return act()
        except Exception as error:  # huggingface_hub wraps failed requests in exceptions of several classes
            raise self._explained(error) from None  # the original exception may hold headers with the token

    def _explained(self, error: Exception) -> ArmillaryError:
        """Our error for an exception of ``huggingface_hub``: the hub refused, cannot be reached, or the work failed."""
        for cause in _causes(error):
            response = getattr(cause, "response", None)
            if response is not None and getattr(response, "status_code", None):
                wait = retry_after(response.headers.get("retry-after"))
                message = getattr(cause, "server_message", None) or response.reason_phrase
                return self.refused(response.status_code, str(message), wait)
            if isinstance(
                cause, httpx2.TransportError | json.JSONDecodeError
            ):  # no connection, or an incomplete answer
                return self.unreachable(cause)
        return ArmillaryError(f"{self.name} {self.target.repo}: {self.scrubbed(str(error))[:300]}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
