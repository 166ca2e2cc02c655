"""What is measured on this machine is a file that the planner reads, with figures that are possible."""

import pytest

from armillary.parallel import measure_machine
from armillary.plan import read_accelerator


@pytest.mark.slow
def test_two_processes_measure_a_machine_that_can_be_planned_with(tmp_path):
    out = tmp_path / "hardware.toml"
    found = measure_machine(2, out)
    accelerator = read_accelerator(out)
    assert accelerator.node == 2 and accelerator.peak["fp32"] == pytest.approx(found["peak"]["fp32"], rel=1e-2)
    assert 0 < accelerator.shares["attention"] < 2
    assert accelerator.link_gb_s > 0 and accelerator.bandwidth_gb_s > 0 and accelerator.memory_gb > 0
