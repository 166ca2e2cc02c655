"""The verb ``publish``: a published model to a repository of a hub."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import Reporter, err, out, show_json, show_table


@app.command()
def publish(
    model: Annotated[Path, typer.Argument(help="The folder of a model, published or not.", show_default=False)],
    repo: Annotated[str, typer.Argument(help="The repository: OWNER/NAME.", show_default=False)],
    to: Annotated[str, typer.Option(help="huggingface, modelscope, gitee or modelers.", show_default=False)],
    licence: Annotated[
        str | None, typer.Option(help="Licence of the model, such as apache-2.0.", show_default=False)
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="A language of the model, such as zh; repeatable.", show_default=False)
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(help="A folder that `evaluate` wrote about this model; repeatable.", show_default=False),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The branch (default: the hub's).", show_default=False)] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a new repository as a private one.")] = False,
    load: Annotated[
        bool, typer.Option("--load/--no-load", help="Load the folder in transformers and compare logits first.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the folder and list its files; send none.")] = False,
    *,
    as_json: JsonOption = False,
) -> None:
    """Send a model with card, lineage and checksums to a hub; the same command resumes after a kill, file by file.

    The token comes from HF_TOKEN, MODELSCOPE_API_TOKEN, GITEE_TOKEN or MODELERS_TOKEN.

    Example: armillary publish demo/model me/sphere-1 --to huggingface --licence apache-2.0 --dry-run
    """
    from armillary.publish import Additions, SendOptions, Target, send

    reporter, begun = Reporter(), time.monotonic()

    def progress(done: int, total: int, name: str) -> None:
        rate = done / max(time.monotonic() - begun, 1e-9) / 1e6
        reporter("publish", done, total, f"{done / 1e9:.2f} of {total / 1e9:.2f} GB, {rate:.0f} MB/s, {name}")

    additions = Additions(licence, tuple(language or ()), tuple(results or ()))
    try:
        found = send(model, SendOptions(to, Target(repo, revision, private), additions, load, dry_run), progress)
    finally:
        reporter.close()
    sent = () if found.transferred is None else found.transferred.sent
    if as_json:
        files = [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in found.files]
        show_json(
            {
                "hub": to,
                "repo": repo,
                "revision": revision,
                "files": files,
                "checked": asdict(found.checked),
                "transferred": None if found.transferred is None else asdict(found.transferred),
            }
        )
        return
    checked = found.checked
    logits = (
        f"logits of transformers differ by at most {checked.difference:.2g} of the largest"
        if checked.skipped is None
        else ""
    )
    err.print(
        f"{checked.files} checksums match, no secrets, no local paths; {logits or checked.skipped}", highlight=False
    )
    if found.transferred is None:
        show_table(
            f"{repo} on {to}: not sent", ["file", "bytes", "sha256"], [[f.name, f.bytes, f.sha256] for f in found.files]
        )
        return
    for name in found.transferred.strangers:
        err.print(
            f"{escape(name)}: in the repository but not part of this publication; it was not deleted", highlight=False
        )
    out.print(
        f"{escape(found.transferred.address)}: {len(sent)} of {len(found.files)} files sent; all match the local files",
        highlight=False,
    )
