"""Modelers (魔乐社区): a git repository with git-LFS, created through the site's API.

``openmind-hub`` is not used: it pins ``requests`` to one version, and its transfer is git-LFS too.
"""

from __future__ import annotations

import httpx2

from armillary.publish.hubs.git import GitLfs
from armillary.publish.hubs.hub import register, retry_after
from armillary.recipe import UsageError

_EXISTS = "duplicate_creating"


@register
class Modelers(GitLfs):
    """A model repository of modelers.cn, or of the site in ``MODELERS_ENDPOINT``."""

    name = "modelers"
    variable = "MODELERS_TOKEN"
    site = "https://modelers.cn"
    site_variable = "MODELERS_ENDPOINT"
    new = "/models/new"

    def create(self, missing: UsageError) -> None:
        """As ``GitLfs.create``."""
        owner, _, name = self.target.repo.partition("/")
        about = {
            "name": name,
            "owner": owner,
            "license": self.licence(),
            "visibility": "private" if self.target.private else "public",
        }
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            answer = httpx2.post(f"{self.endpoint}/api/v1/model", json=about, headers=headers, timeout=60)
        except httpx2.TransportError as error:
            raise self.unreachable(error) from None
        if answer.status_code == 400 and _EXISTS in answer.text:  # it cannot be read by this token
            raise missing
        if answer.status_code >= 400:
            raise self.refused(answer.status_code, answer.text, retry_after(answer.headers.get("retry-after")))
