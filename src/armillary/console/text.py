"""Every string of the console in English and Chinese; strings that the report has are reused from there."""

from __future__ import annotations

from datetime import UTC, datetime

from markupsafe import Markup

from armillary.recipe import Language
from armillary.report import format as fmt
from armillary.report.text import STRINGS as REPORT
from armillary.report.text import Words as ReportWords

STRINGS: dict[str, tuple[str, str]] = {
    # frame
    "title": ("Armillary console", "Armillary 控制台"),
    "studies": ("Studies", "研究"),
    "runs": ("Runs", "训练"),
    "predictions": ("Predictions", "预测"),
    "goodput": ("Goodput", "训练时间利用率"),
    "examinations": ("Examinations", "评测"),
    "lineage": ("Lineage", "溯源"),
    "skip": ("Skip to the content", "跳到正文"),
    "theme": ("Theme", "主题"),
    "theme_auto": ("system", "跟随系统"),
    "theme_light": ("light", "浅色"),
    "theme_dark": ("dark", "深色"),
    "language": ("Language", "语言"),
    "places": ("Watching: {places}", "正在查看：{places}"),
    "stale": (
        "The console does not answer. This page shows what it last read.",
        "控制台没有响应，本页显示的是最后一次读取的内容。",
    ),
    "read_only": ("read-only", "只读"),
    "unavailable": ("Cannot be read now", "目前无法读取"),
    "not_found": ("There is no such page.", "没有这个页面。"),
    "gone": (
        "Not found: it was removed, or its store was replaced.",
        "未找到：该对象已被删除，或存储已被替换。",
    ),
    "failed": ("This page could not be rendered: {what}", "无法生成此页：{what}"),
    "token": ("Token", "令牌"),
    "token_lead": (
        "This console requires the token that it was started with ({name}).",
        "请输入启动控制台时设定的令牌（{name}）。",
    ),
    "token_go": ("Open", "打开"),
    "nothing": ("Nothing here yet.", "暂无内容。"),
    "older": ("Older", "更早"),
    "newest": ("Newest", "最新"),
    "apply": ("Show", "显示"),
    "clear": ("Clear", "清除"),
    "as_of": ("as of {when}", "截至 {when}"),
    # runs
    "run": ("run", "训练"),
    "study": ("study", "研究"),
    "status": ("status", "状态"),
    "shape": ("shape", "形状"),
    "layers": ("layers", "层数"),
    "per_page": ("runs per page", "每页条数"),
    "shape_hint": ("layers × width", "层数 × 宽度"),
    "size": ("parameters", "参数量"),
    "tokens": ("tokens", "词元数"),
    "flops": ("FLOPs", "FLOPs"),
    "mixture": ("mixture", "配比"),
    "mixture_hint": ("such as sky>=0.3", "例如 sky>=0.3"),
    "tag": ("tag", "标签"),
    "tag_hint": ("such as muon, seed-3", "例如 muon、seed-3"),
    "id_hint": ("beginning of the id", "编号开头"),
    "store": ("store", "存储"),
    "any": ("any", "任意"),
    "loss": ("loss", "损失"),
    "mean_loss": ("validation loss", "验证损失"),
    "train_loss": ("training loss", "训练损失"),
    "begun": ("started", "开始"),
    "took": ("took", "用时"),
    "error": ("error", "错误"),
    "choose": ("select", "选择"),
    "compare": ("Compare", "比较"),
    "compare_chosen": ("Compare the selected runs", "比较所选训练"),
    "compare_all": ("Compare all on this page", "比较本页全部"),
    "bad_filter": (
        "{text} is not a condition on a domain; write sky>=0.3, sky<=0.3 or sky=0.3",
        "{text} 不是对语料域的条件；请写作 sky>=0.3、sky<=0.3 或 sky=0.3",
    ),
    "total_runs": ("{n} in total", "共 {n}"),
    "status_done": ("done", "完成"),
    "status_running": ("running", "训练中"),
    "status_interrupted": ("interrupted", "被中断"),
    "status_pending": ("pending", "待训练"),
    "status_failed": ("failed", "失败"),
    "status_refused": ("refused", "被拒绝"),
    "status_diverged": ("diverged", "发散"),
    "select_none": ("Select runs in the list, then compare them.", "请先在列表中选择训练，再进行比较。"),
    # one run, and comparisons
    "curve": ("curve", "曲线"),
    "over": ("x axis", "横轴"),
    "x_step": ("steps", "训练步"),
    "x_tokens": ("tokens", "词元数"),
    "x_flops": ("FLOPs", "FLOPs"),
    "x_time": ("training time in seconds", "训练时间（秒）"),
    "smooth": ("smoothing", "平滑窗口"),
    "smooth_raw": ("none", "不平滑"),
    "smooth_steps": ("{n} steps", "{n} 步"),
    "log": ("logarithmic", "对数坐标"),
    "whole": ("full range", "完整范围"),
    "against": ("MFU of", "MFU 基准"),
    "y_loss": ("training loss, nats per token", "训练损失（奈特/词元）"),
    "y_grad_norm": ("gradient norm", "梯度范数"),
    "y_lr": ("learning rate", "学习率"),
    "y_tokens_per_s": ("tokens per second", "每秒词元数"),
    "y_flops_per_s": ("model FLOP/s", "模型 FLOP/s"),
    "y_mfu": ("MFU", "MFU"),
    "y_validation": ("validation loss on {domain}", "{domain} 的验证损失"),
    "y_bits": ("bits per byte on {domain}", "{domain} 的每字节比特数"),
    "decimated": (
        "Each line shows the minimum and maximum of every pixel column, so no spike is lost.",
        "每条曲线在每个像素列上保留最小值和最大值，不会漏掉尖峰。",
    ),
    "no_curve": (
        "No values yet. Metrics appear a few seconds after the first steps.",
        "暂无数值。训练开始几秒后即可看到指标。",
    ),
    "no_time": (
        "The run has no step events, so time and speed are unknown.",
        "该训练没有训练步的事件记录，无法计算时间与速度。",
    ),
    "config": ("Configuration", "配置"),
    "config_diff": ("Configuration differences", "配置差异"),
    "config_same": ("The specifications are identical.", "各训练的配置相同。"),
    "field": ("field", "字段"),
    "last_value": ("last", "最后值"),
    "best_value": ("lowest", "最低值"),
    "step": ("step", "步"),
    "events": ("Events", "事件"),
    "event": ("event", "事件"),
    "when": ("when", "时间"),
    "duration": ("seconds", "秒"),
    "about": ("details", "说明"),
    "rank": ("rank", "进程"),
    "folder": ("folder", "文件夹"),
    "more_runs": ("{n} more are not shown; at most {most} are compared.", "另有 {n} 个未显示；最多比较 {most} 个。"),
    "origin": ("Origin", "来源"),
    "result": ("Result", "结果"),
    "domain": ("domain", "语料域"),
    "bits_per_byte": ("bits per byte", "每字节比特数"),
    "epochs": ("passes", "遍数"),
    "skipped_steps": ("Steps without an update: {steps}", "未更新参数的训练步：{steps}"),
    # studies
    "progress": ("progress", "进度"),
    "left": ("time left", "剩余时间"),
    "left_unknown": ("unknown", "未知"),
    "elapsed": ("elapsed", "已用时间"),
    "outcomes": ("Outcomes", "结论"),
    "in_work": ("Studies and their runs", "各项研究及其训练"),
    "outcome": ("outcome", "结论"),
    "recorded": ("recorded", "记录于"),
    "design": ("Design", "设计"),
    "design_lead": (
        "Mixtures of the {n} designed runs, and their measured losses on the target's domains.",
        "实验设计中 {n} 次训练的配比，以及在目标各域上已测得的损失。",
    ),
    "law": ("Law against measured", "定律与实测"),
    "law_lead": (
        "Each point is one run: the prediction of a law fitted without it, and the measurement. The nearer to the "
        "line, the better.",
        "每个点是一次训练：横轴为留出该次训练后拟合的定律所作的预测，纵轴为实测。越接近直线越好。",
    ),
    "candidates": ("Candidates", "候选配比"),
    "candidates_lead": (
        "Diamond and bar: the law's prediction with its 90 % interval. Dots: runs with new seeds, which alone decide.",
        "菱形与横条：定律的预测及 90 % 区间；圆点：用新种子重新训练的结果。选择只依据后者。",
    ),
    "choice": ("Choice", "选择"),
    "chosen": (
        "Chosen: {taken}. It is significantly better than {reference}: {difference} nats per token "
        "(difference and its 90 % interval; below zero is better).",
        "采用：{taken}。显著优于 {reference}：差值为 {difference} 奈特/词元（附 90 % 区间，负值更优）。",
    ),
    "not_chosen": (
        "Chosen: {taken}. No other is significantly better than {reference}; the best differs by "
        "{difference} nats per token (90 % interval).",
        "采用：{taken}。没有其他选择显著优于 {reference}；其中最优者的差值为 {difference} 奈特/词元（附 90 % 区间）。",
    ),
    "not_compared": ("Chosen: {taken}. {reason}", "采用：{taken}。{reason}"),
    "found_mixture": ("Mixture found", "所得配比"),
    "branches": ("Endings", "收尾"),
    "further_runs": (
        "Trained after the first results: {runs}, beyond the tried range or around the best option.",
        "其中 {runs}在得出首批结果之后训练，位于所试范围之外，或围绕最优选项。",
    ),
    "stopped_inside": ("The best option lies inside the tried range.", "最优选项位于所试范围之内。"),
    "stopped_limits": ("The best option lies at a limit.", "最优选项位于限制上。"),
    "stopped_reserve": (
        "The best option is still at the edge of the tried range.",
        "最优选项仍位于所试范围的边缘。",
    ),
    "branches_lead": (
        "Target loss of each ending, one dot per seed; the chosen one is shaded.",
        "每种收尾的目标损失，每个种子一个点；选定项带底色。",
    ),
    "rates": ("Peak learning rates", "峰值学习率"),
    "rates_lead": (
        "Target loss over the peak rate of every run, as a multiple of the rule's.",
        "每次训练的目标损失与峰值学习率（规则的倍数）。",
    ),
    "rates_table": (
        "Rates by the law: the rule, the tuned rate, the best rate with its 90 % interval, and the cost of the rule",
        "定律给出的学习率：规则、调优值、最优值及 90 % 区间，以及规则的代价",
    ),
    "rule_rate": ("rule", "规则"),
    "tuned_rate": ("tuned", "调优"),
    "best_rate": ("best", "最优"),
    "rule_costs": ("the rule costs", "规则的代价"),
    "run_of": ("depth {n}, {tokens} tokens", "深度 {n}，{tokens} 词元"),
    "ladder": ("Ladder", "规模阶梯"),
    "ladder_lead": (
        "Target loss over compute of every run.",
        "每次训练的目标损失与算力。",
    ),
    "law_lead_fit": (
        "Each point is one run: the value of the law fitted to these points, and the measurement.",
        "每个点是一次训练：横轴为由这些点拟合的定律给出的值，纵轴为实测。",
    ),
    "ladder_law": ("law", "定律"),
    "depth": ("depth {n}", "深度 {n}"),
    "family": ("family", "模型族"),
    "compute": ("compute, FLOPs", "算力（FLOPs）"),
    "target_loss": ("target loss, nats per token", "目标损失（奈特/词元）"),
    "predicted_axis": ("predicted", "预测"),
    "measured_axis": ("measured", "实测"),
    "spearman": ("rank correlation {value}, error {rmse}", "秩相关 {value}，误差 {rmse}"),
    "arms": ("Target size", "目标规模"),
    "arms_lead": (
        "Target loss of the same model on each mixture; dots are seeds, the bar is the 90 % interval of the mean.",
        "同一模型在各配比上的目标损失；圆点为种子，横条为均值的 90 % 区间。",
    ),
    "differences": ("Differences from the plain mixtures", "与基线配比之差"),
    "failures": ("Runs without a result", "无结果的训练"),
    "cause": ("cause", "原因"),
    "arm": ("arm", "分支"),
    "seed": ("seed", "种子"),
    "all_runs_of": ("all runs of this study", "该研究的全部训练"),
    "stage_mixture": ("mixture study", "配比研究"),
    "stage_mixture-confirm": ("mixtures trained again, new seeds", "配比重训（新种子）"),
    "stage_anneal": ("annealing study", "退火研究"),
    "stage_lr": ("learning-rate study", "学习率研究"),
    "stage_lr-confirm": ("tuned rate and rule, new seeds", "学习率重训（新种子）"),
    "stage_ladder": ("ladder", "规模阶梯"),
    "stage_target": ("target runs", "目标训练"),
    "stage_examination": ("examination", "评测"),
    "content": ("Content", "内容"),
    # predictions
    "prediction": ("prediction", "预测"),
    "of_run": ("of run", "所属训练"),
    "quantity": ("quantity", "项目"),
    "interval": ("90 % interval", "90 % 区间"),
    "measured": ("measured", "实测"),
    "verdict": ("verdict", "判定"),
    "inside": ("inside", "区间内"),
    "outside": ("outside", "区间外"),
    "waiting": ("waiting for the run", "等待训练"),
    "diverged": ("outside: the run diverged", "区间外：训练发散"),
    "calibration": ("Calibration", "校准"),
    "calibration_lead": (
        "{inside} of {n} judged values are inside their intervals: {share} (90 % expected; with {n} "
        "values, {low} to {high} is consistent with 90 %).",
        "{n} 个已判定的值中有 {inside} 个落在区间内：{share}（期望为 90 %；样本数为 {n} 时，{low} 至 {high} "
        "均与之相符）。",
    ),
    "calibration_none": ("No prediction has been judged yet.", "还没有已判定的预测。"),
    "calibration_chart": (
        "Position of each measurement: 0 is the prediction, −1 and 1 are the ends of the interval.",
        "各实测值的位置：0 为预测值，−1 与 1 为区间两端。",
    ),
    "z_axis": ("measured minus predicted, in half widths of the interval", "实测减预测（以区间半宽为单位）"),
    "chain": ("Record", "记录链"),
    "chain_intact": (
        "The chain of records is intact: {n} records, the last {head}; checked {when}.",
        "记录链完好：共 {n} 条，最后一条 {head}；检查于 {when}。",
    ),
    "chain_broken": ("The chain of records is broken: {problem}", "记录链已损坏：{problem}"),
    "chain_more": ("and {n} more", "另有 {n} 处"),
    "chain_checking": ("Checking the chain of {n} records.", "正在检查 {n} 条记录组成的记录链。"),
    "chain_none": ("A store of format 1 has no chain of records.", "格式 1 的存储没有记录链。"),
    "clock_back": (
        "{n} records were written after the clock was set back; their numbers give the order.",
        "{n} 条记录写入时系统时钟曾被回拨；顺序以编号为准。",
    ),
    "budget": ("Budget", "预算"),
    "budget_lead": ("{spent} of {budget} spent; {left} left.", "预算 {budget}，已用 {spent}，剩余 {left}。"),
    "budget_over": ("{spent} spent, more than the budget of {budget}.", "已用 {spent}，超过预算 {budget}。"),
    "stage": ("stage", "阶段"),
    "planned": ("planned", "计划"),
    "spent": ("spent", "已用"),
    "score_of": ("score on {task}", "{task} 得分"),
    "target": ("target", "目标"),
    # goodput
    "goodput_lead": ("Runs with events, newest first. Select one.", "有事件记录的训练，最新的在前。请选择。"),
    "no_events": ("This run has no events yet.", "该训练暂无事件记录。"),
    "effective": ("effective training time", "有效训练时间"),
    "restarts": ("restarts", "重启次数"),
    "faults": ("faults", "故障"),
    "replayed": ("steps replayed", "重做的训练步"),
    "ranks": ("ranks", "进程数"),
    "elapsed_time": ("elapsed time", "总时间"),
    "timeline": ("Timeline", "时间线"),
    "timeline_lead": (
        "Share of the ranks' time by account, over time since the first event.",
        "自首个事件以来，各进程时间按去向划分的占比。",
    ),
    "losses": ("Where the time went", "时间去向"),
    "account": ("account", "去向"),
    "time": ("time", "时间"),
    "share": ("share", "占比"),
    "fault_log": ("Faults and actions", "故障与处理"),
    "heat": ("Step times by rank", "各进程的步时间"),
    "heat_lead": (
        "Seconds per step of each rank: blue is fast, orange is slow. From {low} to {high}.",
        "各进程每步用时（秒）：蓝色为快，橙色为慢；范围 {low} 至 {high}。",
    ),
    "memory": ("Memory", "显存"),
    "memory_lead": ("Peak memory by rank, from the events.", "事件中记录的各进程显存峰值。"),
    "no_memory": ("The events of this run have no memory values.", "该训练的事件中没有显存记录。"),
    "since": ("time since the first event, {unit}", "自首个事件起的时间（{unit}）"),
    "unit_s": ("s", "秒"),
    "unit_min": ("min", "分钟"),
    "unit_h": ("h", "小时"),
    "unit_d": ("days", "天"),
    "detection": (
        "Detected after {median} (median of {n}), at most {most}.",
        "故障发现用时：中位数 {median}（共 {n} 次），最长 {most}。",
    ),
    "recovery": (
        "Recovered after {median} (median of {n}), at most {most}.",
        "故障恢复用时：中位数 {median}（共 {n} 次），最长 {most}。",
    ),
    "account_productive": ("productive", "有效训练"),
    "account_degraded": ("degraded", "降速"),
    "account_data_wait": ("data wait", "等待数据"),
    "account_replayed": ("replayed", "重做"),
    "account_evaluation": ("evaluation", "评估"),
    "account_checkpoint": ("checkpoint", "检查点"),
    "account_compile": ("compile", "编译"),
    "account_start_up": ("start-up", "启动"),
    "account_detection": ("detection", "发现故障"),
    "account_restart": ("restart", "重启"),
    "account_waiting": ("waiting", "等待节点"),
    "account_paused": ("paused", "暂停"),
    "account_other": ("other", "其他"),
    # examinations
    "leaderboard": ("Leaderboard", "排行榜"),
    "leaderboard_lead": (
        "Models with the same rank do not differ significantly on the same items (level {level}, "
        "corrected for all pairs).",
        "名次相同的模型在相同题目上无显著差异（置信水平 {level}，已对全部两两比较作校正）。",
    ),
    "task": ("task", "任务"),
    "metric": ("metric", "指标"),
    "model": ("model", "模型"),
    "place_in": ("rank", "名次"),
    "score": ("score", "得分"),
    "interval95": ("95 % interval", "95 % 区间"),
    "better_than": ("better than", "优于"),
    "items": ("items", "题目"),
    "item": ("item", "题目"),
    "subset": ("subset", "子集"),
    "answer": ("answer", "回答"),
    "gold": ("right answer", "正确答案"),
    "output": ("output", "输出"),
    "browse": ("Items", "题目"),
    "pair": ("Paired comparison", "配对比较"),
    "pair_with": ("compared with", "比较对象"),
    "pair_lead": (
        "Second minus first on the same items, with its 95 % interval and the corrected p-value.",
        "在相同题目上第二个减第一个，附 95 % 区间与校正后的 p 值。",
    ),
    "difference": ("difference", "差"),
    "p_value": ("p", "p 值"),
    "better_worse": ("better / worse", "更好 / 更差"),
    "flips": ("Items with different results", "结果不同的题目"),
    "contaminated": ("contaminated", "污染"),
    "contaminated_items": ("{n} of {all} items overlap with the training text", "{all} 道题中有 {n} 道与训练文本重叠"),
    "contamination_unknown": ("not checked for contamination", "未检查污染"),
    "truncated": ("cut by the token limit", "被长度上限截断"),
    "only": ("show only", "仅显示"),
    "only_wrong": ("wrong", "答错"),
    "only_right": ("right", "答对"),
    "only_contaminated": ("contaminated", "有污染"),
    "not_ranked": ("Not ranked: {why}", "未排名：{why}"),
    "recorded_scores": ("Scores recorded in the store", "存储中记录的得分"),
    "level": ("level", "水平"),
    # lineage
    "lineage_lead": (
        "A published folder or a post-training contains the graph of all its origins. Select a folder, or any run.",
        "发布的文件夹和后训练的文件夹中含有其全部来源的关系图。请选择一个文件夹或任意一次训练。",
    ),
    "publication": ("publication", "发布"),
    "file": ("file", "文件"),
    "ancestors": ("All origins", "全部来源"),
    "ancestors_lead": ("{n} origins, nearest first: {kinds}.", "共 {n} 个来源，由近及远：{kinds}。"),
    "directly": ("Direct origins", "直接来源"),
    "used_by": ("Used by", "被用于"),
    "how": ("relation", "关系"),
    "node": ("node", "节点"),
    "how_written by": ("written by", "生成自"),
    "how_starts from": ("starts from", "起始于"),
    "how_trained on": ("trained on", "训练语料"),
    "how_argued by": ("argued by", "依据"),
    "how_predicted by": ("predicted by", "预测"),
    "how_examined by": ("examined by", "评测"),
    "how_examined on": ("examined on", "评测所用"),
    "how_trained by": ("trained by", "训练自"),
    "how_part of": ("part of", "属于"),
    "how_a part of": ("a part of", "取自其中一部分"),
    "how_the beginning of": ("the beginning of", "取自其开头"),
    "how_joined from": ("joined from", "合并自"),
    "how_sampled from": ("sampled from", "采样自"),
    "how_measured by": ("measured by", "难度测量用"),
    "how_reworded by": ("reworded by", "改写用"),
    "how_merged from": ("merged from", "融合自"),
    "how_merged over": ("merged over", "融合的基座"),
    "how_weights found on": ("weights found on", "权重搜索所用"),
    "how_published from": ("published from", "发布自"),
    "how_selected from": ("selected from", "选自"),
    "how_drawn at random from": ("drawn at random from", "随机抽自"),
    "how_scored by": ("scored by", "打分用"),
    "kind_run": ("runs", "训练"),
    "kind_corpus": ("corpora", "语料"),
    "kind_prediction": ("predictions", "预测"),
    "kind_weights": ("weights", "权重"),
    "kind_file": ("files", "文件"),
    "kind_data": ("data", "数据"),
    "kind_model": ("models", "模型"),
    "kind_examination": ("examinations", "评测"),
    "seal_broken": ("Checksum mismatch: it was changed after publication.", "校验和不符：发布后被修改过。"),
    "licence": ("licence", "许可证"),
    "source": ("source", "来源"),
    "code_version": ("code version", "代码版本"),
}


