"""Which charts a run's report has, in which order: what matters most first."""

from __future__ import annotations

from collections.abc import Mapping

from lmpg.runs.log_lines import is_number
from lmpg.runs.report.charts import Panel, Series
from lmpg.runs.report.history import History, Point
from lmpg.runs.report.meanings import HELD_OUT, chart_title, words

FIRST = 5
ORDER = (  # metrics that share a chart stand together; the first five that a run has lead the page
    ("reward",),
    ("episode/return_mean",),
    ("rewards/margin",),
    ("rewards/accuracy",),
    ("pair_accuracy",),
    ("margin",),
    ("score/chosen", "score/rejected"),
    ("rewards/chosen", "rewards/rejected"),
    ("logps/chosen", "logps/rejected"),
    ("objective/kl",),
    ("environment/turns",),
    ("episode/length_mean",),
    ("frac_reward_zero_std",),
    ("value/explained_variance",),
    ("policy/entropy",),
    ("completions/mean_length",),
    ("completions/clipped_ratio",),
    ("environment/truncated",),
    ("loss",),
    ("policy/approx_kl",),
    ("policy/clip_fraction",),
    ("policy/ratio_max",),
    ("sampler/kl",),
    ("reward_std",),
    ("loss/total",),
    ("loss/policy",),
    ("loss/value",),
    ("loss/kl",),
    ("entropy",),
    ("drift",),
    ("value/td_error",),
    ("grad_norm",),
    ("learning_rate",),
)
SAME = {  # figures of evaluations that belong to a training metric
    "objective/kl": "kl",
    "episode/return_mean": "return_mean",
    "episode/length_mean": "length_mean",
    "completions/mean_length": "length",
    "loss/total": "loss",
    "environment/turns": "turns",
    "rewards/margin": "margin",
    "rewards/accuracy": "pair_accuracy",
}
TOGETHER = {
    "score/chosen": "Scores of both texts",
    "rewards/chosen": "Rewards of both answers",
    "logps/chosen": "log π of both answers",
}


def panels(history: History, summary: Mapping) -> tuple[list[Panel], list[Panel], list[Panel]]:
    """The charts of what matters most, of what is known beside, and of all other metrics."""
    used: set[str] = set()
    shown = []
    for names in ORDER:
        panel = _panel(names, history, summary, used)
        if panel is not None:
            shown.append(panel)
            used |= {*names, *(f"eval/{SAME.get(name, name)}" for name in names)}
    shown += _of_evaluations(used, history, summary)
    rewards = sorted(n for n in history.curves if n.startswith("rewards/") and n.endswith("/mean"))
    if len(rewards) > 1:
        lines = [Series(_reward_name(name), history.points(name)) for name in rewards]
        shown.insert(1, Panel("Rewards one by one", lines, *words("rewards/NAME/mean")))
        used |= set(rewards)
    others = history.curves.keys() - used
    alone = sorted(others - {f"eval/{name}" for name in others})  # evaluations stand with the rest
    more = [_other(name, history, summary) for name in alone]
    return shown[:FIRST], shown[FIRST:], more


def _panel(
    names: tuple[str, ...], history: History, summary: Mapping, used: set[str]
) -> Panel | None:
    """One chart of a metric with its evaluations, or of several metrics; None without any, or where
    the evaluations alone stand in another chart, whose names are in `used`."""
    if len(names) > 1:
        lines = [Series(n.split("/")[1], history.points(n)) for n in names if n in history.curves]
        _, worry, unit = words(names[0])
        what = "Means of the chosen and of the rejected ones."
        return Panel(TOGETHER[names[0]], lines, what, worry, unit) if lines else None
    name = names[0]
    same = SAME.get(name, name)
    elsewhere = f"eval/{same}" in used or (same != name and (same,) in ORDER)
    if name not in history.curves and elsewhere:
        return None
    dots = evaluations(history, same, summary)
    series = [_line(name, history), Series("held out", dots, dots=True)]
    series = [x for x in series if x.points]
    return Panel(chart_title(name), series, *words(name)) if series else None


def _other(name: str, history: History, summary: Mapping) -> Panel:
    """A chart of any other metric with its evaluations, under its own name."""
    figure = name.removeprefix("eval/")
    series = [Series("held out", evaluations(history, figure, summary), dots=True)]
    if figure == name:
        series.insert(0, _line(name, history))
    return Panel(name, [x for x in series if x.points], *words(name))


def _reward_name(metric: str) -> str:
    return metric.removeprefix("rewards/").removesuffix("/mean")


def _of_evaluations(used: set[str], history: History, summary: Mapping) -> list[Panel]:
    """Charts of what only evaluations measure; adds their names to `used`."""
    found = []
    for figure in HELD_OUT:
        dots = evaluations(history, figure, summary)
        if f"eval/{figure}" not in used and len(dots) > 2:
            used.add(f"eval/{figure}")
            what, worry, unit = words(f"eval/{figure}")
            said = f"{what[:1].upper()}{what[1:]}."
            found.append(Panel(figure, [Series("held out", dots, dots=True)], said, worry, unit))
    return found


def _line(name: str, history: History) -> Series:
    curve = history.curves.get(name)
    last = curve.last if curve else None
    return Series("training", history.points(name), smooth=name != "learning_rate", last=last)


def evaluations(history: History, figure: str, summary: Mapping) -> list[Point]:
    """A figure before, during and after training."""
    dots = history.points(f"eval/{figure}")
    before, after = (summary.get(part, {}).get(figure) for part in ("before", "after"))
    if is_number(before):
        dots = [(0, before), *dots]
    if is_number(after) and (not dots or dots[-1][0] != summary.get("steps")):
        dots = [*dots, (summary.get("steps", history.last_step), after)]
    return dots
