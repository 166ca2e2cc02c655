"""Every string of the report, English beside Chinese, so that neither can be forgotten.

Names that the user chose (domains, families, candidates) are never translated; the few names that this program itself
gives (arms, stages) are, by ``Words.name``.
"""

from __future__ import annotations

from typing import Literal

from markupsafe import Markup

Language = Literal["en", "zh"]

STRINGS: dict[str, tuple[str, str]] = {
    # head
    "subtitle": ("Training recipe, prediction and outcome", "训练配方、事先预测与实测结果"),
    "written": ("Written {when} by Armillary {version}", "由 Armillary {version} 于 {when} 写成"),
    "contents": ("Contents", "目录"),
    "warnings": ("To be kept in mind", "需要留意"),
    "units": (
        "Losses are validation losses in nats per token; lower is better. Brackets hold 90% intervals.",
        "损失均为验证集损失，单位是奈特每词元（nats/token），越低越好；方括号内为 90% 区间。",
    ),
    # sections
    "section_verdict": ("What was found", "结论"),
    "section_question": ("What was asked", "问题"),
    "section_corpus": ("Corpus", "语料"),
    "section_mixture": ("Mixture study", "配比研究"),
    "section_anneal": ("Annealing", "退火比较"),
    "section_ladder": ("Ladder and scaling law", "规模阶梯与标度律"),
    "section_record": ("How the laws fared", "规律的检验记录"),
    "section_prediction": ("Prediction and verdict", "预测与判定"),
    "section_arms": ("Against the natural and the uniform mixture", "与自然配比、均匀配比的对照"),
    "section_curves": ("Loss curves", "损失曲线"),
    "section_samples": ("Samples of text", "生成文本样例"),
    "section_cost": ("Cost", "代价"),
    "section_reproduce": ("How to get each number again", "如何复现每个数字"),
    "section_lineage": ("Lineage", "来历"),
    # verdict
    "card_recipe": ("The recipe", "配方"),
    "card_prediction": ("Said before, measured after", "先预测，后测量"),
    "card_gain": ("Better than without the study?", "是否优于不做研究？"),
    "card_cost": ("What it took", "代价"),
    "predicted": ("predicted", "预测"),
    "measured": ("measured", "实测"),
    "not_measured": ("not measured yet", "尚未测量"),
    "inside": ("inside", "区间内"),
    "outside": ("outside", "区间外"),
    "target_inside": ("The target loss fell inside its interval.", "目标损失落在预测区间之内。"),
    "gauge_caption": (
        "Target loss: the interval and the prediction (diamond) that were recorded, and the measurement (dot).",
        "目标损失：记录在案的预测（菱形）及其区间，与实测值（圆点）。",
    ),
    "target_outside": ("The target loss fell outside its interval.", "目标损失落在预测区间之外。"),
    "domains_inside": (
        "{inside} of {count} domains fell inside their 90% intervals.",
        "{count} 个语料域中有 {inside} 个落在各自的 90% 区间内。",
    ),
    "anneal_short": (
        "Annealing: {shape} decay over the last {share} of the tokens, mixture: {mixture}",
        "退火：最后 {share} 的词元按 {shape} 衰减，配比：{mixture}",
    ),
    "trained_runs": ("training runs", "训练次数"),
    "core_hours": ("core hours", "核时"),
    # question
    "target": ("Target", "目标"),
    "target_loss": ("target loss", "目标损失"),
    "target_lead": (
        "The target is a weighted mean of the losses on these validation domains.",
        "目标是以下验证域损失的加权平均。",
    ),
    "weight": ("weight", "权重"),
    "model": ("Model", "模型"),
    "parameters": ("parameters", "参数"),
    "target_tokens": ("Training tokens", "训练词元数"),
    "budget": ("Budget", "预算"),
    "max_epochs": ("Passes over a domain, at most", "单个域最多重复遍数"),
    "floors": ("Weights at least", "权重下限"),
    "ceilings": ("Weights at most", "权重上限"),
    "unseen": ("no training text", "无训练文本"),
    # corpus
    "corpus_lead": (
        "{domains} domains, {trained} of them to train on: {tokens} training tokens; {documents} documents in all. "
        "{duplicates} exact duplicates were dropped.",
        "共 {domains} 个域，其中 {trained} 个用于训练：训练词元 {tokens}，文档总计 {documents} 篇；"
        "剔除完全重复文档 {duplicates} 篇。",
    ),
    "domain": ("Domain", "语料域"),
    "source": ("Source", "来源"),
    "licence": ("Licence", "许可"),
    "train_tokens": ("Training tokens", "训练词元"),
    "validation_tokens": ("Validation tokens", "验证词元"),
    "documents": ("Documents", "文档"),
    "duplicates": ("Duplicates", "重复"),
    "bytes_per_token": ("Bytes per token", "字节/词元"),
    "examined_only": ("examined only", "仅用于检验"),
    # mixture
    "mixture_lead": (
        "{runs} small models, each trained on another mixture of {domains} domains. A law fitted to them tells the "
        "loss on every validation domain from the mixture.",
        "{runs} 个小模型，各用 {domains} 个域的不同配比训练；由此拟合出的规律可从配比推知每个验证域的损失。",
    ),
    "mixtures_caption": (
        "The three mixtures: share of each domain in the training tokens.",
        "三种配比：各域在训练词元中所占份额。",
    ),
    "share": ("share of the tokens", "词元份额"),
    "epochs": ("Passes", "遍数"),
    "epochs_note": (
        "Passes are over the domain's own text, in the target run on the found mixture.",
        "遍数指目标训练采用所得配比时，对该域文本的重复遍数。",
    ),
    "scatter_caption": (
        "The law against the proxies. Every point is held out: the law that predicted it had not seen it. On the line, "
        "prediction and measurement agree; ρ is Spearman's rank correlation.",
        "规律与小模型实测的对照。每一点都是留出点：作出该预测的规律未见过它。"
        "落在线上即预测与实测一致；ρ 为斯皮尔曼秩相关。",
    ),
    "predicted_heldout": ("predicted, held out", "留出预测"),
    "nats": ("nats per token", "奈特/词元"),
    "form": ("Law", "规律形式"),
    "spearman": ("Rank correlation", "秩相关"),
    "rmse": ("RMSE", "均方根误差"),
    "candidates_caption": (
        "Candidates trained again at proxy size with new seeds: the law's prediction (hollow, 90% interval) over each "
        "seed (small) and their mean (large).",
        "候选配比以新的随机种子在小模型规模上重训：上为规律的预测（空心，90% 区间），"
        "下为各种子（小点）及其均值（大点）。",
    ),
    "candidate": ("Candidate", "候选"),
    "mean": ("mean", "均值"),
    "seeds": ("seeds", "各种子"),
    "taken": ("taken", "采用"),
    "choice_significant": (
        "“{taken}” was taken: with new seeds its target loss differs from “{reference}” by {difference}.",
        "采用“{taken}”：以新种子重训，其目标损失与“{reference}”相差 {difference}。",
    ),
    "choice_not_significant": (
        "No candidate was better than “{reference}” beyond chance (best difference {difference}), so “{taken}” was "
        "taken.",
        "没有候选配比显著优于“{reference}”（最佳差值 {difference}），因此采用“{taken}”。",
    ),
    "design_details": (
        "All {runs} mixtures of the design, and their target loss",
        "设计中的全部 {runs} 个配比及其目标损失",
    ),
    "run": ("Run", "编号"),
    # anneal
    "anneal_lead": (
        "{branches} branches decay from one stable trunk, all at the same total number of tokens.",
        "{branches} 条分支从同一稳定主干出发衰减，总词元数相同。",
    ),
    "anneal_chosen": (
        "Chosen: {shape} over the last {share}, mixture: {mixture}. It beat the next best beyond chance.",
        "选定：{shape}，最后 {share}，配比：{mixture}；显著优于次佳者。",
    ),
    "anneal_only": (
        "Chosen: {shape} over the last {share}, mixture: {mixture}, the only branch.",
        "选定：{shape}，最后 {share}，配比：{mixture}；仅此一条分支。",
    ),
    "anneal_tied": (
        "Chosen: {shape} over the last {share}, mixture: {mixture}. Its lead over the next best is within chance.",
        "选定：{shape}，最后 {share}，配比：{mixture}；其领先幅度未超出随机波动。",
    ),
    "anneal_caption": (
        "Left: learning rates of the branches. Right: target loss by length of the decay; small dots are seeds, the "
        "ring marks the branch that was chosen.",
        "左：各分支的学习率。右：目标损失随衰减长度的变化；小点为各种子，圆环标出选定的分支。",
    ),
    "anneal_caption_plain": (
        "Target loss by length of the decay; small dots are seeds, the ring marks the branch that was chosen.",
        "目标损失随衰减长度的变化；小点为各种子，圆环标出选定的分支。",
    ),
    "learning_rate": ("learning rate", "学习率"),
    "step": ("step", "步"),
    "decay_share": ("Decay, share of the tokens", "衰减段占词元份额"),
    "shape": ("Shape", "形状"),
    "annealing_mixture": ("Mixture", "配比"),
    "curve_law": ("The law of the learning-rate curve", "学习率曲线的规律"),
    "curve_lead": (
        "Fitted to the loss on training batches of the branches on the mixture found, it prefers a {shape} decay over "
        "the last {share}. It does not choose; it says what other lengths and other ends would cost (nats per token).",
        "由所选配比上各分支的训练批损失拟合，它倾向于最后 {share} 的 {shape} 衰减。选择不由它作出；"
        "它说明其他长度与其他终点的代价（奈特/词元）。",
    ),
    "given_away": ("Given away against the best", "与最优相比的损失"),
    "ended_at": ("Ended at step, unplanned", "未按计划止于第几步"),
    "lost": ("Lost", "损失"),
    # ladder
    "ladder_lead": (
        "{points} models of growing size and tokens; the law of the loss is carried on to the target run.",
        "{points} 个规模与词元数递增的模型；将损失规律外推到目标训练。",
    ),
    "ladder_caption": (
        "Target loss over compute. Marks are runs, by depth; the line is the law, the band its 90% interval.",
        "目标损失与算力。标记为各次训练（按深度区分），曲线为规律，色带为其 90% 区间。",
    ),
    "compute": ("training compute (FLOPs)", "训练算力（FLOPs）"),
    "depth": ("depth", "深度"),
    "family": ("Family", "模型族"),
    "tokens": ("Tokens", "词元"),
    "law_of": ("Law of “{family}”", "“{family}”的规律"),
    "holdout": ("Held-out points", "留出点"),
    "error": ("error", "误差"),
    "families_lead": ("The families at the target's compute", "各模型族在目标算力下的比较"),
    "points_details": ("All {points} runs of the ladder", "阶梯中的全部 {points} 次训练"),
    "target_run": ("target run", "目标训练"),
    # record
    "record_lead": (
        "What the laws said of measurements that they had not seen, and how often their 90% intervals were right: "
        "{inside} of {forecasts} here. The measurements within a row are not independent.",
        "规律对未见过的测量所作的预报，及其 90% 区间的命中情况：此处 {forecasts} 次中命中 {inside} 次。"
        "同一行内的测量并不独立。",
    ),
    "law": ("Law", "规律"),
    "held_out": ("Held out", "留出"),
    "forecasts": ("Forecasts", "预报数"),
    "inside_count": ("Inside", "命中"),
    "mean_error": ("Mean error", "平均误差"),
    "mean_width": ("Mean width of the interval", "区间平均宽度"),
    "extrapolation": ("Times the compute", "算力倍数"),
    "extrapolated": (
        "The target run takes {factor} times the compute of the largest run of the ladder.",
        "目标训练的算力是阶梯中最大一次训练的 {factor} 倍。",
    ),
    "mixture_law": ("mixture", "配比"),
    "scaling_law": ("scaling", "规模"),
    "anneal_law": ("annealing", "退火"),
    # prediction
    "recorded": (
        "The prediction was recorded at {recorded}; the target run began at {started}, {lead} later.",
        "预测记录于 {recorded}；目标训练始于 {started}，晚 {lead}。",
    ),
    "recorded_late": (
        "The prediction was recorded at {recorded}, but the target run had begun at {started}: this is not a "
        "prediction.",
        "预测记录于 {recorded}，而目标训练已于 {started} 开始：这不能算预测。",
    ),
    "recorded_only": (
        "The prediction was recorded at {recorded}; the target run has not begun.",
        "预测记录于 {recorded}；目标训练尚未开始。",
    ),
    "prediction_caption": (
        "Measured minus predicted loss, by domain; the bar is the 90% interval of the prediction.",
        "各域实测与预测损失之差；横条为预测的 90% 区间。",
    ),
    "prediction_caption_before": (
        "The 90% interval of each prediction, around the predicted loss.",
        "各预测的 90% 区间（以预测损失为零点）。",
    ),
    "minus_predicted": ("loss minus predicted loss (nats per token)", "损失减预测损失（奈特/词元）"),
    "interval": ("90% interval", "90% 区间"),
    "verdict": ("Verdict", "判定"),
    "deviation": ("Deviation", "偏差"),
    # arms
    "arms_lead": (
        "The same model, tokens and schedule on each mixture; seeds per mixture: {seeds}.",
        "同一模型、同样的词元数与学习率安排，分别采用各配比；每种配比的随机种子数：{seeds}。",
    ),
    "better": (
        "On the target, the {arm} mixture is better than the {reference} one: {difference}.",
        "就目标而言，{arm}配比优于{reference}配比：{difference}。",
    ),
    "worse": (
        "On the target, the {arm} mixture is worse than the {reference} one: {difference}.",
        "就目标而言，{arm}配比劣于{reference}配比：{difference}。",
    ),
    "undecided": (
        "On the target, no difference between the {arm} and the {reference} mixture was found beyond chance: "
        "{difference}.",
        "就目标而言，未发现{arm}配比与{reference}配比之间有超出随机波动的差别：{difference}。",
    ),
    "arms_caption": (
        "Left: target loss on each mixture; small dots are seeds, the bar is the 90% interval of the mean. Right: "
        "differences; left of zero, the first-named mixture is better.",
        "左：各配比下的目标损失；小点为各种子，横条为均值的 90% 区间。右：差值；位于零点左侧表示前者更好。",
    ),
    "arms_caption_plain": (
        "Target loss on each mixture; small dots are seeds, the bar is the 90% interval of the mean.",
        "各配比下的目标损失；小点为各种子，横条为均值的 90% 区间。",
    ),
    "difference": ("difference", "差值"),
    "mixture": ("Mixture", "配比"),
    "minus": ("{arm} − {reference}", "{arm} − {reference}"),
    "by_domain_loss": ("Mean loss by domain (nats per token)", "各域平均损失（奈特/词元）"),
    "by_domain_bits": ("Mean bits per byte by domain", "各域平均每字节比特数"),
    "lowest_marked": ("The lowest of each row is in bold.", "每行最低者以粗体标出。"),
    # curves
    "curves_caption": ("Loss during the training of the target runs.", "目标训练过程中的损失。"),
    "tokens_seen": ("training tokens", "训练词元数"),
    "loss": ("loss", "损失"),
    # samples
    "samples_lead": (
        "Written by the target model after the prompts in bold; not selected for quality by this report.",
        "由目标模型续写；粗体为提示。本报告未按质量挑选。",
    ),
    # cost
    "stage": ("Stage", "阶段"),
    "runs": ("Runs", "训练次数"),
    "flops": ("FLOPs", "FLOPs"),
    "wall": ("Wall time", "历时"),
    "core": ("Core time", "核时间"),
    # reproduce, lineage
    "number": ("Number", "数字"),
    "command": ("Command", "命令"),
    "what": ("What", "项目"),
    "id": ("Id", "标识"),
    # joints
    "gap": (" ", ""),
    "pair": ("{first}, {second}", "{first}，{second}"),
    "with_unit": ("{what} ({unit})", "{what}（{unit}）"),
    # units of time
    "hours_minutes": ("{hours} h {minutes:02d} min", "{hours} 小时 {minutes:02d} 分"),
    "minutes_seconds": ("{minutes} min {seconds:02d} s", "{minutes} 分 {seconds:02d} 秒"),
    "seconds": ("{seconds:.1f} s", "{seconds:.1f} 秒"),
    # names that this program gives
    "name_found": ("found", "所得"),
    "name_natural": ("natural", "自然"),
    "name_uniform": ("uniform", "均匀"),
    "name_target": ("target", "目标"),
    "name_corpus": ("corpus", "语料"),
    "name_mixture": ("mixture study", "配比研究"),
    "name_confirm": ("candidates confirmed", "候选确认"),
    "name_branches": ("branches, each from the others", "各分支（由其余分支推得）"),
    "name_anneal": ("annealing study", "退火研究"),
    "name_ladder": ("ladder", "规模阶梯"),
    "name_predict": ("prediction", "预测"),
    "name_arms": ("other mixtures", "对照配比"),
    "name_export": ("export", "导出"),
    "name_total": ("total", "合计"),
    "name_everything": ("everything", "全部"),
    "name_recipe": ("recipe", "配方"),
    "name_code": ("code version", "代码版本"),
    "name_verdict": ("verdict", "判定"),
}


class Words:
    """The strings of one language."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._column = 0 if language == "en" else 1

    def __call__(self, key: str, **values: object) -> str:
        """The string of ``key`` with ``values`` filled in."""
        return STRINGS[key][self._column].format(**values)

    def sentence(self, key: str, **values: object) -> Markup:
        """As a call, but as HTML in which no line breaks inside a short value (``1-sqrt``, a date)."""
        kept = Markup('<span class="value">{}</span>')
        return Markup(STRINGS[key][self._column]).format(
            **{name: kept.format(value) if len(str(value)) <= 40 else value for name, value in values.items()}
        )

    def name(self, name: str) -> str:
        """The word for a name that this program gives; any other name as it is."""
        return self(f"name_{name}") if f"name_{name}" in STRINGS else name
