"""Tables of published speed: every row has a job or a reason, whatever is in it."""

import csv
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armillary.plan.constants import constants
from armillary.plan.estimate import COLUMNS, estimate
from armillary.plan.memory import peak_memory
from armillary.plan.published import flops_per_token, known_model, measured, publication, read_rows
from armillary.plan.step_time import step_time
from armillary.recipe import UsageError

HEAD = "source,model,params_B,layers,hidden,ffn,heads,kv_heads,vocab,seq,accelerator,n_accel,tp,pp,dp,micro_batch,global_batch,recompute,precision,tokens_per_s_per_accel,flops_convention,notes"  # noqa: E501
GOOD = "mine,GPT,8.03,32,4096,14336,32,8,128256,8192,H100,8,1,1,8,1,128,full,bf16,,,"


def table(tmp_path, *lines, head=HEAD):
    path = tmp_path / "layouts.csv"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def predicted(tmp_path, *lines, head=HEAD):
    out = tmp_path / "predicted.csv"
    estimate(table(tmp_path, *lines, head=head), out)
    with out.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_is_predicted_and_its_interval_holds_the_prediction(tmp_path):
    (row,) = predicted(tmp_path, GOOD)
    assert row["pred_reason"] == "" and row["model"] == "GPT"
    low, mid, high = (float(row[f"pred_{name}"]) for name in ("low", "tokens_per_s_per_accel", "high"))
    assert low < mid < high
    # tokens per second times the step's seconds are the step's tokens
    assert mid * 8 * float(row["pred_step_time_s"]) == pytest.approx(128 * 8192, rel=1e-4)
    assert float(row["pred_mem_low"]) < float(row["pred_peak_mem_gb"]) < float(row["pred_mem_high"])
    assert row["pred_fits"] == "true" and 20 < float(row["pred_peak_mem_gb"]) < 85.5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("H100", "H1000"), "accelerator 'H1000' is unknown; nearest:"),
        (("bf16", "bf17"), "line 2, column 'precision': 'bf17' is not one of"),
        ((",32,4096", ",x,4096"), "line 2, column 'layers': 'x' is not a number"),
        ((",32,4096", ",-1,4096"), "line 2, column 'layers': '-1' is not a whole number from 1"),
        ((",8,1,1,8,", ",8,inf,1,8,"), "line 2, column 'tp': 'inf' is not a number"),
        (("GPT", "Nemotron_3_Nano"), "has Mamba layers"),
        (("8.03,32,4096,14336", ",,,"), "sizes are neither in the row nor known"),
        (("GPT,8.03,32,4096", "GPT,8.03,32,0"), "is not a whole number from 1"),
        ((",full,bf16,,,", ",full,bf16,,,,one too many"), "line 2: more values than columns"),
        ((",8,1,1,8,", ",8,3,1,8,"), "n_accel (8) must be a multiple of tp times pp times cp (3); the nearest that"),
        (("32,4096", "99999999,4096"), "line 2, column 'layers': '99999999' is more than 10000"),
        (("32,4096", "1e300,4096"), "column 'layers': '1e300' is not a whole number from 1 to"),
        ((",8,1,1,8,", ",99999999,1,9999999,8,"), "column 'pp': '9999999' is more than 4096"),
        (("GPT", "Some-MoE-30B-A3B"), "it has experts, and their sizes are neither"),
        ((",32,8,128256", ",32,8,1"), "vocab_size"),
        ((",8,1,1,8,", ",14,7,1,2,"), "heads (32) must be a multiple of tp (7); the nearest that divide are 4 and 8"),
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
        ("", "the column 'model' is missing"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_its_place(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_rows(path)


@pytest.mark.parametrize(
    "change",
    [
        ("H100", "H100-SXM5-80GB"),
        ("H100", "NVIDIA A100-SXM4-80GB"),
        ("H100", "A100 80GB"),
        ("H100", "Ascend 910B2"),
        ("H100", "Ascend 910C"),
        ("bf16", "fp8 delayed scaling"),
        ("bf16", "bfloat16"),
        ("bf16", "BF16-mixed"),
        ("bf16", ""),
        (",8,1,1,8,1,128,", ",8,1,1,,,128,"),  # dp and micro-batch empty
        (",8,1,1,8,1,128,", ",8.0,1.0,1.0,8.0,1.0,128.0,"),
        (",8,1,1,8,1,128,", ",8,1,4,,1,128,"),  # a pipeline without virtual stages
        (",8,1,1,8,1,128,", ",,,,,,,"),
        (",32,8,128256", ",32,,"),  # grouped queries and vocabulary empty
        (",32,8,128256", ",n/a,-,?"),
        ("bf16,,,", 'bf16,about 900,,"packed sequences, see\nthe text"'),
    ],
)
def test_what_other_publications_leave_out_or_write_otherwise_is_predicted(tmp_path, change):
    (row,) = predicted(tmp_path, GOOD.replace(*change))
    assert row["pred_reason"] == "" and float(row["pred_tokens_per_s_per_accel"]) > 0


def test_a_table_of_few_columns_is_predicted(tmp_path):
    out = tmp_path / "predicted.csv"
    estimate(table(tmp_path, "Llama2-7B,A100", head="model,accelerator"), out)
    with out.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["pred_reason"] == "" and {"seq", "layout", "n_accel"} <= set(row["pred_assumed"].split())


def test_a_peak_that_is_no_number_is_taken_from_the_accelerator(tmp_path):
    head = HEAD + ",peak_tflops"
    stated, odd = (
        table_row["pred_mfu"] for table_row in predicted(tmp_path, GOOD + ",989.5", GOOD + ",dense", head=head)
    )
    assert stated == odd


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(HEAD.split(",")),
        st.sampled_from(
            [
                "",
                "0",
                "-1",
                "1.5",
                "8.0",
                "1e400",
                "nan",
                "inf",
                "x",
                "\u0000",
                "\u2028",
                "1,000",
                "999999999",
                "None",
                "\u662f",
            ]
        ),
    )
)
def test_no_row_ends_the_file(tmp_path, changes):
    fields = dict(zip(HEAD.split(","), GOOD.split(","), strict=True)) | changes
    path = tmp_path / "odd.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HEAD.split(","))
        writer.writeheader()
        writer.writerow(fields)
        writer.writerow(dict(zip(HEAD.split(","), GOOD.split(","), strict=True)))
    found = estimate(path, tmp_path / "out.csv")
    assert found["rows"] == 2 and found["predicted"] >= 1


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


def test_a_convention_that_reports_too_little_is_followed(tmp_path):
    lines = [GOOD.replace("full,bf16,,,", f"full,bf16,,{name},") for name in
             ("HARDWARE incl. recompute", "HARDWARE incl. recompute (under-reports ~3%)")]  # fmt: skip
    whole, less = (flops_per_token(row, row.job) for row in read_rows(table(tmp_path, *lines)))
    assert less == pytest.approx(0.97 * whole)


MIXTURE = "mine,{},,,,,,,,4096,GB300,64,1,1,64,4,1280,none,bf16,{},CAUSAL attention,"


def job_of(tmp_path, name):
    (row,) = read_rows(table(tmp_path, MIXTURE.format(name, "")))
    return row.job, flops_per_token(row, row.job)


def test_windows_of_attention_take_less_time_and_fewer_flops(tmp_path):
    job, flops = job_of(tmp_path, "GPT OSS 120B")
    everywhere = replace(job, extras=replace(job.extras, windowed=0.0))
    assert step_time(job, constants()).attention < 0.6 * step_time(everywhere, constants()).attention
    # NVIDIA's table of release 26.06: 1081 TFLOP/s at 33,166 tokens/s
    assert flops == pytest.approx(1081e12 / 33166, rel=0.01)


def test_prediction_of_further_tokens_is_a_layer_with_an_output_matrix(tmp_path):
    (job, more), (_, less) = job_of(tmp_path, "DeepSeekV3"), job_of(tmp_path, "DeepSeekV3 (w/o MTP)")
    # NVIDIA's table of release 26.06: 1648 TFLOP/s at 6,338 tokens/s; of 25.11 without: 961 at 3,848
    assert more == pytest.approx(1648e12 / 6338, rel=0.01) and less == pytest.approx(961e12 / 3848, rel=0.01)
    assert job.layers == job.model.n_layers + 1 == 62


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [
        ("DeepSeek-V3", 671, 37), ("Kimi_K2", 1026, 32), ("GPT OSS 120B", 117, 5.1), ("Qwen3_235B_a22B", 235, 22),
        ("Mixtral 8x7B", 46.7, 12.9), ("DBRX", 132, 36), ("Qwen2-57B-A14B", 57, 14), ("DeepSeek-V2", 236, 21),
        ("DeepSeek-V2-Lite", 15.7, 2.4), ("OLMoE-1B-7B", 6.9, 1.3), ("Llama-4-Scout", 109, 17),
        ("GLM-4.5-Air", 106, 12), ("Qwen1.5-MoE-A2.7B", 14.3, 2.7),
    ],
)  # fmt: skip
def test_known_mixtures_have_their_published_parameters(name, billions, active):
    shape = known_model(name)[0]
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.03)
    embeddings = 2 * shape.vocab_size * shape.d_model  # some count them, some do not
    assert active * 0.95e9 - embeddings <= shape.active_parameters <= active * 1.05e9 + embeddings


