"""The material of evolution, in Chinese and English: prompts, topics, further steps, forms and rules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_ASK = {
    "en": "Rewrite the instruction below into one new instruction. {how} Keep its language. Write the new instruction "
    "alone, without comments.\n\nInstruction:\n{text}\n\nNew instruction:",
    "zh": "请把下面的指令改写成一条新指令。{how}保持原来的语言。只写出新指令，不要解释。\n\n指令：\n{text}\n\n新指令：",
}
# By language and operation: what makes an instruction harder.
DEEPER = {
    "en": {
        "constraint": "Add one more requirement that the reply must meet.",
        "depth": "Ask for a deeper and more detailed treatment of its subject.",
        "rare": "Replace general terms with rarer, more specific ones.",
        "steps": "Make it need several steps of reasoning.",
    },
    "zh": {
        "constraint": "增加一项回答必须满足的要求。",
        "depth": "要求对主题作更深入、更细致的处理。",
        "rare": "把一般的说法换成更少见、更具体的概念。",
        "steps": "使它需要多步推理才能完成。",
    },
}
BREADTH = {
    "en": "It must ask for a task of the same kind, about another subject: {topic}.",
    "zh": "任务类型相同，但换成另一个主题：{topic}。",
}
TOPICS = {
    "en": (
        *(
            "arithmetic in daily life",
            "geometry of rooms and gardens",
            "probability in games",
            "the history of science",
        ),
        *("weather and climate", "plants and farming", "the human body", "cooking", "sports", "music", "painting"),
        *("law and contracts", "money and banks", "traffic and maps", "computers and networks", "letters and manners"),
        *("astronomy and calendars", "chemistry in the kitchen", "machines and tools", "languages and translation"),
    ),
    "zh": (
        *("生活中的算术", "房屋与园林的几何", "游戏中的概率", "科学史", "天气与气候", "植物与农业", "人体", "烹饪"),
        *("体育", "音乐", "绘画", "法律与合同", "货币与银行", "交通与地图", "计算机与网络", "书信与礼仪"),
        *("天文与历法", "厨房里的化学", "机械与工具", "语言与翻译"),
    ),
}
# Words of the prompts that a real instruction does not contain.
_LEAKS = re.compile(
    r"new instruction|rewrit\w+ (?:the |this )?instruction|rewrite:|the instruction (?:below|above)|without comments|"
    r"given (?:prompt|instruction)|新指令|改写|下面的指令|原来?的?指令|不要解释",
    re.IGNORECASE,
)


# Verbs at the start of an English request; words in a Chinese one.
_VERBS = (
    "add|advise|analy[sz]e|answer|argue|arrange|calculate|choose|classify|compare|complete|compose|compute|convert|create|"
    "debate|define|derive|describe|design|determine|develop|discuss|draft|draw|edit|estimate|evaluate|examine|explain|"
    "explore|fill|find|fix|generate|give|help|identify|illustrate|imagine|implement|interpret|invent|justify|let|list|make|"
    "match|name|outline|plan|predict|prepare|present|produce|propose|prove|provide|rank|recommend|rephrase|report|review|"
    "rewrite|select|show|simplify|solve|sort|state|suggest|summari[sz]e|tell|translate|turn|use|work out|write"
)
_ASKS = re.compile(
    rf"[?？]|(?:^|[.!:;\n]\s*)(?:please |now |then |next |first )*(?:{_VERBS}|how|what|when|where|which|who|why)\b|"
    rf",\s*(?:please |then )?(?:{_VERBS})\b|请|为什么|什么|如何|怎[么样]|哪|多少|几|吗|说明|解释|描述|介绍|列[出举]|写|"
    r"比较|分析|计算|求|证明|设计|总结|翻译|给出|讨论|判断|编写|谈谈|论述|概括",
    re.IGNORECASE,
)


def asks_something(text: str) -> bool:
    """Whether a text is a request; a teacher often writes an answer instead of an instruction."""
    return bool(_ASKS.search(text))


def prompt_for(language: str, how: str, text: str) -> str:
    """The prompt that asks a teacher to change ``text`` as ``how`` says."""
    return _ASK[language].format(how=how, text=text)


def leaks_prompt(text: str, language: str, parent: str) -> bool:
    """Whether a teacher's text contains words of its prompt that the parent does not have."""
    hows = [*DEEPER[language].values(), BREADTH[language].partition("{")[0]]
    copied = any(how.strip(" .。：:")[:24].lower() in text.lower() for how in hows)
    return copied or (bool(_LEAKS.search(text)) and not _LEAKS.search(parent))


