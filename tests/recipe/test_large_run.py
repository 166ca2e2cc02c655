"""The file of a large run with wrong keys and values: one error for each cause, which names what would be right."""

import pytest
import yaml

from armillary.recipe import (
    LargeRun,
    Layout,
    MixturePhase,
    ModelShape,
    OptimizerSpec,
    RunSpec,
    UsageError,
    load_training,
)

SHAPE = {"n_layers": 4, "d_model": 32, "n_heads": 2, "n_kv_heads": 2, "head_dim": 16, "d_ff": 64, "vocab_size": 320}


def plain():
    """A specification whose batch has 8 sequences."""
    return RunSpec(
        corpus="ab" * 8,
        model=ModelShape(**SHAPE),
        context_length=32,
        batch_sequences=8,
        steps=20,
        mixture=(MixturePhase(start_step=0, weights={"a": 1.0}),),
        optimizer=OptimizerSpec(lr=1e-3),
        seed=1,
    )


def written():
    """A file such as `armillary predict` writes, with parts that few runs have."""
    spec = plain()
    large = LargeRun(name="x-target", corpus="corpus/x", folder="store/runs/x", run=spec, layout=Layout(dp_shard=2))
    document = large.model_dump(mode="json", exclude_none=True)
    document["run"]["model"]["experts"] = {"count": 4, "active": 2, "d_ff": 32}
    document["run"]["start"] = {"run": "c" * 16, "sha256": "d" * 64}
    return document


def keys(part, path=()):
    """The path of every key but names of domains."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if isinstance(part, dict):
            yield (*path, key)
        if isinstance(value, dict | list) and key != "weights":
            yield from keys(value, (*path, key))


def refusal(document, folder):
    """The lines of the error, without the name of the file."""
    file = folder / "target.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    with pytest.raises(UsageError) as error:
        load_training(file)
    return str(error.value).replace(f"{file}:", "").splitlines()


def test_every_misspelt_key_is_refused_with_the_nearest(tmp_path):
    for path in keys(written()):
        document = written()
        part = document
        for key in path[:-1]:
            part = part[key]
        name = path[-1]
        part[name[:-1] if name.endswith("s") else f"{name}s"] = part.pop(name)
        (line,) = refusal(document, tmp_path)
        assert f"; nearest valid: '{name}'; column " in line, path


@pytest.mark.parametrize(
    ("wrong", "layout"),
    [
        ({"n_layers": 0}, {"pp": 4}),
        ({"n_layers": "four"}, {"pp": 2}),
        ({"n_layers": 0}, {"pp": 2, "layers_per_stage": [2, 2]}),
        ({"n_heads": 0}, {"tp": 2}),
        ({"n_kv_heads": "x"}, {"tp": 2}),
        ({"vocab_size": -1}, {"tp": 2}),
    ],
)
def test_what_only_follows_from_a_wrong_value_is_not_reported(wrong, layout, tmp_path):
    document = written()
    document["layout"] = layout
    del document["run"]["model"]["experts"]
    document["run"]["model"].update(wrong)
    (line,) = refusal(document, tmp_path)
    assert f"run.model.{next(iter(wrong))}: " in line


def test_a_mixture_that_would_never_be_trained_on_is_refused(tmp_path):
    document = written()
    weights, steps = document["run"]["mixture"][0]["weights"], document["run"]["steps"]
    document["run"]["mixture"] = [{"start_step": start, "weights": weights} for start in (0, steps)]
    (line,) = refusal(document, tmp_path)
    assert f"run.mixture: a phase starts at step {steps}, but the run has {steps}" in line


def test_what_is_wrong_besides_is_reported_too(tmp_path):
    document = written()
    document["layout"] = {"dp_shard": 3}
    document["run"]["model"]["n_layers"] = 0
    first, second = refusal(document, tmp_path)
    assert "run.model.n_layers: must be at least 1" in first
    assert "layout: batch_sequences (8) must be a multiple" in second


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"kind": "superviced"}, "run.objective: 'kind': must be one of 'next-token', 'supervised', 'preference'"),
        ({"examples": "e" * 16}, "run.objective: needs the key 'kind'"),
        ({"kind": "supervised"}, "the key 'run.objective.examples' is missing"),
        ({"kind": "supervised", "example": "e" * 16}, "unknown key 'run.objective.example'; nearest valid: 'examples'"),
    ],
)
def test_an_objective_that_is_none(objective, said, tmp_path):
    document = written()
    document["run"]["objective"] = objective
    if objective.get("kind") == "supervised":
        document["run"]["mixture"] = []
    (line,) = refusal(document, tmp_path)
    assert said in line


@pytest.mark.parametrize(
    ("layout", "fewer"),
    [
        (Layout(dp_replicate=4), [(2, 1, 1), (1, 1, 1)]),  # 8 sequences cannot be divided by 3
        (Layout(dp_replicate=2, dp_shard=2, tp=2), [(1, 2, 2), (1, 1, 2)]),
        (Layout(tp=2), []),
    ],
)
def test_a_replica_less_keeps_the_global_batch(layout, fewer):
    found = layout.fewer_replicas(plain())
    assert [(one.dp_replicate, one.dp_shard, one.tp) for one in found] == fewer
    assert all(plain().batch_sequences % one.data == 0 for one in found)
