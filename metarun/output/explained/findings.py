"""The main findings of an explanation, as a table of a few rows."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from metarun.evaluation.kinds import KINDS
from metarun.output.ledger import score_of
from metarun.output.tables import Score, Table

BODY = "body"


def findings(parts: dict[str, Any], score: str) -> Table:
    """What was found, a row each: a mean with its interval over tasks where there is one."""
    rows = [
        *_of_steps(parts["steps"]["rows"], score),
        *_of_layers(parts.get("layers", {}).get("rows", [])),
        *_of_gradients(parts),
        *_of_predictions(parts),
        *(
            (f"{end} episode", f"{parts['episodes'][end]['episode']}: {score} {parts['episodes'][end]['score']:.4g}")
            for end in ("best", "worst")
        ),
    ]
    return Table(("what", "found"), rows)


def named(row: dict[str, Any]) -> str:
    """The name of a layer for people."""
    if row["layer"] == BODY:
        return "body, as a whole"
    return f"{row['layer']} ({row['kind']})" if row["kind"] else str(row["layer"])


def begins_at_zero(row: Mapping[str, Any]) -> bool:
    """Whether a layer moves away from zero, so that its relative change is infinite; null in JSON."""
    return bool(row["change"]) and row["change"]["mean"] in (None, math.inf)


def _of_steps(rows: list[dict[str, Any]], score: str) -> list[tuple[str, Any]]:
    last = rows[-1]
    after = f"after {len(rows) - 1} step{'s' * (len(rows) > 2)}" if len(rows) > 1 else "after adaptation"
    found: list[tuple[str, Any]] = []
    if len(rows) > 1:
        found.append((f"{score} before adaptation", score_of(rows[0][f"query_{score}"])))
    found.append((f"{score} {after}", score_of(last[f"query_{score}"])))
    found += _over_others(f"{score} {after}", last[f"query_{score}"])
    if len(rows) > 1:
        first, end = rows[0]["support_loss"]["mean"], last["support_loss"]["mean"]
        found.append(("support loss", f"{first:.4g} -> {end:.4g}"))
    first, end = rows[0]["query_loss"]["mean"], last["query_loss"]["mean"]
    found.append(("query loss", f"{first:.4g} -> {end:.4g}" if len(rows) > 1 else f"{end:.4g}"))
    return found


def _over_others(name: str, told: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The same mean with its interval over other classes or tasks, where the episodes' are known."""
    for kind in (kind for kind in KINDS if f"num_{kind}" in told):
        number, width = told[f"num_{kind}"], told[f"ci95_over_{kind}"]
        known = width is not None and math.isfinite(width)
        unknown = f"unknown for other {kind}: {number} here"
        yield f"{name}, over {number} {kind}", Score(told["mean"], width, number) if known else unknown


def _of_layers(rows: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """The layers that change most and least, and whose outputs do; of the body what its features do."""
    single = [row for row in rows if row["layer"] != BODY]
    moved = [row for row in single if row["change"] and row["change"]["mean"] is not None]
    seen = [row for row in single if row["cka"] and row["cka"]["mean"] is not None]
    found: list[tuple[str, Any]] = [
        ("layer that moves away from zero", f"{named(row)}: no share of its length says how far")
        for row in rows
        if begins_at_zero(row)
    ]
    if moved:
        layer = "other layer" if found else "layer"
        far, near = (choose(moved, key=lambda row: row["change"]["mean"]) for choose in (max, min))
        found.append((f"{layer} that changes most", f"{named(far)}: by {far['change']['mean']:.3g} of its length"))
        found.append((f"{layer} that changes least", f"{named(near)}: by {near['change']['mean']:.3g}"))
    if seen:
        other = min(seen, key=lambda row: row["cka"]["mean"])
        found.append(("outputs least alike (CKA)", f"{named(other)}: {other['cka']['mean']:.3g}"))
    found += [
        ("features of the body (CKA)", score_of(row["cka"])) for row in rows if row["layer"] == BODY and row["cka"]
    ]
    return found


def _of_gradients(parts: dict[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    if "gradient_alignment" in parts:
        found.append(("cosine of support and query gradients", score_of(parts["gradient_alignment"]["cosine"])))
    if "tasks_alignment" in parts:
        part = parts["tasks_alignment"]
        words = f"{part['mean']:.2f} on average; {part['share_above_zero']:.0%} of the pairs above 0"
        found.append((f"cosine of {part['num_tasks']} tasks' meta-gradients", words))
    return found


def _of_predictions(parts: dict[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    part = parts.get("calibration", {"kind": ""})
    if part["kind"] == "classes":
        found.append(("expected calibration error", f"{part['error']:.3f}"))
    if part["kind"] == "intervals":
        within = part["coverage"][part["levels"].index(0.95)]
        found.append(("targets within 95% intervals", f"{within:.1%}"))
    if part["kind"] == "residuals":
        found.append(("residuals", f"mean {part['bias']:.3g}, root mean square {part['rmse']:.3g}"))
    if parts.get("confusion", {}).get("pairs"):
        worst = parts["confusion"]["pairs"][0]
        words = f"{worst['true']} for {worst['taken']}: {worst['times']} of {worst['number']}"
        found.append(("most frequent mistake", words))
    return found
