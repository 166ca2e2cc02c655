"""What the terminal says after each stage, against the outcome that it speaks of."""

from formula_runs import evidence_of

from armillary.path import lines


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
