"""`lmpg diagnose overoptimisation`: a run's score and a gold score over the KL, from what the run
left: metrics of the gold score, or responses that the gold reward scores now."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from lmpg.functional.gold_frontier import Frontier, frontier
from lmpg.language.diagnose.diagnose_settings import OveroptimisationSettings
from lmpg.language.diagnose.gold_scores import gold_scores
from lmpg.language.trained.of_run import required_run
from lmpg.runs.folder import CONFIG, read_config, read_summary
from lmpg.runs.log_lines import is_number, log_rows
from lmpg.settings.section import UserError

FEWEST = 3
"""Points without which there is no curve."""
CLEAR = 3
"""Standard errors that a fall must be larger than."""
MEASURED = {"eval": ("eval/kl", "eval/reward"), "rollout": ("objective/kl", "objective/scores")}
"""Where a gold metric comes from → KL and score that were measured on the same responses."""

Rows = list[dict[str, Any]]


class Point(NamedTuple):
    """Means over responses at a stretch of steps, with standard errors (NaN where not known).

    step: the last of them. kl: nats per response to where the run began.
    """

    step: int
    kl: float
    proxy: float
    gold: float
    proxy_error: float = math.nan
    gold_error: float = math.nan
    responses: int = 0


@dataclass(frozen=True)
class Followed:
    """The points in the order of their KL. source: how they came about, in words. curve: the fit,
    where there are points enough."""

    run: Path
    gold: str
    source: str
    points: list[Point]
    curve: Frontier | None

    @property
    def best(self) -> Point:
        """Where the gold score is highest."""
        return max(self.points, key=lambda point: point.gold)

    @property
    def fell(self) -> bool:
        """Whether gold fell behind its best, clearly, while the score did not."""
        best, last = self.best, self.points[-1]
        errors = [0.0 if math.isnan(x.gold_error) else x.gold_error for x in (best, last)]
        return best.gold - last.gold > CLEAR * math.hypot(*errors) and last.proxy >= best.proxy


def follow(run: str, settings: OveroptimisationSettings) -> Followed:
    """The run's score and the gold score by KL; UserError where the run did not leave enough."""
    folder = required_run(run)
    metrics = list(log_rows(folder / "metrics.jsonl"))
    logged = _logged(folder, metrics, settings.gold)
    if logged is None:
        points, source = _scored(folder, metrics, settings)
    else:
        points, source = logged
    points = sorted(points, key=lambda point: point.kl)
    curve = frontier([x.kl for x in points], [x.gold for x in points])
    return Followed(folder, settings.gold, source, points, curve)


def _logged(folder: Path, metrics: Rows, gold: str) -> tuple[list[Point], str] | None:
    """The points of a metric that the run has logged; None where no metric is called so."""
    names = {name for row in metrics for name in row}
    summary = read_summary(folder)
    names |= {f"eval/{name}" for name in summary.get("before", {})}
    found = next((x for x in (f"eval/{gold}", f"rewards/{gold}/mean", gold) if x in names), None)
    if found is None or gold == "step":
        return None
    kl, proxy = MEASURED["eval" if found.startswith("eval/") else "rollout"]
    _refuse_own_reward(folder, found, proxy)
    rows = metrics
    if found.startswith("eval/"):
        ends = (("before", 0), ("after", summary.get("steps")))
        of_ends = [
            {"step": step} | {f"eval/{k}": v for k, v in summary.get(name, {}).items()}
            for name, step in ends
        ]
        rows = [of_ends[0], *metrics, of_ends[1]]
    wanted = ("step", kl, proxy, found)
    by_step = {
        row["step"]: Point(*(row[name] for name in wanted))
        for row in rows
        if all(is_number(row.get(name)) for name in wanted)
    }
    if len(by_step) < FEWEST:
        raise UserError(
            f"{folder} has {len(by_step)} steps with all of {kl}, {proxy} and {found}, expected "
            f"{FEWEST} or more. {_missing_kl(kl, names)}Evaluate more often "
            "(--evaluation.every), or name a reward that can score samples.jsonl"
        )
    return list(by_step.values()), f"{found} beside {proxy}, as the run logged them"


