"""Whatever is wrong in a recipe is told with file, line, key and what would be right."""

import pytest
import yaml

from armillary.path import demo_recipe
from armillary.recipe import Recipe, UsageError, load_recipe

GOOD = """\
name: three seas
corpus:
  domains:
    sky: {source: text/sky}
    sea: {source: /data/sea.jsonl, text_field: body}
    voyage:
      source: demo:drama
      train: false
target: {voyage: 2, sky: 1, sea: 0}
limits:
  max_epochs: 3
  floors:
    sky: 0.1
  ceilings: {sea: 0.8}
families:
  - {name: base}
  - name: wide
    width_per_layer: 48
model: {family: wide, depth: 6}
training:
  budget_share: 0.4
  seeds: [1, 2]
study:
  ladder:
    families: [base, wide]
budget: 20m
"""


@pytest.fixture
def load(tmp_path):
    def of(text):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_recipe(path)

    return of


def test_a_good_recipe(load, tmp_path):
    recipe = load(GOOD)
    domains = recipe.corpus.domains
    assert recipe.corpus.training_domains == ("sky", "sea")
    assert domains["sky"].source == str(tmp_path / "text/sky")  # relative to the recipe, not to where one stands
    assert (domains["sea"].source, domains["voyage"].source) == ("/data/sea.jsonl", "demo:drama")
    assert recipe.target_weights == {"voyage": 2 / 3, "sky": 1 / 3}
    assert recipe.family("wide").shape(6, 300).d_model == 288
    assert recipe.training.peak_lr(128) == recipe.training.lr / 2
    transferred = load(GOOD.replace("seeds: [1, 2]", "base_width: 64\n  lr_exponent: 0")).training
    assert transferred.peak_lr(128) == transferred.lr


def test_a_lesson_is_part_of_a_recipe_and_of_no_hash_without_one(load):
    assert "lesson" not in load(GOOD).model_dump(mode="json")
    lesson = load(GOOD + "lesson: {budget_share: 0.1, questions: {families: [tally]}, sft: {epochs: 2}}\n").lesson
    assert (lesson.budget_share, lesson.questions.families, lesson.sft.epochs) == (0.1, ("tally",), 2)
    assert lesson.gain.parts == (0.125, 0.25, 0.5)


@pytest.mark.parametrize(
    ("lesson", "said"),
    [
        ("{budget_share: 0.5}", "lesson.budget_share"),
        ("{question: {}}", "nearest valid: 'questions'"),
        ("{questions: {teacher: m.gguf}}", "does not reword its questions"),
        ("{gain: {parts: [0.5, 0.25]}}", "three or more distinct shares"),
    ],
)
def test_a_wrong_lesson_is_told_with_its_line(load, lesson, said):
    with pytest.raises(UsageError) as caught:
        load(GOOD + f"lesson: {lesson}\n")
    assert said in str(caught.value) and "recipe.yaml:27" in str(caught.value)


@pytest.mark.parametrize("offline", [True, False])
def test_the_built_in_recipes(offline):
    recipe = load_recipe(demo_recipe(offline))
    trained = [recipe.corpus.domains[name] for name in recipe.corpus.training_domains]
    assert all(domain.source.startswith("demo:") for domain in recipe.corpus.domains.values())
    if not offline:
        assert len(trained) >= 7
        assert any(name not in recipe.corpus.training_domains for name in recipe.target_weights)


