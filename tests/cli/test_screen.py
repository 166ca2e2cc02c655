"""Progress on a terminal that is none: lines with the time left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rich.console import Console

from armillary.cli.show import screen


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    monkeypatch.setattr(screen, "err", Console(stderr=True, soft_wrap=True, emoji=False, force_terminal=False))

    def said() -> list[str]:
        return capsys.readouterr().err.splitlines()

    return said


def test_a_stage_that_begins_again_is_shown_again(lines: Callable[[], list[str]]) -> None:
    """As where a model answers with one method after the other."""
    show = screen.Reporter()
    for done in (1, 2, 3):
        show("model", done, 3, f"{done} of 3 answers")
    show("model", 1, 3, "1 of 3 answers")
    said = lines()
    assert [line.partition(",")[0] for line in said] == [
        "model: 33% 1 of 3 answers",
        "model: 100% 3 of 3 answers",
        "model: 33% 1 of 3 answers",
    ]


def test_a_line_without_a_note_has_no_hole_and_an_ended_stage_no_time_left(lines: Callable[[], list[str]]) -> None:
    screen.Reporter()("verify", 1, 1, "")
    assert lines() == ["verify: 100%, 0 s"]


def test_the_time_left_is_that_of_the_work_done_since_the_first_report(
    lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer says nothing about speed, and neither do the answers of an earlier attempt."""
    show, clock = screen.Reporter(), iter([100.0, 120.0, 140.0])
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(clock))
    for done in (90, 91, 94):
        show("examine", done, 100, f"{done} of 100")
    assert lines() == [
        "examine: 90% 90 of 100, 0 s",
        "examine: 91% 91 of 100, 20 s, about 180 s left",
        "examine: 94% 94 of 100, 40 s, about 60 s left",
    ]
