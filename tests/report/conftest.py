"""A report of realistic size from made-up studies: nine domains, 44 proxies, twelve ladder points, three arms."""

from __future__ import annotations

import numpy as np
import pytest

from armillary.report import (
    AnnealPart,
    AnnealRow,
    ArmRow,
    BreakEven,
    CandidateRow,
    Chain,
    Command,
    CostRow,
    CurveLaw,
    DifferenceRow,
    DomainFit,
    DomainRow,
    FailureRow,
    FamilyRow,
    HoldoutRow,
    LadderLaw,
    LadderPart,
    LadderPoint,
    LineageRow,
    LossCurve,
    LrCurve,
    LrLine,
    LrPart,
    LrRow,
    MixtureChoice,
    MixturePart,
    Multiplier,
    Note,
    Phase,
    PredictionPart,
    PredictionRow,
    Question,
    Recipe,
    RecordRow,
    RegretRow,
    ReportData,
    Reserve,
    Sample,
    ScoreRow,
    TargetPoint,
)

# name, source, licence, training tokens, bytes per token, base loss
DOMAINS = [
    ("encyclopedia", "demo:encyclopedia", "CC BY-SA 4.0", 1_390_211, 3.21, 4.02),
    ("code", "demo:code", "PSF-2.0", 3_102_845, 2.94, 2.61),
    ("technical", "demo:technical", "PSF-2.0", 512_390, 3.35, 3.48),
    ("mathematics", "demo:mathematics", "BSD-3-Clause", 1_688_012, 2.71, 2.75),
    ("dialogue", "demo:dialogue", "MIT", 3_415_990, 3.42, 3.31),
    ("中文新闻", "demo:news-zh", "MIT", 2_204_118, 2.31, 4.41),
    ("中文评论", "demo:reviews-zh", "MIT", 1_450_377, 2.28, 4.12),
    ("drama", "demo:drama", "public domain", 1_511_842, 2.88, 3.92),
]
UNSEEN = ("三国演义", "demo:novel-zh", "public domain", 0, 1.93, 4.95)
NAMES = [d[0] for d in DOMAINS]
TARGET = {"中文新闻": 0.4, "mathematics": 0.4, "三国演义": 0.2}
FOUND = [0.05, 0.11, 0.06, 0.27, 0.04, 0.34, 0.11, 0.02]

SHARPENED = np.array(FOUND) ** 1.5 / (np.array(FOUND) ** 1.5).sum()


def weights(values: list[float] | np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(NAMES, values, strict=True)}


def mixture_part(rng: np.random.Generator) -> MixturePart:
    tokens = np.array([d[3] for d in DOMAINS], float)
    natural = tokens / tokens.sum()
    design = np.vstack([natural, np.full(8, 1 / 8), rng.dirichlet(np.full(8, 0.8), size=42)])
    fits = []
    true = {}
    for j, (name, *_, base) in enumerate([*DOMAINS, UNSEEN]):
        own = design[:, j] if j < 8 else 0.6 * design[:, 5] + 0.3 * design[:, 6]
        true[name] = base + 0.55 * np.exp(-6 * own) + 0.25 * (1 - design.max(axis=1)) + rng.normal(0, 0.006, 44)
        noise = 0.02 if j < 8 else 0.09
        fits.append(fit(name, true[name] + rng.normal(0, noise, 44), true[name], "effective-data"))
    target = sum(w * true[name] for name, w in TARGET.items())
    predicted = sum(w * np.array(f.predicted) for f in fits for name, w in TARGET.items() if f.domain == name)
    rows = [("candidate 1", FOUND, 3.861), ("candidate 2", [0.02, 0.05, 0.13, 0.31, 0.02, 0.3, 0.15, 0.02], 3.869)]
    rows += [("uniform", np.full(8, 1 / 8), 3.914), ("natural", natural, 3.958)]
    candidates = [
        CandidateRow(n, weights(w), p, p - 0.028, p + 0.028, [p + float(e) for e in rng.normal(0.006, 0.007, 3)])
        for n, w, p in rows
    ]
    return MixturePart(
        domains=NAMES,
        design=design.tolist(),
        fits=fits,
        candidates=candidates,
        choice=MixtureChoice("candidate 1", "natural", -0.0931, -0.1127, -0.0735, True, best="candidate 1", others=2),
        natural=weights(natural),
        uniform=weights(np.full(8, 1 / 8)),
        found=weights(FOUND),
        target_fit=fit("target", predicted, target, ""),
        reserve=Reserve(8, 4, NAMES[:2], "inside"),
    )


