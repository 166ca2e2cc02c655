"""What the terminal says after each stage, against the outcome that it speaks of."""

from formula_runs import evidence_of

from armillary.path import lines
from armillary.report import ScoreRow


def test_each_stage_is_one_line_with_its_numbers(lab):
    evidence = evidence_of(lab)
    said = [
        lines.mixture(evidence.mixture),
        lines.anneal(evidence.anneal),
        lines.ladder(evidence.ladder),
        lines.prediction(evidence.prediction),
        lines.target(evidence.target),
        lines.verdict(evidence.verdict),
    ]
    assert [line.partition(":")[0] for line in said] == ["mixture", "anneal", "ladder", "predict", "target", "verdict"]
    assert all("\n" not in line for line in said)
    assert f"best candidate minus natural {evidence.mixture.difference:+.4f}" in said[0]
    losses = [point.target for point in evidence.ladder.points]
    assert f"{len(losses)} runs" in said[2] and f"{max(losses):.4f} to {min(losses):.4f}" in said[2]
    difference = evidence.target.differences[0]
    assert f"found minus {difference.reference} {difference.mean:+.4f} ({difference.low:+.4f}" in said[4]
    inside = sum(row["inside"] for row in evidence.verdict["rows"])
    assert f"{inside} of {len(evidence.verdict['rows'])} predictions" in said[5]


def test_what_has_no_numbers_says_why(lab):
    evidence = evidence_of(lab)
    assert lines.verdict({"status": "pending", "reason": "pending: run 1 failed"}) == "verdict: pending: run 1 failed"
    assert "outside" in lines.verdict({"status": "diverged", "reason": "at step 3 the loss is nan"})
    late = {**evidence.prediction, "target": None, "unpredicted": "asked after the run"}
    assert lines.prediction(late) == "predict: asked after the run"


def test_an_examination_is_compared_on_the_target_where_that_is_a_row():
    total = ScoreRow("total", 90, 0.8, 0.7, 0.88, 0.79, 0.69, 0.87, 0.01, -0.03, 0.05, 0.4)
    target = ScoreRow("target", 40, 0.85, 0.7, 0.9, 0.75, 0.6, 0.85, 0.1, 0.02, 0.18, 0.011)
    alone = ScoreRow("total", 90, 0.8, 0.7, 0.88)
    assert lines.examination([total, target]) == (
        "examine: 80.0% of 90 items right (70.0 to 88.0); against the natural mixture on the target's domains "
        "+10.0 points (+2.0 to +18.0), p = 0.011"
    )
    assert "natural mixture +1.0 points" in lines.examination([total])
    assert "natural" not in lines.examination([alone])
