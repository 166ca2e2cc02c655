"""ModelScope, through ``modelscope-hub``.

Its client uploads blobs one by one and commits them together. Small files travel inside the commit. The hub
lists the SHA-256 of every file.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from armillary.publish.hubs.hub import Hub, Outgoing, Target, is_large, register
from armillary.recipe import ArmillaryError

_T = TypeVar("_T")
_KIND = "model"


@register
class ModelScope(Hub):
    """A model repository of modelscope.cn, or of the site in ``MODELSCOPE_ENDPOINT``."""

    name = "modelscope"
    variable = "MODELSCOPE_API_TOKEN"
    site = "https://modelscope.cn"
    site_variable = "MODELSCOPE_ENDPOINT"

    def __init__(self, target: Target, work: Path) -> None:
        super().__init__(target, work)
        try:
            from modelscope_hub import HubApi
        except ImportError as error:
            raise ArmillaryError("modelscope needs an extra: pip install 'armillary[publish]'") from error
        self._api = HubApi(endpoint=self.endpoint, token=self._token)
        self._branch = target.revision or "master"

    def prepare(self) -> None:
        """As ``Hub.prepare``; the branch must exist."""
        repo = self.target.repo
        if not self._call(lambda: self._api.repo_exists(repo, _KIND)):
            licence, visibility = self.licence(), "private" if self.target.private else "public"
            self._call(lambda: self._api.create_repo(repo, _KIND, visibility=visibility, license=licence))

    def send(self, file: Outgoing) -> None:
        """As ``Hub.send``; small files travel with the commit."""
        if is_large(file):
            self._call(lambda: self._upload(file))

    def _upload(self, file: Outgoing) -> None:
        objects = [{"oid": file.sha256, "size": file.size}]
        address = self._api.legacy.validate_blobs(self.target.repo, _KIND, objects).get(file.sha256)
        if address is not None:
            with open(file.path, "rb") as data:
                self._api.legacy.upload_blob(address, data, file.size)

    def commit(self, files: Sequence[Outgoing]) -> str:
        """As ``Hub.commit``; files that the hub has lost since they were sent are sent again."""
        for file in files:
            self.send(file)
        actions = [self._action(file) for file in files]
        message = f"Publish {self.target.repo.partition('/')[2]}"
        legacy = self._api.legacy
        self._call(lambda: legacy.create_commit(self.target.repo, _KIND, actions, message, self._branch))
        return f"{self.endpoint}/models/{self.target.repo}/files?version={self._branch}"

    def remote(self) -> Mapping[str, str]:
        """As ``Hub.remote``."""
        rows = self._call(lambda: self._api.legacy.list_repo_files(self.target.repo, _KIND, self._branch))
        return {row["Path"]: f"sha256:{row['Sha256']}" for row in rows if row.get("Type") != "tree"}

    def _action(self, file: Outgoing) -> dict[str, Any]:
        action = {"action": "create", "path": file.name, "size": file.size}
        if is_large(file):
            return {**action, "type": "lfs", "sha256": file.sha256, "content": "", "encoding": ""}
        content = base64.b64encode(file.path.read_bytes()).decode()
        return {**action, "type": "normal", "sha256": "", "content": content, "encoding": "base64"}

    def _call(self, act: Callable[[], _T]) -> _T:
        from modelscope_hub.errors import HubError

        try:
            return act()
        except HubError as error:
            status = getattr(error, "status_code", None)
            wait = getattr(error, "retry_after", None)
            if status is None:
                raise self.unreachable(error) from None
            raise self.refused(status, error.message, wait) from None
        except (OSError, ValueError, KeyError) as error:  # requests' errors are OSErrors; half an answer is no JSON
            raise self.unreachable(error) from None
