"""Draw a learned optimizer beside tuned ones: python scripts/figure_learned_optimizer.py RUN OUT.png

Runs the four plain inner optimizers from the same start on the same problems, each at the rate of a grid that has the
least mean loss after the last step on validation problems. Then all five on held-out test problems: on the left log10 of
the mean loss after each step, on the right the mean of log10. Writes OUT.png, and the figures beside it in OUT.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import functional_call

from metarun.config.build import build
from metarun.config.compose import read_config
from metarun.config.experiment import Experiment
from metarun.core import Batch, Episode, Params
from metarun.evaluation.estimates import estimate
from metarun.execution.execution import Vmapped
from metarun.files import write_json
from metarun.inner.loops import descent
from metarun.inner.optimizers import SGD, Adam, InnerOptimizer, Momentum, RMSprop
from metarun.meta_learners.learned_optimizer import LearnedOptimizer
from metarun.output.checkpoint import load

RULES = {"SGD": SGD, "momentum 0.9": Momentum, "RMSprop": RMSprop, "Adam": Adam}
RATES = [10 ** (k / 6) for k in range(-18, 4)]  # 0.001 to 3.2
NUM_VAL, NUM_TEST = 300, 1000
FLOOR = 1e-12  # of a loss, for its logarithm: float32 does not get closer to zero


@torch.no_grad()
def losses(x: Experiment, path: Any, episodes: Episode) -> Tensor:
    """Query loss after each step of ``path(support)`` for every problem: [problems, steps + 1]."""

    def of_one(theta: Params, episode: Episode) -> Tensor:
        assert isinstance(x.learner, LearnedOptimizer)
        return torch.stack([x.learner.query_loss(phi, episode.query)[0] for phi in path(theta, episode.support)])

    return Vmapped(None).map(of_one, {}, episodes)


def plain(x: Experiment, rule: InnerOptimizer) -> Any:
    learner = x.learner
    assert isinstance(learner, LearnedOptimizer)

    def loss(phi: Params, batch: Batch) -> Tensor:
        return learner.objective.loss(functional_call(learner.base_learner, phi, (batch.x,)), batch.y)

    start = learner.unravel(learner.start()[0])
    return lambda theta, support: descent(loss, start, rule, learner.inner_steps, support)


def tuned(x: Experiment, kind: Any, episodes: Episode) -> float:
    """The rate with the least mean loss after the last step; diverged ones count as infinite."""
    ends = [losses(x, plain(x, kind(rate)), episodes)[:, -1].mean().nan_to_num(torch.inf).item() for rate in RATES]
    return RATES[ends.index(min(ends))]


def summary(curve: Tensor) -> dict[str, Any]:
    end = curve[:, -1]
    half = estimate(end).ci95
    interval = [(end.mean() + side * half).clamp(min=FLOOR).log10().item() for side in (-1, 1)]
    return {
        "log10_mean_loss": end.mean().log10().item(),
        "log10_mean_loss_ci95": interval,
        "mean_log10_loss": end.clamp(min=FLOOR).log10().mean().item(),
        "median_loss": end.median().item(),
    }


def above(curve: Tensor, learned: Tensor) -> dict[str, float]:
    """How much larger the last loss is than the learned optimizer's on the same problem: mean and 95% interval."""
    difference = curve[:, -1] - learned[:, -1]
    return {"mean": difference.mean().item(), "ci95": estimate(difference).ci95}


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    x = build(read_config(run / "config.yaml"))
    saved = load(run / "checkpoints" / "best.pt", x.device)
    learner = x.learner
    assert isinstance(learner, LearnedOptimizer)
    val, test = x.task.sample("val", range(NUM_VAL)), x.task.sample("test", range(NUM_TEST))

    learned = losses(x, lambda _, support: learner.trajectory(saved["theta"], support, learner.inner_steps), test)
    curves, facts = {"learned (LSTM)": learned}, {"learned (LSTM)": summary(learned)}
    for name, kind in RULES.items():
        rate = tuned(x, kind, val)
        curves[name] = losses(x, plain(x, kind(rate)), test)
        facts[name] = {**summary(curves[name]), "rate": rate, "loss_above_learned": above(curves[name], learned)}

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, curve in curves.items():
        style = {"color": "black", "linewidth": 2} if curve is learned else {"linewidth": 1.2}
        label = f"{name}, rate {facts[name]['rate']:.3g}" if "rate" in facts[name] else name
        left.plot(curve.mean(0).log10(), label=label, **style)
        right.plot(curve.clamp(min=FLOOR).log10().mean(0), label=label, **style)
    left.set(xlabel="step", ylabel="log10 of the mean loss")
    right.set(xlabel="step", ylabel="mean of log10 of the loss")
    figure.suptitle(f"{NUM_TEST} held-out problems; {x.task.fingerprint()}", fontsize=9)
    left.legend(frameon=False, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    content = {"task": x.task.fingerprint(), "steps": learner.inner_steps, "checkpoint_step": saved["step"]}
    content |= {"tuned_on": NUM_VAL, "tested_on": NUM_TEST, "grid": [RATES[0], RATES[-1], len(RATES)]}
    write_json(out.with_suffix(".json"), {**content, "at_the_last_step": facts})
    print(json.dumps(facts, indent=2), out, sep="\n")


if __name__ == "__main__":
    main()
