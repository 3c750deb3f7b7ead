"""Time and check meta-gradients side by side: python scripts/benchmark.py [WORK ...] [--device cuda] [--out DIR]

Every engine computes the mean meta-gradient of the same tasks from the same weights, in a process of its own: metarun's with
the settings that metarun makes for itself, the peers' as their users run them. Rounds are interleaved, so that a busy
machine slows all alike. Each row: median milliseconds, the ratio to metarun in the same run, peak memory above the loaded
process, and the largest relative error against a float64 loop of plain autograd. A peer that is not installed is reported.
How to install the peers: benchmark_peers.py. One measurement: benchmark_worker.py. The works: benchmark_works.py.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from benchmark_worker import ENGINES, measured, relative_error
from benchmark_works import WORKS, Work, device, plain_loop

CURVES = {
    "tasks": ("omniglot", "tasks", (1, 4, 16, 64, 256)),
    "inner_steps": ("sinusoid", "steps", (1, 5, 20, 100)),
    "ways": ("omniglot", "ways", (2, 5, 10, 20)),
}
KINKS = ("omniglot", range(6))  # work and seeds; errors with and without kinks
MEMORY = ("mini", (1, 10, 50), ("metarun_stored", "metarun_recomputed"))  # work, inner steps, engines
COMPARED = [name for name in ENGINES if name not in MEMORY[2]]


def table(results: dict[str, Any]) -> str:
    lines = []
    for name, rows in results["works"].items():
        lines += [f"\n### {name}\n", "| engine | ms | times metarun's | peak MB | error | ready, s: cold, warm |"]
        lines += ["|---|---|---|---|---|---|"]
        base = rows.get("metarun", {}).get("ms")
        for engine, row in rows.items():
            if "failed" in row:
                lines.append(f"| {engine} | {row['failed']} | | | | |")
            else:
                ratio = f"{row['ms'] / base:.2f}" if base else ""
                ready = f"{row['cold_s']:.1f}, {row['warm_s']:.1f}"
                cells = f"{row['ms']:.2f} | {ratio} | {row['peak_mb']:.0f} | {row['error']:.1e} | {ready}"
                lines.append(f"| {engine} | {cells} |")
    return "\n".join(lines) + "\n"


def draw_curves(curves: dict[str, Any], out: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(4 * len(curves), 3.2), layout="constrained")
    for axes, (name, lines) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for engine, points in lines.items():
            known = [(float(x), row["ms"]) for x, row in points.items() if "ms" in row]
            axes.plot([x for x, _ in known], [ms for _, ms in known], marker="o", label=engine)
        axes.set(xlabel=f"{name.replace('_', ' ')} ({CURVES[name][0]})", xscale="log", yscale="log")
        axes.set_xticks(values := CURVES[name][2], [str(value) for value in values])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.supylabel("ms a meta-gradient", fontsize="medium")
    figure.savefig(out / "curves.png", dpi=130)


def median_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    good = [row for row in rows if "ms" in row]
    if not good:
        return rows[0]
    ready = [row["ready_s"] for row in good]  # the first round compiles with an empty cache, the others with a full one
    medians = {key: statistics.median(row[key] for row in good) for key in ("ms", "peak_mb", "error") if key in good[0]}
    chosen = {"chosen": [row["chosen"] for row in good]} if good[0]["chosen"] else {}
    return medians | {"cold_s": ready[0], "warm_s": min(ready[1:], default=ready[0])} | chosen


def options_of_the_command() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", default=[], metavar="WORK", help=f"of {', '.join(WORKS)}, or none")
    parser.add_argument("--engines", nargs="+", default=COMPARED, choices=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--curves", action="store_true", help="also over tasks, inner steps and ways")
    parser.add_argument(
        "--memory", action="store_true", help="also peak memory over inner steps, stored and recomputed"
    )
    parser.add_argument("--kinks", action="store_true", help="also errors with softplus in place of ReLU")
    parser.add_argument("--peers", type=Path, default=Path("peers"))
    parser.add_argument("--out", type=Path, default=Path("benchmark"))
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one engine on one work")
    parser.add_argument("--device", default=device(), help="cpu, cuda or cuda:N")
    options = parser.parse_args()
    anything = options.works or options.curves or options.memory or options.kinks
    if not anything or not set(options.works) <= set(WORKS):
        parser.error(f"name at least one of {', '.join(WORKS)}, or give --curves, --memory or --kinks")
    if options.device != "cpu" and not _has(options.device):
        parser.error(f"--device {options.device}: torch finds no such device here")
    os.environ |= {"METARUN_BENCHMARK_DEVICE": options.device, "METARUN_BENCHMARK_PEERS": str(options.peers)}
    return options


def main() -> None:
    options = options_of_the_command()
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(options.out / "compiled", ignore_errors=True)
    command = " ".join(["python scripts/benchmark.py", *sys.argv[1:]])
    results: dict[str, Any] = {"command": command, "commit": _commit(), "versions": _versions()}
    results |= {"date": time.strftime("%Y-%m-%d"), "cpus": os.cpu_count(), "device": device_name()}
    results |= {"load": [os.getloadavg()[0]], "rounds": options.rounds, "works": {}}
    for name in options.works:
        results["works"][name] = compare(WORKS[name], options.engines, options)
    if options.kinks:
        results["kinks"] = kinks()
    if options.curves:
        results["curves"] = curves(options)
        draw_curves(results["curves"], options.out)
    if options.memory:
        results["memory"] = memory(options)
    results["load"].append(os.getloadavg()[0])
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = table(results)
    (options.out / "table.md").write_text(text)
    print(text)


def compare(work: Work, engines: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Every engine on one work, as many rounds in turns as asked for; the median row of each."""
    reference = options.out / "reference.pt"
    failed = measured("reference", work, reference, options.timeout)
    if failed:
        return dict.fromkeys(engines, failed)
    rows: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for number in range(options.rounds):
        for engine in engines:
            if number == 0 or "ms" in rows[engine][0]:  # what failed once is not tried again
                rows[engine].append(measured(engine, work, reference, options.timeout))
                print(f"{engine}: {rows[engine][-1]}", file=sys.stderr)
    reference.unlink()
    return {engine: median_row(found) for engine, found in rows.items()}


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if device() != "cpu" else "cpu"