def swap(old, new):
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (swap("  max_epochs: 3", "  max_epoch: 3"), 11, "unknown key 'limits.max_epoch'; nearest valid: 'max_epochs'"),
        (
            swap("text_field: body", "textfield: body"),
            5,
            "unknown key 'corpus.domains.sea.textfield'; nearest valid: 't",
        ),
        (
            swap("    width_per_layer: 48", "    width_per_leyer: 48"),
            18,
            "unknown key 'families.1.width_per_leyer'; nearest valid: 'width_per_layer'",
        ),
        (
            swap("seeds: [1, 2]", "layout: {dp_shar: 2}"),
            22,
            "unknown key 'training.layout.dp_shar'; nearest valid: 'dp_shard'",
        ),
        (swap("budget: 20m", "zebra: 20m"), 26, "unknown key 'zebra'; valid: format, name, corpus"),
        (swap("name: three seas\n", ""), 1, "the key 'name' is missing"),
        (swap("{family: wide, depth: 6}", "{family: wide}"), 19, "the key 'model.depth' is missing"),
        (swap("source: demo:drama\n      ", ""), 6, "the key 'corpus.domains.voyage.source' is missing"),
        (swap("max_epochs: 3", "max_epochs: -3"), 11, "limits.max_epochs: must be above 0 (given: -3)"),
        (swap("max_epochs: 3", "max_epochs: many"), 11, "(given: 'many')"),
        (swap("max_epochs: 3", "max_epochs: .inf"), 11, "finite number (given: inf)"),
        (swap("seeds: [1, 2]", "seeds: [1, 1]"), 22, "training.seeds: seeds must differ, found [1, 1]"),
        (swap("  budget_share: 0.4\n", ""), 20, "give exactly one of 'tokens' (a number) and 'budget_share'"),
        (swap("seeds: [1, 2]", "base_width: 64"), 22, "base_width: scales the rate with the width, and so does"),
        (swap("budget: 20m\n", ""), 21, "training.budget_share: needs a 'budget' (such as 20m or 1e15flops)"),
        (
            swap("    sky: 0.1", "    sky: 0.1\n    sea: 0.81"),
            14,
            "limits.floors.sea: the floor 0.81 is above the ceil",
        ),
        (swap("    sky: 0.1", "    sky: 0.9\n    sea: 0.2"), 12, "limits.floors: the floors sum to more than 1"),
        (swap("voyage: 2", "voyages: 2"), 9, "target.voyages: unknown domain; nearest valid: 'voyage'"),
        (swap("voyage: 2, sky: 1", "voyage: 0, sky: 0"), 9, "target: weights must not be negative, and not all zero"),
        (swap("voyage: 2", "voyage: -2"), 9, "target: weights must not be negative"),
        (swap("{sea: 0.8}", "{voyage: 0.8}"), 14, "limits.ceilings.voyage: unknown domain; valid: sky, s"),
        (swap("{family: wide,", "{family: wid,"), 19, "model.family: 'wid' is not in families; nearest valid: 'wide'"),
        (swap("    families: [base, wide]", "    families: [base, x]"), 25, "study.ladder.families: 'x' is not in fam"),
        (swap("- name: wide", "- name: base"), 15, "families: names must differ, found ['base', 'base']"),
        (
            swap("sky: {source: text/sky}", "sku: {source: x}"),
            9,
            "target.sky: unknown domain; nearest valid: 'sku'",
        ),
        (swap("max_epochs: 3", "max_epochs: 3\n  max_epochs: 4"), 12, "the key 'max_epochs' appears twice"),
        ("format: 2\n" + GOOD, 1, "format: must be 1 (given: 2)"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(load, tmp_path, text, line, said):
    with pytest.raises(UsageError) as caught:
        load(text)
    messages = str(caught.value).splitlines()
    assert any(f"{tmp_path / 'recipe.yaml'}:{line}: " in m and said in m for m in messages), messages


def test_a_mixture_needs_two_domains(load):
    text = swap("source: /data/sea.jsonl, text_field: body", "source: x, train: false").replace("  ceilings", "  #")
    with pytest.raises(UsageError, match=r":3: corpus.domains: a mixture needs at least two domains"):
        load(text)


def test_all_that_is_wrong_is_told_at_once(load):
    with pytest.raises(UsageError) as caught:
        load(swap("max_epochs: 3", "max_epochs: -3").replace("depth: 6", "depth: 0"))
    assert [m.split(":")[1] for m in str(caught.value).splitlines()] == ["11", "19"]


def test_every_wrong_entry_is_told_in_one_call(load):
    """Also what is found only by checks over several fields, and each with its place and the nearest valid key."""
    text = GOOD
    for old, new in {
        "text_field: body": "textfield: body",
        "voyage: 2": "voyages: 2",
        "max_epochs: 3": "max_epochs: -3",
        "sky: 0.1": "sku: 0.1",
        "{sea: 0.8}": "{sea: 8}",
        "width_per_layer: 48": "width_per_leyer: 48",
        "{family: wide, depth: 6}": "{family: wid, depth: 010}",
        "budget_share: 0.4": "budget_share: yes",
        "seeds: [1, 2]": "seeds: [-1, 2]",
        "families: [base, wide]": "families: [base, wyde]",
        "budget: 20m": "budget: 5\nzebra: 1",
    }.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    with pytest.raises(UsageError) as caught:
        load(text)
    lines = str(caught.value).splitlines()
    for line, said in (
        (5, "unknown key 'corpus.domains.sea.textfield'; nearest valid: 'text_field'"),
        (9, "target.voyages: unknown domain; nearest valid: 'voyage'"),
        (11, "limits.max_epochs: must be above 0 (given: -3)"),
        (13, "limits.floors.sku: unknown domain; nearest valid: 'sky'"),
        (14, "limits.ceilings.sea: must be at most 1 (given: 8)"),
        (18, "unknown key 'families.1.width_per_leyer'; nearest valid: 'width_per_layer'"),
        (19, "model.family: 'wid' is not in families; nearest valid: 'wide'"),
        (19, "model.depth: with a leading 0 some programs read this in base 8; write 10"),
        (21, "training.budget_share: must be a number"),
        (22, "training.seeds.0: must be at least 0 (given: -1)"),
        (25, "study.ladder.families: 'wyde' is not in families; nearest valid: 'wide'"),
        (
            26,
            "budget: is neither a time (90s, 3m30s, 20m, 1.5h, 1h30m, 1d) nor FLOPs (1e15flops)",
        ),
        (27, "unknown key 'zebra'; valid: format, name"),
    ):
        assert any(f":{line}: {said}" in entry for entry in lines), (said, lines)
    assert len(lines) == 13, lines


def test_a_misspelt_key_hides_nothing_else(load):
    text = swap("budget_share: 0.4", "budgt_share: 4").replace("voyage: 2", "voyages: 2")
    with pytest.raises(UsageError) as caught:
        load(text)
    said = [line.split("recipe.yaml:")[1] for line in str(caught.value).splitlines()]
    assert said[0].startswith("9: target.voyages: unknown domain; nearest valid: 'voyage'")
    assert said[1].startswith("21: unknown key 'training.budgt_share'; nearest valid: 'budget_share'")
    assert said[2].startswith("21: training.budget_share: must be below 1 (given: 4)") and len(said) == 3


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("budget: 20m", "budget: 2x", r":26: budget: is neither a time \(90s"),
        ("seeds: [1, 2]", "seeds: [3, 3]", r":22: training\.seeds: seeds must differ, found \[3, 3\]"),
        ("seeds: [1, 2]", f"seeds: [1, {2**70}]", r"training\.seeds\.1: must be below"),
        ("study:", "study:\n  mixture: {seed: -1}", r"study\.mixture\.seed: must be at least"),
        ("study:", "study:\n  anneal: {sharpen: [1, -1]}", r"study\.anneal\.sharpen\.1: must be at least"),
        ("study:", "study:\n  anneal: {sharpen: [1e9]}", r"study\.anneal\.sharpen\.0: must be at most"),
        ("study:", "study:\n  anneal: {sharpen: [2, 2.0]}", r"study\.anneal\.sharpen: sharpen must differ"),
        ("study:", "study:\n  anneal: {shares: [0, 0.1]}", r"study\.anneal\.shares\.0: must be above 0"),
        ("study:", "study:\n  anneal: {shapes: [linear, linear]}", r"study\.anneal\.shapes: shapes must differ"),
        ("families: [base, wide]", "families: [base, wide, wide]", r"study\.ladder\.families: families must differ"),
        ("families: [base, wide]", "depths: [0, 1, 2]", r"study\.ladder\.depths\.0: must be at least"),
        ("families: [base, wide]", "fractions: [0, 1]", r"study\.ladder\.fractions\.0: must be above 0"),
        ("{sea: 0.8}", "{sea: 0.4, sky: 0.5}", r":14: limits\.ceilings: the ceilings sum to 0\.9; a mixture sums to 1"),
        ("{sea: 0.8}", "{sea: 0.9}", r":12: limits\.floors: floors and ceilings allow only one mixture"),
        ("{sea: 0.8}", "{sea: 0.4, sky: 0.6}", r"allow only one mixture; widen them"),
        ("source: demo:drama", "source: ''", r"corpus\.domains\.voyage\.source: the path is empty"),
        ("width_per_layer: 48", "rope_theta: -1", r"families\.1\.rope_theta: must be above 0"),
    ],
)
def test_what_would_fail_or_mislead_later_is_refused_at_once(load, old, new, said):
    text = swap(old, new).replace("sky: 0.1", "sky: 0.1" if "0.9}" not in new else "sky: 0.1\n    sea: 0.9")
    with pytest.raises(UsageError, match=said) as caught:
        load(text)
    assert len(str(caught.value).splitlines()) == 1


def test_a_shape_that_does_not_exist_is_told_before_anything_is_trained(load):
    with pytest.raises(
        UsageError,
        match=r":15: families: 'wide' has no model of depth 1: d_ff: must be at least",
    ):
        load(swap("width_per_layer: 48", "ffn_ratio: 1e-9"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2", ":1: not YAML: "),
        ("name: x\n  b: {", ":2: not YAML: "),
        ("name: \x07\n", ":1: contains the character U+0007, which YAML does not allow"),
        ("- 1\n- 2\n", "the document is a mapping with the keys format, name, corpus"),
        ("", "the document is a mapping"),
        ("name: 浑仪\n".encode("gb18030"), "not UTF-8 at byte 6; save it as UTF-8"),
    ],
)
def test_what_is_no_recipe_at_all(load, tmp_path, text, said):
    with pytest.raises(UsageError) as caught:
        load(text)
    assert str(caught.value).startswith(str(tmp_path / "recipe.yaml")) and said in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere.yaml: cannot be read \(No such file or directory\)"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(UsageError, match=r"cannot be read \(Is a directory\)"):
        load_recipe(tmp_path)


def test_a_recipe_goes_through_yaml_and_back(load):
    recipe = load(GOOD)
    assert Recipe.model_validate(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe
