"""Which tokens of a conversation are trained: what the assistant says, with the end of its turns, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armillary.generate import ChatTemplate
from armillary.post.check import Checked, check_rendered
from armillary.post.formats import Conversation
from armillary.post.template import BUILT_IN, Rendered, Renderer, open_renderer
from armillary.recipe import UsageError

PHI = (  # closes the whole text with one more token
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% else %}{{ '<|start|>' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
# As Qwen3 does with its thoughts: earlier answers are written otherwise than the last one.
FORGETFUL = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ 'I think: ' }}{% endif %}{{ m['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant:' }}{% endif %}"
)
DEAF = "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"  # fmt: skip # noqa: E501
TOOLS = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] }}{% for c in m.tool_calls %}"
    "{{ '<call>' + (c.function | tojson) + '</call>' }}{% endfor %}{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def talk(*texts: str, system: str | None = None) -> Conversation:
    """Turns of user and assistant by turns."""
    roles = ("user", "assistant")
    first = [] if system is None else [{"role": "system", "content": system}]
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return Conversation((*first, *turns), (), "chats.jsonl:3")


@pytest.fixture(scope="module")
def renderers(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The renderer of the tiny model with another template; no text for its own."""

    def make(template: str | None = None) -> Renderer:
        if template is None or template in BUILT_IN:
            return open_renderer(tiny_hf, template)
        path = tmp_path_factory.mktemp("template") / "chat.jinja"
        path.write_text(template)
        return open_renderer(tiny_hf, str(path))

    return make


def texts_of(renderer: Renderer, rendered: Rendered) -> list[str]:
    """The trained parts as text."""
    return [text for text, trained in renderer.pieces(rendered) if trained]


@pytest.mark.parametrize("template", [None, PHI, MARKED, TOOLS, "plain"])
def test_answers_are_trained_up_to_their_ends(renderers: Any, template: str | None) -> None:
    renderer = renderers(template)
    rendered = renderer.render(talk("How wide?", "The sea is wide.", "And the sky?", "Blue\n", "?", system="Be brief."))
    last = "Blue<|end|>" if template == "plain" else "Blue\n<|end|>"
    assert texts_of(renderer, rendered) == ["The sea is wide.<|end|>", last]
    assert rendered.tokens[-1] == renderer.end and sum(map(len, rendered.turns)) == sum(rendered.trained)
    question = talk("How wide?", "The sea is wide.", "And the sky?", system="Be brief.")
    assert rendered.asked == renderer.prompt(question)


def test_the_mask_is_that_of_marks_as_transformers_reads_them(renderers: Any, tiny_hf: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra export")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_hf)
    chat = talk("How wide?", "The sea is wide.", "And the sky?", "Blue, wide and 浑.", system="Be brief.")
    theirs = tokenizer.apply_chat_template(
        list(chat.messages), chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
    )
    ours = renderers(MARKED).render(chat)
    assert ours.tokens == theirs["input_ids"][: len(ours.tokens)]
    assert ours.trained == theirs["assistant_masks"][: len(ours.tokens)]
    assert not any(theirs["assistant_masks"][len(ours.tokens) :])


def test_calls_of_tools_are_trained_and_their_results_are_not(renderers: Any) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = (
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "It is 2."},
    )
    renderer = renderers(TOOLS)
    rendered = renderer.render(Conversation(turns))
    assert texts_of(renderer, rendered) == [f"<call>{json.dumps(call['function'])}</call><|end|>", "It is 2.<|end|>"]


