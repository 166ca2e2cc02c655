"""Writes the model card: a README.md for readers who find the published folder and do not know its history.

Every sentence is derived from the lineage, so a card never states what was not recorded. The front matter has the keys
that Hugging Face, ModelScope, Gitee and Modelers read. The text is in English first, and then in Chinese.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from armillary.recipe import ModelShape, RunSpec, Supervised, counted

Language = Literal["en", "zh"]

_TAG = "tags:\n- armillary\n"
UNKNOWN = "unknown"
_STUDIES = {
    "mixture": "配比研究",
    "mixture-confirm": "配比重训",
    "anneal": "退火研究",
    "lr": "学习率研究",
    "lr-confirm": "学习率重训",
    "ladder": "规模阶梯",
}
# Identifiers of licences that Hugging Face lists; any other is "other" with a name.
_LICENCES = frozenset(
    (
        *("apache-2.0", "mit", "openrail", "bigscience-openrail-m", "openrail++", "afl-3.0", "artistic-2.0", "bsl-1.0"),
        *("bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "cc", "cc0-1.0", "cc-by-3.0", "cc-by-4.0"),
        *("cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0"),
        *("cc-by-nc-sa-4.0", "ecl-2.0", "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gpl", "gpl-2.0"),
        *("gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl"),
        *("ofl-1.1", "osl-3.0", "postgresql", "ncsa", "unlicense", "zlib", "pddl", "wtfpl", "llama2", "llama3"),
        *("llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "deepfloyd-if-license", UNKNOWN),
    )
)


# Names of libraries and frameworks by format, where they are not transformers and PyTorch.
_LIBRARIES = {"gguf": "gguf", "mindspore": "mindspore", "native": "armillary"}
_FRAMEWORKS = {"mindspore": "MindSpore"}


def is_card(text: str) -> bool:
    """Whether this program wrote the card ``text``."""
    return text.startswith("---\n") and _TAG in text.partition("\n---")[0] + "\n"


def model_card(name: str, shape: ModelShape, context_length: int, lineage: dict[str, Any]) -> str:
    """The card in Markdown: description, loading, training data, measurements and limits.

    ``lineage`` is the document of ``lineage.json``.
    """
    conversion = lineage.get("conversion")
    losses = (
        [(row["domain"], row["after"]) for row in conversion["losses"]] if conversion else lineage["losses"].items()
    )
    measured = [(domain, "loss", loss, "validation loss, nats per token") for domain, loss in sorted(losses)]
    return _joined(
        name, lineage, measured, *(_model_parts(shape, context_length, lineage, language) for language in ("en", "zh"))
    )


def chat_card(name: str, lineage: dict[str, Any]) -> str:
    """The card of a chat model in Markdown; ``lineage`` is as ``publish_chat`` writes it."""
    scores = [
        (row["test"], "accuracy", row["after"], f"share of right answers, n={row['n']}")
        for row in lineage["teaching"]["scores"]
    ]
    return _joined(name, lineage, scores, *(_chat_parts(lineage, language) for language in ("en", "zh")))


def _joined(
    name: str,
    lineage: Mapping[str, Any],
    measured: Sequence[tuple[str, str, float, str]],
    english: Sequence[str],
    chinese: Sequence[str],
) -> str:
    lead = "[中文](#中文说明)"
    parts = [front_matter(name, lineage, measured), f"# {name}", lead, *english, "## 中文说明", *chinese]
    return "\n\n".join(parts) + "\n"


def front_matter(name: str, lineage: Mapping[str, Any], measured: Sequence[tuple[str, str, float, str]]) -> str:
    """The YAML between two lines of dashes; ``measured`` has data, metric, value and name of each result."""
    about = lineage.get("publication") or {}
    form = str((lineage.get("conversion") or {}).get("to") or (lineage.get("model") or {}).get("format"))
    licence = about.get("licence") or UNKNOWN
    known = str(licence).lower() in _LICENCES
    rows = [
        *measured,
        *(
            (
                row["task"] if row["subset"] == row["task"] else f"{row['task']}: {row['subset']}",
                row["metric"],
                row["value"],
                f"{row['metric']}, 95% interval {row['low']:.4f} to {row['high']:.4f}, n={row['n']}",
            )
            for row in about.get("evaluation") or ()
        ),
    ]
    front: dict[str, Any] = {
        "license": licence.lower() if known else "other",
        **({} if known else {"license_name": licence}),
        **({"language": about["languages"]} if about.get("languages") else {}),
        **({"base_model": about["base_model"]} if about.get("base_model") else {}),
        "library_name": _LIBRARIES.get(form, "transformers"),
        "pipeline_tag": "text-generation",
        "tags": ["armillary"],
        # of ModelScope and Modelers
        **({"frameworks": [_FRAMEWORKS.get(form, "PyTorch")]} if form != "gguf" else {}),
        "tasks": ["text-generation"],
        "domain": ["nlp"],
    }
    if rows:
        front["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"name": data, "type": "held-out"},
                        "metrics": [{"type": metric, "value": round(float(value), 6), "name": text}],
                    }
                    for data, metric, value, text in rows
                ],
            }
        ]
    return f"---\n{yaml.safe_dump(front, allow_unicode=True, sort_keys=False, width=1000)}---"


# ---- a model that continues text ------------------------------------------------------------------------------------


def _model_parts(shape: ModelShape, context_length: int, lineage: dict[str, Any], language: Language) -> list[str]:
    run = RunSpec.model_validate(lineage["spec"])
    kind = f"Qwen3{'Moe' if shape.experts else ''}ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"
    sizes = (shape.n_layers, shape.d_model, shape.n_heads, shape.n_kv_heads, shape.head_dim, shape.d_ff)
    layers, width, heads, kv_heads, dim, d_ff = sizes
    supervised = isinstance(run.objective, Supervised)
    conversion = lineage.get("conversion")
    folder = conversion is None or conversion["to"] == "huggingface"
    if language == "en":
        about = (
            f"A decoder-only language model with {counted(shape.parameters, 'parameter')} "
            f"({shape.non_embedding_parameters:,} without embedding and output matrix), trained on "
            f"{counted(run.tokens, 'token')}. It has {counted(layers, 'layer')} of width {width}, {heads} query and "
            f"{kv_heads} key-value heads of dimension {dim}, feed-forward width {d_ff}, a vocabulary of "
            f"{counted(shape.vocab_size, 'token')}, and a context length of {context_length} tokens."
            + (f" `transformers` loads it as `{kind}`." if folder else "")
        )
    else:
        about = (
            f"仅解码器（decoder-only）语言模型，共 {shape.parameters:,} 个参数（不含词嵌入与输出矩阵为 "
            f"{shape.non_embedding_parameters:,} 个），用 {run.tokens:,} 个词元训练。{layers} 层，宽度 {width}，"
            f"{heads} 个查询头、{kv_heads} 个键值头，每头 {dim} 维，前馈层宽度 {d_ff}，词表大小 {shape.vocab_size:,}，"
            f"上下文长度 {context_length} 个词元。" + (f"`transformers` 以 `{kind}` 类加载。" if folder else "")
        )
    code = (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # the folder of this file\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        'tokens = tokenizer("The ", return_tensors="pt")\n'
        f"text = model.generate(**tokens, max_new_tokens={context_length // 2}, do_sample=True, temperature=0.8)\n"
        "print(tokenizer.decode(text[0]))\n```"
    )
    if not folder:
        assert conversion is not None
        gguf = conversion["to"] == "gguf"
        code = "```\n" + ("llama-cli -m model.gguf -p 'The '" if gguf else "armillary generate .") + "\n```"
    continues = {
        "en": "The model continues text." + ("" if supervised else " It has no chat template."),
        "zh": "该模型用于续写文本。" + ("" if supervised else "不含对话模板。"),
    }
    return [
        about,
        _head(language, "Loading", "加载方法"),
        code,
        continues[language] + (_packed(conversion, language) if conversion is not None else ""),
        _head(language, "Training data", "训练数据"),
        *_text(run, lineage["corpus"]["domains"], lineage["passes"], language),
        _head(language, "Results", "测量结果"),
        *({"en": ["Before the conversion:"], "zh": ["转换之前："]}[language] if conversion is not None else []),
        *_measured(lineage, language),
        *_evaluation(lineage, language),
        *(_conversion(conversion, language) if conversion is not None else []),
        _head(language, "Origin", "来源"),
        _origin(lineage, language),
        _head(language, "Limits", "局限"),
        _limits(lineage, context_length, language),
    ]


def _head(language: Language, english: str, chinese: str) -> str:
    return f"## {english}" if language == "en" else f"### {chinese}"


def _text(run: RunSpec, domains: Mapping[str, Any], passes: Mapping[str, float], language: Language) -> list[str]:
    """Mixture by phase, passes and licence of each training domain, and the domains that were only examined."""
    english = language == "en"
    phases = [phase.start_step for phase in run.mixture]
    ends = [*phases[1:], run.steps]
    lead = (
        f"{counted(run.tokens, 'token')} in {counted(run.steps, 'step')}"
        if english
        else f"训练 {run.steps:,} 步，共 {run.tokens:,} 个词元"
    )
    if isinstance(run.objective, Supervised):
        read = [(name, f"{times:.2f}") for name, times in passes.items()]
        examples = run.objective.examples
        lead += f" of supervised examples ({examples})." if english else f"，数据为监督样本（{examples}）。"
        heads = ("examples", "passes") if english else ("样本", "遍数")
        return [lead, _table(heads, read), *_examined(domains, language)]
    columns = ["domain" if english else "语料域"]
    if len(phases) == 1:
        lead += ", with one mixture throughout" if english else "，全程使用同一配比"
        columns.append("share of the tokens" if english else "词元占比")
    else:
        lead += f", with {counted(len(phases), 'mixture')} in turn" if english else f"，依次使用 {len(phases)} 个配比"
        steps = [(a + 1, b) for a, b in zip(phases, ends, strict=True)]
        columns += [f"share in steps {a:,} to {b:,}" if english else f"第 {a:,} 至 {b:,} 步占比" for a, b in steps]
    columns += (
        ["training tokens, about", "passes over its text", "licence", "source"]
        if english
        else ["训练词元数（约）", "遍数", "许可证", "来源"]
    )
    rows = []
    for name in dict.fromkeys(name for phase in run.mixture for name in phase.weights):
        shares = [phase.weights.get(name, 0.0) for phase in run.mixture]
        drawn = sum(
            share * (run.tokens_after(b) - run.tokens_after(a))
            for share, a, b in zip(shares, phases, ends, strict=True)
        )
        about = domains.get(name, {})
        rows.append(
            (
                name,
                *(f"{100 * share:.1f}%" for share in shares),
                f"{drawn:,.0f}",
                f"{passes[name]:.2f}" if name in passes else "not recorded" if english else "未记录",
                about.get("licence") or _not_stated(language),
                about.get("source", ""),
            )
        )
    return [f"{lead}{'.' if english else '。'}", _table(tuple(columns), rows), *_examined(domains, language)]


def _not_stated(language: Language) -> str:
    return "not stated" if language == "en" else "未说明"


def _examined(domains: Mapping[str, Any], language: Language) -> list[str]:
    """A sentence and a table of the domains that were only examined, if any."""
    examined = [
        (name, f"{about['validation_tokens']:,}", about["licence"] or _not_stated(language), about["source"])
        for name, about in domains.items()
        if not about["train"]
    ]
    if not examined:
        return []
    if language == "en":
        return [
            "Only examined, not trained on:",
            _table(("domain", "validation tokens", "licence", "source"), examined),
        ]
    return ["未参与训练，仅用于评测：", _table(("语料域", "验证词元数", "许可证", "来源"), examined)]


def _measured(lineage: dict[str, Any], language: Language) -> list[str]:
    """A sentence and a table of the measured losses, with the predictions if there is a verdict."""
    english = language == "en"
    held_out = sum(about["validation_tokens"] for about in lineage["corpus"]["domains"].values())
    text = (
        f"Validation loss on held-out text ({counted(held_out, 'token')} in all domains), in nats per token."
        if english
        else f"留出文本（各语料域共 {held_out:,} 个词元）上的验证损失，单位为奈特/词元。"
    )
    losses: dict[str, float] = lineage["losses"]
    verdict = {row["domain"]: row for row in lineage["verdict"] or ()}
    if not verdict:
        if (prediction := lineage["prediction"]) is not None:
            text += _unjudged(prediction["run"], lineage, language)
        heads = ("domain", "loss") if english else ("语料域", "损失")
        return [text, _table(heads, [(domain, f"{loss:.4f}") for domain, loss in losses.items()])]
    hits = sum(bool(row["inside"]) for row in verdict.values())
    text += (
        " Before the run began, its losses were predicted from the smaller runs of the ladder, and the predictions "
        f"were recorded. For {hits} of {counted(len(verdict), 'prediction')} (the domains, and the target as their "
        "weighted mean), the measured loss lies inside the interval."
        if english
        else "训练开始之前，已根据规模阶梯（一组逐级增大的小模型）预测并记录损失；"
        f"{len(verdict)} 项预测（各语料域，以及作为其加权平均的目标）中，有 {hits} 项的实测值落在区间内。"
    )
    rows = []
    for domain, loss in (losses | {name: row["measured"] for name, row in verdict.items()}).items():
        predicted = interval = inside = ""
        if row := verdict.get(domain):
            predicted = f"{row['predicted']:.4f}"
            interval = f"{row['low']:.4f} {'to' if english else '至'} {row['high']:.4f}"
            inside = (
                ("inside" if row["inside"] else "outside") if english else ("区间内" if row["inside"] else "区间外")
            )
        rows.append((domain, f"{loss:.4f}", predicted, interval, inside))
    heads5 = ("domain", "loss", "predicted", "interval", "verdict")
    return [text, _table(heads5 if english else ("语料域", "损失", "预测", "区间", "判定"), rows)]


def _unjudged(predicted: str, lineage: dict[str, Any], language: Language) -> str:
    """The card's text on a prediction without a verdict on these weights."""
    diverged = lineage["verdict_status"] == "diverged"
    if predicted == lineage["run"]:
        return {
            "en": " A prediction was recorded, but no verdict.",
            "zh": "有预测记录，但没有判定记录。",
        }[language]
    if language == "en":
        return (
            f" The recorded prediction is for another run, `{predicted}`, which "
            f"{'diverged' if diverged else 'has no result'}. These weights come from another seed, and there is no "
            "prediction for them."
        )
    return (
        f"记录的预测针对另一次训练 `{predicted}`，该训练{'已发散' if diverged else '没有结果'}；"
        "本权重来自另一个随机种子，没有针对它的预测。"
    )


