"""Finds secrets in text before it is published: tokens, passwords, private keys, and paths of this machine."""

from __future__ import annotations

import re

from armillary.recipe import passwords_in

_TOKENS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "a ModelScope token": r"\bms-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "an Alibaba Cloud key": r"\bLTAI[A-Za-z0-9]{12,}",
    "a Google API key": r"\bAIza[0-9A-Za-z_-]{35}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "a JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
}
_SECRETS = {what: re.compile(pattern) for what, pattern in _TOKENS.items()}
# Usual places of user files; any Windows path, file URL, or path below a home folder.
_TOPS = (
    *("home", "root", "Users", "mnt", "tmp", "var", "opt", "srv", "media", "scratch", "workspace", "work", "nfs"),
    *("lustre", "gpfs", "export", "Volumes", "private", "etc", "usr", "cache", "data", "dataset", "datasets"),
)
_PATHS = (
    re.compile(rf"(?<![\w/.:~<>])/(?:{'|'.join(_TOPS)})\d*/[^\s\"'`)\]>,;|]+"),
    re.compile(r"(?<![\w/])[A-Za-z]:\\+(?:Users|home|data|work)[^\s\"'`]*"),
    re.compile(r"\bfile://[^\s\"'`)]+"),
    re.compile(r"(?<![\w/.~])~/[\w.][^\s\"'`)]*"),
)
_SHOWN = 60


def secrets_in(text: str) -> list[str]:
    """The kinds of secrets in ``text``, each with its line, without the secret itself."""
    found = tokens_in(text)
    for number, line in enumerate(text.splitlines(), 1):
        found += [f"line {number}: a password" for password in passwords_in(line) if set(password) != {"*"}]
    return found


def tokens_in(text: str) -> list[str]:
    """As ``secrets_in``, without passwords, whose form is so loose that pieces of a vocabulary have it too."""
    return [
        f"line {number}: {what}"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in _SECRETS.items()
        if pattern.search(line)
    ]


def paths_in(text: str) -> list[str]:
    """The absolute paths of a machine in ``text``, each with its line."""
    return [
        f"line {number}: {match[0][:_SHOWN]}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern in _PATHS
        for match in pattern.finditer(line)
    ]
