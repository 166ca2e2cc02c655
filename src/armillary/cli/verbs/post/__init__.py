"""The verbs of post-training, ``armillary post …``. One file per verb; a new verb is one line in each of two lists."""

from __future__ import annotations

import typer

from armillary.cli.app import app
from armillary.cli.verbs.post.check import check
from armillary.cli.verbs.post.decontaminate import decontaminate, leaks
from armillary.cli.verbs.post.diversity import diversity
from armillary.cli.verbs.post.dpo import dpo
from armillary.cli.verbs.post.evolve import evolve
from armillary.cli.verbs.post.examine import examine
from armillary.cli.verbs.post.merge import merge
from armillary.cli.verbs.post.pairs import pairs
from armillary.cli.verbs.post.reject import reject
from armillary.cli.verbs.post.run import run
from armillary.cli.verbs.post.select import select
from armillary.cli.verbs.post.sft import sft
from armillary.cli.verbs.post.synthesize import synthesize
from armillary.cli.verbs.post.verify import verify

post_app = typer.Typer(no_args_is_help=True)
app.add_typer(post_app, name="post")


@post_app.callback()
def post() -> None:
    """Post-training: verified data, supervised fine-tuning, preference, merging.

    Example: armillary post sft --model ./base --data chats.jsonl --out chat
    """


# In the order of the path.
post_app.command("run")(run)
post_app.command("synthesize")(synthesize)
post_app.command("evolve")(evolve)
post_app.command("verify")(verify)
post_app.command("decontaminate")(decontaminate)
post_app.command("leaks")(leaks)
post_app.command("diversity")(diversity)
post_app.command("check")(check)
post_app.command("sft")(sft)
post_app.command("reject")(reject)
post_app.command("examine")(examine)
post_app.command("merge")(merge)
post_app.command("pairs")(pairs)
post_app.command("select")(select)
post_app.command("dpo")(dpo)
