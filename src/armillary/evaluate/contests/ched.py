"""CHED: events in sentences of the Chinese dynastic histories: their triggers and types.

The score is 0.4 trigger + 0.6 type. The contest's announcement fixes these weights and that the trigger score is the
mean of BLEU, ROUGE and exact match, and that types count coarse (9 classes) and fine (67). There is no official scoring
program, so this module defines the rest:

- In each sentence, predicted and true events are paired one to one: first as many equal triggers as possible, then the
  most similar triggers, then the most equal types.
- The trigger score of a sentence is the sum of (BLEU + ROUGE-L + exact) / 3 over the pairs, divided by the larger of
  two numbers of events. The trigger score is its mean over sentences. ``similarity`` defines BLEU and ROUGE-L.
  - The type score is the mean of the coarse and the fine micro-F1. A pair is correct if its types are equal.

Source: data and labels at github.com/lcclab-blcu/CHED.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from armillary.evaluate.contests.contest import ALL, Answer, Ballot, Contest, Item, Numbers, cluster_of, ratio
from armillary.evaluate.contests.rows import Row
from armillary.evaluate.contests.similarity import bleu, rouge_l

LABELS: tuple[str, ...] = tuple(
    f"{coarse}-{fine}"
    for coarse, fines in {
        "人生": "出生 结婚 生病 受伤 死亡 安葬 分封 立谥",
        "职位": "帝位-确立 帝位-即位 帝位-继位 官位-任职 官位-免职 官位-升职 官位-降职 官位-赏赐",
        "交流": "国家交流-出使 国家交流-盟约 国家交流-朝贡 个人交流-见面 个人交流-商议 个人交流-询问 "
        "个人交流-诏令-命令 个人交流-诏令-下诏 个人交流-进言 个人交流-派遣",
        "祭祀": "祭天神 祭地祇 祭人鬼",
        "移动": "到达 停留 离开",
        "军事": "备战-出兵 备战-驻扎 作战-攻击-征伐 作战-攻击-侵袭 作战-防守 作战-谋反 作战-杀害 作战-救援 作战-撤退 "
        "作战-俘虏 停战-战胜 停战-战败 停战-投降",
        "经济": "赋税-征税 赋税-减税 赋税-免税 买卖-买入 买卖-卖出 生产-耕种 生产-打猎 生产-建造",
        "法律": "制法 废法 犯罪 逮捕 赦免 处死 流放",
        "自然": "灾害-饥荒 灾害-地震 灾害-水灾 灾害-蝗灾 天象-日食 天象-流星 天气",
    }.items()
    for fine in fines.split()
)
COARSE: tuple[str, ...] = tuple(dict.fromkeys(label.partition("-")[0] for label in LABELS))
_LEAVES = {label.rpartition("-")[2]: label for label in LABELS}
_EVENT = re.compile(r"^(?:\d+[.、)）])?\W*([^：:|\s]+)\s*[：:|\s]\s*(\S+?)[。；;，,]?$")
# Weights of the pairing: an equal trigger before any similarity, a similarity before any type, fine before coarse.
_FINE, _SIMILAR, _STEPS = 2.0**8, 2.0**17, 2.0**20
_EXACT = _SIMILAR * _STEPS * 2.0**8


class Ched(Contest):
    """Historical event detection."""

    name = "ched"
    title = "CHED"
    test_file = "valid.jsonl"
    example_line = '{"sen_id": 5162, "events": [{"trigger": "赦", "label": "法律-赦免"}]}'
    main_metric = "score"
    answer_tokens = 96

    def read_items(self, row: Row) -> Iterable[Item]:
        """One sentence per line: sen_id, doc_id, text, events with trigger and label."""
        name, text = str(row.whole("sen_id")), row.text("text")
        yield Item(name, "", cluster_of(text), text, f"句子：{text}", _events(row))

    def read_predictions(self, row: Row) -> Iterable[tuple[str, Answer]]:
        """One sentence per line: sen_id and events with trigger and label; other fields are not read."""
        yield str(row.whole("sen_id")), _events(row)

    def prediction_rows(self, items: Sequence[Item], answers: Mapping[str, Answer | None]) -> list[dict[str, Any]]:
        """One sentence per line."""
        return [
            {
                "sen_id": int(item.id),
                "events": [{"trigger": trigger, "label": label} for trigger, label in answers.get(item.id) or ()],
            }
            for item in items
        ]

    def tally(self, item: Item, answer: Answer | None) -> Sequence[float]:
        """Mean BLEU, ROUGE-L and exact match of the pairs, 1, correct coarse and fine types, predicted and true
        events."""
        if answer is None and not item.gold:  # the correct answer is "no event", but there is no answer
            return [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
        predicted = answer or ()
        pairs = paired(predicted, item.gold)
        larger = max(len(predicted), len(item.gold))
        sums = [
            sum(measure(predicted[i][0], item.gold[j][0]) for i, j in pairs) / larger if larger else 1.0
            for measure in (bleu, rouge_l, _exact)
        ]
        labels = [(predicted[i][1], item.gold[j][1]) for i, j in pairs]
        coarse = sum(_coarse(a) == _coarse(b) for a, b in labels)
        fine = sum(a == b for a, b in labels)
        return [*sums, 1.0, coarse, fine, len(predicted), len(item.gold)]

    def scores(self, sums: Numbers) -> dict[tuple[str, str], Numbers]:
        """The composite and its parts, from 0 to 1."""
        measures = {name: ratio(sums[..., i], sums[..., 3]) for i, name in enumerate(("bleu", "rouge", "exact"))}
        events = sums[..., 6] + sums[..., 7]
        coarse, fine = (np.where(events > 0, ratio(2 * sums[..., i], events), 1.0) for i in (4, 5))
        trigger = (measures["bleu"] + measures["rouge"] + measures["exact"]) / 3
        kind = (coarse + fine) / 2
        found = {"score": 0.4 * trigger + 0.6 * kind, "trigger": trigger, "type": kind, **measures}
        return {(name, ALL): value for name, value in {**found, "coarse_f1": coarse, "fine_f1": fine}.items()}

    def value(self, item: Item, answer: Answer | None) -> float:
        """The composite score of one sentence."""
        return float(self.scores(np.array(self.tally(item, answer)))["score", ALL])

    def combine(self, ballots: Sequence[Ballot], share: float) -> Answer | None:
        """The events with at least ``share`` of the weight of the voters that answered."""
        cast = [ballot for ballot in ballots if ballot.answer is not None]
        weights: dict[tuple[str, str], float] = {}
        for ballot in cast:
            for event in dict.fromkeys(ballot.answer or ()):
                weights[event] = weights.get(event, 0.0) + ballot.weight
        needed = share * sum(ballot.weight for ballot in cast)
        return tuple(event for event, weight in weights.items() if weight >= needed) if cast else None

    def instruction(self, within: tuple[str, ...] | None) -> str:
        """The task, the last parts of the labels by coarse class, and one event per line."""
        listed = "；".join(
            f"{coarse}类有{'、'.join(leaf for leaf, label in _LEAVES.items() if _coarse(label) == coarse)}"
            for coarse in (COARSE if within is None else within)
        )
        return (
            "从古文句子中找出历史事件。每行写一个事件，格式为“触发词：类型”，触发词必须是句子中的原文。"
            f"类型只能是：{listed}。"
        )

    def coarse_instruction(self) -> str:
        """The 9 coarse classes."""
        return f"判断古文句子中有哪几类历史事件，用顿号分隔。类别只能是：{'、'.join(COARSE)}。"

    def coarse_of(self, answer: Answer) -> tuple[str, ...]:
        """The coarse classes of the events."""
        return tuple(sorted({_coarse(label) for _, label in answer}))

    def written(self, answer: Answer, within: tuple[str, ...] | None) -> str | None:
        """One event per line, with the last part of its label, which is unique."""
        events = [
            f"{trigger}：{label.rpartition('-')[2]}"
            for trigger, label in answer
            if within is None or _coarse(label) in within
        ]
        return "\n".join(events) or None

    def coarse_written(self, coarse: tuple[str, ...]) -> str:
        """The coarse classes, joined with 、."""
        return "、".join(coarse)

    def read(self, text: str, item: Item, within: tuple[str, ...] | None) -> Answer | None:
        """The lines with a trigger from the sentence and a label, written in full or as its last part."""
        events: list[tuple[str, str]] = []
        for line in text.splitlines():
            found = _EVENT.match(line.strip())
            if found and found[1] in item.text:
                label = found[2] if found[2] in LABELS else _LEAVES.get(found[2].rpartition("-")[2])
                if label is not None and (within is None or _coarse(label) in within):
                    events.append((found[1], label))
        return tuple(dict.fromkeys(events)) or None

    def read_coarse(self, text: str) -> tuple[str, ...] | None:
        """All coarse classes that ``text`` names."""
        return tuple(sorted(name for name in COARSE if name in text)) or None


def _events(row: Row) -> Answer:
    return tuple((event.text("trigger"), event.one_of("label", LABELS)) for event in row.objects("events"))


def _coarse(label: str) -> str:
    return label.partition("-")[0]


def _exact(candidate: str, reference: str) -> float:
    return float(candidate == reference)


def paired(predicted: Answer, true: Answer) -> list[tuple[int, int]]:
    """Indices of the predicted and the true event of each pair."""
    from scipy.optimize import linear_sum_assignment

    if not predicted or not true:
        return []
    weights = np.zeros((len(predicted), len(true)))
    for i, (trigger, label) in enumerate(predicted):
        for j, (wanted, wanted_label) in enumerate(true):
            similarity = (bleu(trigger, wanted) + rouge_l(trigger, wanted)) / 2
            weights[i, j] = (
                _EXACT * (trigger == wanted)
                + _SIMILAR * round(_STEPS * similarity)
                + _FINE * (label == wanted_label)
                + (_coarse(label) == _coarse(wanted_label))
            )
    rows, columns = linear_sum_assignment(weights, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))