def _evaluation(lineage: Mapping[str, Any], language: Language) -> list[str]:
    """The examination results recorded in the publication."""
    rows = (lineage.get("publication") or {}).get("evaluation") or ()
    if not rows:
        return []
    english = language == "en"
    table = [
        (
            row["task"],
            "" if row["subset"] == row["task"] else row["subset"],
            row["metric"],
            f"{row['n']:,}",
            f"{row['value']:.4f}",
            f"{row['low']:.4f} {'to' if english else '至'} {row['high']:.4f}",
        )
        for row in rows
    ]
    if english:
        return ["Examinations:", _table(("task", "part", "metric", "n", "score", "95% interval"), table)]
    return ["评测：", _table(("任务", "子集", "指标", "题数", "得分", "95% 区间"), table)]


def _packed(conversion: Mapping[str, Any], language: Language) -> str:
    """The package needed to load packed integer weights, as a sentence."""
    if conversion["stored"] not in ("int4", "int8"):
        return ""
    return {
        "en": " `transformers` needs the package `compressed-tensors` to load it.",
        "zh": "用 `transformers` 加载时需要安装 `compressed-tensors`。",
    }[language]


def _conversion(about: Mapping[str, Any], language: Language) -> list[str]:
    """The effect of a conversion of the weights: the loss before and after, for each domain."""
    english = language == "en"
    to = "to" if english else "至"
    rows = []
    for row in about["losses"]:
        gap = row["difference"]
        rows.append(
            (
                row["domain"],
                f"{row['tokens']:,}",
                f"{row['before']:.4f}",
                f"{row['after']:.4f}",
                f"{gap['value']:+.5f} ({gap['low']:+.5f} {to} {gap['high']:+.5f})",
                f"{row['p_value']:.2g}",
            )
        )
    calibrated = about["calibrated"]
    if english:
        lead = (
            f"These weights are `{about['from']}` converted to `{about['to']}` in `{about['stored']}`"
            f"{', with channels scaled by activations' if calibrated else ''}. Both were "
            f"measured on the same windows of the validation text of corpus `{about['corpus']}`. The table shows the "
            "loss in nats per token before and after, the paired difference with its 95% interval over windows, and "
            "the p-value of a sign-flip test."
        )
        heads = ("domain", "tokens", "before", "after", "difference", "p")
        return ["## Effect of the conversion", lead, _table(heads, rows)]
    lead = (
        f"这些权重由 `{about['from']}` 转换为 `{about['to']}`，以 `{about['stored']}` 存储"
        f"{'，各通道按激活值缩放' if calibrated else ''}。两者在语料 `{about['corpus']}` 验证文本的相同窗口上测量。"
        "下表为转换前后的损失（奈特/词元）、配对差值及其 95% 区间（按窗口计算），以及符号翻转检验的 p 值。"
    )
    return ["### 转换的影响", lead, _table(("语料域", "词元数", "转换前", "转换后", "差值", "p"), rows)]


