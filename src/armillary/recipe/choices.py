"""Choices that several rooms share: the language of a text, and the last stage of the path to run."""

from __future__ import annotations

from typing import Literal, get_args

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

Goal = Literal["mixture", "anneal", "lr", "ladder", "predict", "target", "verdict", "release"]
GOALS: tuple[Goal, ...] = get_args(Goal)  # in their order
