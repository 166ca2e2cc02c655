"""Every string of the report in English and Chinese, side by side, so that neither language is forgotten.

Names that the user chose (domains, model families, candidates) are never translated. Names given by this program are
translated: arms and stages by ``Words.name``, families of questions by ``Words.task``.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from armillary.recipe import Language

STRINGS: dict[str, tuple[str, str]] = {
    # head
    "subtitle": ("Training recipe, prediction and outcome", "训练配方、事先预测与实测结果"),
    "written": ("Written {when} by Armillary {version}", "由 Armillary {version} 于 {when} 生成"),
    "contents": ("Contents", "目录"),
    "warnings": ("Notes", "注意事项"),
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
    "section_lr": ("Peak learning rate", "峰值学习率"),
    "section_ladder": ("Ladder and scaling law", "规模阶梯与缩放定律"),
    "section_record": ("How accurate the laws were", "定律的检验记录"),
    "section_regrets": ("What the choices cost", "各项选择的代价"),
    "section_prediction": ("Prediction and verdict", "预测与判定"),
    "section_arms": ("Against the natural and the uniform mixture", "与自然配比、均匀配比的对照"),
    "section_failures": ("Runs without a result", "无结果的训练"),
    "section_curves": ("Loss curves", "损失曲线"),
    "section_scores": ("Examination", "评测"),
    "section_teaching": ("What the model was taught", "教学"),
    "section_diversity": ("Diversity of the questions", "题目的多样性"),
    "section_samples": ("Samples of text", "生成文本样例"),
    "section_cost": ("Cost, and when it pays off", "成本与回本规模"),
    "section_reproduce": ("How to reproduce each number", "如何复现每个数字"),
    "section_lineage": ("Lineage", "溯源"),
    # verdict
    "card_recipe": ("The recipe", "配方"),
    "card_prediction": ("Predicted before, measured after", "先预测，后实测"),
    "card_gain": ("Better than without the studies?", "研究是否带来收益？"),
    "card_cost": ("Cost", "成本"),
    "predicted": ("predicted", "预测"),
    "measured": ("measured", "实测"),
    "not_measured": ("not measured yet", "尚未测量"),
    "inside": ("inside", "区间内"),
    "outside": ("outside", "区间外"),
    "gauge_caption": (
        "Target loss: the recorded prediction (diamond) with its interval, and the measurement (dot).",
        "目标损失：事先记录的预测（菱形）及其区间，以及实测值（圆点）。",
    ),
    "hits": (
        "{inside} of {predictions} inside their 90% intervals: {domains} and the target.",
        "{predictions}中有 {inside} 项落在 90% 区间内（{domains}，另加目标）。",
    ),
    "hits_domains": (
        "{inside} of {predictions} inside their 90% intervals: {domains}.",
        "{predictions}中有 {inside} 项落在 90% 区间内（{domains}）。",
    ),
    "diverged": ("outside: the run diverged", "区间外：训练发散"),
    "pending": (
        "The target run has no result yet, so the verdict is pending. Cause: {cause}. The next {command} trains it "
        "again.",
        "目标训练尚无结果，判定待定。原因：{cause}。下次执行 {command} 会重新训练。",
    ),
    "pending_plain": ("The target run has no result yet, so the verdict is pending.", "目标训练尚无结果，判定待定。"),
    "lr_short": (
        "Peak learning rate: {lr} (tuned; the recipe's rule gives {rule})",
        "峰值学习率：{lr}（经调优；配方规则给出 {rule}）",
    ),
    "anneal_short": (
        "Annealing: {shape} decay of the learning rate over the last {share} of the steps, on the {mixture}",
        "退火：在最后 {share} 的训练步上衰减学习率（{shape}），采用{mixture}",
    ),
    "mixture_found": ("mixture found", "所得配比"),
    "mixture_own": ("annealing mixture found", "所得退火配比"),
    "mixture_power": ("mixture found, power {power}", "所得配比的 {power} 次幂"),
    "power_note": (
        "Power {power}: each weight of the mixture found is raised to this power. Then the weights are scaled to sum "
        "to 1 within the limits. Large weights grow, small ones shrink.",
        "{power} 次幂：所得配比的每个权重取 {power} 次幂，再归一化，并保持在限制之内；大的权重更大，小的更小。",
    ),
    "phase": ("steps {first} to {last}", "第 {first} 至 {last} 步"),
    "phases_lead": (
        "The target run trains on these mixtures in turn. Passes: how often the whole run reads the text of a domain, "
        "{how}.",
        "目标训练依次采用以下配比。遍数指整个训练过程中该域文本被读取的遍数（{how}）。",
    ),
    "phase_lead": (
        "The target run trains on this mixture. Passes: how often the whole run reads the text of a domain, {how}.",
        "目标训练采用以下配比。遍数指整个训练过程中该域文本被读取的遍数（{how}）。",
    ),
    "passes_measured": ("counted in the run", "按训练实际计数"),
    "passes_planned": ("as planned", "按计划计算"),
    "trained_runs": ("training runs", "训练次数"),
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
        "{domains}, {trained} of them for training, with {tokens} in total. The corpus has {documents}; {duplicates} "
        "dropped.",
        "{domains}，其中 {trained} 个用于训练，共 {tokens}训练词元。{documents}，已剔除{duplicates}。",
    ),
    "domain": ("Domain", "语料域"),
    "source": ("Source", "来源"),
    "licence": ("Licence", "许可证"),
    "not_stated": ("not stated", "未注明"),
    "train_tokens": ("Training tokens", "训练词元"),
    "validation_tokens": ("Validation tokens", "验证词元"),
    "documents": ("Documents", "文档"),
    "duplicates": ("Duplicates", "重复"),
    "bytes_per_token": ("Bytes per token", "字节/词元"),
    "examined_only": ("examined only", "仅用于评测"),
    # mixture
    "mixture_lead": (
        "{runs}, each trained on a different mixture of {domains}. A law fitted to them predicts the loss on every "
        "validation domain from the mixture.",
        "{runs}（代理模型）各用 {domains}的一种配比训练；用它们拟合的定律，可由配比预测每个验证域的损失。",
    ),
    "regrets_lead": (
        "The regret of a choice is the expected target loss of the option chosen, minus that of the best option in "
        "hindsight, among those that were trained with several seeds. It is 0 if the best option was chosen. Options "
        "that were not trained do not count.",
        "一项选择的遗憾，是所选方案的期望目标损失减去事后看来最优方案的期望目标损失，只在用多个种子训练过的方案之间比较；"
        "选中最优方案时为 0。未训练的方案不计。",
    ),
    "regret": ("Regret", "遗憾"),
    "decision": ("Choice", "选择"),
    "options": ("Options", "方案数"),
    "regret_mixture": ("mixture, at proxy size", "配比（代理模型规模）"),
    "regret_anneal": ("annealing, at its study's size", "退火（该研究的规模）"),
    "regret_lr": ("peak learning rate, at the largest tuned size", "峰值学习率（调优的最大规模）"),
    "regret_target": ("mixture, at the target's size", "配比（目标规模）"),
    "reserve_beyond": (
        "Trained after a first fit: {runs} of them, with more extreme weights of {domains} than before, since the "
        "best mixture of the fit was at the edge of the tried range.",
        "其中 {runs} 个在首次拟合之后训练：首次拟合的最优配比位于所试范围的边缘，故把 {domains} 的权重推到原范围之外。",
    ),
    "reserve_both": (
        "Trained after a first fit: {runs} of them, {beyond} with more extreme weights of {domains} than before, "
        "since the best mixture of a fit was at the edge of the tried range, and {around} around the best mixture.",
        "其中 {runs} 个在首次拟合之后训练：因拟合的最优配比位于所试范围的边缘，{beyond} 个把 {domains} 的权重"
        "推到原范围之外；另 {around} 个围绕最优配比。",
    ),
    "reserve_around": (
        "Trained after a first fit: {runs} of them, around its best mixture.",
        "其中 {runs} 个在首次拟合之后围绕其最优配比训练。",
    ),
    "stopped_inside": (
        "The best mixture of the last fit lies inside the tried range.",
        "末次拟合的最优配比位于所试范围之内。",
    ),
    "stopped_limits": (
        "The best mixture of the last fit lies at a limit of the recipe.",
        "末次拟合的最优配比位于配方设定的限制上。",
    ),
    "stopped_reserve": (
        "The best mixture of the last fit is still at the edge of the tried range.",
        "末次拟合的最优配比仍位于所试范围的边缘。",
    ),
    "two_phases_lead": (
        "Each proxy has a mixture for the stable phase, another for the annealing, and a share of the decay. The law's "
        "best candidate decays over the last {share} ({low} to {high}). In brackets: the ends of all values "
        "that the law expects within one standard error of the best ({error} nats per token). The other tables of this "
        "section show the stable phase.",
        "每个代理模型各有稳定阶段的配比、退火阶段的配比和衰减份额。定律的最优候选在最后 {share}（{low} 至 {high}）"
        "上衰减。"
        "方括号内为定律预期与最优相差不超过一个标准误差（{error} 奈特/词元）的全部取值。本节其余表格为稳定阶段的配比。",
    ),
    "stable_phase": ("Stable phase", "稳定阶段"),
    "annealing_phase": ("Annealing", "退火"),
    "mixtures_caption": (
        "The three mixtures: share of each domain in the training tokens.",
        "三种配比：各域在训练词元中所占份额。",
    ),
    "share": ("share of the tokens", "词元份额"),
    "epochs": ("Passes", "遍数"),
    "scatter_caption": (
        "Predictions of the law against measurements of the proxies (the small models). Every point is held out: the "
        "law that predicts it is fitted without it. On the line, prediction and measurement agree; ρ is Spearman's "
        "rank correlation.",
        "定律的预测与代理模型（小模型）的实测。每个点都是留出点：预测它的定律在拟合时没有用到它。落在线上表示预测与"
        "实测一致；ρ 为斯皮尔曼秩相关系数。",
    ),
    "predicted_heldout": ("predicted, held out", "留出预测"),
    "nats": ("nats per token", "奈特/词元"),
    "form": ("Law", "定律形式"),
    "spearman": ("Rank correlation", "秩相关"),
    "rmse": ("RMSE", "均方根误差"),
    "signal_to_noise": ("Spread over mixtures / noise", "配比间差异 / 噪声"),
    "candidates_caption": (
        "Mixtures trained again at proxy size with new seeds. Above: the law's prediction (hollow, 90% interval). "
        "Below: each seed (small) and their mean (large).",
        "在代理模型规模上用新的随机种子重新训练的配比。上：定律的预测（空心，90% 区间）；下：各种子（小点）及其均值"
        "（大点）。",
    ),
    "candidate": ("Mixture", "配比"),
    "mean": ("mean", "均值"),
    "seeds": ("seeds", "种子"),
    "taken": ("chosen", "采用"),
    "choice_significant": (
        "“{taken}” was chosen. When it was trained again with new seeds, its target loss was significantly lower than "
        "that of “{reference}” ({difference}; the interval is widened for the choice among {others}).",
        "采用“{taken}”：用新种子重新训练后，其目标损失显著低于“{reference}”（{difference}；区间已加宽，以计入从 "
        "{others}中挑选的影响）。",
    ),
    "choice_not_significant": (
        "“{taken}” was kept: of {others} trained again with new seeds, none had a significantly lower target "
        "loss (lowest mean: “{best}”, {difference}).",
        "保留“{taken}”：用新种子重新训练的 {others}，目标损失均未显著更低（均值最低的是“{best}”，{difference}）。",
    ),
    "choice_untested": (
        "“{taken}” was chosen without a test. A test needs the reference and another mixture with all their runs "
        "complete on new seeds.",
        "采用“{taken}”，未经检验：检验要求参照配比和至少一个其他配比用新种子完成全部训练。",
    ),
    "design_details": ("All {runs} of the design, and their target loss", "设计中的全部 {runs}及其目标损失"),
    "run": ("Run", "编号"),
    # learning rate
    "lr_lead": (
        "Tested: {runs} of {sizes} on the mixture and annealing found, at several multiples of the peak learning rate "
        "that the recipe's rule gives. A law fitted to their target losses gives every size its own rate.",
        "在所得配比与退火方式下，以配方规则所给峰值学习率的若干倍数训练 {sizes}，共 {runs}；对其目标损失拟合定律，"
        "为每种规模给出各自的学习率。",
    ),
    "lr_tuned": (
        "The ladder and the target use the tuned rates. With new seeds at depth {depth}, the target loss is "
        "significantly lower than at the rule's rate: {difference}.",
        "阶梯与目标训练采用调优后的学习率：用新种子在深度 {depth} 上训练，目标损失显著低于规则给出的学习率："
        "{difference}。",
    ),
    "lr_tuned_untested": (
        "The ladder and the target use the tuned rates without a test; the caveats give the reason.",
        "阶梯与目标训练采用调优后的学习率，未经检验；原因见说明。",
    ),
    "lr_rule": (
        "The ladder and the target use the rule. With new seeds at depth {depth}, the tuned rate is not significantly "
        "better: {difference}.",
        "阶梯与目标训练沿用规则：用新种子在深度 {depth} 上训练，调优后的学习率并未显著更优：{difference}。",
    ),
    "lr_rule_untested": (
        "The ladder and the target use the rule; the caveats give the reason.",
        "阶梯与目标训练沿用规则；原因见说明。",
    ),
    "lr_caption": (
        "Target loss over the peak rate, as a multiple of the rule's. Points: runs. Curves: the law, up to 10% "
        "above its lowest loss. Solid line: the tuned rate; dashed line: the rule.",
        "目标损失随峰值学习率（规则的倍数）的变化。点：各次训练；曲线：定律（至高出最低损失 10% 处）；实线：调优后的"
        "学习率；虚线：规则。",
    ),
    "lr_confirm": ("Target loss with new seeds, depth {depth}", "新种子的目标损失，深度 {depth}"),
    "times_rule": ("times the rule's rate", "规则学习率的倍数"),
    "lr_rule_rate": ("Rule", "规则"),
    "lr_tuned_rate": ("Tuned", "调优"),
    "lr_best": ("Best by the law, 90% interval", "定律的最优值，90% 区间"),
    "lr_flat": ("Within 0.1% of its loss", "损失相差不到 0.1%"),
    "lr_cost": ("Cost of the rule, share of the loss", "规则的代价（占损失）"),
    "lr_probability": ("Probability that tuned is better", "调优更优的概率"),
    # anneal
    "anneal_lead": (
        "Tested: {branches} of training. All have the same total length; they differ in how the learning rate falls, "
        "over how many steps, and on which mixture. Runs of the same seed branch off the same stable trunk.",
        "比较 {branches}方式（学习率的衰减形状、衰减步数、所用配比），训练总长度相同。同一种子的各分支从同一条稳定"
        "主干分出。",
    ),
    "anneal_chosen": (
        "Chosen: {shape} decay over the last {share}, on the {mixture}. Its target loss is significantly lower than "
        "that of the reference ({reference}): {difference}. The interval is widened for the choice among {others}.",
        "选定：在最后 {share} 的训练步上衰减（{shape}），采用{mixture}。其目标损失显著低于参照（{reference}）："
        "{difference}；区间已加宽，以计入从 {others}中挑选的影响。",
    ),
    "anneal_only": (
        "Chosen without a test: {shape} decay over the last {share}, on the {mixture}. No other ending has completed "
        "all its runs.",
        "选定（未经检验）：在最后 {share} 的训练步上衰减（{shape}），采用{mixture}。其他收尾方式均未完成全部训练。",
    ),
    "anneal_tied": (
        "Chosen: the reference, {shape} decay over the last {share}, on the {mixture}. Of {others}, none is "
        "significantly better; lowest mean: {best}, {difference}.",
        "选定参照方案：在最后 {share} 的训练步上衰减（{shape}），采用{mixture}。{others}均未显著更优；均值最低的是 "
        "{best}（{difference}）。",
    ),
    "anneal_further": (
        "Trained after the others: {further} of them, since the best one until then was at the edge of those "
        "tried: the shortest or longest decay, or the largest power.",
        "其中 {further} 种在其余方式之后训练：此前最优的方式位于所试范围的边缘（衰减最短或最长，或幂次最大）。",
    ),
    "anneal_stopped_inside": (
        "Finally, the lowest mean lies inside the tried range.",
        "最终均值最低的方式位于所试范围之内。",
    ),
    "anneal_stopped_limits": (
        "Finally, the lowest mean lies at a limit: of the study or of the mixtures.",
        "最终均值最低的方式位于限制上（研究的限制或配比的限制）。",
    ),
    "anneal_stopped_reserve": (
        "The lowest mean in the end is still at the edge of the tried range.",
        "最终均值最低的方式仍位于所试范围的边缘。",
    ),
    "anneal_name": ("{share} {shape}, {mixture}", "{share} {shape}，{mixture}"),
    "anneal_caption": (
        "Left: learning rates of the endings. Right: target loss by length of the decay; small dots are seeds, "
        "the ring marks the chosen ending.",
        "左：各收尾方式的学习率。右：目标损失随衰减长度的变化；小点为各种子，圆环标出选定的方式。",
    ),
    "anneal_caption_plain": (
        "Target loss by length of the decay; small dots are seeds, the ring marks the chosen ending.",
        "目标损失随衰减长度的变化；小点为各种子，圆环标出选定的方式。",
    ),
    "learning_rate": ("learning rate", "学习率"),
    "step": ("step", "训练步"),
    "decay_share": ("Decay, share of the steps", "衰减段占训练步的份额"),
    "shape": ("Shape", "形状"),
    "annealing_mixture": ("Mixture", "配比"),
    "curve_law": ("The law of the learning-rate curve", "学习率曲线的定律"),
    "curve_lead": (
        "Fitted to the training-batch loss of the endings on the mixture found. By this law, the shortest "
        "near-optimal decay is {shape} over the last {share}. The law does not choose the ending; it estimates how "
        "much loss (nats per token) another length of the decay, or stopping early, adds.",
        "由所得配比上各收尾方式的训练批损失拟合。按此定律，接近最优的衰减中最短的一种是最后 {share} 的训练步"
        "（{shape}）。该定律不参与选择，只用来估计改用其他衰减长度或提前停止会增加多少损失（奈特/词元）。",
    ),
    "given_away": ("Added loss", "增加的损失"),
    "ended_at": ("Stopped early at step", "提前停止的训练步"),
    "lost": ("Added loss against a planned end", "与按计划结束相比增加的损失"),
    # ladder
    "ladder_lead": (
        "{points} of {sizes}. A law of the loss in parameters N and tokens D is fitted to them and extrapolated to "
        "the target run.",
        "{points}，{sizes}。用它们拟合损失关于参数量 N 与词元数 D 的缩放定律，再外推到目标训练。",
    ),
    "ladder_caption": (
        "Target loss over compute. Filled marks are measured runs. The bar behind each mark is the law's 90% interval "
        "for the N and D of that run; the short line is the law's mean. {inside} of {count} runs lie inside their "
        "interval. The law was fitted to these runs, so this does not test it.",
        "目标损失与算力的关系。实心标记为实测；其后的竖条为定律在该次训练的 N、D 处的 90% 区间，短横线为其均值。"
        "{count} 次训练中有 {inside} 次落在区间内；定律正是用这些训练拟合的，因此这不构成检验。",
    ),
    "ladder_caption_plain": (
        "Target loss over compute. Marks are measured runs.",
        "目标损失与算力的关系。标记为实测。",
    ),
    "compute": ("training compute (FLOPs)", "训练算力（FLOPs）"),
    "depth": ("depth", "深度"),
    "law_interval": ("law, 90% interval", "定律，90% 区间"),
    "family": ("Family", "模型族"),
    "tokens": ("Tokens", "词元"),
    "law_of": ("Law of “{family}”", "“{family}”的定律"),
    "holdout": ("Runs left out: the law was fitted without them", "留出的训练：拟合定律时未使用"),
    "left_out_params": ("N ≥ {value}", "N ≥ {value}"),
    "left_out_tokens": ("D ≥ {value}", "D ≥ {value}"),
    "left_out_compute": ("N·D ≥ {value}", "N·D ≥ {value}"),
    "left_out": ("Left out", "留出条件"),
    "error": ("error", "误差"),
    "families_lead": ("The families at the target's depth and tokens", "各模型族在目标深度与词元数下的比较"),
    "points_details": ("All {points} of the ladder", "阶梯中的全部 {points}"),
    "target_run": ("target run", "目标训练"),
    # record
    "record_lead": (
        "Each row compares forecasts of a law with measurements that it was not fitted to. Of {forecasts} with a 90% "
        "interval, {inside} contain the measurement. The measurements within a row are not independent.",
        "每一行把定律的预报与未用于拟合的测量相比较。带 90% 区间的 {forecasts}中，有 {inside} 次实测落在区间内。"
        "同一行内的测量并不独立。",
    ),
    "law": ("Law", "定律"),
    "held_out": ("Held out", "留出"),
    "forecasts": ("Forecasts", "预报数"),
    "inside_count": ("Inside", "区间内"),
    "mean_error": ("Mean error", "平均误差"),
    "mean_width": ("Mean width of the interval", "区间平均宽度"),
    "extrapolation": ("Times N·D", "N·D 倍数"),
    "extrapolated": (
        "The target run has {factor} times the N·D (parameters times tokens) of the largest run of the ladder.",
        "目标训练的 N·D（参数量乘词元数）是阶梯中最大一次训练的 {factor} 倍。",
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
        "The prediction was recorded at {recorded}, but the target run had already begun at {started}: this is not a "
        "prediction.",
        "预测记录于 {recorded}，而目标训练已于 {started} 开始：这不能算预测。",
    ),
    "recorded_only": (
        "The prediction was recorded at {recorded}; the target run has not begun.",
        "预测记录于 {recorded}；目标训练尚未开始。",
    ),
    "recorded_unknown": (
        "The prediction was recorded at {recorded}; the start of the target run was not recorded.",
        "预测记录于 {recorded}；目标训练的开始时间没有记录。",
    ),
    "chain_intact": (
        "The store holds {records}, numbered, each with the hash of the record before it. None has been changed. Last "
        "hash of the chain: {head}.",
        "存储中共有 {records}，依次编号，每条都包含前一条的哈希；均未被改动。链上最后一个哈希：{head}。",
    ),
    "chain_broken": (
        "The chain of records is broken, so a prediction, a verdict or a result may have been changed by hand: "
        "{problem}.",
        "记录链已断裂，预测、判定或结果可能被人为改动：{problem}。",
    ),
    "chain_order": (
        "Prediction: number {prediction}; verdict: number {verdict}.",
        "预测为第 {prediction} 号，判定为第 {verdict} 号。",
    ),
    "chain_order_prediction": ("Prediction: number {prediction}.", "预测为第 {prediction} 号。"),
    "prediction_caption": (
        "Measured minus predicted loss, by domain; the bar is the 90% interval of the prediction.",
        "各域的实测损失减去预测损失；横条为预测的 90% 区间。",
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
        "The same model, steps and annealing on each mixture. Natural: each domain by its share of the training "
        "text. Uniform: the same share for every domain. {seeds}",
        "同一模型，训练步数与退火方式相同，只是配比不同。自然配比：各域按其在训练文本中的占比；均匀配比：各域份额"
        "相同。{seeds}",
    ),
    "arms_seeds": ("Finished seeds per mixture: {seeds}.", "各配比完成的种子数：{seeds}。"),
    "arm_seeds": ("{arm} {seeds}", "{arm} {seeds}"),
    "better": (
        "On the target, the {arm} mixture is significantly better than the {reference} one: {difference}, paired "
        "over {seeds}.",
        "在目标上，{arm}配比显著优于{reference}配比：{difference}（{seeds}配对）。",
    ),
    "worse": (
        "On the target, the {arm} mixture is significantly worse than the {reference} one: {difference}, paired "
        "over {seeds}.",
        "在目标上，{arm}配比显著劣于{reference}配比：{difference}（{seeds}配对）。",
    ),
    "undecided": (
        "On the target, the {arm} and the {reference} mixture do not differ significantly: "
        "{difference}, paired over {seeds}.",
        "在目标上，{arm}配比与{reference}配比无显著差异：{difference}（{seeds}配对）。",
    ),
    "untested": (
        "Whether the {arm} mixture is better than the {reference} one cannot be tested: fewer than two seeds "
        "finished on both.",
        "无法检验{arm}配比是否优于{reference}配比：两者均完成的种子不足两个。",
    ),
    "perplexity": (
        "Perplexity on the target: {ratio} times that of the {reference} mixture [{low}, {high}].",
        "目标上的困惑度：为{reference}配比的 {ratio} 倍 [{low}, {high}]。",
    ),
    "multiplier": (
        "By the ladder's law, the {arm} mixture reaches the loss of the {reference} one with {share} of the "
        "compute [{low}, {high}], if parameters and tokens are reduced by the same factor: a compute multiplier of "
        "{value}. The interval covers the uncertainty of the difference, not that of the law.",
        "按规模阶梯的缩放定律，{arm}配比只用 {share} 的算力 [{low}, {high}]（参数量与词元数按同一比例减少）即可达到"
        "{reference}配比的损失，即算力倍数为 {value}。该区间只计入差值的不确定性，未计入定律本身的不确定性。",
    ),
    "multiplier_beyond": (
        "The ladder cannot tell how much compute the difference to the {reference} mixture is worth: the answer "
        "is outside its range of sizes.",
        "与{reference}配比的差异相当于多少算力，无法由规模阶梯推算：结果超出其覆盖的规模范围。",
    ),
    "arms_caption": (
        "Left: target loss on each mixture; small dots are seeds, the bar is the 90% interval of the mean. Right: "
        "differences; left of zero, the first-named mixture is better.",
        "左：各配比的目标损失；小点为各种子，横条为均值的 90% 区间。右：差值；小于零表示前者更好。",
    ),
    "arms_caption_plain": (
        "Target loss on each mixture; small dots are seeds, the bar is the 90% interval of the mean.",
        "各配比的目标损失；小点为各种子，横条为均值的 90% 区间。",
    ),
    "difference": ("difference", "差值"),
    "mixture": ("Mixture", "配比"),
    "minus": ("{arm} − {reference}", "{arm} − {reference}"),
    "by_domain_loss": ("Mean loss by domain (nats per token)", "各域平均损失（奈特/词元）"),
    "by_domain_bits": ("Mean bits per byte by domain", "各域平均每字节比特数"),
    "lowest_marked": ("The lowest of each row is in bold.", "每行最低者以粗体标出。"),
    # curves
    "curves_caption": (
        "Left: target loss on held-out text, at each validation. Right: loss on training batches (means over equal "
        "spans); each mixture has its own batches, so only the shapes can be compared. Seed {seed} of each mixture.",
        "左：每次验证时留出文本上的目标损失。右：训练批上的损失（等长区间的均值）；各配比的训练批不同，只能比较曲线的"
        "形状。各配比均为种子 {seed}。",
    ),
    "curves_caption_plain": (
        "Target loss on held-out text during training, at each validation. Seed {seed} of each mixture.",
        "训练过程中每次验证时留出文本上的目标损失。各配比均为种子 {seed}。",
    ),
    "training_loss": ("training loss", "训练损失"),
    "tokens_seen": ("training tokens", "训练词元数"),
    "loss": ("loss", "损失"),
    # leaderboard
    "board_title": ("Leaderboard", "排行榜"),
    "board_kicker": ("Examinations", "评测"),
    "board_lead": (
        "A rank is 1 plus the number of models that are significantly better on the same items. Models without a "
        "significant difference share a rank. Within a table, the probability of any false difference is at most "
        "{chance}.",
        "名次等于在相同题目上显著更优的模型数加 1；无显著差异的模型名次并列。同一张表内，出现任何误判的概率不超过 "
        "{chance}。",
    ),
    "board_items": ("{items} items.", "共 {items} 题。"),
    "board_passages": ("{items} items in {passages} passages.", "共 {items} 题，来自 {passages} 篇文段。"),
    "board_rank": ("Rank", "名次"),
    "board_model": ("Model", "模型"),
    "board_score": ("Score", "得分"),
    "board_interval": ("{level} interval", "{level} 区间"),
    "board_better": ("Better than", "显著优于"),
    "board_pairs": ("All pairs: {pairs}", "全部两两比较：{pairs} 组"),
    "board_first": ("First", "甲"),
    "board_second": ("Second", "乙"),
    "board_difference": ("Second − first", "乙 − 甲"),
    "board_flips": ("Higher / lower", "更高 / 更低"),
    "board_p": ("p, paired", "p（配对）"),
    "board_p_adjusted": ("p, corrected", "p（校正后）"),
    "board_range": ("{low} to {high}", "{low} 至 {high}"),
    # examination
    "scores_lead": (
        "Each item gives the beginning of a held-out text and two continuations: the real one, and one with the parts "
        "of the real one in another order. The model must choose the real one; guessing is right half of the time. No "
        "model was trained on the documents of the items. Brackets hold 95% intervals.",
        "给出留出文本的开头，判断两个续文中哪一个才是原文；另一个由原续文打乱各部分的次序而成。随机猜测的正确率为 "
        "50%。题目取自任何模型都未训练过的文档；方括号内为 95% 区间。",
    ),
    "scores_above": (
        "The published model answers {value} of {n} items right, significantly better than chance.",
        "{n} 道题中，所发布的模型答对 {value}，显著高于随机水平。",
    ),
    "scores_at": (
        "The published model answers {value} of {n} items right, not significantly better than chance.",
        "{n} 道题中，所发布的模型答对 {value}，与随机水平无显著差异。",
    ),
    "scores_below": (
        "The published model answers {value} of {n} items right, significantly worse than chance.",
        "{n} 道题中，所发布的模型答对 {value}，显著低于随机水平。",
    ),
    "scores_weighted": (
        "This comparison is over the domains of the target, weighted as in the target loss.",
        "该比较仅限目标所含的各域，权重与目标损失一致。",
    ),
    "scores_better": (
        "The published model is significantly better than the same model on the natural mixture: {difference} points "
        "on the same {n} items (paired, p {p}).",
        "在相同的 {n} 道题上，所发布的模型显著优于采用自然配比的同一模型：{difference} 个百分点（配对检验，p {p}）。",
    ),
    "scores_worse": (
        "The published model is significantly worse than the same model on the natural mixture: {difference} points "
        "on the same {n} items (paired, p {p}).",
        "在相同的 {n} 道题上，所发布的模型显著劣于采用自然配比的同一模型：{difference} 个百分点（配对检验，p {p}）。",
    ),
    "scores_undecided": (
        "The published model does not differ significantly from the same model on the natural mixture: {difference} "
        "points on the same {n} items (paired, p {p}).",
        "在相同的 {n} 道题上，所发布的模型与采用自然配比的同一模型无显著差异：{difference} 个百分点"
        "（配对检验，p {p}）。",
    ),
    "scores_alone": (
        "The published model was trained on the natural mixture itself, or that run has no result, so there is no "
        "comparison.",
        "所发布的模型本身采用自然配比，或自然配比的训练没有结果，因此没有对照。",
    ),
    "scores_caption": (
        "Share of right answers; the bar is the 95% interval, the dashed line is chance.",
        "正确率；横条为 95% 区间，虚线为随机水平。",
    ),
    "scores_axis": ("right answers", "正确率"),
    "items": ("Items", "题数"),
    "interval_95": ("95% interval", "95% 区间"),
    "name_natural_model": ("Natural mixture", "自然配比"),
    "this_model": ("Published model", "所发布的模型"),
    "points": ("points", "百分点"),
    # teaching
    "teaching_subtitle": ("Post-training: questions, models and the gain", "后训练：题目、模型与收益"),
    "teaching_lead": (
        "The base model was fine-tuned on {items}. A program draws each question and computes its answer; families: "
        "{families}. No held-out question has the same problem as a training question.",
        "基座模型在 {items}上做了监督微调。题目由程序随机生成，答案由程序算出；题型：{families}。留出题与训练题互不"
        "重复。",
    ),
    "teaching_better": (
        "The {model} model answers significantly better than the {against} model: {difference} points on the same "
        "{n} held-out questions (paired, p {p}).",
        "在相同的 {n} 道留出题上，{model}模型显著优于{against}模型：{difference} 个百分点（配对检验，p {p}）。",
    ),
    "teaching_not_better": (
        "No trained model answers the held-out questions significantly better than the base, so the base is kept.",
        "没有任何训练后的模型在留出题上显著优于基座，因此保留基座。",
    ),
    "chance_line": (
        "A model that always gives the same answer is right for at most {chance} of the held-out questions (dashed "
        "line).",
        "若对所有题目都给出同一个答案，留出题的正确率最高为 {chance}（虚线）。",
    ),
    "taught_caption": (
        "Share of right answers; the bar is the 95% interval, the dashed line is chance.",
        "正确率；横条为 95% 区间，虚线为随机水平。",
    ),
    "question_set": ("Questions", "题集"),
    "verified_share": ("Answers verified", "答案核验通过率"),
    "verified_note": (
        "Each answer is computed twice, from the numbers and from the text alone, and the worked solution must pass "
        "the verifier. Only questions that pass are kept; the share is of all questions drawn.",
        "每个答案计算两次（一次根据数值，一次仅根据题面文本），解答还须通过判题器。只保留通过的题目；通过率的分母是生成"
        "的全部题目。",
    ),
    "drawn": ("Drawn", "生成"),
    "test_set": ("Set", "题集"),
    "family_of_task": ("Family", "题型"),
    "all_families": ("all", "全部"),
    "right_share": ("Right", "正确率"),
    "against": ("Against", "对照"),
    "gain_heading": ("Gain, predicted before and measured after", "收益：先预测，后实测"),
    "gain_verdict": (
        "The model was first trained on {parts} of the {items} questions. From these runs, the held-out score after "
        "training on all questions was predicted: {predicted}, 90% interval {interval}, recorded {recorded}. The "
        "measured score is {measured}: {verdict}.",
        "先用 {items} 道题中的 {parts} 道分别训练，据此预测用全部题目训练后的留出题正确率：{predicted}，90% 区间 "
        "{interval}，记录于 {recorded}。实测为 {measured}：{verdict}。",
    ),
    "needs_lead": (
        "Stated before each comparison: to see a difference of {difference} with a chance of {power}, two models need "
        "this many items. The last column is about their recipes: with the items at hand, this many seeds of each.",
        "每次比较之前先算出所需规模：要以 {power} 的概率看出 {difference} 的差异，两个模型需要下表所列的题数。"
        "最后一列针对两种配方：在现有题数下，每种配方所需的随机种子数。",
    ),
    "needed_items": ("items needed", "所需题数"),
    "needed_seeds": ("seeds needed", "所需种子数"),
    "no_number": ("no number is enough", "再多也不够"),
    "gain_proved": (
        "The store's journal proves the order: the prediction is entry {prediction}, the start of the run {start}, the "
        "verdict {verdict}.",
        "存储的日志证明了先后次序：预测是第 {prediction} 条，训练开始是第 {start} 条，判定是第 {verdict} 条。",
    ),
    "gain_not_proved": (
        "The store's journal does not prove that the prediction came before the run (entries: prediction {prediction}, "
        "start {start}, verdict {verdict}).",
        "存储的日志不能证明预测早于训练（日志条目：预测 {prediction}，训练开始 {start}，判定 {verdict}）。",
    ),
    "gain_unpredicted": (
        "The gain could not be predicted: {reason}. The measured score is {measured}.",
        "收益无法预测：{reason}。实测为 {measured}。",
    ),
    "gain_caption": (
        "Held-out score by the number of training questions (logarithmic): runs on parts, the recorded prediction with "
        "its interval, and the measurement. The dashed line is chance.",
        "留出题正确率随训练题数（对数轴）的变化：用部分题目的训练、事先记录的预测及其区间、实测值；虚线为随机水平。",
    ),
    "on_parts": ("on parts of the questions", "部分题目"),
    "questions_trained": ("training questions", "训练题数"),
    "forgetting_heading": ("Forgetting", "遗忘"),
    "forgetting_nats": (
        "Validation loss on the pretraining text before and after, in nats per token.",
        "预训练文本的验证损失，教学前后对照（奈特/词元），反映学习新任务对原有能力的影响。",
    ),
    "forgetting_bits": (
        "Bits per byte of plain text before and after.",
        "普通文本的每字节比特数，教学前后对照，反映学习新任务对原有能力的影响。",
    ),
    "before": ("before", "之前"),
    "after": ("after", "之后"),
    "talks_heading": ("Two conversations", "对话两则"),
    "talks_lead": (
        "The first held-out question of each language, as in the examination; not selected by the answer.",
        "每种语言的第一道留出题，提问与评测时相同；未根据回答挑选。",
    ),
    "talk_asked": ("Question", "问"),
    "talk_before": ("Before", "教学前"),
    "talk_after": ("After", "教学后"),
    "talk_right": ("right", "正确"),
    "talk_wrong": ("wrong; {answer} is right", "错误；正确答案是 {answer}"),
    "left_out_heading": ("Stages without a model", "未产生模型的阶段"),
    "note_lesson": (
        "The lesson is not finished; the next call retries it: {detail}",
        "教学未完成，下次执行时会重试：{detail}",
    ),
    # diversity
    "types_of_tasks": ("Types of tasks", "任务类型"),
    "distinct_grams": ("distinct {n}-grams", "不同的 {n} 元组占比"),
    "spread": ("spread of the embedding", "嵌入的分散度"),
    "coverage": ("share of clusters with a question", "含题目的簇占比"),
    "effective_clusters": ("effective clusters", "有效簇数"),
    "name_domain": ("domain", "领域"),
    "name_family": ("family", "题型"),
    "name_level": ("level", "难度"),
    "name_language": ("language", "语言"),
    "name_none": ("none", "无"),
    # samples
    "samples_lead": (
        "Written by the target model (seed {seed}) as a continuation of the held-out text in bold; sampled at "
        "temperature 0.8, the first sample is shown.",
        "由目标模型（种子 {seed}）续写；粗体为留出文本的开头。采样温度 0.8，展示的是第一次采样的结果。",
    ),
    # cost
    "stage": ("Stage", "阶段"),
    "runs": ("Runs", "训练次数"),
    "flops": ("FLOPs", "FLOPs"),
    "wall": ("Wall time", "用时"),
    "core": ("Core time", "核时"),
    "break_even": (
        "The studies took {studies} FLOPs, one target run {run}. The compute multiplier against the {reference} "
        "mixture is {multiplier}, so a run on the mixture found saves {saved} times its own compute. The studies pay "
        "off for target runs of {at} FLOPs or more ({factor} times this one){range}.",
        "各项研究共用 {studies} FLOPs，一次目标训练用 {run}。相对于{reference}配比的算力倍数为 {multiplier}，即用"
        "所得配比训练一次，可省下相当于自身算力 {saved} 倍的算力。目标训练达到 {at} FLOPs（本次的 {factor} 倍）时，"
        "研究即可回本{range}。",
    ),
    "break_even_range": (
        "; by the interval of the multiplier, from {low} to {high}",
        "；按算力倍数的区间，为 {low} 至 {high}",
    ),
    "break_even_open": (
        "; at the low end of the multiplier's interval they pay off at no size",
        "；按算力倍数区间的下端，任何规模都不回本",
    ),
    "pays_here": (
        "This target run is that large: the studies have paid off.",
        "本次目标训练已达此规模：研究已经回本。",
    ),
    "pays_not_here": (
        "This target run is smaller: the studies cost more than they save.",
        "本次目标训练小于此规模：研究的花费多于所节省的算力。",
    ),
    "break_even_assumes": (
        "This assumes the same multiplier at other sizes, which was not tested here.",
        "前提是算力倍数在其他规模上保持不变，这一点未经检验。",
    ),
    "break_even_none": (
        "The studies took {studies} FLOPs, one target run {run}. They do not pay off at any size: no significant "
        "saving of compute was found.",
        "各项研究共用 {studies} FLOPs，一次目标训练用 {run}。任何规模都无法回本：未发现显著的算力节省。",
    ),
    "break_even_unknown": (
        "The studies took {studies} FLOPs, one target run {run}. The size at which they pay off is unknown: the "
        "difference is outside the range of the ladder's law.",
        "各项研究共用 {studies} FLOPs，一次目标训练用 {run}。回本规模未知：差值超出规模阶梯定律的适用范围。",
    ),
    "card_pays": (
        "Against the {reference} mixture the studies pay off for target runs of {at} FLOPs or more, "
        "{factor} times this one.",
        "相对于{reference}配比，目标训练达到 {at} FLOPs（本次的 {factor} 倍）时，研究即可回本。",
    ),
    "card_pays_none": (
        "The studies do not pay off here: no significant saving of compute was found.",
        "研究无法回本：未发现显著的算力节省。",
    ),
    "cost_note": (
        "FLOPs are computed by formula, without validation; a branch counts from the step at which it leaves its "
        "trunk. The comparison runs on other mixtures and seeds belong to the stage “target”. Core time is the sum "
        "over the processes.",
        "FLOPs 按公式计算，不含验证；分支从离开主干的那一步起计算。其他配比与种子的对照训练计入“目标”阶段；核时为各进程"
        "用时之和。",
    ),
    # reproduce, lineage
    "number": ("Number", "数字"),
    "command": ("Command", "命令"),
    "what": ("What", "项目"),
    "id": ("Id", "标识"),
    "reproduce_lead": (
        "Run these commands in the folder that contains {folder}. The results of finished stages are reused. To train "
        "everything again, give {out} with a new folder.",
        "在 {folder} 所在的文件夹中执行。已完成的阶段直接复用结果；要全部重新训练，请用 {out} 指定一个新文件夹。",
    ),
    "status": ("State", "状态"),
    "cause": ("Cause", "原因"),
    "failures_lead": (
        "{runs} of these studies without a result. The studies above use only runs with a result. The next call "
        "retries runs that failed for a temporary reason.",
        "以下 {runs}没有结果。上述研究只使用有结果的训练；因临时原因失败的训练，下次执行时会重试。",
    ),
    "note_domain": (
        "{subject}: {things} while reading the text, first: {detail}",
        "{subject}：读取文本时有 {things}，第一处：{detail}",
    ),
    "note_forecast": ("The law warns about this prediction: {detail}", "定律对该预测的提示：{detail}"),
    "note_reach": (
        "The target run takes {subject} times the compute of the largest run of the ladder. The law was tested on "
        "held-out runs of the ladder, but only up to {detail} times the compute.",
        "目标训练的算力是阶梯中最大一次训练的 {subject} 倍；用阶梯中留出的训练检验定律时，只外推到 {detail} 倍。",
    ),
    "note_rise": (
        "After the same number of tokens, the ladder's models of depth {subject} have a {detail} higher loss than "
        "those of the next smaller depth. The learning rate does not suit the deeper models at this few steps, so the "
        "prediction is too low.",
        "在阶梯中，训练词元数相同时，深度 {subject} 的损失比浅一级的模型高 {detail}。步数这么少时，"
        "该学习率不适合较深的模型，预测因而偏低。",
    ),
    "note_edge_lr": (
        "At some size, the best peak learning rate tried ({detail} times the rule's) is the {end} one: a better one "
        "may be beyond it.",
        "某一规模上最优的峰值学习率（规则的 {detail} 倍）正是所试范围的{end}：更优值可能在范围之外。",
    ),
    "note_lr_reach": ("Learning rate of the target: {detail}", "目标训练的学习率：{detail}"),
    "note_edge_share": (
        "The best decay length in the annealing study ({detail} of the steps) is the {end} value tried: a "
        "better one may be beyond it.",
        "退火研究中最优的衰减长度（训练步的 {detail}）正是所试范围的{end}：更优值可能在范围之外。",
    ),
    "note_edge_sharpen": (
        "The best power of the annealing mixture ({detail}) is the {end} value tried: a better one may be beyond it.",
        "退火配比的最优幂次（{detail}）正是所试范围的{end}：更优值可能在范围之外。",
    ),
    "note_edge_tried": (
        "In the law's best mixture, the weight of {subject} ({detail}) is the {end} value tried: a better "
        "one may be beyond it.",
        "在定律给出的最优配比中，“{subject}”的权重（{detail}）正是所试范围的{end}：更优值可能在范围之外。",
    ),
    "note_edge_limits": (
        "In the law's best mixture, the weight of {subject} ({detail}) is the {end} that the limits allow"
        ": without the limit there may be a better one.",
        "在定律给出的最优配比中，“{subject}”的权重（{detail}）正是限制所允许的{end}：若无此限制，可能有更优的配比。",
    ),
    "note_adjusted": (
        "The {subject} mixture violates the limits. Everywhere in this report it is adjusted to them.",
        "{subject}配比超出限制；本报告各处均使用调整到限制之内的版本。",
    ),
    "note_reason": ("{subject}: {detail}", "{subject}：{detail}"),
    "note_unpredicted": ("The target loss itself has no prediction: {detail}", "目标损失本身没有预测：{detail}"),
    "end_low": ("lowest", "最小值"),
    "end_high": ("highest", "最大值"),
    "note_failures": (
        "{things} of the {subject} without a result; see below.",
        "{subject}中有 {things}没有结果，见下文。",
    ),
    "note_unreadable": (
        "{subject} cannot be read, so everything that depends on it is left out. {detail}",
        "无法读取 {subject}，依赖它的内容已略去。{detail}",
    ),
    "note_family": (
        "No law can be fitted to the ladder of family “{subject}”: {detail}",
        "模型族“{subject}”的规模阶梯不足以拟合定律：{detail}",
    ),
    # joints
    "gap": (" ", ""),
    "pair": ("{first}, {second}", "{first}，{second}"),
    "with_unit": ("{what} ({unit})", "{what}（{unit}）"),
    # units of time
    "hours_minutes": ("{hours} h {minutes:02d} min", "{hours} 小时 {minutes:02d} 分"),
    "minutes_seconds": ("{minutes} min {seconds:02d} s", "{minutes} 分 {seconds:02d} 秒"),
    "seconds": ("{seconds:.1f} s", "{seconds:.1f} 秒"),
    # names given by this program
    "name_found": ("found", "所得"),
    "name_natural": ("natural", "自然"),
    "name_uniform": ("uniform", "均匀"),
    "name_target": ("target", "目标"),
    "name_corpus": ("corpus", "语料"),
    "name_mixture": ("mixture study", "配比研究"),
    "name_confirm": ("mixtures trained again, new seeds", "配比重训（新种子）"),
    "name_branches": ("each ending, predicted from the others", "各收尾方式（由其余方式预测）"),
    "name_anneal": ("annealing study", "退火研究"),
    "name_lr": ("learning-rate study", "学习率研究"),
    "name_lr-confirm": ("tuned rate and rule, new seeds", "学习率重训（新种子）"),
    "name_tuned": ("tuned", "调优"),
    "name_rule": ("rule", "规则"),
    "name_ladder": ("ladder", "规模阶梯"),
    "name_predict": ("prediction", "预测"),
    "name_arms": ("other mixtures", "对照配比"),
    "name_export": ("export", "导出"),
    "name_examine": ("examination", "评测"),
    "name_lesson": ("lesson", "教学"),
    "name_held-out": ("held-out questions", "留出题"),
    "name_harder": ("one level harder", "难度高一级"),
    "name_questions": ("training questions", "训练题"),
    "name_verified": ("training questions, checked again", "训练题（再次核验）"),
    "name_new-questions": ("new questions", "新题"),
    "name_evolve": ("evolution", "演化"),
    "name_questions-clean": ("training questions, cleaned", "训练题（去污染后）"),
    "name_base": ("base", "基座"),
    "name_sft": ("fine-tuned", "监督微调"),
    "name_sft-2": ("twice fine-tuned", "再次微调"),
    "name_dpo": ("preference-trained", "偏好训练"),
    "name_merged": ("merged", "合并"),
    "name_total": ("total", "合计"),
    "name_everything": ("everything", "全部"),
    "name_recipe": ("recipe", "配方"),
    "name_code": ("code version", "代码版本"),
    "name_verdict": ("verdict", "判定"),
    "name_width-depth": ("width and depth", "宽度与深度"),
    "name_context": ("context length", "上下文长度"),
    "name_context-factor": ("factor of the context length", "上下文长度因子"),
    "name_moe": ("mixture of experts", "混合专家"),
    "name_idle": ("effective parameters", "有效参数量"),
    "name_active": ("active parameters", "激活参数量"),
    "name_active-ratio": ("active parameters, tokens per parameter", "激活参数量，词元参数比"),
    "name_overfitting-ratio": ("repeated data, overfitting, tokens per parameter", "重复数据，过拟合，词元参数比"),
    "name_overfitting": ("repeated data, overfitting", "重复数据，过拟合"),
    "name_data-constrained-ratio": ("repeated data, tokens per parameter", "重复数据，词元参数比"),
    "name_data-constrained": ("repeated data", "重复数据"),
    "name_refused": ("refused", "被拒绝"),
    "name_all_runs": ("all runs and their states", "全部训练及其状态"),
    "name_candidate": ("candidate {number}", "候选 {number}"),
    "n_questions": ("{n} question|{n} questions", "{n} 道题"),
    "n_domains": ("{n} domain|{n} domains", "{n} 个域"),
    "n_documents": ("{n} document|{n} documents", "文档 {n} 篇"),
    "n_duplicates": ("{n} exact duplicate was|{n} exact duplicates were", "完全重复的 {n} 篇"),
    "n_tokens_of_run": ("{n} token|{n} tokens", "{n} 词元"),
    "n_tokens": ("{n} token|{n} tokens", "{n} 个"),
    "n_proxies": ("{n} small model|{n} small models", "{n} 个小模型"),
    "n_branches": ("{n} ending|{n} endings", "{n} 种收尾"),
    "n_runs": ("{n} run|{n} runs", "{n} 次训练"),
    "n_sizes": ("{n} size|{n} sizes", "{n} 种规模"),
    "n_mixtures": ("{n} mixture|{n} mixtures", "{n} 个配比"),
    "n_others": ("{n} other|{n} others", "{n} 个其他选择"),
    "n_seeds": ("{n} seed|{n} seeds", "{n} 个种子"),
    "n_predictions": ("{n} prediction|{n} predictions", "{n} 项预测"),
    "n_forecasts": ("{n} forecast|{n} forecasts", "{n} 次预报"),
    "n_problems": ("{n} problem|{n} problems", "{n} 处问题"),
    "n_records": ("{n} record|{n} records", "{n} 条记录"),
    "name_mixture-confirm": ("mixtures trained again, new seeds", "配比重训（新种子）"),
    "name_interrupted": ("interrupted", "被中断"),
    "name_running": ("running", "训练中"),
    "name_pending": ("pending", "待训练"),
    "name_diverged": ("diverged", "发散"),
    "name_failed": ("failed", "失败"),
    "name_interaction": ("interaction", "交互"),
    "name_ratio": ("tokens per parameter", "词元参数比"),
    "name_kaplan": ("Kaplan", "Kaplan"),
    "name_shared": ("shared exponent", "共用指数"),
    "name_chinchilla": ("Chinchilla", "Chinchilla"),
    "name_lightgbm": ("LightGBM", "LightGBM"),
    "name_exponential": ("exponential", "指数"),
    "name_gaussian-process": ("Gaussian process", "高斯过程"),
    "name_effective-data": ("effective data", "有效数据"),
    "name_sqrt": ("sqrt", "√x"),
    "name_1-sqrt": ("1-sqrt", "1−√x"),
    "name_cosine": ("cosine", "余弦"),
    "name_linear": ("linear", "线性"),
    # families, subjects and languages of this program's questions
    "task_en": ("English", "英文"),
    "task_zh": ("Chinese", "中文"),
    "task_math": ("math", "数学"),
    "task_logic": ("logic", "逻辑"),
    "task_code": ("code", "代码"),
    "task_average": ("average", "平均数"),
    "task_backwards": ("backwards", "倒序"),
    "task_bases": ("bases", "进制"),
    "task_calendar": ("calendar", "星期"),
    "task_clock": ("clock", "时刻"),
    "task_conversion": ("conversion", "单位换算"),
    "task_discount": ("discount", "折扣"),
    "task_expression": ("expression", "算式"),
    "task_largest": ("largest", "比大小"),
    "task_linear": ("linear", "一元一次方程"),
    "task_listcode": ("listcode", "列表函数"),
    "task_ordering": ("ordering", "排名推理"),
    "task_purchase": ("purchase", "购物"),
    "task_remainder": ("remainder", "除法与余数"),
    "task_sequence": ("sequence", "数列"),
    "task_sets": ("sets", "集合"),
    "task_sorting": ("sorting", "排序"),
    "task_successor": ("successor", "相邻的数"),
    "task_tally": ("tally", "增减"),
    "task_textcode": ("textcode", "文本函数"),
    "task_travel": ("travel", "行程"),
    "task_truthtellers": ("truthtellers", "真话与假话"),
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
        """As a call, but as HTML without line breaks inside a short value (``1-sqrt``, a date)."""
        span = Markup('<span class="value">{}</span>')
        return Markup(STRINGS[key][self._column]).format(
            **{name: span.format(value) if len(str(value)) <= 40 else value for name, value in values.items()}
        )

    def n(self, noun: str, count: int) -> str:
        """``count`` things: the entry ``n_NOUN`` holds the singular and, if the language has one, the plural."""
        forms = STRINGS[f"n_{noun}"][self._column].split("|")
        return forms[0 if count == 1 else -1].format(n=f"{count:,}")

    def join(self, parts: Sequence[str]) -> str:
        """The parts joined as a list in a sentence."""
        return (", " if self.language == "en" else "、").join(parts)

    def mixture(self, power: float, own: bool = False) -> str:
        """The mixture of an annealing: its ``own``, or the found one with each weight raised to ``power``."""
        if own:
            return self("mixture_own")
        return self("mixture_found") if power == 1 else self("mixture_power", power=f"{power:g}")

    def candidate(self, name: str) -> str:
        """The name of a mixture of the study: ``candidate 1``, or the name of a plain mixture."""
        number = name.removeprefix("candidate ")
        return self("name_candidate", number=number) if number != name else self.name(name)

    def name(self, name: str) -> str:
        """The translation of a name given by this program; any other name unchanged."""
        return self(f"name_{name}") if f"name_{name}" in STRINGS else name

    def task(self, name: str) -> str:
        """The translation of a family, subject or language of this program's questions; any other name unchanged."""
        return self(f"task_{name}") if f"task_{name}" in STRINGS else name
