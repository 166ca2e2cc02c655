"""The verb ``evaluate judge``: a model grades or compares answers to open questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption
from armillary.cli.backends import Engine, opens_models
from armillary.cli.show.screen import Reporter, out, show_json, show_table
from armillary.recipe import counted


@opens_models
def judge(
    model: Annotated[str, typer.Argument(help="The judge: a folder, a .gguf file or a URL.", show_default=False)],
    questions: Annotated[
        Path, typer.Option(help="JSON lines: id and question, or MT-bench's or AlignBench's form.", show_default=False)
    ],
    answers: Annotated[Path, typer.Option(help="JSON lines with id and answer, or turns.", show_default=False)],
    against: Annotated[
        Path | None, typer.Option(help="Answers of another model: compare in pairs.", show_default=False)
    ] = None,
    language: Annotated[str, typer.Option(help="Language of the instruction: en or zh.")] = "en",
    repeats: Annotated[int, typer.Option(min=1, help="Verdicts per prompt; several measure self-agreement.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Token limit of explanation and verdict.")] = 512,
    chat: Annotated[bool, typer.Option("--chat/--text", help="Prompt with chat messages, or in plain text.")] = True,
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for verdicts; a stopped run resumes from it.", show_default=False),
    ] = None,
    *,
    engine: Engine,
    as_json: JsonOption = False,
) -> None:
    """Grade answers from 1 to 10, or compare two models' answers in both orders.

    Example: armillary evaluate judge ./judge --questions q.jsonl --answers a.jsonl --against b.jsonl
    """
    from armillary.evaluate.asking import Opening, opened
    from armillary.evaluate.judge import (
        JudgeOptions,
        judge_pairs,
        judge_single,
        read_answers,
        read_questions,
        write_verdict,
    )

    options = JudgeOptions(language, repeats, max_new_tokens=max_new_tokens)
    asked = read_questions(questions)
    mine = read_answers(answers, asked)
    other = None if against is None else read_answers(against, asked)
    reporter = Reporter()
    opening = Opening(
        engine.options,
        engine=engine.name,
        chat=chat,
        folder=folder,
        notice=lambda name, done, total: reporter(name, done, total, f"{done} of {counted(total, 'verdict')}"),
    )
    try:
        with opened([model], opening) as judges:
            asker = next(iter(judges.values()))
            verdict = (
                judge_single(asked, mine, asker, options)
                if other is None
                else judge_pairs(asked, (mine, other), asker, options)
            )
    finally:
        reporter.close()
    if folder is not None:
        write_verdict(folder / "verdict.json", verdict)
    if as_json:
        return show_json(verdict.to_json())
    rows = [
        [name.replace("_", " "), *((None,) * 3 if interval is None else (interval.value, interval.low, interval.high))]
        for name, interval in verdict.intervals.items()
    ]
    show_table(f"{verdict.kind}, {counted(verdict.n, 'question')}", ["", "value", "low", "high"], rows)
    out.print(
        f"unread verdicts: {verdict.unread:.1%}; tokens read {verdict.prompt_tokens}, written {verdict.new_tokens}; "
        f"{escape(str(answers))}" + (f" against {escape(str(against))}" if against else ""),
        highlight=False,
    )
