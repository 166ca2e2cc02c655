"""The command that fits a law again, for messages about a law file that cannot be read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any


def refit_command(document: object, path: Path) -> str:
    """The ``armillary fit`` command for the law in ``document``.

    The document may be damaged: an invalid field is replaced by a word in capitals.
    """
    fields: dict[str, Any] = document if isinstance(document, dict) else {}
    names = _strings(fields.get("features")) + _strings(fields.get("targets"))
    sources = fields.get("sources")
    tables = _strings([s.get("name") for s in sources if isinstance(s, dict)] if isinstance(sources, list) else [])
    params = fields.get("params")
    params = params if isinstance(params, dict) else {}
    match fields.get("kind"):
        case "scaling" | "hyperparameters":
            words = ["scaling", "--points", *(tables[:1] or ["TABLE.csv"])]
            words += ["--columns", ",".join(names)] if names else []
            form = params.get("form")
            words += ["--form", form] if isinstance(form, str) and form != "auto" else []
        case "mixture":
            words = ["mixture", "--runs", *(tables[:1] or ["RUNS.csv"]), "--losses", *(tables[1:2] or ["LOSSES.csv"])]
            for option in ("size_column", "tokens_column"):
                column = fields.get(option)
                words += [f"--{option.replace('_', '-')}", column] if isinstance(column, str) else []
            targets = _strings(fields.get("targets"))
            words += ["--columns", ",".join(targets)] if targets else []
        case "anneal":
            words = ["anneal", "--curves", "FOLDER"]
            warmup = params.get("warmup_steps")
            words += ["--warmup-steps", f"{warmup:g}"] if isinstance(warmup, int | float) and warmup else []
        case "examination":
            words = ["examination", "--points", *(tables[:1] or ["TABLE.csv"])]
            words += ["--columns", ",".join(names)] if names else []
            for option in ("chance", "items"):
                value = params.get(option)
                words += [f"--{option}", f"{value:g}"] if isinstance(value, int | float) else []
        case "gain":
            words = ["gain", "--points", *(tables[:1] or ["TABLE.csv"])]
            words += ["--columns", ",".join(names)] if names else []
            words += ["--form", "loss"] if params.get("form") == "loss" else []
            for option in ("chance", "items"):
                value = params.get(option)
                words += [f"--{option}", f"{value:g}"] if isinstance(value, int | float) and value else []
        case _:
            words = ["KIND", "TABLES"]
    return shlex.join(["armillary", "fit", *words, "--out", str(path)])


def _strings(value: object) -> list[str]:
    """``value`` if it is a list of strings, else nothing."""
    return value if isinstance(value, list) and all(isinstance(part, str) for part in value) else []