def fit(domain: str, predicted: np.ndarray, measured: np.ndarray, form: str) -> DomainFit:
    ranks = [np.argsort(np.argsort(v)) for v in (predicted, measured)]
    rho = float(np.corrcoef(*ranks)[0, 1])
    rmse = float(np.sqrt(np.mean((predicted - measured) ** 2)))
    return DomainFit(domain, predicted.tolist(), measured.tolist(), rho, rmse, form)


def lr_part(rng: np.random.Generator) -> LrPart:
    multiples = [0.35, 0.7, 1.4, 2.8, 5.6]
    lines, rows = [], []
    for depth in (1, 2, 3):
        for tokens in (75_000, 300_000):
            base = 4.6 - 0.3 * depth - 2e-7 * tokens
            law = [base * (1 + 0.02 * np.log(m / 2) ** 2) for m in multiples]
            noisy = [loss + float(rng.normal(0, 0.01)) for loss in law]
            lines.append(LrLine(depth, tokens, multiples, noisy, list(zip(multiples, law, strict=True))))
    for of, depth, tokens in (("tuned", 2, 300_000), ("ladder", 4, 900_000), ("target", 6, 9_000_000)):
        rule = 4e-3 / depth
        rates = (rule, 1.8 * rule, 2 * rule, 1.3 * rule, 3.1 * rule, (1.6 * rule, 2.5 * rule))
        rows.append(LrRow(of, depth, 10**5 * depth, tokens, *rates, 0.012, 0.004, 0.021, 0.985))
    confirm = {"rule": [4.01, 4.02, 4.03], "tuned": [3.95, 3.97, 3.96]}
    return LrPart(lines, rows, taken="tuned", depth=2, confirm=confirm, difference=(-0.06, -0.08, -0.04))


def anneal_part(rng: np.random.Generator) -> AnnealPart:
    branches, curves = [], []
    steps = list(range(0, 201, 2))
    for shape in ("linear", "1-sqrt"):
        for share, base in ((0.1, 3.842), (0.2, 3.815), (0.4, 3.809)):
            gain = 0.008 if shape == "1-sqrt" else 0.0
            branches.append(AnnealRow(share, shape, [base - gain + float(e) for e in rng.normal(0, 0.004, 3)]))
            start = 200 * (1 - share)
            part = [min(1.0, s / 10) * (1.0 if s < start else 1 - (s - start) / (200 - start)) for s in steps]
            if shape == "1-sqrt":
                part = [
                    min(1.0, s / 10) * (1.0 if s < start else 1 - ((s - start) / (200 - start)) ** 0.5) for s in steps
                ]
            curves.append(LrCurve(shape, steps, [4e-3 * p for p in part]))
    law = CurveLaw("sqrt", 0.2, [(0.1, 0.0121), (0.2, 0.0), (0.4, 0.0043)], [(150, 0.061), (250, 0.042)])
    sharp = [3.83 + float(e) for e in rng.normal(0, 0.004, 3)]
    branches.append(AnnealRow(0.2, "linear", sharp, power=1.5))
    return AnnealPart(
        branches,
        chosen=1,
        significant=False,
        reference=1,
        best=5,
        difference=-0.014,
        low=-0.031,
        high=0.003,
        curves=curves,
        law=law,
        further=2,
        stopped="inside",
    )