@dataclass(frozen=True)
class Worked:
    """A further calculation: the question in both languages, the step that solves it, and its value."""

    question: Mapping[str, str]
    steps: str
    value: int


@dataclass(frozen=True)
class Step:
    """A calculation with a whole number N and a random one; ``applies`` says for which N it is useful."""

    name: str
    work: Callable[[int, int], Worked]
    applies: Callable[[int], bool] = lambda n: n > 1


def _step(en: str, zh: str, steps: str, value: Callable[[int, int], int]) -> Callable[[int, int], Worked]:
    def work(n: int, k: int) -> Worked:
        found = value(n, k)
        texts = {
            "en": f"Let N be the answer to this. Give not N, but {en.format(k=k)}.",
            "zh": f"设上题的答案为N。不要给出N，请给出{zh.format(k=k)}。",
        }
        return Worked(texts, steps.format(n=n, k=k, value=found), found)

    return work


# From common to rarer concepts.
STEPS = (
    Step(
        "multiple",
        _step("{k} times N minus {k}", "N的{k}倍减去{k}的差", "{k}·{n} - {k} = {value}", lambda n, k: k * n - k),
    ),
    Step(
        "remainder",
        _step("the remainder when N is divided by {k}", "N除以{k}的余数", "{n} mod {k} = {value}", lambda n, k: n % k),
        lambda n: n > 19,
    ),
    Step(
        "digits",
        _step("the sum of the digits of N", "N的各位数字之和", "{n} → {value}", lambda n, k: sum(map(int, str(n)))),
        lambda n: n > 9,
    ),
    Step(
        "gcd",
        _step(
            "the greatest common divisor of N and {k}0",
            "N与{k}0的最大公约数",
            "gcd({n}, {k}0) = {value}",
            lambda n, k: math.gcd(n, 10 * k),
        ),
    ),
    Step(
        "divisors",
        _step(
            "the number of positive divisors of N",
            "N的正因数的个数",
            "d({n}) = {value}",
            lambda n, k: sum(n % d == 0 for d in range(1, n + 1)),
        ),
        lambda n: 1 < n <= 10_000,
    ),
    Step(
        "binary",
        _step(
            "the number of ones in the binary form of N",
            "N的二进制表示中数字1的个数",
            "{n} = 0b{n:b}: {value}",
            lambda n, k: n.bit_count(),
        ),
    ),
)


@dataclass(frozen=True)
class Form:
    """A rule for the form of a reply that a program can apply to any reply."""

    name: str
    question: Mapping[str, str]
    texts: Mapping[str, str]

    def rule(self, language: str) -> dict[str, Any]:
        """The rule to check replies with."""
        return {"rule": self.name, "text": self.texts[language]}

    def apply(self, reply: str, language: str) -> str:
        """``reply`` in this form."""
        text = self.texts[language]
        return f"{text}\n{reply}" if self.name == "starts" else f"{reply}\n{text}"


FORMS = (
    Form(
        "starts",
        {"en": "Begin your reply with the word “Solution:”.", "zh": "请以“解：”开头作答。"},
        {"en": "Solution:", "zh": "解："},
    ),
    Form(
        "ends",
        {"en": "End your reply with the words “End of solution.”", "zh": "请以“解答完毕。”结束作答。"},
        {"en": "End of solution.", "zh": "解答完毕。"},
    ),
)


@dataclass(frozen=True)
class Rule:
    """A rule for the reply to a free instruction, and the sentence that asks for it."""

    rule: Mapping[str, Any]
    en: str
    zh: str

    def text(self, instruction: str, language: str) -> str:
        """The sentence to append to ``instruction``."""
        ended = instruction[-1:] in ".!?。！？"
        return f"{'' if ended else '.'} {self.en}" if language == "en" else f"{'' if ended else '。'}{self.zh}"


RULES = (
    Rule({"rule": "words", "most": 60}, "Use at most 60 words.", "回答不超过60字。"),
    Rule({"rule": "sentences", "least": 2, "most": 4}, "Write two to four sentences.", "请写两到四句话。"),
    Rule(
        {"rule": "bullets", "least": 3, "most": 3},
        "Give exactly three bullet points.",
        "请恰好列出三个要点，每个要点占一行，以“-”开头。",
    ),
    Rule({"rule": "no_commas"}, "Do not use any commas.", "不要使用逗号。"),
    Rule({"rule": "paragraphs", "least": 2, "most": 2}, "Write exactly two paragraphs.", "请恰好写两段，段间空一行。"),
    Rule({"rule": "lines", "least": 3}, "Write at least three lines.", "至少写三行。"),
)
