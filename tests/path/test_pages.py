"""The report's data against the store: runs by id, what failed, what is damaged, and commands that run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import asdict, replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from formula_runs import SETTINGS, FormulaExecutor, evidence_of, loss_of
from typer.testing import CliRunner

from armillary.cli.verbs import app
from armillary.corpus import Corpus
from armillary.laws import ExtrapolationWarning, ScalingLaw
from armillary.path import Evidence, Workspace
from armillary.path.evidence import lineage, summary
from armillary.path.pages import report_data
from armillary.recipe import LANGUAGES, CorpusSpec, LrStudy, RunSpec
from armillary.report import ReportData, write_report
from armillary.store import Store
from armillary.study import Lab, lr_study, mixture
from fakes import QuickLaw

WALL = {"corpus": 1.0, "mixture": 2.0, "anneal": 1.0, "ladder": 1.0, "target": 3.0}


def data_of(evidence: Evidence, folder: Path) -> ReportData:
    return report_data(evidence, WALL, folder)


def html_of(data: ReportData, folder: Path, language: str = "en") -> str:
    path = folder / f"{language}.html"
    write_report(data, path, language)  # type: ignore[arg-type]
    return path.read_text(encoding="utf-8")


def far_warning() -> str:
    """What the scaling law says of a target far beyond its runs."""
    points = np.array([[n, d] for n in (1e6, 3e6, 1e7) for d in (1e8, 3e8, 1e9)])
    law = ScalingLaw().fit(points, 1.7 + 400 / points[:, :1] ** 0.34 + 410 / points[:, 1:] ** 0.28)
    with pytest.warns(ExtrapolationWarning) as said:
        law.predict(np.array([[4e7, 4e9]]))
    return str(said[0].message)


def is_target(spec: RunSpec, sky: float | None = None, seed: int | None = None) -> bool:
    """Whether a run is of the target's size, with that weight of ``sky`` and that seed."""
    same = sky is None or abs(spec.mixture[0].weights["sky"] - sky) < 1e-9
    return spec.validation.every is not None and same and seed in (None, spec.seed)


def test_a_warning_about_a_far_target_is_in_the_language_of_the_page(lab: Lab, tmp_path: Path) -> None:
    evidence = evidence_of(lab)
    assert evidence.prediction is not None
    prediction = {**evidence.prediction, "warnings": [far_warning(), "the run of row 3 is set aside"]}
    data = data_of(replace(evidence, prediction=prediction), tmp_path)
    (reach,) = [note for note in data.notes if note.what == "reach"]
    assert float(reach.subject) == pytest.approx(16) and 1 < float(reach.detail) < 16
    page = html_of(data, tmp_path, "zh")
    assert f"阶梯中最大一次训练的 {reach.subject} 倍" in re.sub(r"<[^>]*>", "", page) and "largest compute" not in page
    assert "the run of row 3 is set aside" in page  # no translation of it is known


def test_every_part_is_there_and_says_what_the_runs_measured(lab: Lab, tmp_path: Path) -> None:
    evidence = evidence_of(lab)
    data = data_of(evidence, tmp_path)
    assert evidence.found is not None and evidence.prediction is not None
    assert evidence.found.annealing.sharpen == 1.5
    # both phases of the target run, not only the mixture found; passes from the run itself
    assert data.recipe is not None and data.recipe.measured
    spec = RunSpec.model_validate(evidence.prediction["spec"])
    assert [phase.weights for phase in data.recipe.phases] == [phase.weights for phase in spec.mixture]
    assert (data.recipe.phases[0].first, data.recipe.phases[-1].last) == (1, spec.steps)
    assert data.recipe.passes == {"sky": 0.5, "sea": 0.5, "code": 0.5}
    # predicted at each run's own size
    assert data.ladder is not None
    for point in data.ladder.points:
        assert point.low is not None and point.predicted is not None and point.high is not None
        assert point.low <= point.target <= point.high
        assert point.predicted == pytest.approx(point.target, rel=0.02)
    assert len({(row.column, row.least, row.depth, row.tokens) for row in data.ladder.holdout}) == len(
        data.ladder.holdout
    )
    assert all(len(curve.losses) >= 4 for curve in data.curves)
    # a ladder that falls with size needs no word; one whose deepest models end worse does
    assert "rise" not in {note.what for note in data.notes}
    assert evidence.ladder is not None
    deepest = max(point.depth for point in evidence.ladder.points)
    worse = [p.model_copy(update={"target": 2 * p.target}) if p.depth == deepest else p for p in evidence.ladder.points]
    risen = replace(evidence, ladder=evidence.ladder.model_copy(update={"points": worse}))
    assert [note.subject for note in data_of(risen, tmp_path).notes if note.what == "rise"] == [str(deepest)]
    assert all(len(curve.losses) >= 20 for curve in data.training_curves)
    assert [row.seeds for row in data.differences] == [3, 3]
    assert not data.failures and not [note for note in data.notes if note.what == "unreadable"]
    assert data.samples and all(sample.seed == 1 for sample in data.samples)


