"""The templates of the pages, and the function that writes a page."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from armillary.files import write_file
from armillary.recipe import ArmillaryError

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@functools.cache
def environment() -> Environment:
    """The templates of this room; printed values are escaped."""
    return Environment(
        loader=PackageLoader("armillary.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: Path, html: str) -> None:
    """Write a page; an older file is replaced atomically.

    A barely trained model may write control characters, which HTML forbids; each becomes U+FFFD.

    Raises:
        ArmillaryError: the file cannot be written.
    """
    try:
        write_file(path, _CONTROL.sub("\ufffd", html).encode("utf-8", errors="replace"))
    except OSError as error:
        raise ArmillaryError(
            f"{path}: the report cannot be written ({error.strerror}); give a path that can be written"
        ) from error
