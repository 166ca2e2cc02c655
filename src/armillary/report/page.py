"""Writes the report: plain data in, one self-contained HTML file out."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from armillary.recipe import ArmillaryError
from armillary.report.data import ReportData


def write_report(data: ReportData, path: Path, language: Literal["en", "zh"] = "en") -> None:
    """Write ``data`` as one HTML file that loads nothing from elsewhere; an older file is replaced atomically.

    The same data gives the same bytes.

    Raises:
        ArmillaryError: the file cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("armillary.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("report.html.j2").render(data=data, language=language)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(html)
                file.flush()
                os.fsync(file.fileno())
            Path(aside).chmod(0o644)
            Path(aside).replace(path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ArmillaryError(f"{path}: the report cannot be written ({error.strerror})") from error