def test_the_regret_of_each_choice_is_that_of_its_runs(lab: Lab, tmp_path: Path) -> None:
    evidence = evidence_of(lab)
    rows = {row.what: row for row in data_of(evidence, tmp_path).regrets}
    assert evidence.mixture is not None and evidence.target is not None
    assert rows.keys() >= {"mixture", "target"}
    assert rows["mixture"].options == len(evidence.mixture.candidates)
    for row in rows.values():
        assert 0 <= row.low <= row.mean <= row.high
    found = evidence.target.arm("found")
    assert found is not None
    gap = found.mean - min(arm.mean for arm in evidence.target.arms)
    assert rows["target"].low <= gap + 1e-9 and rows["target"].seeds == len(found.seeds)
    html = html_of(data_of(evidence, tmp_path), tmp_path)
    assert 'id="regrets"' in html and "What the choices cost" in html


def test_the_worth_of_a_difference_is_what_the_law_says_at_another_size(lab: Lab, tmp_path: Path) -> None:
    evidence = evidence_of(lab)
    data = data_of(evidence, tmp_path)
    worth = {row.reference: row for row in data.multipliers}["natural"]
    assert worth.value is not None and worth.low is not None and worth.high is not None
    assert worth.low <= worth.value <= worth.high
    # by the formula that made the losses: the size at which the mixture found has the natural mixture's loss
    assert evidence.prediction is not None and evidence.found is not None
    spec = RunSpec.model_validate(evidence.prediction["spec"])
    gap = 0.3 * (evidence.found.mixture["sky"] - evidence.found.natural["sky"])

    def formula(scale: float) -> float:
        return 8 * (spec.model.parameters * scale) ** -0.2 + 30 * (spec.tokens * scale) ** -0.4

    scales = np.geomspace(0.1, 1, 2000)
    true = scales[np.argmin([abs(formula(s) - formula(1) - gap) for s in scales])] ** -2
    assert worth.value == pytest.approx(true, rel=0.2)
    part = data.break_even
    assert part is not None and part.multiplier == worth.value and part.at is not None
    studies = sum(row.flops for row in data.cost if row.stage in ("mixture", "anneal", "ladder"))
    assert (part.multiplier - 1) * part.at == pytest.approx(studies)
    assert part.run == spec.flops


def test_the_first_seed_failed_and_no_other_run_takes_its_place(lab: Lab, tmp_path: Path) -> None:
    lab.executor.lose = lambda spec: "failed" if is_target(spec, 0.5, 1) else None  # type: ignore[union-attr]
    evidence = evidence_of(lab)
    data = data_of(evidence, tmp_path)
    assert data.prediction is not None and data.prediction.target is not None
    assert data.prediction.target.measured is None and data.prediction.target.inside is None
    assert data.prediction.pending is not None and "No space left" in data.prediction.pending
    assert data.ladder is not None and data.ladder.target is not None and data.ladder.target.measured is None
    assert not data.samples and data.recipe is not None and not data.recipe.measured
    assert [row.seeds for row in data.differences] == [2, 2]
    assert [(row.study, row.status) for row in data.failures] == [("target", "failed")]
    text = html_of(data, tmp_path)
    assert "the verdict is pending" in text and "found 2, natural 3, uniform 3" in text
    for curve in data.curves:  # of one and the same seed
        spec = next(
            lab.store.run_spec(run)
            for arm in evidence.target.arms  # type: ignore[union-attr]
            for run, seed in zip(arm.runs, arm.seeds, strict=True)
            if arm.name == curve.label and seed == data.curves_seed
        )
        assert curve.losses[-1] == pytest.approx(loss_of(spec) + 0.1 * (0.3 * 2 + 0.7 * 3), abs=1e-6)


