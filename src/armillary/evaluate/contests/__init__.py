"""Contests of Chinese language processing: formats, official scores and prompts."""

from armillary.evaluate.contests.ched import Ched
from armillary.evaluate.contests.contest import ALL, Answer, Ballot, Contest, Item, Score
from armillary.evaluate.contests.files import Scored, named_files, score_file, write_predictions
from armillary.evaluate.contests.nlpcc2024_5 import Nlpcc2024Task5
from armillary.evaluate.contests.space2024 import Space2024
from armillary.recipe import UsageError

CONTESTS: dict[str, Contest] = {found.name: found for found in (Space2024(), Ched(), Nlpcc2024Task5())}


def contest_named(name: str) -> Contest:
    """The contest of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in CONTESTS:
        raise UsageError(f"contest {name!r}: known are {', '.join(CONTESTS)}")
    return CONTESTS[name]


__all__ = [
    "ALL",
    "CONTESTS",
    "Answer",
    "Ballot",
    "Contest",
    "Item",
    "Score",
    "Scored",
    "contest_named",
    "named_files",
    "run",
    "score_file",
    "write_predictions",
]
