"""A recorded outcome is found where all that decides it is the same, and nowhere else, field by field of a recipe."""

from dataclasses import replace

import pytest
from pydantic import BaseModel

from armillary.recipe import ArmillaryError, Layout, Recipe
from armillary.study import lab as lab_module
from armillary.study import plan_inputs, stage_key, target_spec
from fakes import FakeCorpus, along, make_lab, make_plan, make_recipe

pytestmark = pytest.mark.usefixtures("quick_law")
STAGES = ("mixture", "anneal", "ladder", "target")

# Another valid value for every field of a recipe, by its place; the second entry names the stages it must not touch.
# ``corpus`` acts through the corpus's hash alone, which has a test of its own.
OTHER = {
    "format": None,  # there is one
    "name": ("other", STAGES),
    "target": ({"a": 0.2, "c": 0.8}, ()),
    "limits.max_epochs": (0.35, ()),
    "limits.floors": ({"c": 0.4}, ()),
    "limits.ceilings": ({"a": 0.3}, ()),
    "families": ([{"name": "base", "width_per_layer": 16, "head_dim": 8}, {"name": "wide"}], ()),
    "model.family": ("wide", ()),
    "model.depth": (4, ("mixture", "anneal", "ladder")),
    "training.tokens": (80_000, ("mixture", "anneal", "ladder")),
    "training.budget_share": None,  # excludes tokens; it acts through the plan
    "training.context_length": (32, ()),
    "training.batch_sequences": (4, ()),
    "training.lr": (2e-3, ()),
    "training.lr_width": (32, ()),
    "training.lr_exponent": (0.5, ()),
    "training.weight_decay": (0.2, ()),
    "training.grad_clip": (0.5, ()),
    "training.z_loss": (1e-4, ()),
    "training.warmup_share": (0.1, ()),
    "training.precision": ("bf16", STAGES),  # what is used stands in the plan
    "training.seeds": ([1, 2, 4], ("mixture", "anneal", "ladder")),
    "training.optimizer": ("muon", ()),
    "training.base_width": None,  # needs lr_exponent 0: below, together
    "training.layout": ({"dp_shard": 2}, STAGES),
    "study.mixture.depth": (2, ("anneal", "ladder", "target")),
    "study.mixture.runs": (16, ("anneal", "ladder", "target")),
    "study.mixture.tokens": (30_000, ("anneal", "ladder", "target")),
    "study.mixture.candidates": (3, ("anneal", "ladder", "target")),
    "study.mixture.confirm_seeds": (3, ("anneal", "ladder", "target")),
    "study.mixture.reserve": (0.4, ("anneal", "ladder", "target")),
    "study.mixture.phases": None,  # needs more runs than this recipe has: tests/study/test_points.py
    "study.mixture.seed": (5, ("anneal", "ladder", "target")),
    "study.anneal.depth": (2, ("mixture", "ladder", "target")),
    "study.anneal.tokens": (30_000, ("mixture", "ladder", "target")),
    "study.anneal.shares": ([0.15, 0.3], ("mixture", "ladder", "target")),
    "study.anneal.shapes": (["linear", "cosine"], ("mixture", "ladder", "target")),
    "study.anneal.sharpen": ([1, 3], ("mixture", "ladder", "target")),
    "study.anneal.reserve": (1, ("mixture", "ladder", "target")),
    "study.anneal.max_share": (0.5, ("mixture", "ladder", "target")),
    "study.anneal.max_sharpen": (3, ("mixture", "ladder", "target")),
    "study.anneal.seeds": (3, ("mixture", "ladder", "target")),
    "study.ladder.depths": ([1, 3], ("mixture", "anneal", "target")),
    "study.ladder.tokens": (50_000, ("mixture", "anneal", "target")),
    "study.ladder.fractions": ([0.2, 0.6, 1.0], ("mixture", "anneal", "target")),
    "study.ladder.families": (["base"], ("mixture", "anneal", "target")),
    "study.ladder.seeds": (2, ("mixture", "anneal", "target")),
    "study.lr": ({}, STAGES),  # acts through the rates that it finds: tests/study/test_lr.py
    "study.match_repetition": (False, STAGES),  # the target run of this recipe repeats no text
    "lesson": ({"questions": {"families": ["backwards"]}}, STAGES),
    **{f"trackers.{name}": ({}, STAGES) for name in ("tensorboard", "mlflow", "wandb", "trackio")},
    "budget": ("1e15flops", STAGES),  # acts through the plan
    "validation_windows": (8, ()),
}