def test_a_predicted_run_that_diverged_lies_outside(lab: Lab, tmp_path: Path) -> None:
    lab.executor.lose = lambda spec: "diverged" if is_target(spec, 0.5, 1) else None  # type: ignore[union-attr]
    evidence = evidence_of(lab)
    data = data_of(evidence, tmp_path)
    assert data.prediction is not None and data.prediction.target is not None
    assert (data.prediction.target.measured, data.prediction.target.inside) == (None, False)
    text = html_of(data, tmp_path)
    assert "outside: the run diverged" in text and "0</span> of" in text
    assert summary(evidence, WALL)["verdict"] == "diverged"


@pytest.mark.parametrize("arm", [0.5, 0.3, 1 / 3])
def test_an_arm_without_any_run_is_told(arm: float, lab: Lab, tmp_path: Path) -> None:
    lab.executor.lose = lambda spec: "failed" if is_target(spec, arm) else None  # type: ignore[union-attr]
    evidence = evidence_of(lab)
    data = data_of(evidence, tmp_path)
    assert len(data.arms) == 2 and len(data.failures) == 3
    missing = [row.reference for row in data.differences if row.mean is None]
    assert missing == {0.5: ["natural", "uniform"], 0.3: ["natural"], 1 / 3: ["uniform"]}[arm]
    assert json.dumps(summary(evidence, WALL), allow_nan=False)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def gone(path: Path) -> None:
    path.unlink()


def foreign(path: Path) -> None:
    path.write_bytes(b"\x00\x01 not ours \xff" * 20)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n != "metrics.parquet" else n
        for n in ("metrics.parquet", "events.jsonl", "model.safetensors")
    ],
)
def test_a_damaged_file_of_a_run_is_named_and_the_rest_is_written(name: str, lab: Lab, tmp_path: Path) -> None:
    evidence = evidence_of(lab)
    assert evidence.prediction is not None
    run = evidence.prediction["run"]
    whole = data_of(evidence, tmp_path)
    path = lab.store.run_folder(run) / name
    good = path.read_bytes()
    for spoil in (torn, empty, gone, foreign):
        path.write_bytes(good)
        spoil(path)
        data = data_of(evidence, tmp_path)
        noted = [note.subject for note in data.notes if note.what == "unreadable"]
        # torn lines of events are skipped, as a kill leaves them
        assert noted == ([] if name == "events.jsonl" and spoil is not gone else [f"runs/{run}/{name}"])
        assert len(data.curves) == (2 if name == "metrics.parquet" else 3)
        assert bool(data.samples) is (name != "model.safetensors")
        for part in ("mixture", "ladder", "arms", "differences", "prediction"):
            assert getattr(data, part) == getattr(whole, part)
        assert summary(evidence, WALL)["runs"] == len({r for runs in evidence.runs.values() for r in runs})


def test_a_run_folder_that_is_gone_leaves_the_numbers(lab: Lab, tmp_path: Path) -> None:
    evidence = evidence_of(lab)
    shutil.rmtree(lab.store.folder / "runs")
    data = data_of(evidence, tmp_path)
    assert data.arms and not data.curves and not data.samples


def test_nothing_of_this_machine_leaves_with_report_card_and_lineage(lab: Lab, tmp_path: Path) -> None:
    lab.executor.lose = lambda spec: "failed" if is_target(spec, 0.3, 2) else None  # type: ignore[union-attr]
    evidence = evidence_of(lab)
    data = data_of(evidence, tmp_path)
    said = [json.dumps(asdict(data), ensure_ascii=False, default=str), html_of(data, tmp_path)]
    said.append(json.dumps(lineage(evidence), ensure_ascii=False))
    sources = [Path(domain.source) for domain in lab.recipe.corpus.domains.values()]
    for text in said:
        assert not any(str(source.parent) in text for source in sources)
        assert str(tmp_path) not in text and "/srv/private" not in text
    assert {row.source for row in data.corpus} == {source.name for source in sources}
    assert "No space left on device" in said[0]


def test_numbers_of_predictions_are_one_definition(lab: Lab, tmp_path: Path) -> None:
    evidence = evidence_of(lab)
    numbers = summary(evidence, WALL)
    inside = sum(row["inside"] for row in numbers["predictions"])
    count = len(numbers["predictions"])
    assert count == len(lab.corpus.domains) + 1  # the domains and the target
    said = re.sub(r"<[^>]*>", "", html_of(data_of(evidence, tmp_path), tmp_path))
    assert f"{inside} of {count} predictions inside" in said


