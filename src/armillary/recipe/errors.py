"""The two kinds of error that reach the user, and their exit codes.

Every error says what was wrong, where, and what would be right; the command line prints it without a traceback.
"""

from __future__ import annotations

import re

# Each has what is kept in front of the secret, and the secret: the password in a URL, also one that holds a slash,
# unless it looks like the port and path of a host; the value of a URL parameter whose name suggests a secret; and
# passwords in a connection string, where blanks may surround the sign and quotes the value, or in JSON.
_PARAMETER = r"pass|pwd|secret|token|api_?key|access_?key|signature|credential|(?<=[?&])(?:key|sig)"
_SECRETS = (
    re.compile(r"(://[^:/@\s]*:)([^/\s]*)(?=@)"),
    re.compile(r"(://(?!(?:[^:/@\s]*\.[^:/@\s]*|localhost):\d{1,5}/)[^:/@\s]*:)(?!\*{3}@)([^/@\s]*/[^@\s]*)(?=@)"),
    re.compile(rf"([?&](?:[^=&\s]*(?:{_PARAMETER})[^=&\s]*)=)([^&\s'\"]*)", re.IGNORECASE),
    re.compile(
        r"((?:password|passwd|passphrase|pwd)(?:\s*=|['\"]\s*:)\s*)"
        r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|['\"]?[^&\s'\",;)]+)",
        re.IGNORECASE,
    ),
)


class ArmillaryError(Exception):
    """The work failed: a run diverged, a file is torn, a disk is full. Exit code 1."""

    exit_code = 1


class UsageError(ArmillaryError):
    """Invalid user input: a recipe, a source, an option. Exit code 2."""

    exit_code = 2


class FieldError(ValueError):
    """Raised in a check over several fields of a document: ``location`` is the path to the field at fault."""

    def __init__(self, message: str, *location: str) -> None:
        super().__init__(message)
        self.location = location


class SeveralFieldsError(ValueError):
    """Raised in a check over several fields that finds more than one problem."""

    def __init__(self, problems: list[FieldError]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def without_passwords(text: str) -> str:
    """``text`` with ``***`` in place of each password of a URL, of its parameters or of a connection string."""
    for secret in _SECRETS:
        text = secret.sub(r"\1***", text)
    return text


def passwords_in(text: str) -> list[str]:
    """What ``without_passwords`` would replace in ``text``, without quotes."""
    return [found[2].strip("'\"") for secret in _SECRETS for found in secret.finditer(text)]