def ladder_part(rng: np.random.Generator) -> LadderPart:
    points = []
    for family, better in (("base", 0.0), ("qk-norm", 0.018)):
        for depth, n in ((1, 12_000), (2, 98_000), (3, 330_000)):
            for tokens in (150_000, 400_000, 1_000_000)[: 3 if family == "base" else 2]:
                flops = 6.0 * (n + 2048 * 32 * depth) * tokens
                loss = 2.1 + 9.0 * n**-0.18 + 60 * tokens**-0.36 - better + float(rng.normal(0, 0.008))
                losses = {name: loss + base - 3.7 for name, *_, base in [*DOMAINS, UNSEEN]}
                said = loss + float(rng.normal(0, 0.01))
                points.append(
                    LadderPoint(family, depth, n, tokens, flops, losses, loss, said, said - 0.02, said + 0.02)
                )
    laws = []
    for family, better in (("base", 0.0), ("qk-norm", 0.018)):
        fitted = {"E": 2.104 - better, "A": 9.131, "α": 0.1812, "B": 60.42, "β": 0.3587}
        laws.append(LadderLaw(family, fitted, "chinchilla"))
    return LadderPart(
        points=points,
        laws=laws,
        holdout=[
            HoldoutRow("params", 323_000, 3, 330_000, 1_000_000, 3.4471, 3.4388),
            HoldoutRow("tokens", 976_000, 3, 330_000, 1_000_000, 3.561, 3.572),
        ],
        target=TargetPoint(1.02e13, 3.301, 3.262, 3.341, 3.318),
        families=[
            FamilyRow("base", 1_055_000, 3.301, 3.262, 3.341),
            FamilyRow("qk-norm", 1_056_100, 3.284, 3.24, 3.33),
        ],
    )


def arms(rng: np.random.Generator) -> list[ArmRow]:
    rows = []
    for name, mean in (("found", 3.318), ("natural", 3.397), ("uniform", 3.352)):
        losses = [mean + float(e) for e in rng.normal(0, 0.006, 3)]
        middle = float(np.mean(losses))
        per_domain = {d[0]: d[5] - 0.55 + float(rng.normal(0, 0.03)) for d in [*DOMAINS, UNSEEN]}
        bits = {d[0]: per_domain[d[0]] / d[4] / np.log(2) for d in [*DOMAINS, UNSEEN]}
        rows.append(ArmRow(name, losses, middle, middle - 0.009, middle + 0.009, per_domain, bits))
    return rows