def plain_card(name: str, lineage: Mapping[str, Any]) -> str:
    """The card of a model whose training is not known, or known only from its fine-tuning (``plain.py``)."""
    conversion = lineage.get("conversion")
    measured = [
        (row["domain"], "loss", row["after"], f"loss after conversion, {row['before']:.6f} before, nats per token")
        for row in (conversion or {}).get("losses", ())
    ]
    return _joined(name, lineage, measured, *(_plain_parts(lineage, language) for language in ("en", "zh")))


def _plain_parts(lineage: Mapping[str, Any], language: Language) -> list[str]:
    english, about, conversion = language == "en", lineage["model"], lineage.get("conversion")
    context = about["context_length"]
    sizes = counted(about["layers"], "layer"), counted(about["vocabulary"], "token")
    if english:
        text = (
            f"A language model with {counted(about['parameters'], 'parameter')}: {sizes[0]} of width {about['width']}, "
            f"and a vocabulary of {sizes[1]}."
        ) + ("" if context is None else f" Its context length is {context} tokens.")
    else:
        text = (
            f"语言模型，{about['parameters']:,} 个参数，{about['layers']} 层，宽度 {about['width']}，"
            f"词表大小 {about['vocabulary']:,}{'' if context is None else f'，上下文长度 {context} 个词元'}。"
        )
    parts = [text, _head(language, "Loading", "加载方法"), _loading(about)]
    if conversion is not None and (packed := _packed(conversion, language).strip()):
        parts.append(packed)
    parts += [_head(language, "Training", "训练"), *_trained(lineage.get("training"), language)]
    parts += _evaluation(lineage, language)
    if conversion is not None:
        parts += _conversion(conversion, language)
        rows = [(domain, licence or _not_stated(language)) for domain, licence in conversion["licences"].items()]
        parts.append("Licences of the text used for the measurement:" if english else "测量所用文本的许可证：")
        parts.append(_table(("domain", "licence") if english else ("语料域", "许可证"), rows))
    weights = lineage["weights"]["sha256"][:16]
    parts += [
        _head(language, "Origin and limits", "来源与局限"),
        f"`lineage.json` records the SHA-256 of every file (of the weights: `{weights}…`)."
        if english
        else f"`lineage.json` 记录了每个文件的 SHA-256（权重：`{weights}…`）。",
    ]
    examined = bool((lineage.get("publication") or {}).get("evaluation"))
    limits = {
        "en": [
            "The text that it was pretrained on, and the licences of that text, are not recorded.",
            "There is no record of a safety or bias examination.",
            *([] if examined else ["There is no record of an examination on public tasks."]),
        ],
        "zh": [
            "没有预训练文本及其许可证的记录。",
            "没有安全性或偏见方面的评测记录。",
            *([] if examined else ["没有公开评测集的评测记录。"]),
        ],
    }
    return [*parts, "\n".join(f"- {point}" for point in limits[language])]


