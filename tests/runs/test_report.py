"""report.html: whole, self-contained and safe, for every kind of run and for half-finished ones."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from lmpg.runs.report.charts import Panel, Series, draw, number, smoothed, thinned, ticks
from lmpg.runs.report.history import History
from lmpg.runs.report.panels import panels
from lmpg.runs.report.write import before_after_lines, write_report
from tests.support.planted import catches
from tests.support.programs import launched

VOID = {"meta", "br", "link", "input", "img", "hr", "wbr"}


class Page(HTMLParser):
    """Checks that tags nest, and collects text, tags and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.tags = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.tags[-1:] == [("wbr", {})]:  # a word may break there and is one
            data = self.words.pop() + data
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def run(folder, metrics=(), samples=(), summary=None, config=None):
    for name, rows in (("metrics", metrics), ("samples", samples)):
        if rows:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(text)
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    if config:
        (folder / "config.yaml").write_text(config)
    return Page(write_report(folder).read_text(encoding="utf-8"))


def panels_of(folder, metrics, summary):
    """What the report would draw: what matters most and what is known, and all others."""
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    history = History(folder)
    history.read()
    first, known, others = panels(history, summary)
    return [*first, *known], others


LANGUAGE = [
    {"step": s, "reward": s / 10, "objective/kl": 0.1 * s, "loss/total": 1 / s, "loss/policy": -0.1,
     "policy/clip_fraction": 0.1, "value/explained_variance": 0.5, "time/update": 1.0,
     "rewards/a/mean": 1.0, "rewards/b/mean": 2.0, "grad_norm": None if s == 3 else 1.0}
    for s in range(1, 51)
]  # fmt: skip
SUMMARY = {
    "name": "ppo", "exit_reason": "finished", "steps": 50, "num_processes": 2, "device": "cpu",
    "before": {"reward": -1.25, "kl": 0.0}, "after": {"reward": 2.5, "kl": 5.5}, "best": {},
    "seconds": {"time/sample": 30.0, "time/update": 90.0, "this_process": 125.0},
    "tokens_per_second": 1431.2, "versions": {"torch": "2.13.0"}, "pair_accuracy": 0.98,
}  # fmt: skip
SAMPLES = [
    {"step": s, "prompt": "The room", "completion": f" was <script>alert({s})</script>", "score": s}
    for s in (1, 20, 50)
]


def test_a_language_model_run_is_told_whole(tmp_path):
    page = run(tmp_path, LANGUAGE, SAMPLES, SUMMARY, "algorithm:\n  name: ppo\n")
    for part in (
        "ppo", "finished", "50 iterations", "2:00 of work", "1,431 tokens per second",
        "2 processes on cpu", "reward −1.250 2.500 +3.750", "Learning curves",
        "KL to the reference", "Explained variance", "Rewards one by one", "Samples", "Step 1",
        "Step 20", "Step 50", "update 1:30", "75%", "pair_accuracy 0.980", "name: ppo",
    ):  # fmt: skip
        assert part in page.text, part
    assert page.count("svg") == 9
    assert page.count("polyline") > 9


@catches("completion not escaped in the report")
def test_the_file_stands_alone_and_runs_nothing(tmp_path):
    page = run(tmp_path, LANGUAGE, SAMPLES, SUMMARY)
    assert page.count("script") == page.count("link") == page.count("img") == 0
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert attributes.isdisjoint({"src", "href", "onclick", "onload"})
    assert "url(" not in (tmp_path / "report.html").read_text()


def test_texts_of_models_and_users_are_shown_and_not_obeyed(tmp_path):
    evil = {"name": "<b>x</b>", "exit_reason": "stopped: <i>&", "before": {"<u>": 1.0}}
    page = run(tmp_path, LANGUAGE, SAMPLES, evil, "a: </pre><script>\n")
    assert page.count("script") == page.count("u") == 0
    assert "<script>alert(1)</script>" in page.text
    assert "a: </pre><script>" in page.text
    assert "<b>x</b> stopped: <i>&" in page.text


