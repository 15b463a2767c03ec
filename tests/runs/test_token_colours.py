"""The token view: tokens of few steps in colour, groups side by side, and nothing that runs."""

from __future__ import annotations

import re

import pytest

from lmpg.runs.report.sample_rows import samples_block
from lmpg.runs.report.style import STYLE
from lmpg.runs.report.token_colours import VIEWS, coloured, scales, switch
from tests.runs.test_report import Page, run
from tests.support.planted import catches

TOKENS = {
    "prompt": "<s>Say <b>:", "length": 3, "texts": ["He", "y\n", "</s>"],
    "advantage": [0.25, 0.5, -1.0], "entropy": [0.0, 1.0, 2.0], "reward": [0.0, 0.0, 1.5],
    "ratio": [0.5, 1.0, 2.0], "logprob": [-1.0, -0.5, None],
}  # fmt: skip
ROW = {"step": 1, "prompt": "Say", "completion": "Hey\n", "score": 1.5, "finished": True,
       "rewards": {"polite": 1.0, "short": 0.5}, "tokens": TOKENS}  # fmt: skip


def tokens_of(page):
    return [attrs for tag, attrs in page.tags if tag == "t-k" and "data-n" in attrs]


def test_a_tokens_colours_are_its_numbers_in_their_scale():
    scale = scales([ROW])
    assert scale == {"advantage": 0.5, "entropy": 1.0, "ratio": pytest.approx(0.693, abs=1e-3)}
    first, second, last = tokens_of(Page(coloured(TOKENS, scale, finished=True)))
    assert first["style"] == "--advantage:0.50;--entropy:0.00;--ratio:-1.00"
    assert second["style"] == "--advantage:1.00;--entropy:1.00;--ratio:0.00"
    assert last["style"] == "--advantage:-1.00;--entropy:1.00;--ratio:1.00"  # no further than full
    assert second["data-n"] == (
        "'y\\n' · advantage 0.500 · reward 0 · entropy 1 · ratio 1 · log π −0.500"
    )
    assert (last["class"], "class" in first) == ("end", False)
    assert "class" not in tokens_of(Page(coloured(TOKENS, scale, finished=False)))[-1]


def test_the_switch_offers_what_the_method_has_and_the_style_sheet_knows_it():
    page = Page(switch(scales([ROW])))
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "input"]
    assert ids == ["view-advantage", "view-entropy", "view-ratio"]
    assert [attrs for tag, attrs in page.tags if "checked" in attrs] == [page.tags[0][1]]
    for key in VIEWS:
        rule = rf"#view-{key}:checked ~ .steps t-k\[data-n\] {{ --x: var\(--{key}, 0\); }}"
        assert re.search(rule, STYLE)


def test_prompt_end_and_score_with_its_parts_are_seen():
    page = Page(samples_block({1: [ROW]}))
    assert "<s>Say <b>: He y↵ </s> 1.50 polite 1 short 0.500" in page.text
    cut = Page(samples_block({1: [{**ROW, "finished": False, "processed_score": -0.5}]}))
    assert "learned from −0.500 cut off" in cut.text