@pytest.mark.parametrize(
    ("template", "chat", "said"),
    [
        (FORGETFUL, talk("a?", "b", "c?", "d"), r"renders the turns up to messages\[1\] differently within"),
        (DEAF, talk("a?", "b", system="Be brief."), r"messages\[0\] \(system\): its text is not in the output"),
        (None, talk("a<|end|>?", "b"), r"messages\[0\].content: contains '<\|end\|>' \(character 2\)"),
        (None, talk("a?"), "has no assistant turn"),
        ("{{ raise_exception('no') }}", talk("a?", "b"), "refuses the messages"),
        ("{% for %}", talk("a?", "b"), "is not a Jinja template"),
    ],
)
def test_what_does_not_come_back_is_refused(renderers: Any, template: str | None, chat: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        renderers(template).render(chat)


def test_one_answer_comes_back_where_several_do_not(renderers: Any) -> None:
    renderer = renderers(FORGETFUL)
    assert texts_of(renderer, renderer.render(talk("a?", "b"))) == ["I think: b<|end|>"]


def test_where_earlier_answers_change_each_answer_is_a_sample_as_the_model_will_be_asked(renderers: Any) -> None:
    renderer, chat = renderers(FORGETFUL), talk("a?", "b", "c?", "d", "e?", system="Be brief.")
    checked = Checked(renderer, 200, 384)
    first, second = checked.of([chat])
    assert texts_of(renderer, first) == ["I think: b<|end|>"] and texts_of(renderer, second) == ["I think: d<|end|>"]
    assert second.asked == renderer.prompt(talk("a?", "b", "c?", system="Be brief."))
    assert (checked.counts.apart, checked.counts.conversations, checked.counts.turns) == (1, 2, 2)
    assert renderer.render_last(chat) == second


def test_thoughts_that_a_template_drops_later_are_trained_once(renderers: Any) -> None:
    """As Qwen3's, which cuts <think>…</think> out of all answers but the last."""
    thoughtless = FORGETFUL.replace("{{ 'I think: ' }}{% endif %}{{ m['content']", "{{ m['content'] }}{% else %}{{ m['content'].split('</think>')[-1] }}{% endif %}{{ ''")  # fmt: skip # noqa: E501
    renderer = renderers(thoughtless)
    chat = talk("a?", "<think>hm</think>b", "c?", "<think>so</think>d")
    assert [texts_of(renderer, one) for one in Checked(renderer, 200, 384).of([chat])] == [
        ["<think>hm</think>b<|end|>"],
        ["<think>so</think>d<|end|>"],
    ]
    assert "<think>hm" not in renderer.pieces(renderer.render_last(chat))[0][0]
    with pytest.raises(
        UsageError, match=r"messages\[0\] \(user\): its text is not in the output"
    ):  # a user is never lost
        list(
            Checked(renderers(thoughtless.replace("{% else %}", "{% elif m.role == 'assistant' %}")), 200, 384).of(
                [chat]
            )
        )


@pytest.mark.parametrize(
    ("template", "system", "text"),
    [
        ("telechat2", "S", "<_system>S\n<_user>a?<_bot>b<_end>\n<_user>c?<_bot>"),
        ("telechat2", None, "<_user>a?<_bot>b<_end>\n<_user>c?<_bot>"),
        ("telechat2-115b", None, "<_start><_user>a?<_bot>b<_end><_user>c?<_bot>"),
    ],
)
def test_the_forms_of_telechat2(template: str, system: str | None, text: str) -> None:
    chat = ChatTemplate(BUILT_IN[template], {})
    assert chat.render(talk("a?", "b", "c?", system=system).messages) == text
    with pytest.raises(UsageError, match="not tool"):
        chat.render([{"role": "tool", "content": "2"}])


def test_a_template_without_an_end_of_turn_is_refused(renderers: Any) -> None:
    with pytest.raises(UsageError, match="the end of a turn would not be in the loss, and the model would never stop"):
        renderers(ENDLESS)


def test_text_that_runs_together_with_the_prompt_is_refused(renderers: Any) -> None:
    """The tokenizer joins the space of the prompt with the first word of the answer."""
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.raises(UsageError, match="text runs together with what follows"):
        renderers(template).render(talk("a?", "the sea"))


def test_a_model_without_a_template_gets_one_by_its_vocabulary(tiny_hf: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_hf, bare)
    (bare / "chat_template.jinja").unlink()
    assert open_renderer(bare).template == "plain"
    with pytest.raises(UsageError, match="has no chat template"):
        open_renderer(bare, "folder")
    with pytest.raises(UsageError, match=r"no special token '<\|im_start\|>'.*--template plain"):
        open_renderer(bare, "chatml")
    for name, tokens in (("chatml", ("<|im_start|>", "<|im_end|>")), ("telechat2", ("<_user>", "<_bot>", "<_end>"))):
        text = json.loads((bare / "tokenizer.json").read_text())
        added = [{**text["added_tokens"][0], "id": 384 + i, "content": token} for i, token in enumerate(tokens)]
        text["added_tokens"] = [*text["added_tokens"][:2], *added]
        (bare / "tokenizer.json").write_text(json.dumps(text))
        renderer = open_renderer(bare)
        assert renderer.template == name and renderer.text.tokenizer.id_to_token(renderer.end) == tokens[-1]
        rendered = renderer.render(talk("a?", "b", "c?", "d", system="s"))
        assert texts_of(renderer, rendered) == [f"b{tokens[-1]}", f"d{tokens[-1]}"]
        with pytest.raises(UsageError, match="is outside the model's vocabulary"):
            check_rendered(rendered, renderer.end, vocab_size=renderer.end)


def test_a_mask_that_leaves_out_the_end_or_everything_is_refused(renderers: Any) -> None:
    """Whoever made it."""
    good = renderers().render(talk("a?", "b"))
    end = good.turns[0].stop - 1
    without_end = [*good.trained[:end], 0]
    with pytest.raises(UsageError, match="is not in the loss, so the model would never stop"):
        check_rendered(Rendered(good.tokens, without_end, good.turns, "f:1"), good.tokens[-1], 500)
    with pytest.raises(UsageError, match="f:1: none of its"):
        check_rendered(Rendered(good.tokens, [0] * len(good.tokens), good.turns, "f:1"), good.tokens[-1], 500)


def test_too_long_conversations_are_refused_cut_or_dropped_and_counted(renderers: Any) -> None:
    renderer = renderers()
    chats = [talk("a?", "b"), talk("a?", "b", "c?", "d " * 40), talk("a? " * 40, "b")]
    sizes = [len(renderer.render(chat).tokens) for chat in chats]
    longest = sizes[0] + 4
    with pytest.raises(UsageError, match=f"has {sizes[1]} tokens, but a sequence has {longest}") as error:
        list(Checked(renderer, longest, 500).of(chats))
    assert str(error.value).count("chats.jsonl:3") == 2
    cut = Checked(renderer, longest, 500, "cut")
    assert [len(one.tokens) for one in cut.of(chats)] == [sizes[0], sizes[0]]
    assert (cut.counts.conversations, cut.counts.cut, cut.counts.turns_cut, cut.counts.dropped) == (2, 1, 1, 1)
    drop = Checked(renderer, longest, 500, "drop")
    assert [len(one.tokens) for one in drop.of(chats)] == [sizes[0]] and drop.counts.dropped == 2
    with pytest.raises(UsageError, match="all 3 conversations have more than 3 tokens"):
        list(Checked(renderer, 3, 500, "drop").of(chats))


text = st.text(st.characters(codec="utf-8", exclude_characters="<|"), min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(text, min_size=2, max_size=6), st.none() | text)
def test_nothing_of_the_user_is_trained_and_all_of_the_assistant_is(
    renderers: Any, texts: list[str], system: str | None
) -> None:
    renderer = renderers()
    rendered = renderer.render(talk(*texts, system=system))
    answers = texts[1::2]
    assert texts_of(renderer, rendered) == [f"{answer}<|end|>" for answer in answers]
    for number, turn in enumerate(rendered.turns):  # what a model is asked with is encoded as a whole there
        question = talk(*texts[: 2 * number + 1], system=system)
        assert renderer.prompt(question) == rendered.tokens[: turn.start]
    before = [text for text, trained in renderer.pieces(rendered) if not trained]
    asked = "".join(before)
    assert asked.count("<|start|>user") == len(answers) and asked.count("<|start|>assistant\n") == len(answers)