def test_virtual_stages_are_assumed_where_a_program_interleaves_and_the_table_leaves_them_out(tmp_path):
    head = HEAD + ",pp,vpp"
    line = GOOD.replace(",8,1,1,8,", ",32,1,1,,")
    for source, pp, vpp, stages in (
        ("mine", 4, "", 4), ("mine", 4, "1", 1), ("mine", 3, "", 1), ("BLOOM", 4, "", 1), ("mine", 1, "", 1),
    ):  # fmt: skip
        columns = line.replace("mine", source).split(",")
        columns[11] = "12" if pp == 3 else "32"
        row = read_rows(table(tmp_path, ",".join([*columns, str(pp), vpp]), head=head))[0]
        assert row.job is not None, row.reason
        assert row.job.parallelism.stages == stages, (source, pp, vpp)
        assert ("vpp" in row.assumed) == (source == "mine" and vpp == "" and pp > 1)


def test_a_program_run_by_others_overlaps_less_than_as_its_authors_measure_it(tmp_path):
    line = GOOD.replace(",8,1,1,8,", ",64,8,1,,")
    (own, others) = (
        read_rows(table(tmp_path, line.replace("mine", source)))[0].job.software
        for source in ("Megatron-LM README", "A paper that uses Megatron-LM")
    )
    assert own.tp_overlap > others.tp_overlap == 0


def test_dropped_tokens_spare_the_host(tmp_path):
    job, _ = job_of(tmp_path, "Qwen3_30B_a3B")
    dropping, _ = job_of(tmp_path, "Qwen3_30B_a3B (tokendrop)")
    assert step_time(dropping, constants()).host < step_time(job, constants()).host


def test_what_is_left_out_about_recomputation_is_the_least_share_that_fits(tmp_path):
    text = GOOD.replace("H100,8,1,1,8,1,128,full", "H100,8,1,1,8,{},128,")
    jobs = [row.job for row in read_rows(table(tmp_path, *(text.format(size) for size in (1, 2, 4, 8, 16))))]
    shares = [job.parallelism.recompute_share if job.parallelism.recompute == "full" else 0.0 for job in jobs]
    assert shares == sorted(shares) and any(0 < share < 1 for share in shares)
    for job, share in zip(jobs, shares, strict=True):
        assert share == 1 or peak_memory(job, constants()).total <= job.accelerator.memory_gb


def test_speed_in_tokens_is_compared_first(tmp_path):
    head = HEAD.replace("tokens_per_s_per_accel", "tokens_per_s_per_accel,tflops_per_accel")
    (row,) = read_rows(table(tmp_path, GOOD.replace("full,bf16,,", "full,bf16,1000,99,"), head=head))
    assert measured(row) == ("tokens_per_s_per_accel", 1000.0)


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
