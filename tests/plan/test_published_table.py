"""Tables of published speed: every row has a job or a reason, whatever is in it."""

import csv

import pytest

from armillary.plan.estimate import COLUMNS, estimate
from armillary.plan.published import flops_per_token, publication, read_rows
from armillary.recipe import UsageError

HEAD = "source,model,params_B,layers,hidden,ffn,heads,kv_heads,vocab,seq,accelerator,n_accel,tp,pp,dp,micro_batch,global_batch,recompute,precision,tokens_per_s_per_accel,flops_convention,notes"  # noqa: E501
GOOD = "mine,GPT,8.03,32,4096,14336,32,8,128256,8192,H100,8,1,1,8,1,128,full,bf16,,,"


def table(tmp_path, *lines, head=HEAD):
    path = tmp_path / "layouts.csv"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def predicted(tmp_path, *lines):
    out = tmp_path / "predicted.csv"
    estimate(table(tmp_path, *lines), out)
    with out.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_is_predicted_and_its_interval_holds_the_prediction(tmp_path):
    (row,) = predicted(tmp_path, GOOD)
    assert row["pred_reason"] == "" and row["model"] == "GPT"
    low, mid, high = (float(row[f"pred_{name}"]) for name in ("low", "tokens_per_s_per_accel", "high"))
    assert low < mid < high
    # tokens per second times the step's seconds are the step's tokens
    assert mid * 8 * float(row["pred_step_time_s"]) == pytest.approx(128 * 8192, rel=1e-4)
    assert row["pred_fits"] == "true" and 20 < float(row["pred_peak_mem_gb"]) < 85.5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("H100", "H1000"), "accelerator 'H1000' is not known; near are"),
        (("bf16", "bf17"), "line 2, column 'precision': 'bf17' is none of"),
        ((",32,4096", ",x,4096"), "line 2, column 'layers': 'x' is not a number"),
        ((",32,4096", ",-1,4096"), "line 2, column 'layers': '-1' is not a whole number from 1"),
        ((",8,1,1,8,", ",8,nan,1,8,"), "line 2, column 'tp': 'nan' is not a number"),
        (("GPT", "Nemotron_3_Nano"), "has Mamba layers"),
        (("8.03,32,4096,14336", ",,,"), "sizes are neither in the row nor known"),
        (("GPT,8.03,32,4096", "GPT,8.03,32,0"), "is not a whole number from 1"),
        ((",8,1,1,8,", ",8,7,1,8,"), "heads (32) must be a multiple of tp (7); the nearest that divide are 4 and 8"),
    ],
)
def test_a_row_that_cannot_be_predicted_says_why_and_the_others_are(tmp_path, change, reason):
    bad, good = predicted(tmp_path, GOOD.replace(*change), GOOD)
    assert reason in bad["pred_reason"] and bad["pred_step_time_s"] == ""
    assert good["pred_reason"] == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,seq\nx,1\n", "the column 'accelerator' is missing"),
        (f"{HEAD}\n{GOOD},one too many\n", "line 2: more values than columns"),
        ("", "the column 'model' is missing"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_its_place(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_rows(path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "windows.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"{HEAD}\r\n{GOOD}\r\n".encode())
    (row,) = read_rows(path)
    assert row.job is not None and row.job.tokens == 128 * 8192


def test_conventions_count_recomputation_and_attention_differently(tmp_path):
    lines = [GOOD.replace("full,bf16,,,", f"full,bf16,,{name},") for name in
             ("HARDWARE incl. recompute", "model; full", "CAUSAL attention")]  # fmt: skip
    hardware, full, causal = (flops_per_token(row, row.job) for row in read_rows(table(tmp_path, *lines)))
    logits = 2 * 128256 * 4096
    assert hardware - 3 * logits == pytest.approx((full - 3 * logits) * 4 / 3)
    assert causal < full


def test_sections_of_one_publication_are_one_source():
    assert publication("Megatron-Bridge docs/x.md 26.04 NeMo Container") == "Megatron-Bridge"
    assert publication("a b/README.md §H100") == publication("a b/README.md §A100")


def test_every_published_row_has_an_outcome(published, tmp_path):
    found = estimate(published, tmp_path / "out.csv")
    assert found["rows"] == 760 and found["predicted"] >= 700
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert bool(row["pred_step_time_s"]) != bool(row["pred_reason"])
            assert set(COLUMNS) <= set(row)
