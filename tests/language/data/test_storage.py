"""Rows and examples that are made when they are asked for are those that lists would hold."""

from __future__ import annotations

import hashlib
import json
import math
import tracemalloc

import numpy as np
from datasets import Dataset

from lmpg.language.data.data_files import rows_text
from lmpg.language.data.order import held_out_split
from lmpg.language.data.prompts import load_prompts, prompts_from_rows, shortest_and_longest
from lmpg.language.data.rows import read_rows
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.storage.examples_store import Lists, Stored
from lmpg.language.data.storage.row_store import as_rows, changed, joined, of_table, packed
from lmpg.language.data.texts import Text, learnable, stored_texts
from lmpg.runs import fingerprints
from lmpg.runtime import progress
from tests.support.planted import catches
from tests.support.tiny_tokenizers import character_tokenizer

ODD = [
    {"b": 1, "a": "é\u2028\U0001f600\0", "n": None, "t": True, "f": -0.0, "g": 1e-300},
    {"a": 10**40, "c": [{"x": [1, 2.5, "y"]}, {}, []], "inf": -math.inf, "f": 0.1 + 0.2},
    {},
]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_packed_rows_come_back_as_they_were_given():
    rows = packed(ODD)
    assert rows == ODD
    assert [list(row) for row in rows] == [list(row) for row in ODD]
    assert math.copysign(1, rows[0]["f"]) == -1
    assert math.isnan(packed([{"x": math.nan}])[0]["x"])
    assert rows.columns == ["b", "a", "n", "t", "f", "g", "c", "inf"]


@catches("rows of a second part counted from the beginning of all")
def test_parts_of_rows_and_rows_joined_are_those_of_lists():
    rows = [{"i": i} for i in range(30)]
    rows_joined = joined([as_rows(rows[:11]), packed(rows[11:12]), packed(rows[12:])])
    assert rows_joined == rows
    for cut in (slice(3, 25), slice(11, 12), slice(12, 12), slice(20, 99), slice(-5, None)):
        assert rows_joined[cut] == rows[cut]
    assert [rows_joined[i] for i in (0, 10, 11, 12, -1)] == [rows[i] for i in (0, 10, 11, 12, -1)]
    twice = changed(rows_joined, lambda row, i: {**row, "j": row["i"] - i}, "j")
    assert twice[20] == {"i": 20, "j": 0}
    assert twice.columns == ["i", "j"]
    assert [x["j"] for x in twice] == [0] * 30


def test_rows_of_a_table_are_those_of_its_list_whatever_was_selected():
    table = Dataset.from_list([{"a": i, "b": {"x": str(i)}} for i in range(20)])
    for chosen in (table, table.select([4, 2, 9]), table.shuffle(seed=0)):
        rows = of_table(chosen, lambda row: row)
        assert rows == chosen.to_list()
        assert rows[2] == chosen.to_list()[2]


def test_lists_of_ids_come_back_as_they_were_given():
    lists, given = Lists(), [[1, 2, 200_000], [], [7]]
    for ids in given:
        lists.append(ids)
    assert [lists.read(i) for i in range(3)] == given
    assert lists.lengths().tolist() == [3, 0, 1]
    assert lists.sums().tolist() == [200_003, 0, 7]


def test_texts_of_a_store_are_those_given_and_the_learnable_ones_are_chosen_alike():
    given = [Text([1, 2, 3], [False, True, True]), Text([4], [False]), Text([5, 6], [False, True])]
    store = Lists("ib")
    for text in given:
        store.append(text.ids, text.loss_mask)
    texts = stored_texts(store).take([2, 1, 0])
    assert texts == given[::-1]
    assert all(type(x) is bool for x in texts[0].loss_mask)
    assert learnable(texts) == learnable(given[::-1]) == ([given[2], given[0]], [2, 3])


def test_examples_taken_of_those_taken_keep_their_order():
    squares = Stored(lambda i: i * i, np.arange(10)).take([5, 3, 1]).take([2, 0])
    assert squares == [1, 25]
    assert (squares[-1], squares[:1]) == (25, [1])


@catches("the row of a prompt looked up by the prompt's place among those kept")
def test_prompts_keep_their_own_rows_where_others_are_left_out(tmp_path):
    rows = [{"prompt": "x" * (i % 9 * (i % 2)), "answer": str(i)} for i in range(40)]
    path = written(tmp_path / "p.jsonl", rows)
    settings = DataSettings(path=path, overlong="skip", num_eval=3)
    prompts = load_prompts(settings, character_tokenizer(), 6)  # BOS and five letters
    usable = [row for row in rows if 0 < len(row["prompt"]) <= 5]
    places = held_out_split(len(usable), 3)
    for part, chosen in zip((prompts.train, prompts.held_out), places):
        assert [x.columns for x in part] == [usable[i] for i in chosen]
        assert [x.prompt for x in part] == [usable[i]["prompt"] for i in chosen]


def test_prompts_take_little_more_memory_than_their_text(tmp_path):
    words = ["a", "prompt", "of", "some", "words"] * 4
    rows = [{"prompt": " ".join([str(i), *words]), "answer": str(i), "n": i} for i in range(3000)]
    path = written(tmp_path / "p.jsonl", rows)
    tokenizer = character_tokenizer()
    tracemalloc.start()
    try:
        prompts = load_prompts(DataSettings(path=path), tokenizer, 500)
        taken, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = sum(len(json.dumps(row)) for row in rows)
    tokens = sum(len(row["prompt"]) for row in rows)
    assert len(prompts.train) + len(prompts.held_out) == len(rows)
    assert taken < 1.2 * (size + 4 * tokens + 48 * len(rows))
    assert peak < taken + 6_000_000  # a thousand rows at a time


def test_the_self_test_samples_on_the_shortest_and_longest_prompts():
    rows = [{"prompt": "x" * n} for n in (5, 2, 7, 1, 7, 1, 3)]
    prompts = prompts_from_rows(rows, character_tokenizer(), 20)
    by_length = sorted((x.ids for x in prompts), key=len)
    assert [x.ids for x in shortest_and_longest(prompts, 4)] == by_length[:2] + by_length[-2:]
    assert shortest_and_longest(prompts, 7) is prompts


def test_the_fingerprint_of_rows_is_that_of_their_whole_text():
    for rows in ([], ODD, [{"a": b"bytes"}]):
        whole = json.dumps(rows, sort_keys=True, default=repr)
        found = fingerprints.of({"data.path": {"rows": lambda rows=rows: rows_text(rows)}})
        assert found["data.path"]["rows"] == hashlib.sha256(whole.encode()).hexdigest()


def test_long_reading_is_said_now_and_then_by_one_process(tmp_path, monkeypatch, capsys):
    path = written(tmp_path / "p.jsonl", [{"prompt": str(i)} for i in range(25)])
    monkeypatch.setattr(progress, "EVERY", 0.0)
    load_prompts(DataSettings(path=path), character_tokenizer(), 20)
    said = capsys.readouterr().out.splitlines()
    assert "20 rows of p.jsonl read" in said
    assert f"20 of 25 rows of {path} tokenised, 0:00 left" in said
    monkeypatch.setenv("RANK", "1")
    load_prompts(DataSettings(path=path), character_tokenizer(), 20)
    monkeypatch.setattr(progress, "EVERY", 60.0)
    monkeypatch.setenv("RANK", "0")
    assert len(read_rows(path, "train")) == 25
    assert capsys.readouterr().out == ""