def _loading(about: Mapping[str, Any]) -> str:
    """The code that loads a model of this format."""
    if about["format"] == "gguf":
        return "```\nllama-cli -m model.gguf\n```"
    verb = "chat" if about["chat"] else "generate"
    if about["format"] != "huggingface":
        return f"```\narmillary {verb} .\n```"
    return (
        f"```\narmillary {verb} .\n```\n\n"
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # the folder of this file\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        f"model = AutoModelForCausalLM.from_pretrained(folder)  # {about['class']}\n```"
    )


def _trained(training: Mapping[str, Any] | None, language: Language) -> list[str]:
    """The recorded fine-tuning in sentences."""
    english = language == "en"
    if training is None:
        return ["How it was trained is not recorded here." if english else "此处没有其训练记录。"]
    data, settings = training.get("data") or {}, training.get("settings") or {}
    base, text = str(settings.get("model"))[:16], str(settings.get("data"))[:16]
    rank = (settings.get("lora") or {}).get("rank")
    if english:
        lead = (
            f"Run `{training['run']}` fine-tuned it in {counted(training['steps'], 'step')}"
            f"{f' with a low-rank adapter (rank {rank})' if rank else ''}, from a model with the hash "
            f"`{base}…`, on data with the hash `{text}…`."
        )
        if "conversations" in data:
            lead += (
                f" The data had {counted(data['conversations'], 'conversation')} with "
                f"{counted(data['trained'], 'trained token')}. Their licence is not recorded."
            )
    else:
        lead = (
            f"训练 `{training['run']}` 对其微调 {training['steps']:,} 步"
            f"{f'（低秩适配器，秩 {rank}）' if rank else ''}，"
            f"基座模型的哈希为 `{base}…`，数据的哈希为 `{text}…`。"
        )
        if "conversations" in data:
            lead += f"数据含 {data['conversations']:,} 段对话，{data['trained']:,} 个参与训练的词元，其许可证未记录。"
    before, after = training.get("loss_before"), training.get("loss_after")
    if isinstance(before, float) and isinstance(after, float):
        lead += (
            f" The loss on held-out conversations was {before:.4f} before and {after:.4f} after, in nats per token."
            if english
            else f"留出对话上的损失（奈特/词元）微调前为 {before:.4f}，微调后为 {after:.4f}。"
        )
    return [lead]