def test_a_report_of_the_first_stages_alone(lab: Lab, tmp_path: Path) -> None:
    evidence = evidence_of(lab, until="predict")
    for last in ("prediction", "ladder", "anneal", "mixture"):
        data = data_of(evidence, tmp_path)
        assert (data.recipe is not None) is (last == "prediction")
        html_of(data, tmp_path, "zh" if last == "anneal" else "en")
        setattr(evidence, last, None)


def test_a_learning_rate_study_has_its_section_its_runs_and_its_caveats(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("armillary.study.lr._DRAWS", 20)
    evidence = evidence_of(lab)
    assert evidence.found is not None
    study = lab.recipe.study.model_copy(update={"lr": LrStudy(fractions=(1.0,))})
    tuning = replace(
        lab,
        recipe=lab.recipe.model_copy(update={"study": study}),
        plan=lab.plan.model_copy(update={"tokens": {**lab.plan.tokens, "lr": 8_000}}),
    )
    evidence.lr = lr_study(tuning, evidence.found.mixture, evidence.found.annealing)
    data = data_of(evidence, tmp_path)
    assert data.lr is not None and len(data.lr.lines) == 2 and data.lr.rows[-1].of == "target"
    assert all(line.law for line in data.lr.lines) and data.lr.taken == evidence.lr.taken == "rule"
    assert any(row.what == "lr" and row.command.startswith("armillary study lr") for row in data.reproduce)
    assert evidence.lr.reason in [note.detail for note in data.notes]
    assert set(lineage(evidence)["argued_by"]) >= {"lr", "lr-confirm"}
    for language in LANGUAGES:
        assert '<section id="lr">' in html_of(data, tmp_path, language)


def test_the_lineage_is_of_the_run_that_is_published(lab: Lab) -> None:
    evidence = evidence_of(lab)
    record: dict[str, Any] = lineage(evidence)
    assert record["run"] == evidence.prediction["run"]  # type: ignore[index]
    assert record["losses"] == lab.store.result(record["run"]).loss  # type: ignore[union-attr]
    assert record["passes"] == {"sky": 0.5, "sea": 0.5, "code": 0.5}
    assert set(record["argued_by"]) == {"mixture", "mixture-confirm", "anneal", "ladder"}
    assert len(record["argued_by"]["mixture"]) == 10


def test_another_seed_is_published_without_a_verdict_where_the_predicted_run_diverged(lab: Lab) -> None:
    lab.executor.lose = lambda spec: "diverged" if is_target(spec, 0.5, 1) else None  # type: ignore[union-attr]
    evidence = evidence_of(lab)
    record = lineage(evidence)
    assert lab.store.run_spec(record["run"]).seed == 2
    assert record["verdict"] is None and record["prediction"]["run"] != record["run"]


class PlainLaw(QuickLaw):
    """A plain law for as many domains as there are."""

    def fit(self, mixtures: np.ndarray, losses: np.ndarray) -> QuickLaw:
        self.chosen_ = {"linear": np.ones(losses.shape[1])}
        return super().fit(mixtures, losses)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_law")
def test_every_printed_command_runs_and_trains_nothing_again(
    tiny_corpus_spec: CorpusSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executors: list[FormulaExecutor] = []

    def executor(self: Workspace, store: Store, corpus: Corpus) -> FormulaExecutor:
        executors.append(FormulaExecutor(store, corpus))
        return executors[-1]

    monkeypatch.setattr(Workspace, "_executor", executor)
    monkeypatch.setattr(mixture, "MixtureLaw", PlainLaw)
    settings = {**SETTINGS, "name": "my recipe", "corpus": tiny_corpus_spec.model_dump(mode="json")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    first = runner.invoke(app, ["run", "recipe.yaml"])
    assert first.exit_code == 0, first.output
    place = tmp_path / "my recipe"
    page = unescape(re.sub(r"<(?!/?code)[^>]*>", "", (place / "report.html").read_text(encoding="utf-8")))
    commands = re.findall(r"<code>(armillary [^<]*)</code>", page)
    assert len(commands) == 9 and all(command.endswith("'my recipe'") for command in commands)
    assert executors[0].trained
    before = (place / "summary.json").read_text()
    for command in commands:
        done = runner.invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, (command, done.output)
    assert [made.trained for made in executors[1:]] == [[]] * len(executors[1:]) and len(executors) > 1
    after = json.loads((place / "summary.json").read_text())
    assert {**after, "wall_s": 0} == {**json.loads(before), "wall_s": 0}