def curves(options: argparse.Namespace) -> dict[str, Any]:
    """By curve and engine, the row at each value of what the curve is over."""
    found: dict[str, Any] = {}
    for curve, (name, what, values) in CURVES.items():
        for value in values:
            changed: dict[str, Any] = {what: value}
            for engine, row in compare(replace(WORKS[name], **changed), ["metarun", "learn2learn"], options).items():
                found.setdefault(curve, {}).setdefault(engine, {})[value] = row
    return found


def memory(options: argparse.Namespace) -> dict[int, Any]:
    """Rows of one task over inner steps, stored and recomputed; no errors, for the tests hold one to the other."""
    name, steps, kinds = MEMORY
    results = {}
    for value in steps:
        work, absent = replace(WORKS[name], steps=value, tasks=1), options.out / "none.pt"
        results[value] = {kind: measured(kind, work, absent, options.timeout) for kind in kinds}
        print(f"{value} inner steps: {results[value]}", file=sys.stderr)
    return results


def kinks() -> dict[str, Any]:
    """Errors of metarun's and a plain loop's meta-gradient for several draws, with ReLU and with softplus."""
    import torch

    name, seeds = KINKS
    found: dict[str, Any] = {}
    for smooth in (False, True):
        for seed in seeds:
            work = replace(WORKS[name], seed=seed, smooth=smooth)
            exact = [g.detach() for g in plain_loop(work, torch.float64)()]
            for engine in ("metarun_stored", "plain_loop"):
                error = relative_error([g.detach() for g in ENGINES[engine](work, torch.float32)()], exact)
                found.setdefault("softplus" if smooth else "relu", {}).setdefault(engine, []).append(error)
    return found


def _has(device: str) -> bool:
    import torch

    return torch.cuda.is_available() and (torch.device(device).index or 0) < torch.cuda.device_count()


def _versions() -> dict[str, str]:
    """Of torch and the peers that are installed; learn2learn's stands in the name of its archive."""
    found = {}
    for name in ("torch", "jax", "higher", "torchopt", "parallel-metalearn"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _commit() -> str:
    here = Path(__file__).resolve().parent
    done = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