def _origin(lineage: dict[str, Any], language: Language) -> str:
    argued = {study: len(runs) for study, runs in lineage["argued_by"].items() if runs}
    weights, run, corpus = lineage["weights"]["sha256"][:16], lineage["run"], lineage["corpus"]["hash"]
    if language == "en":
        studies = ", ".join(f"{counted(count, 'run')} of the {study} study" for study, count in argued.items())
        return (
            f"Run `{run}` on corpus `{corpus}`.{f' The recipe was chosen with {studies}.' if studies else ''} "
            "`lineage.json` records the full specification, the runs behind the recipe, the version of the code and "
            f"the SHA-256 of every file (of the weights: `{weights}…`)."
        )
    studies = "、".join(f"{_STUDIES.get(study, study)}的 {count} 次训练" for study, count in argued.items())
    return (
        f"训练 `{run}`，语料 `{corpus}`。{f'配方依据：{studies}。' if studies else ''}`lineage.json` 记录了完整规格、"
        f"所依据的训练、代码版本以及每个文件的 SHA-256（权重：`{weights}…`）。"
    )


def _limits(lineage: Mapping[str, Any], context_length: int, language: Language) -> str:
    """Limitations that follow from recorded facts, and from missing ones."""
    unstated = [name for name, about in lineage["corpus"]["domains"].items() if not about["licence"]]
    examined = bool((lineage.get("publication") or {}).get("evaluation"))
    if language == "en":
        points = [
            f"It was trained on sequences of up to {context_length} tokens. Longer sequences were not tested.",
            "It was trained to continue text like that of the domains above. Its statements may be false.",
            "There is no record of a safety or bias examination.",
            *([] if examined else ["There is no record of an examination on public tasks."]),
            *([f"The licence of {', '.join(unstated)} is not stated."] if unstated else []),
        ]
    else:
        points = [
            f"训练序列最长 {context_length} 个词元，更长的输入未经测试。",
            "训练目标是续写上述语料域的文本，输出的内容可能不符合事实。",
            "没有安全性或偏见方面的评测记录。",
            *([] if examined else ["没有公开评测集的评测记录。"]),
            *([f"{'、'.join(unstated)} 的许可证未说明。"] if unstated else []),
        ]
    return "\n".join(f"- {point}" for point in points)


