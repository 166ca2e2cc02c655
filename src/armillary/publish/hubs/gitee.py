"""Gitee: a git repository with git-LFS."""

from __future__ import annotations

from armillary.publish.hubs.git import GitLfs
from armillary.publish.hubs.hub import register


@register
class Gitee(GitLfs):
    """A repository of gitee.com, or of the site in ``GITEE_ENDPOINT``."""

    name = "gitee"
    variable = "GITEE_TOKEN"
    site = "https://gitee.com"
    site_variable = "GITEE_ENDPOINT"
    new = "/projects/new"