def _missing_kl(kl: str, names: Iterable[str]) -> str:
    if kl in names:
        return ""
    return (
        f"It never logged {kl}: train with --algorithm.kl-coef above 0, or with --evaluation.kl "
        "True. "
    )


def _refuse_own_reward(folder: Path, metric: str, proxy: str) -> None:
    """The score, and a reward that was part of it, is no gold."""
    if metric in (proxy, "reward"):
        raise UserError(
            f"gold = {metric} is the score that {folder} was trained on, expected something that "
            "training never saw: a reward of weight 0 (--rewards.weights), a metric of evaluation, "
            "or another reward"
        )
    rewards = read_config(folder / CONFIG).get("rewards") or {}
    functions, weights = rewards.get("functions") or [], rewards.get("weights")
    name = metric.removeprefix("rewards/").removesuffix("/mean")
    for i, text in enumerate([*functions, *(rewards.get("models") or [])]):
        called = text.split("(")[0].rpartition(":")[2] if i < len(functions) else text
        weight = weights[i] if weights else 1.0
        if metric.startswith("rewards/") and weight and name in (called, Path(called).name):
            raise UserError(
                f"gold = {metric} has the weight {weight:g} in the score that {folder} was trained "
                "on, expected something that training never saw: a reward of weight 0 "
                "(--rewards.weights), a metric of evaluation, or another reward"
            )


def _scored(
    folder: Path, metrics: Rows, settings: OveroptimisationSettings
) -> tuple[list[Point], str]:
    """The points of a reward that scores the run's own samples now."""
    kls: dict[int, float] = {}
    for name in ("eval/kl", "objective/kl"):  # that of the rollout itself, where both are there
        kls |= {row["step"]: row[name] for row in metrics if is_number(row.get(name))}
    rows = [row for row in log_rows(folder / "samples.jsonl") if is_number(row.get("score"))]
    usable = [row for row in rows if row["step"] in kls]
    steps = sorted({row["step"] for row in usable})
    if len(steps) < FEWEST:
        names = {name for row in metrics for name in row}
        why = "" if kls else _missing_kl("objective/kl", names)
        raise UserError(
            f"{folder} has scored samples of {len(steps)} steps whose KL is known, expected "
            f"{FEWEST} or more. {why}Write samples more often (--run.samples-every), or give a "
            "--gold that the run has logged"
        )
    for row, score in zip(usable, gold_scores(folder, usable, settings)):
        row["gold"] = score
    known = [row for row in usable if row["gold"] is not None]
    count = min(settings.points, len(steps))
    stretches = [
        steps[i * len(steps) // count : (i + 1) * len(steps) // count] for i in range(count)
    ]
    points = [_point([row for row in known if row["step"] in x], kls) for x in map(set, stretches)]
    source = (
        f"{len(known)} responses of samples.jsonl at {len(steps)} steps, scored by {settings.gold}"
    )
    return [point for point in points if point.responses], source


def _point(rows: Rows, kls: dict[int, float]) -> Point:
    """The means over the rows of a stretch; responses to one prompt count as one for the errors."""
    if not rows:
        return Point(0, math.nan, math.nan, math.nan)
    found = []
    for name in ("score", "gold"):
        clusters: dict[tuple[int, str], list[float]] = {}
        for row in rows:
            clusters.setdefault((row["step"], str(row["prompt"])), []).append(row[name])
        means = [fmean(x) for x in clusters.values()]
        error = stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
        found.append((fmean(row[name] for row in rows), error))
    (proxy, proxy_error), (gold, gold_error) = found
    kl = fmean(kls[row["step"]] for row in rows)
    step = max(row["step"] for row in rows)
    return Point(step, kl, proxy, gold, proxy_error, gold_error, len(rows))