def test_a_gym_run_has_returns_and_no_samples(tmp_path):
    rows = [{"step": s, "episode/return_mean": 10.0 * s, "loss/value": 1.0} for s in range(1, 40)]
    figures = {"return_mean": 20.0, "return_std": 1.0}
    page = run(tmp_path, rows, summary={"before": figures, "after": {"return_mean": 500.0}})
    assert "Episode return" in page.text
    assert "return_mean 20 500 +480" in page.text
    assert "return_std 1 – –" in page.text
    assert "Samples" not in page.text


def test_supervised_and_reward_model_runs_show_their_accuracy(tmp_path):
    rows = [{"step": s, "loss": 1 / s, "accuracy": 0.5} for s in range(1, 10)]
    rows[4]["eval/pair_accuracy"] = 0.8
    summary = {"steps": 9, "before": {"pair_accuracy": 0.5}, "after": {"pair_accuracy": 0.9}}
    page = run(tmp_path, rows, summary=summary)
    assert "Loss" in page.text
    assert "pair_accuracy 0.500 0.900 +0.400" in page.text
    assert page.count("circle") == 3


def test_evaluations_are_dots_before_during_and_after(tmp_path):
    rows = [dict(row) for row in LANGUAGE]
    rows[24]["eval/reward"] = 1.5
    reward = panels_of(tmp_path, rows, SUMMARY)[0][0]
    assert [series.label for series in reward.series] == ["training", "held out"]
    assert reward.series[1].points == [(0, -1.25), (25, 1.5), (50, 2.5)]


def test_a_run_that_was_stopped_shows_what_there_is(tmp_path):
    summary = {"exit_reason": "interrupted", "before": {"reward": 1.0}, "steps": 2}
    page = run(tmp_path, LANGUAGE[:2], SAMPLES[:1], summary)
    assert "interrupted" in page.text
    assert "reward 1 – –" in page.text
    assert page.count("polyline") > 0


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
    page = run(tmp_path)
    assert "still running" in page.text
    assert "No step has been logged yet" in page.text


def test_one_step_alone_is_a_dot(tmp_path):
    page = run(tmp_path, [{"step": 1, "reward": 3.0}])
    assert (page.count("circle"), page.count("polyline")) == (1, 0)


def test_metrics_without_any_number_are_left_out(tmp_path):
    rows = [{"step": s, "reward": None, "loss/total": 1.0, "odd": "text"} for s in (1, 2)]
    shown, more = panels_of(tmp_path, rows, {})
    assert [panel.title for panel in shown] == ["Loss"]
    assert more == []


def test_a_schedule_is_drawn_as_it_is_and_not_smoothed(tmp_path):
    rows = [{"step": s, "learning_rate": float(s), "grad_norm": float(s)} for s in range(1, 50)]
    shown, _ = panels_of(tmp_path, rows, {})
    drawn = {panel.title: Page(draw(panel)).count("polyline") for panel in shown}
    assert drawn == {"Learning rate": 1, "Gradient norm": 2}


def test_unknown_metrics_are_folded_away_but_there(tmp_path):
    rows = [{"step": 1, "my/metric": 1.0, "reward": 2.0}]
    shown, more = panels_of(tmp_path, rows, {})
    assert ([p.title for p in shown], [p.title for p in more]) == (["Reward"], ["my/metric"])


