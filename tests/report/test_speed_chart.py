"""The chart of predicted speed: the same data is the same file, and what cannot be drawn is named."""

import pytest

from armillary.recipe import UsageError
from armillary.report.planning import write_speed_chart

POINTS = [("layout given", 400.0, 420.0), ("experts", 300.0, 150.0)]


def test_the_same_points_are_the_same_picture(tmp_path):
    for name in ("a.svg", "b.svg"):
        write_speed_chart(tmp_path / name, POINTS)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()


@pytest.mark.parametrize(("name", "points", "message"), [("a.gif", POINTS, r"\.svg or \.png"), ("a.svg", [], "no row")])
def test_what_cannot_be_drawn_is_refused(tmp_path, name, points, message):
    with pytest.raises(UsageError, match=message):
        write_speed_chart(tmp_path / name, points)
    assert not (tmp_path / name).exists()