def fields(model, place=""):
    """The dotted places of all fields of a document, down to those that are no document."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and name != "corpus":
            yield from fields(kind, f"{place}{name}.")
        else:
            yield f"{place}{name}"


def test_every_field_has_its_case():
    assert {place for place in fields(Recipe) if place != "corpus"} == OTHER.keys()


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    import fakes
    from armillary.study import mixture

    patch = pytest.MonkeyPatch()
    patch.setattr(mixture, "MixtureLaw", fakes.QuickLaw)
    patch.setattr(mixture, "optimise_mixture", fakes.quick_optima)
    lab = make_lab(tmp_path_factory.mktemp("before"))
    found = along(lab)
    patch.undo()
    return lab, found


def at_a_stage(lab, found, stage):
    """The keys that a stage's outcome is looked up under, and the outcome, with what the stages before it found."""
    from armillary.study import anneal_study, found_recipe, ladder_study, mixture_study, train_target

    argued = found_recipe(found["mixture"], found["anneal"])
    if stage == "mixture":
        return mixture_study(lab)
    if stage == "anneal":
        return anneal_study(lab, argued.mixture)
    if stage == "ladder":
        return ladder_study(lab, argued.mixture, argued.annealing)
    run = target_spec(lab, argued, argued.mixture, lab.recipe.training.seeds[0]).id
    if lab.store.prediction(run) is None:
        lab.store.record_prediction(run, {"run": run})
    return train_target(lab, argued)


# by default the first stage and the last, whose outcome depends on all others
FEW = [stage if stage in (STAGES[0], STAGES[-1]) else pytest.param(stage, marks=pytest.mark.slow) for stage in STAGES]


