"""The planner against published runs, each publication left out in turn; and the fit of its factors."""

import math

import pytest

from armillary.plan.calibrate import Sample, fit_factors, log_factor
from armillary.plan.constants import constants
from armillary.plan.published import read_rows
from armillary.plan.step_time import step_time
from armillary.plan.validate import validate
from armillary.recipe import UsageError

HEAD = "source,model,params_B,layers,hidden,ffn,heads,vocab,seq,accelerator,n_accel,tp,pp,dp,micro_batch,global_batch,recompute,precision,tokens_per_s_per_accel"  # noqa: E501


def line(source, layers, speed):
    return f"{source},GPT,,{layers},4096,16384,32,50304,2048,H100,8,1,1,8,4,64,none,bf16,{speed}"


def test_factors_recover_a_slower_accelerator(tmp_path):
    """Speeds made by the planner itself with a factor: the fit finds most of it, for its prior holds it near 1."""
    path = tmp_path / "table.csv"
    rows = []
    for source in ("a", "b", "c", "d"):
        for layers in (8, 16, 24, 32):
            path.write_text("\n".join([HEAD, line(source, layers, 1)]))
            (row,) = read_rows(path)
            rows.append(line(source, layers, row.job.tokens / step_time(row.job, constants(), 1.25).total / 8))
    path.write_text("\n".join([HEAD, *rows]))
    samples = [Sample(row, constants()) for row in read_rows(path)]
    found = fit_factors(samples)
    assert math.exp(log_factor(found, samples[0].names)) == pytest.approx(1.25, rel=0.03)


def test_a_table_without_measured_speed_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("\n".join([HEAD, line("a", 8, "")]))
    with pytest.raises(UsageError, match="no row has a layout that can be estimated and a measured speed"):
        validate(path)


@pytest.mark.slow
def test_published_runs_are_predicted_within_the_recorded_errors(published):
    report = validate(published)
    assert report.overall.rows > 690
    assert report.overall.median < 0.085 and report.overall.p90 < 0.25
    assert abs(report.overall.signed) < 0.05
    assert report.out_of_memory["flagged"] == report.out_of_memory["out_of_memory"] == 4
    assert report.out_of_memory["flagged_wrongly"] <= 0.05 * report.out_of_memory["ran"]
    bloom = [sweep for sweep in report.sweeps if sweep["source"].startswith("BigScience")]
    assert len(bloom) > 10 and sum(sweep["loss"] <= 0.03 for sweep in bloom) >= len(bloom) - 1
