"""Search the same trials without a pruner and with each, and compare the steps that were made and the best scores.

python scripts/search_trial.py DIR [WORD=VALUE ...]

Words are those of `metarun search`; about ten minutes of one core with those of SHARED. The sampler proposes at random,
so all three searches have the same trials, and what differs is pruning alone. Exit code 0 where the median,
which is the default, saves a third of the steps or more, and finds the best score of the search without a pruner.
"""

import subprocess
import sys
from pathlib import Path

from metarun.search.kept import Found, found
from metarun.search.study import PRUNERS

SHARED = {
    **{"trials": "30", "seeds": "0", "sampler": "random"},
    **{"optimizer.lr": "interval(1e-4,1e-2)", "meta_learner.inner_steps": "choice(1,3,5)"},
    **{"experiment": "maml_sinusoid", "steps": "400", "evaluation.every": "50", "evaluation.num_val_tasks": "100"},
    **{"meta_batch_size": "10", "device": "cpu", "execution": "vmapped", "logger": "none"},
}
LEAST_SAVED = 1 / 3


def searched(folder: Path, words: dict[str, str]) -> Found:
    """The search of ``words`` in ``folder``, which is begun or goes on."""
    command = ["search", str(folder), *(f"{key}={value}" for key, value in words.items())]
    subprocess.run([sys.executable, "-m", "metarun", *command], check=True, stdout=subprocess.DEVNULL)
    result = found(folder)
    assert result is not None
    return result


def saved(result: Found) -> float:
    """The share of the steps of all trials that pruning has saved."""
    made, planned = result.steps
    return 1 - made / planned


def best(result: Found) -> float:
    """The score of the winner."""
    assert result.best is not None
    return float(result.scored[result.best]["score"])


def main(folder: Path, words: list[str]) -> int:
    """Search with each pruner; print a line for each, and say whether pruning was worth it."""
    shared = SHARED | dict(word.split("=", 1) for word in words)
    results = {name: searched(folder / name, {**shared, "pruner": name}) for name in PRUNERS}
    for name, result in results.items():
        made, planned = result.steps
        print(
            f"pruner={name:10} {made} of {planned} steps, {saved(result):.0%} saved, best {result.score} {best(result):.4f}"
        )
    enough = saved(results["median"]) >= LEAST_SAVED
    equal = best(results["median"]) == best(results["none"])
    print(f"the median saves a third: {enough}; at an equal best score: {equal}")
    return 0 if enough and equal else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
