"""Annealing laws on simulated curves whose law is known."""

import numpy as np

from armillary.laws import AnnealLaw, Curve

WARMUP = 200


def exact_loss(step, lr, size, *, q=1.0, warmup=WARMUP, beta=0.6):
    """The multi-power law summed step by step, as its paper writes it: slow, and without a shortcut."""
    peak = lr.max()
    ramp = peak * np.arange(1, warmup + 1) / warmup
    every = np.concatenate([ramp, np.interp(np.arange(warmup + 1, step[-1] + 1), step, lr)]) / peak
    area = np.cumsum(every)
    progress = np.cumsum(every**q) / 4000
    gap = -np.diff(every, prepend=0.0)
    at = np.flatnonzero(np.abs(gap) > 1e-12)
    loss = []
    for t in step.astype(int) - 1:
        k = at[at <= t]
        passed = (area[t] - area[k] + every[k]) / 4000
        gain = gap[k] @ (1 - (1 + 200 * every[k] ** -0.5 * passed) ** -beta)
        loss.append(1 + 0.09 * progress[t] ** -0.5 - 0.06 * gain)
    return 3.3 * (size / 1e8) ** -0.06 * np.array(loss)


def schedule(kind, length=4000, every=40, warmup=WARMUP, peak=1e-3):
    step = np.arange(warmup + every, length + 1, every, dtype=float)
    along = (step - warmup) / (length - warmup)
    lr = {
        "constant": np.ones_like(step),
        "cosine": 0.1 + 0.45 * (1 + np.cos(np.pi * along)),
        "wsd": np.where(along < 0.7, 1.0, 1.0 - 0.95 * (along - 0.7) / 0.3),
        "step": np.where(along < 0.5, 1.0, 0.3),
    }[kind]
    return step, peak * lr


def curve(kind, size=1e8, noise=3e-4, seed=0, **shape):
    step, lr = schedule(kind, **shape)
    rng = np.random.default_rng(seed)
    loss = exact_loss(step, lr, size) * (1 + noise * rng.standard_normal(len(step)))
    return Curve(f"{kind}_{shape.get('length', 4000)}", size, step, lr, loss)


def test_an_unseen_schedule_is_foretold_from_three():
    law = AnnealLaw(warmup_steps=WARMUP, bootstraps=20).fit(
        [curve(k, seed=i) for i, k in enumerate(("constant", "cosine", "step"))]
    )
    wanted = curve("wsd", noise=0.0)
    found = law.predict(wanted)
    assert np.abs(found.mean / wanted.loss - 1).mean() < 0.001
    assert ((found.low <= wanted.loss) & (wanted.loss <= found.high)).mean() > 0.8