@pytest.mark.parametrize("stage", FEW)
@pytest.mark.parametrize("place", [place for place, case in OTHER.items() if case is not None])
def test_one_changed_field(before, tmp_path, monkeypatch, place, stage):
    known, found = before
    value, untouched = OTHER[place]
    recipe = make_recipe(**{place.replace(".", "__"): value})
    changed = replace(known, recipe=recipe, plan=make_plan(recipe))
    computed = []
    real = lab_module.Lab.conclude
    monkeypatch.setattr(lab_module.Lab, "conclude", lambda self, *a: (computed.append(a[0]), real(self, *a))[1])
    here = at_a_stage(changed, found, stage)
    if stage in untouched:
        assert stage not in computed
    monkeypatch.setattr(lab_module.Lab, "conclude", real)
    fresh = replace(make_lab(tmp_path, recipe), plan=make_plan(recipe))
    assert here == at_a_stage(fresh, found, stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_rate_that_follows_the_width_otherwise(before, tmp_path, stage):
    known, found = before
    recipe = make_recipe(training__lr_exponent=0, training__base_width=8)
    here = at_a_stage(replace(known, recipe=recipe), found, stage)
    assert here == at_a_stage(make_lab(tmp_path, recipe), found, stage)


@pytest.mark.parametrize("stage", STAGES)
def test_another_corpus_plan_or_version_of_the_laws_is_computed_anew(before, tmp_path, monkeypatch, stage):
    known, found = before
    computed = []
    real = lab_module.Lab.conclude
    monkeypatch.setattr(lab_module.Lab, "conclude", lambda self, *a: (computed.append(a[0]), real(self, *a))[1])
    at_a_stage(known, found, stage)
    assert computed == []
    at_a_stage(replace(known, corpus=FakeCorpus(hash="d" * 16)), found, stage)
    assert stage in computed
    computed.clear()
    at_a_stage(replace(known, plan=make_plan(known.recipe, precision="bf16")), found, stage)
    assert stage in computed
    computed.clear()
    monkeypatch.setattr(lab_module, "LAWS_VERSION", 10**6)
    at_a_stage(known, found, stage)
    assert stage in computed


def test_the_key_of_a_study_does_not_hang_on_what_only_the_target_reads():
    recipe = make_recipe()
    corpus = FakeCorpus()
    key = stage_key(corpus, recipe.training)
    assert stage_key(corpus, recipe.over(2).training) == key
    assert stage_key(corpus, make_recipe(training__seeds=[1, 2, 3, 4]).training) == key
    assert stage_key(corpus, make_recipe(training__lr=1e-3).training) != key


def test_other_weights_for_a_run_that_exists_come_too_late_for_a_prediction(before, tmp_path):
    lab = make_lab(tmp_path)
    found = along(lab)
    # With these weights the studies find the same: the natural mixture is forced by the limits to be the only one.
    other = replace(lab, recipe=make_recipe(target={"a": 0.69, "b": 0.31}))
    again = along(other)
    assert again["prediction"]["run"] == found["prediction"]["run"], "the case needs one run and two questions"
    said, verdict = again["prediction"], again["verdict"]
    assert said["target"] is None and "would come after the run" in said["unpredicted"]
    assert said["domains"] == found["prediction"]["domains"]
    assert [row["domain"] for row in verdict["rows"]] == ["a", "b", "c"] and verdict["status"] == "judged"
    result = lab.store.result(said["run"])
    assert verdict["unpredicted"]["measured"] == pytest.approx(0.69 * result.loss["a"] + 0.31 * result.loss["b"])
    assert again["target"].arm("found").target[0] == verdict["unpredicted"]["measured"]
    assert along(lab)["verdict"] == found["verdict"] and along(lab)["prediction"] == found["prediction"]


def test_other_weights_before_the_run_are_predicted_and_judged_beside_the_first(before, tmp_path):
    from armillary.study import found_recipe, judge, ladder_study, predict, train_target

    _, known = before
    lab = make_lab(tmp_path)
    other = replace(lab, recipe=make_recipe(target={"c": 1}))
    argued = found_recipe(known["mixture"], known["anneal"])
    said = [
        predict(one, argued, known["mixture"], ladder_study(one, argued.mixture, argued.annealing))
        for one in (lab, other, lab, other)
    ]
    assert said[0] == said[2] and said[1] == said[3] and said[0]["run"] == said[1]["run"]
    assert said[1]["target_weights"] == {"c": 1} and said[1]["target"] != said[0]["target"]
    verdicts = []
    for one in (lab, other):
        train_target(one, argued)
        verdicts.append(judge(one, argued))
    result = lab.store.result(said[0]["run"])
    measured = [verdict["rows"][-1]["measured"] for verdict in verdicts]
    assert measured == pytest.approx([0.7 * result.loss["a"] + 0.3 * result.loss["b"], result.loss["c"]])
    assert [judge(one, argued) for one in (lab, other)] == verdicts


def test_an_old_prediction_is_for_the_weights_that_its_verdict_shows(before, tmp_path, monkeypatch):
    lab = make_lab(tmp_path)
    real = type(lab.store).record_prediction

    def without_weights(self, run, content):
        real(self, run, {name: part for name, part in content.items() if name != "target_weights"})

    monkeypatch.setattr(type(lab.store), "record_prediction", without_weights)
    found = along(lab)
    assert "target_weights" not in found["prediction"] and found["prediction"]["target"] is not None
    other = along(replace(lab, recipe=make_recipe(target={"a": 0.69, "b": 0.31})))
    assert other["prediction"]["run"] == found["prediction"]["run"] and other["prediction"]["target"] is None


def test_a_target_run_is_not_trained_without_a_prediction(before, tmp_path):
    from armillary.study import found_recipe, train_target

    _, found = before
    lab = make_lab(tmp_path)
    argued = found_recipe(found["mixture"], found["anneal"])
    with pytest.raises(ArmillaryError, match="no prediction yet"):
        train_target(lab, argued)
    assert lab.store.result(target_spec(lab, argued, argued.mixture, 1).id) is None


# Fields of a recipe that change the sizes of a plan, at the most.
SIZED = {
    place: case[0]
    for place, case in OTHER.items()
    if case is not None and place not in ("training.seeds", "training.precision")
}


@pytest.mark.parametrize("place", SIZED)
@pytest.mark.parametrize("budget", ["1e13flops", "2h"])
def test_a_plan_is_made_anew_where_its_sizes_change(before, place, budget, monkeypatch):
    from armillary.study import make_plan as planned

    lab, _ = before
    recipe = make_recipe(training__tokens=None, training__budget_share=0.4, budget=budget, study__mixture__runs=24)
    monkeypatch.setattr("armillary.study.sizing.train_rates", lambda fleet, probes: fleet.measure(probes))
    document = recipe.model_dump(mode="json")
    part = document
    *above, last = place.split(".")
    for name in above:
        part = part.setdefault(name, {})
    if place == "training.tokens":
        del part["budget_share"]
    part[last] = SIZED[place]
    other = Recipe.model_validate(document)
    plans = [planned(one, lab.corpus, lab.executor) for one in (recipe, other)]
    if place != "training.layout":  # how the target is trained does not decide what the studies are
        same = plan_inputs(recipe) == plan_inputs(other)
        assert not same or plans[0] == plans[1]
    for name in ("name", "target", "limits", "training.lr", "training.layout"):
        if place.startswith(name) and place != "training.lr_width":
            assert plan_inputs(recipe) == plan_inputs(other)


def test_one_more_seed_changes_the_plan_and_another_seed_does_not():
    recipe = make_recipe()
    assert plan_inputs(recipe) == plan_inputs(make_recipe(training__seeds=[7, 8, 9]))
    assert plan_inputs(recipe) != plan_inputs(make_recipe(training__seeds=[1, 2]))
    assert plan_inputs(recipe.over(2)) == plan_inputs(recipe) and recipe.over(2).training.layout == Layout(dp_shard=2)


def with_seeds(lab, seeds):
    recipe = make_recipe(training__seeds=seeds)
    return replace(lab, recipe=recipe, plan=make_plan(recipe))


def test_reordered_seeds_keep_the_prediction_its_run_and_its_verdict(tmp_path):
    lab = make_lab(tmp_path)
    first = along(lab)
    trained = list(lab.executor.trained)
    again = along(with_seeds(lab, [3, 2, 1]))
    assert again["prediction"] == first["prediction"] and again["verdict"] == first["verdict"]
    assert again["target"].predicted == again["target"].published == first["target"].predicted
    assert again["target"].arm("found").seeds == [3, 2, 1] and lab.executor.trained == trained
    assert along(lab) == first


def test_a_new_seed_is_predicted_where_the_first_began_without_a_prediction(tmp_path):
    lab = make_lab(tmp_path)
    first = along(lab)
    trained = len(lab.executor.trained)
    other = with_seeds(lab, [2, 4])
    again = along(other)
    assert again["prediction"]["spec"]["seed"] == 4 and again["verdict"]["status"] == "judged"
    assert again["target"].predicted == again["prediction"]["run"] == lab.executor.trained[trained]
    assert along(other) == again and along(lab) == first
    with pytest.raises(ArmillaryError, match=r"already begun.*add a new seed to training\.seeds"):
        along(with_seeds(lab, [2, 3]))
