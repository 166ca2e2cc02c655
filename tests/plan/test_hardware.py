"""Names of accelerators as tables write them, and files of figures with faults."""

import pytest

from armillary.plan import accelerators, find_accelerator, read_accelerator
from armillary.plan.published import read_rows
from armillary.recipe import UsageError


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("H100", "h100"),
        ("H100-80GB", "h100"),
        ("NVIDIA H100 SXM5 80GB", "h100"),
        ("H100-96GB HBM2e (500W)", "h100-96gb"),
        ("A100-SXM4-40GB", "a100-40gb"),
        ("A100 80GB", "a100-80gb"),
        ("GB200 NVL72", "gb200"),
        ("TPU v5e", "tpu-v5e"),
        ("v5p-128", "tpu-v5p"),
        ("Ascend 910B3", "ascend-910b"),
        ("Ascend 910B2", "ascend-910b"),
        ("Ascend 910C", "ascend-910c"),
        ("H100-SXM5-80GB", "h100"),
        ("A100-80GB SXM", "a100-80gb"),
        ("TPU v6e", "tpu-v6e"),
        ("H20", "h20"),
        ("AMD MI300X", "mi300x"),
    ],
)
def test_names_of_tables_are_found(name, file):
    assert find_accelerator(name)[0] == file


@pytest.mark.parametrize("name", ["", "H1000", "RTX 4090"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(UsageError, match="is unknown"):
        find_accelerator(name)


def test_every_accelerator_has_a_plain_precision_and_a_generation_with_constants():
    from armillary.plan.constants import constants

    for accelerator in accelerators().values():
        assert accelerator.peak["bf16"] > 0
        assert accelerator.generation in constants().generations


def test_peaks_are_those_that_published_tables_state(published):
    checked = set()
    for row in read_rows(published):
        stated = row.number("peak_tflops")
        if stated and row.job is not None:
            assert row.job.accelerator.peak[row.job.precision] == pytest.approx(stated, rel=0.002), row.line
            checked.add(row.job.accelerator_name)
    assert checked >= {"a100-80gb", "h100", "h200", "b200", "tpu-v3", "tpu-v4", "tpu-v5e", "tpu-v5p"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("peak = ", "is not TOML"), ("vendor = 'mine'", "memory_gb"), (None, "No such file")],
)
def test_a_file_with_a_fault_is_refused(tmp_path, text, message):
    path = tmp_path / "own.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_accelerator(path)


@pytest.mark.parametrize("name", ["ascend-911", "Ascend 910X", "tpu-v9", "h1000"])
def test_a_model_that_does_not_exist_is_not_taken_for_another(name: str) -> None:
    with pytest.raises(UsageError, match="is unknown"):
        find_accelerator(name)


def test_a_name_with_its_system_in_brackets_is_known() -> None:
    assert find_accelerator("Ascend (Atlas 900 A2 PODc)")[0] == find_accelerator("Ascend 910B")[0]
