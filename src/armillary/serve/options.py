"""The options of a server, and its report once it listens."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from armillary.generate import BackendOptions
from armillary.recipe import UsageError, is_loopback

TOKEN = "ARMILLARY_SERVE_TOKEN"


@dataclass(frozen=True)
class ServeOptions:
    """How to serve a model.

    Attributes:
        host: the address to listen on. Beyond loopback, the environment must hold a token.
        port: its port; 0 takes a free one.
        name: the model's name for clients; None takes that of its folder or file.
        queue: answers that may wait for a slot; further requests get status 429.
        backend: options of the engine; ``batch_size`` is the number of answers at a time.

    Raises:
        UsageError: a value outside its range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    queue: int = 256
    backend: BackendOptions = field(default_factory=BackendOptions)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise UsageError(f"port must be 0 (any free one) to 65535, given {self.port}")
        if self.queue < 0:
            raise UsageError(f"queue must be 0 or more, given {self.queue}")
        if self.name is not None and not self.name.strip():
            raise UsageError("name must not be empty")


@dataclass(frozen=True)
class Listening:
    """A server that accepts requests at ``url``; ``slots`` answers are computed at a time."""

    url: str
    model: str
    backend: str
    context: int
    slots: int
    queue: int
    token: bool


def read_token(host: str) -> str | None:
    """The token that requests must carry, from the environment; None if there is none and ``host`` is loopback.

    Raises:
        UsageError: no token for a host that other machines reach, or one that is not valid in a header.
    """
    token = os.environ.get(TOKEN, "")
    if not token:
        if is_loopback(host):
            return None
        raise UsageError(
            f"--host {host} can be reached from other machines, so requests need a token: set the environment variable "
            f"{TOKEN} (such as the output of `openssl rand -hex 24`), or listen on 127.0.0.1"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"the environment variable {TOKEN} is not a valid token: it has spaces, line ends or characters beyond "
            "ASCII; set it to the token alone"
        )
    return token
