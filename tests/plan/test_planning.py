"""From documents to a plan and a run file: wrong documents are named, and the trainer takes what is written."""

import json

import pytest
import yaml
from plan_jobs import make_job, make_shape

from armillary.plan import Question, make_plan, write_run_file
from armillary.plan.documents import read_model, shape_of_config
from armillary.plan.planning import layout_of
from armillary.plan.published import known_model
from armillary.recipe import UsageError, load_training

DEEPSEEK = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 3, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "vocab_size": 129280,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def question(tmp_path):
    def write(model=None, batch=1 << 21, length=8192, objective="time", **cluster):
        shape = model or make_shape().model_dump(mode="json", exclude_none=True)
        (tmp_path / "model.yaml").write_text(yaml.safe_dump(shape))
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"accelerator": "h200", "accelerators": 16} | cluster))
        return Question(tmp_path / "model.yaml", tmp_path / "cluster.yaml", batch, length, objective)

    return write


def half(cluster, accelerators):
    return 0.5


def test_the_cost_is_the_steps_over_goodput(question):
    plan = make_plan(question(price_per_hour=3.0), half)
    cost = plan.cost
    assert cost["hours"] == pytest.approx(cost["steps"] * plan.found.best.step.total / 3600 / 0.5)
    assert cost["money"] == pytest.approx(3 * 16 * cost["hours"])
    assert cost["tokens"] == pytest.approx(20 * plan.job.model.parameters, rel=1e-3)
    best = plan.to_json()["best"]
    assert sum(best["parts_s"].values()) == pytest.approx(best["step_time_s"])
    assert best["step_time_low_s"] < best["step_time_s"] < best["step_time_high_s"]


@pytest.mark.parametrize(
    ("model", "cluster"),
    [
        (None, {}),
        (None, {"accelerators": 8, "memory_gb": 90}),
        (
            make_shape(n_layers=80, d_model=8192, n_heads=64, d_ff=28672).model_dump(exclude_none=True),
            {"network_gb_s": 2},
        ),
        (make_shape(d_ff=8192, experts={"count": 64, "active": 4, "d_ff": 2048}).model_dump(exclude_none=True), {}),
        (
            make_shape(
                n_kv_heads=32, head_dim=96, attention={"kind": "latent", "kv_rank": 512, "rope_head_dim": 32}
            ).model_dump(exclude_none=True),
            {},
        ),
        (make_shape(feed_forward={"kind": "relu2"}).model_dump(exclude_none=True), {}),
    ],
)
def test_the_trainer_takes_the_run_file(question, tmp_path, model, cluster):
    plan = make_plan(question(model, **cluster), half)
    out = tmp_path / "run.yaml"
    write_run_file(plan, out)
    large = load_training(out)
    p = plan.job.parallelism
    assert large.layout.ranks == p.ranks and large.run.batch_tokens == 1 << 21
    assert large.layout.microbatch_count(large.run) == plan.job.microbatches
    assert (large.layout.tp, large.layout.pp, large.layout.cp, large.layout.ep) == (p.tp, p.pp, p.cp, p.ep)


def test_a_layout_that_the_trainer_lacks_is_refused():
    with pytest.raises(UsageError, match="plan with software: armillary"):
        layout_of(make_job(dp=8, zero=1))


def test_a_run_file_keeps_what_is_not_the_layout(question, tmp_path):
    first = tmp_path / "first.yaml"
    write_run_file(make_plan(question(), half), first)
    text = first.read_text().replace("lr: 0.0003", "lr: 0.002").replace("domain:", "wiki:")
    first.write_text(text)
    again = question(accelerators=32)
    plan = make_plan(Question(first, again.cluster, again.batch_tokens, again.length), half)
    second = tmp_path / "second.yaml"
    large = write_run_file(plan, second)
    assert large.run.optimizer.lr == 0.002 and large.run.mixture[0].weights == {"wiki": 1.0}
    assert large.layout.ranks == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accelerator": "h1000"}, "accelerator 'h1000' is unknown; nearest:"),
        ({"software": "mine"}, "software 'mine' is unknown; known are"),
        ({"precision": "fp4"}, "precision 'fp4': the accelerator has"),
        ({"accelerator": "none.toml"}, "none.toml: No such file"),
    ],
)
def test_a_wrong_cluster_is_refused(question, changes, message):
    with pytest.raises(UsageError, match=message):
        make_plan(question(**changes), half)


def test_a_cluster_that_never_finishes_a_step_is_refused(question):
    with pytest.raises(UsageError, match="no step ever completes"):
        make_plan(question(), lambda cluster, accelerators: 0.0)


def test_a_batch_of_no_whole_sequences_names_the_nearest(question):
    with pytest.raises(UsageError, match=r"batch_tokens \(10000\) must be a multiple .* the nearest is 8192"):
        make_plan(question(batch=10_000), half)


def test_a_configuration_of_latent_attention_and_experts_is_the_published_shape(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DEEPSEEK))
    assert read_model(path)[0] == known_model("DeepSeekV3")[0] == read_model(tmp_path)[0]
    assert round(shape_of_config(DEEPSEEK).parameters / 1e9) == 671


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "the key 'hidden_size' is missing"),
        ({"hidden_size": "7168"}, "'hidden_size' is '7168': it must be a whole number of 1 or more"),
        ({"mamba_d_state": 128}, "has Mamba layers"),
        ({"num_experts_per_tok": 300}, "active"),
    ],
)
def test_a_configuration_with_a_fault_names_its_key(changes, message):
    with pytest.raises(UsageError, match=message):
        shape_of_config(DEEPSEEK | changes)


def test_a_damaged_configuration_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(UsageError, match=r"config\.json: the model's configuration cannot be read"):
        read_model(path)