def test_a_groups_responses_stand_side_by_side_under_one_prompt():
    rows = [{**ROW, "group": i // 2, "score": float(i)} for i in range(4)]
    page = Page(samples_block({1: rows}))
    assert page.text.count("<s>Say <b>:") == 2
    assert re.findall(r"\d\.00", page.text) == ["1.00", "0.00", "3.00", "2.00"]  # the best first


def test_first_middle_and_last_step_are_coloured_and_others_folded_away():
    plain = {key: value for key, value in ROW.items() if key != "tokens"}
    steps = {step: [ROW if step in (1, 30, 60) else plain] for step in (1, 10, 30, 50, 60, 70)}
    page = Page(samples_block(steps))
    assert len(tokens_of(page)) == 9
    shown, folded = page.text.split("3 steps in between")
    assert re.findall(r"Step (\d+)", shown) == ["1", "30", "60"]
    assert re.findall(r"Step (\d+)", folded) == ["10", "50", "70"]


def test_what_is_left_out_of_a_long_response_is_told():
    tokens = {"length": 1000, "texts": list("abcdef"), "advantage": [1.0] * 6}
    text = Page(coloured(tokens, {"advantage": 1.0}, finished=True)).text
    assert text == "a b c … 994 tokens left out … d e f"


@catches("the text of a token not escaped", "the numbers on hover not escaped")
def test_tokens_and_prompts_that_look_like_html_stay_text(tmp_path):
    evil = "\"><script>alert(1)</script>'<img src=x onerror=y>"
    names = {"prompt": evil, "completion": evil, "label": evil, "rewards": {evil: 1.0, "b": 2.0}}
    tokens = {**TOKENS, "texts": [evil] * 3, "prompt": evil}
    rows = [
        {**ROW, **names, "tokens": tokens, "group": evil},
        {"step": 1, "prompt": evil, "chosen": evil, "rejected": [{"role": evil, "content": evil}],
         "score_chosen": 1.0, "score_rejected": 2.0, "margin": -1.0},
        {"step": 1, "prompt": evil, "chosen": evil, "rejected": evil,
         "tokens": {"prompt": evil, "chosen": tokens, "rejected": tokens}},
        {"step": 2, "prompt": [evil], "completion": None, "score": evil},
    ]  # fmt: skip
    page = run(tmp_path, [{"step": 1, f"eval/{evil}": 1.0, evil: 2.0}], rows, {"warnings": [evil]})
    assert page.count("script") == page.count("img") == 0
    assert page.text.count("<script>alert(1)</script>") > 8
    assert all("onerror" not in attrs for _, attrs in page.tags)
    assert tokens_of(page)[0]["data-n"].startswith(repr(evil))


def test_pairs_show_both_answers_with_their_rewards():
    row = {"step": 0, "prompt": "Q", "chosen": "good", "rejected": "bad", "score_chosen": 0.5,
           "score_rejected": -0.25, "margin": 0.75}  # fmt: skip
    text = Page(samples_block({0: [row]})).text
    assert text == "Step 0 Q margin 0.750 chosen good 0.50 rejected bad −0.25"


@catches("the colours of one answer on the other")
def test_pairs_are_coloured_by_what_each_token_gained_with_the_sums_beside(tmp_path):
    def side(texts, gains):
        sums = {"logprob": -4.0, "log_ratio": sum(gains)}
        return {"length": len(texts), "texts": texts, "log_ratio": gains, "sums": sums}

    answers = {"chosen": side(["g", "ood"], [0.5, 1.0]), "rejected": side(["bad"], [-0.25])}
    row = {"step": 4, "prompt": "Q", "chosen": "good", "rejected": "bad", "score_chosen": 0.15,
           "score_rejected": -0.025, "margin": 0.175,
           "tokens": {"prompt": "<s>Q", **answers}}  # fmt: skip
    assert scales([row]) == {"log_ratio": 0.5}
    page = Page(samples_block({4: [row]}))
    assert [x["style"] for x in tokens_of(page)] == [
        *("--log_ratio:1.00", "--log_ratio:1.00", "--log_ratio:-0.50")
    ]
    assert tokens_of(page)[1]["data-n"] == "'ood' · log π/π_ref 1"
    assert "<s>Q margin 0.175 chosen g ood 0.15 Σ log π −4 Σ log π/π_ref 1.500" in page.text
    assert "rejected bad −0.03 Σ log π −4 Σ log π/π_ref −0.250" in page.text


def test_long_texts_are_cut_in_their_middle():
    row = {"step": 1, "prompt": "p", "completion": "a" * 3000 + "b" * 3000}
    text = Page(samples_block({1: [row]})).text
    assert "2,000 characters left out" in text
    assert len(text) < 4200