def test_what_matters_most_comes_first_with_its_meaning(tmp_path):
    page = run(tmp_path, LANGUAGE, SAMPLES, SUMMARY)
    first = page.text.partition("Samples")[0]
    titles = ["Reward", "KL to the reference", "Explained variance"]
    assert [first.index(title) for title in titles] == sorted(first.index(t) for t in titles)
    assert first.count("When to worry:") == 5
    assert "Policy loss" not in first
    assert "Policy loss" in page.text
    rows = [{"step": 1, "loss": 0.7, "rewards/margin": 0.1, "rewards/accuracy": 0.6,
             "rewards/chosen": 0.2, "rewards/rejected": 0.1, "grad_norm": 1.0}]  # fmt: skip
    titles = [panel.title for panel in panels_of(tmp_path, rows, {})[0]]
    assert titles[:4] == ["Margin", "Accuracy", "Rewards of both answers", "Loss"]
    held_out = {"eval/margin": 0.1, "eval/pair_accuracy": 0.5, "eval/loss": 0.7}
    assert [x.title for x in panels_of(tmp_path, [rows[0] | held_out], {})[0]] == titles


def test_chat_prompts_are_shown_as_messages(tmp_path):
    prompt = [{"role": "user", "content": "How are you?"}]
    page = run(
        tmp_path, samples=[{"step": 1, "prompt": prompt, "completion": "Fine", "score": None}]
    )
    assert "user: How are you? Fine no score" in page.text


def test_the_terminal_shows_the_same_table():
    lines = before_after_lines(SUMMARY).splitlines()
    assert before_after_lines({"before": {"kl": -1.2e-6}}).splitlines()[1].split() == [
        "kl",
        "0",
        "–",
    ]
    assert lines[1].split() == ["reward", "−1.250", "2.500"]


def test_the_script_writes_a_runs_report_again(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {}\n")
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    done = launched("scripts/report.py", tmp_path)
    written = tmp_path / "report.html"
    assert done.stdout == f"{before_after_lines(SUMMARY)}\nreport: {written}\n"
    assert "2.500" in Page(written.read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (None, "–"), (475.0, "475"), (-1.25, "−1.250"), (1234.56, "1,234.6"),
        (0.00123, "0.00123"), (3.2e-7, "3.20e−07"), (5e9, "5,000,000,000"),
        (5.5e6 + 0.1, "5.50e+06"), (12.345, "12.35"),
    ],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_ticks_are_round_and_inside():
    assert ticks(0, 100, 4) == [0, 25, 50, 75, 100]
    assert ticks(-2.3, 3.4, 4) == [-2, 0, 2]
    assert ticks(0.011, 0.019, 4) == [0.012, 0.014, 0.016, 0.018]


def test_thinning_keeps_the_mean_and_smoothing_the_level():
    points = [(float(i), float(i % 2)) for i in range(1000)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert sum(y for _, y in few) / 100 == pytest.approx(0.5)
    assert thinned(points[:50], 100) == points[:50]
    flat = smoothed([(float(i), 2.0) for i in range(90)])
    assert flat == [(float(i), 2.0) for i in range(90)]


def test_a_chart_stays_inside_its_frame():
    points = [(1.0, -5.0), (2.0, 1e6), (3.0, 0.0)]
    svg = Page(draw(Panel("x", [Series("a", points), Series("b", [(1.0, 3.0)], dots=True)])))
    places = next(attrs["points"] for tag, attrs in svg.tags if tag == "polyline").split()
    xs, ys = zip(*(map(float, place.split(",")) for place in places))
    assert 0 <= min(xs) <= max(xs) <= 340
    assert 0 <= min(ys) <= max(ys) <= 168
    assert ys[1] == min(ys)  # the largest value is the highest place


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-12])
def test_a_constant_is_drawn_as_a_level_line(value):
    svg = Page(draw(Panel("x", [Series("a", [(0.0, value), (1.0, value)])])))
    places = next(attrs["points"] for tag, attrs in svg.tags if tag == "polyline").split()
    assert places[0].split(",")[1] == places[1].split(",")[1]


def test_a_long_number_beside_an_axis_is_narrowed_to_the_room_there():
    near_one = [(1.0, 1.000001), (2.0, 1.000003)]
    assert 'lengthAdjust="spacingAndGlyphs">1.000002</text>' in draw(
        Panel("", [Series("", near_one)])
    )
    assert "lengthAdjust" not in draw(Panel("", [Series("", [(1.0, 0.25), (2.0, 0.5)])]))
