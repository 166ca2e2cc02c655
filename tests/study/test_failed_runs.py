"""A failed run is a row; a choice is made over complete arms; what failed for a passing cause is trained again."""

import pytest

from armillary.recipe import ArmillaryError, UsageError
from armillary.study import (
    MixtureOutcome,
    TargetOutcome,
    anneal_study,
    found_recipe,
    judge,
    ladder_study,
    mixture_study,
    predict,
    target_spec,
    train_target,
)
from fakes import along, make_lab, make_recipe

pytestmark = pytest.mark.usefixtures("quick_law")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What is found where no run fails, and the arm of every run: ``(stage, arm, seed)``."""
    import fakes
    from armillary.study import mixture

    patch = pytest.MonkeyPatch()
    patch.setattr(mixture, "MixtureLaw", fakes.QuickLaw)
    patch.setattr(mixture, "optimise_mixture", fakes.quick_optima)
    lab = make_lab(tmp_path_factory.mktemp("whole"))
    found = along(lab)
    patch.undo()
    return found


def lost(runs, status="failed"):
    return lambda spec: status if spec.id in runs else None


def arms_of(found, stage):
    """The runs of each arm of a stage, in the order of seeds."""
    if stage == "mixture":
        return {c.name: c.runs for c in found["mixture"].candidates}
    if stage == "anneal":
        return {b.annealing.name: b.runs for b in found["anneal"].branches}
    return {arm.name: arm.runs for arm in found["target"].arms}


def test_runs_of_the_design_that_failed_are_tried_again(whole, tmp_path):
    gone = whole["mixture"].runs[3:5]
    lab = make_lab(tmp_path, lose=lost(gone))
    first = mixture_study(lab)
    assert [row.run for row in first.failed] == gone and all(row.passing for row in first.failed)
    assert len(first.design) == len(first.losses) == 10 and gone[0] not in first.runs
    assert any("2 of 10 runs have no result; the same command retries 2 of them" in text for text in lab.said)
    lab.executor.lose = lambda spec: None
    lab.executor.trained.clear()
    second = mixture_study(lab)
    assert set(gone) <= set(lab.executor.trained)
    assert second == whole["mixture"]
    lab.executor.trained.clear()
    assert mixture_study(lab) == second and not lab.executor.trained


def test_a_failure_that_comes_again_stays_passing(whole, tmp_path):
    gone = whole["mixture"].runs[3]
    lab = make_lab(tmp_path, lose=lost([gone]))
    first = mixture_study(lab)
    lab.executor.trained.clear()
    assert mixture_study(lab) == first and lab.executor.trained == [gone]


def test_a_diverged_run_is_final(whole, tmp_path):
    gone = whole["mixture"].runs[3]
    lab = make_lab(tmp_path, lose=lost([gone], "diverged"))
    first = mixture_study(lab)
    assert [(row.run, row.status, row.passing) for row in first.failed] == [(gone, "diverged", False)]
    lab.executor.trained.clear()
    assert mixture_study(lab) == first and not lab.executor.trained


def test_too_few_runs_for_a_law_are_an_error_of_the_work(whole, tmp_path):
    gone = whole["mixture"].runs[:4]
    lab = make_lab(tmp_path, lose=lost(gone))
    with pytest.raises(
        ArmillaryError, match=r"mixture: 6 of 10 runs have a result, too few .* the disk is full"
    ) as said:
        mixture_study(lab)
    assert not isinstance(said.value, UsageError)
    lab.executor.lose = lambda spec: None
    assert mixture_study(lab) == whole["mixture"]


@pytest.mark.parametrize("status", ["failed", "diverged", "refused"])
@pytest.mark.parametrize("seeds", [slice(0, 1), slice(0, 2)])
def test_without_the_natural_mixture_nothing_is_compared(whole, tmp_path, status, seeds):
    gone = arms_of(whole, "mixture")["natural"][seeds]
    lab = make_lab(tmp_path, lose=lost(gone, status))
    found = mixture_study(lab)
    assert not found.significant and "natural seed 1000" in found.reason
    assert (found.difference, found.low, found.high) == (0, 0, 0)
    if status == "diverged":
        best = min(found.candidates[:2], key=lambda c: sum(c.measured))
        assert found.taken == best.name and found.found == best.weights
        assert mixture_study(lab) == found
    else:
        assert found.taken == "natural" and found.found == found.natural
        lab.executor.lose = lambda spec: None
        assert mixture_study(lab) == whole["mixture"]


def test_a_candidate_without_all_its_seeds_is_not_taken(whole, tmp_path):
    best = whole["mixture"].taken
    assert best.startswith("candidate")
    lab = make_lab(tmp_path, lose=lost(arms_of(whole, "mixture")[best][:1]))
    found = mixture_study(lab)
    assert found.taken != best and not found.reason
    arm = next(c for c in found.candidates if c.name == best)
    assert arm.losses.keys() == set(arm.runs[1:]) and len(arm.measured) == 1


def test_without_any_candidate_the_natural_mixture_is_taken(whole, tmp_path):
    arms = arms_of(whole, "mixture")
    gone = [arms["candidate 1"][0], arms["candidate 2"][1]]
    found = mixture_study(make_lab(tmp_path, lose=lost(gone)))
    assert found.taken == "natural" and "no candidate has all its runs" in found.reason


def test_where_every_arm_diverged_there_is_no_mixture(whole, tmp_path):
    gone = [runs[0] for runs in arms_of(whole, "mixture").values()]
    with pytest.raises(ArmillaryError, match="neither the natural mixture nor a candidate has all its runs") as said:
        mixture_study(make_lab(tmp_path, lose=lost(gone, "diverged")))
    assert said.value.exit_code == 1


@pytest.mark.parametrize("name", ["20% linear", "10% linear", "20% linear, mixture^2"])
def test_an_annealing_without_all_its_seeds_is_not_compared(whole, tmp_path, name):
    gone = arms_of(whole, "anneal")[name][1:]
    lab = make_lab(tmp_path, lose=lost(gone))
    found = anneal_study(lab, whole["mixture"].found)
    assert found.taken.name != name and found.best != name != found.reference
    assert ("instead" in found.reason) == (name == "20% linear")
    branch = next(b for b in found.branches if b.annealing.name == name)
    assert list(branch.losses) == branch.runs[:1]
    lab.executor.lose = lambda spec: None
    assert anneal_study(lab, whole["mixture"].found) == whole["anneal"]


def test_one_annealing_with_all_its_seeds_is_taken_uncompared(whole, tmp_path):
    gone = [runs[0] for name, runs in arms_of(whole, "anneal").items() if name != "10% linear"]
    found = anneal_study(make_lab(tmp_path, lose=lost(gone)), whole["mixture"].found)
    assert found.taken.name == "10% linear" and "used without a comparison" in found.reason


def test_no_annealing_with_all_its_seeds_is_an_error_of_the_work(whole, tmp_path):
    gone = [runs[0] for runs in arms_of(whole, "anneal").values()]
    with pytest.raises(ArmillaryError, match="no annealing has all its runs") as said:
        anneal_study(make_lab(tmp_path, lose=lost(gone)), whole["mixture"].found)
    assert said.value.exit_code == 1


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_a_trunk_that_fails_leaves_branches_that_are_whole(whole, tmp_path, status):
    trunks = whole["anneal"].trunks
    lab = make_lab(tmp_path, lose=lost(trunks, status))
    found = anneal_study(lab, whole["mixture"].found)
    assert [row.arm for row in found.failed] == ["trunk"] * len(trunks) and not found.passing
    assert found.branches == whole["anneal"].branches and found.taken == whole["anneal"].taken
    lab.executor.trained.clear()
    assert anneal_study(lab, whole["mixture"].found) == found and not lab.executor.trained


def test_one_rung_of_the_ladder(whole, tmp_path):
    found = found_recipe(whole["mixture"], whole["anneal"])
    recipe = make_recipe(study__ladder__seeds=2)
    every = ladder_study(make_lab(tmp_path / "every", recipe), found.mixture, found.annealing)
    # All runs of one number of tokens, at the model's family; the rest still is a law.
    gone = [p.run for p in every.points if p.family == "base" and p.tokens == max(q.tokens for q in every.points)]
    lab = make_lab(tmp_path / "some", recipe, lose=lost(gone))
    some = ladder_study(lab, found.mixture, found.annealing)
    assert some.points == [p for p in every.points if p.run not in gone] and some.lost == gone
    assert predict(lab, found, whole["mixture"], some)["from_runs"] == [p.run for p in some.points]
    lab.executor.lose = lambda spec: None
    assert ladder_study(lab, found.mixture, found.annealing) == every


def test_a_family_with_too_few_points_is_left_out(whole, tmp_path):
    found = found_recipe(whole["mixture"], whole["anneal"])
    other = [p.run for p in whole["ladder"].points if p.family == "wide"]
    lab = make_lab(tmp_path, lose=lost(other[:1]))
    some = ladder_study(lab, found.mixture, found.annealing)
    assert {p.family for p in some.points} == {"base"} and len(some.aside) == 5
    assert "5 points" in some.left_out["wide"] and any("family 'wide' is left out" in text for text in lab.said)
    own = [p.run for p in whole["ladder"].points if p.family == "base"]
    lab = make_lab(tmp_path / "own", lose=lost(own[:1]))
    with pytest.raises(ArmillaryError, match=r"5 points of 2 sizes .* the disk is full") as said:
        ladder_study(lab, found.mixture, found.annealing)
    assert said.value.exit_code == 1


@pytest.mark.parametrize("others", [0, 1])
def test_the_predicted_run_failed_for_a_passing_cause(whole, tmp_path, others):
    arms = arms_of(whole, "target")
    gone = [arms["found"][0], *arms["natural"][1 : 1 + others]]
    lab = make_lab(tmp_path, lose=lost(gone))
    found = along(lab)
    target, verdict = found["target"], found["verdict"]
    assert [row.run for row in target.failed] == gone and target.failed[0].arm == "found"
    assert verdict["status"] == "pending" and verdict["rows"] == []
    assert f"run {gone[0]} failed (run {gone[0]}: the disk is full); run `armillary train` again" in verdict["reason"]
    assert lab.store.verdict(gone[0]) is None and target.published is None
    assert target.arm("found").seeds == [2, 3] and target.arm("found").run(1) is None
    assert target.arm("found").at(gone[0]) is None and target.arm("found").run(2) == arms["found"][1]
    # A difference needs two seeds that both arms have.
    assert [d.reference for d in target.differences] == ["natural", "uniform"][others:]
    lab.executor.lose = lambda spec: None
    lab.executor.trained.clear()
    again = along(lab)
    assert lab.executor.trained == gone
    assert again["target"] == whole["target"] and again["verdict"]["rows"] == whole["verdict"]["rows"]
    assert again["target"].published == gone[0]


def test_a_predicted_run_that_diverged_is_a_verdict(whole, tmp_path):
    gone = arms_of(whole, "target")["found"][0]
    lab = make_lab(tmp_path, lose=lost([gone], "diverged"))
    found = along(lab)
    verdict = found["verdict"]
    assert verdict["status"] == "diverged" and verdict["inside"] == 0 and "disk is full" in verdict["reason"]
    assert {row["domain"] for row in verdict["rows"]} == {"a", "b", "c", "target"}
    assert all(row["measured"] is None and row["inside"] is False for row in verdict["rows"])
    assert lab.store.verdict(gone)["status"] == "diverged"
    assert found["target"].published == arms_of(whole, "target")["found"][1]
    lab.executor.trained.clear()
    assert along(lab) == found and not lab.executor.trained


@pytest.mark.parametrize("arm", ["found", "natural", "uniform"])
def test_all_seeds_of_an_arm(whole, tmp_path, arm):
    gone = arms_of(whole, "target")[arm]
    lab = make_lab(tmp_path, lose=lost(gone))
    target = along(lab)["target"]
    assert target.arm(arm) is None and [a.name for a in target.arms] == [
        n for n in arms_of(whole, "target") if n != arm
    ]
    assert target.lost == gone
    assert [d.reference for d in target.differences] == [n for n in ("natural", "uniform") if arm not in ("found", n)]


@pytest.mark.parametrize("arm", ["found", "natural", "uniform"])
def test_an_arm_of_one_run_takes_its_spread_from_the_others(whole, tmp_path, arm):
    gone = arms_of(whole, "target")[arm][1:]
    target = along(make_lab(tmp_path, lose=lost(gone)))["target"]
    one = target.arm(arm)
    assert one.low < one.mean == one.target[0] < one.high
    assert len(target.differences) == (0 if arm == "found" else 1)


def test_runs_of_single_seeds_alone_have_no_interval(whole, tmp_path):
    gone = [run for runs in arms_of(whole, "target").values() for run in runs[1:]]
    target = along(make_lab(tmp_path, lose=lost(gone)))["target"]
    assert [(a.low, a.high) for a in target.arms] == [(None, None)] * 3 and target.differences == []


def test_no_target_run_at_all_is_an_error_of_the_work(whole, tmp_path):
    lab = make_lab(tmp_path)
    found = found_recipe(whole["mixture"], whole["anneal"])
    ladder = ladder_study(lab, found.mixture, found.annealing)
    predict(lab, found, whole["mixture"], ladder)
    lab.executor.lose = lambda spec: "failed"
    with pytest.raises(ArmillaryError, match="none of its 9 runs has a result") as said:
        train_target(lab, found)
    assert said.value.exit_code == 1
    assert judge(lab, found)["status"] == "pending"


def test_a_verdict_before_the_run_is_pending(whole, tmp_path):
    lab = make_lab(tmp_path)
    found = found_recipe(whole["mixture"], whole["anneal"])
    spec = target_spec(lab, found, found.mixture, 1)
    with pytest.raises(ArmillaryError, match=f"run {spec.id} has no prediction"):
        judge(lab, found)
    predict(lab, found, whole["mixture"], ladder_study(lab, found.mixture, found.annealing))
    assert "has no result yet" in judge(lab, found)["reason"]


def test_outcomes_of_the_first_format_are_read(whole):
    content = whole["target"].model_dump(mode="json")
    for new in ("failed", "predicted"):
        del content[new]
    for arm in content["arms"]:
        del arm["phases"]
    old = TargetOutcome.model_validate({**content, "failures": ["0123456789abcdef: worker died: signal 9"]})
    assert old.published == whole["target"].published
    assert [(row.run, row.cause, row.passing) for row in old.failed] == [
        ("0123456789abcdef", "worker died: signal 9", False)
    ]
    content = whole["mixture"].model_dump(mode="json")
    for new in ("failed", "reason", "adjusted", "lower", "upper", "edges"):
        del content[new]
    assert MixtureOutcome.model_validate({**content, "failures": []}).failed == []


def test_a_record_that_cannot_be_read_is_computed_again(whole, tmp_path, monkeypatch):
    lab = make_lab(tmp_path)
    first = mixture_study(lab)
    monkeypatch.setattr(type(lab.store), "stage", lambda self, name, key: {"taken": 3})
    lab.executor.trained.clear()
    assert mixture_study(lab) == first and not lab.executor.trained
    assert any("is damaged" in text for text in lab.said)