def full_report() -> ReportData:
    """The whole report, the same on every call."""
    rng = np.random.default_rng(7)
    offsets = [0.011, -0.02, 0.004, 0.018, -0.046, 0.021, -0.009, 0.016, 0.03]
    predictions = []
    for (name, *_, base), off in zip([*DOMAINS, UNSEEN], offsets, strict=True):
        middle, half = base - 0.55, 0.035 if name != "三国演义" else 0.08
        predictions.append(PredictionRow(name, middle, middle - half, middle + half, middle + off, abs(off) <= half))
    curve_tokens = np.linspace(40_000, 4_000_000, 60)
    return ReportData(
        name="demo",
        question=Question(
            target=TARGET,
            model="base, depth 4: 4 layers × 128, 4 heads, SwiGLU 352, vocabulary 2,048",
            parameters=1_055_000,
            tokens=4_000_000,
            budget="16m",
            max_epochs=4.0,
            floors={"code": 0.05},
            ceilings={"中文新闻": 0.5},
        ),
        created_at="2026-03-02T10:15:09+00:00",
        code_version="0.1.0",
        corpus=[
            DomainRow(n, s, lic, t > 0, t, 101_337 + 11 * i, 4_120 + 977 * i, 13 * i, b)
            for i, (n, s, lic, t, b, _) in enumerate([*DOMAINS, UNSEEN])
        ],
        mixture=mixture_part(rng),
        anneal=anneal_part(rng),
        lr=lr_part(rng),
        ladder=ladder_part(rng),
        record=[
            RecordRow("mixture_law", "confirm", 110, 97, 0.011, 0.052, 1.0),
            RecordRow("scaling_law", "params", 33, 30, 0.0078, 0.041, 2.6, least=7.3e5),
            RecordRow("anneal_law", "branches", 6, None, 0.0056, None, 1.0),
        ],
        regrets=[
            RegretRow("mixture", "candidate 1", 4, 3, 0.0011, 0.0, 0.0048),
            RegretRow("anneal", "linear 20%", 6, 2, 0.0007, 0.0, 0.0031),
            RegretRow("target", "found", 3, 3, 0.0, 0.0, 0.0),
        ],
        prediction=PredictionPart(
            "2026-03-02T10:07:01+00:00",
            "2026-03-02T10:07:14+00:00",
            predictions,
            PredictionRow("target", 3.301, 3.262, 3.341, 3.318, True),
            extrapolation=4.27,
            begun=True,
            chain=Chain(214, "7be1d20c44a97f03", None, prediction=150, verdict=214),
        ),
        arms=arms(rng),
        differences=[
            DifferenceRow("found", "natural", 3, -0.0791, -0.0912, -0.067),
            DifferenceRow("found", "uniform", 3, -0.0342, -0.0463, -0.0221),
        ],
        multipliers=[Multiplier("natural", 1.84, 1.61, 2.13), Multiplier("uniform", None, None, None)],
        recipe=Recipe(
            [Phase(1, 200, weights(FOUND)), Phase(201, 250, weights(SHARPENED))],
            weights(np.array(FOUND) * 4_000_000 / np.array([d[3] for d in DOMAINS])),
            measured=True,
        ),
        curves=[
            LossCurve(
                name,
                curve_tokens.tolist(),
                (end + 3.2 * np.exp(-curve_tokens / 3e5) + 0.9 * np.exp(-curve_tokens / 1.5e6)).tolist(),
            )
            for name, end in (("found", 3.25), ("natural", 3.33), ("uniform", 3.285))
        ],
        training_curves=[
            LossCurve(name, curve_tokens.tolist(), (end + 3.0 * np.exp(-curve_tokens / 3e5)).tolist())
            for name, end in (("found", 3.2), ("natural", 3.1), ("uniform", 3.3))
        ],
        curves_seed=1,
        scores=[
            ScoreRow("total", 400, 0.7125, 0.668, 0.757, 0.6675, 0.621, 0.714, 0.045, 0.0105, 0.0795, 0.011),
            ScoreRow("target", 80, 0.6815, 0.574, 0.769, 0.5815, 0.482, 0.683, 0.1, 0.0215, 0.1795, 0.008),
            ScoreRow("code", 40, 0.8, 0.664, 0.911, 0.775, 0.634, 0.893, 0.025, -0.05, 0.1, 0.75),
            ScoreRow("中文新闻", 40, 0.65, 0.498, 0.788, 0.525, 0.373, 0.674, 0.125, 0.012, 0.2375, 0.0004),
        ],
        samples=[
            Sample("The theorem", " states that every matrix of the form\n    A = [[1, 2], [3, 4]]\nis a root of it."),
            Sample("新华社北京", "一月三日电 国务院总理今天在会见代表团时说，经济建设的发展是两国人民的共同愿望。"),
        ],
        cost=[
            CostRow("corpus", 0, 0.0, 31.4, 55.0),
            CostRow("mixture", 44, 3.96e13, 262.0, 509.3),
            CostRow("confirm", 12, 1.08e13, 71.5, 139.2),
            CostRow("anneal", 18, 9.4e12, 66.0, 127.4),
            CostRow("ladder", 15, 2.2e13, 128.8, 240.1),
            CostRow("target", 3, 3.06e13, 151.0, 288.0),
            CostRow("arms", 6, 6.12e13, 301.7, 575.9),
            CostRow("export", 0, 0.0, 2.2, 2.2),
        ],
        break_even=BreakEven("natural", 8.3e13, 1.02e13, 1.84, 9.9e13, 7.3e13, 1.36e14),
        failures=[FailureRow("mixture", "88ab01c2d3e4f567", "diverged", "the loss is not a number at step 41")],
        reproduce=[
            Command("everything", "armillary run demo"),
            Command("mixture", "armillary study mixture demo"),
            Command("ladder", "armillary study ladder demo"),
            Command("target", "armillary train demo"),
        ],
        workspace="demo",
        lineage=[
            LineageRow("recipe", "9f1c0a7be2d94410"),
            LineageRow("corpus", "5be1d20c44a97f03"),
            LineageRow("target", "c07e6618a0fb5d21"),
        ],
        notes=[
            Note("failures", "mixture", count=1),
            Note("domain", "code", "a.jsonl:7: no field 'text'", 61),
            Note("edge_share", "", "40%", end="high"),
            Note("edge_sharpen", "", "1.5", end="high"),
            Note("edge_tried", "drama", "2%", end="low"),
            Note("edge_limits", "code", "5%", end="low"),
            Note("adjusted", "uniform"),
            Note("rise", "3", "1.6%"),
            Note("reach", "9.3", "4.1"),
            Note("forecast", detail="4.3 times the largest N"),
            Note("unreadable", "runs/88ab01c2d3e4f567/metrics.parquet", "it is torn"),
            Note("family", "qk-norm", "3 points"),
            Note("reason", "anneal", "20% linear lacks some runs"),
        ],
    )  # fmt: skip


@pytest.fixture(scope="session")
def full_data() -> ReportData:
    return full_report()