class Words(ReportWords):
    """The strings of one language: the console's, then the report's."""

    def __call__(self, key: str, **values: object) -> str:
        """The string of ``key`` with ``values`` filled in."""
        return self._pair(key).format(**values)

    def sentence(self, key: str, **values: object) -> Markup:
        """Like a call, but as HTML without line breaks inside a value."""
        span = Markup('<span class="value">{}</span>')
        return Markup(self._pair(key)).format(**{name: span.format(value) for name, value in values.items()})

    def one_of(self, prefix: str, name: str) -> str:
        """The word for one of this program's names, such as a status; any other name unchanged."""
        return self(f"{prefix}_{name}") if f"{prefix}_{name}" in STRINGS else name

    def span(self, seconds: float | None) -> str:
        """A duration; a dash if it is unknown."""
        if seconds is None:
            return fmt.MISSING
        if seconds < 60:
            return f"{seconds:.3g} {self('unit_s')}"
        return fmt.duration(self, seconds)

    def moment(self, seconds: float | None) -> str:
        """A time (seconds since the epoch) in UTC."""
        if seconds is None or not -1e11 < seconds < 1e11:
            return fmt.MISSING
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"

    def _pair(self, key: str) -> str:
        return (STRINGS.get(key) or REPORT[key])[self._column]


def words_of(language: Language) -> Words:
    """The strings of a language."""
    return Words(language)