# ---- a model that answers -------------------------------------------------------------------------------------------


def _chat_parts(lineage: dict[str, Any], language: Language) -> list[str]:
    english = language == "en"
    taught, base = lineage["teaching"], lineage["base"]
    to = "to" if english else "至"
    scores = [
        (
            row["test"],
            f"{row['n']:,}",
            _share(row["before"]),
            _share(row["after"]),
            f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} {to} {100 * row['high']:+.1f})",
        )
        for row in taught["scores"]
    ]
    forgotten = [
        (domain, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
        for domain, (before, after) in lineage["losses"].items()
    ]
    code = (
        "```\narmillary chat .\n```\n\n"
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # the folder of this file\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        f'turns = [{{"role": "user", "content": {json.dumps(taught["example"], ensure_ascii=False)}}}]\n'
        'tokens = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", '
        "return_dict=True)\n"
        "text = model.generate(**tokens, max_new_tokens=40)\n"
        'print(tokenizer.decode(text[0, tokens["input_ids"].shape[1]:], skip_special_tokens=True))\n```'
    )
    families = taught["families"]
    if english:
        about = (
            f"A language model that was taught to answer {counted(len(families), 'kind')} of questions "
            f"({', '.join(families)}), in the languages of its training questions. It is the base model of run "
            f"`{base['run']}`, fine-tuned on {counted(taught['items'], 'question')} whose answers a program computed."
        )
        measured = (
            "Share of right answers before and after fine-tuning, on questions that it was not trained on. The "
            "difference is paired, in percentage points, with its 95% interval:"
        )
        origin = (
            f"Run `{lineage['run']}`, which starts from the base model (weights `{base['weights'][:16]}…`). "
            "`lineage.json` records the full specification, the training data, the runs behind the base model, the "
            "version of the code and the SHA-256 of every file."
        )
        limits = [
            "Only questions of the kinds that it was taught were tested, no others.",
            "There is no record of a safety or bias examination.",
        ]
    else:
        about = (
            f"经微调可回答 {len(families)} 类题目（{'、'.join(families)}）的语言模型，语言与训练题相同。"
            f"以训练 `{base['run']}` 的模型为基座，用 {taught['items']:,} 道题目微调，答案由程序算出。"
        )
        measured = "在未参与训练的题目上，微调前后的正确率。差值为配对差值（百分点），附 95% 区间："
        origin = (
            f"训练 `{lineage['run']}`，从基座模型（权重 `{base['weights'][:16]}…`）开始。`lineage.json` 记录了"
            "完整规格、训练数据、基座模型所依据的训练、代码版本以及每个文件的 SHA-256。"
        )
        limits = ["只测试了训练过的题型，其他问题未经测试。", "没有安全性或偏见方面的评测记录。"]
    return [
        about,
        _head(language, "Chat", "对话"),
        code,
        _head(language, "Results", "测量结果"),
        measured,
        _table(
            ("questions", "n", "before", "after", "difference")
            if english
            else ("题集", "题数", "微调前", "微调后", "差值"),
            scores,
        ),
        _gain(taught["gain"], language),
        "Forgetting: validation loss on the pretraining text, in nats per token."
        if english
        else "遗忘：预训练文本的验证损失（奈特/词元）。",
        _table(
            ("domain", "before", "after", "difference") if english else ("语料域", "微调前", "微调后", "差值"),
            forgotten,
        ),
        *_evaluation(lineage, language),
        *(_conversion(lineage["conversion"], language) if "conversion" in lineage else []),
        _head(language, "Origin", "来源"),
        origin,
        *_corpus(lineage["corpus"]["domains"], language),
        _head(language, "Limits", "局限"),
        "\n".join(f"- {point}" for point in limits),
    ]


def _corpus(domains: Mapping[str, Any], language: Language) -> list[str]:
    """A sentence and a table of the text that the base model was trained on."""
    rows = [
        (name, about["licence"] or _not_stated(language), about["source"])
        for name, about in domains.items()
        if about["train"]
    ]
    if language == "en":
        return ["Training text of the base model:", _table(("domain", "licence", "source"), rows)]
    return ["基座模型的训练文本：", _table(("语料域", "许可证", "来源"), rows)]


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _gain(gain: dict[str, Any] | None, language: Language) -> str:
    if gain is None or gain["predicted"] is None:
        return {"en": "The gain was not predicted.", "zh": "没有对收益作出预测。"}[language]
    predicted, low, high, measured = (_share(gain[key]) for key in ("predicted", "low", "high", "measured"))
    if language == "en":
        inside = "inside" if gain["inside"] else "outside"
        return (
            f"A score of {predicted} ({low} to {high}) on the held-out questions was predicted from runs on parts of "
            f"the training questions, and recorded beforehand. The measured score is {measured}: {inside} the interval."
        )
    inside = "内" if gain["inside"] else "外"
    return (
        f"先用部分训练题训练，据此预测留出题的正确率为 {predicted}（{low} 至 {high}），并事先记录；"
        f"实测为 {measured}，在区间{inside}。"
    )


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [list(heads), ["---"] * len(heads), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
