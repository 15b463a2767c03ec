"""Files: the values that stand in them, however they are read, and what is refused by name."""

from __future__ import annotations

import gzip
import json
import logging
import lzma
import os

import pytest
from datasets import Dataset

from lmpg.language.data.examples import number
from lmpg.language.data.policy_pairs import load_labelled_completions
from lmpg.language.data.reward_pairs import load_reward_pairs
from lmpg.language.data.rows import read_rows
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.texts import texts_from_rows
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny_tokenizers import character_tokenizer

ODD = {  # what readers like to guess about
    "prompt": "2024-01-01",
    "answer": "007",
    "large": 12345678901234567890123,
    "nothing": None,
    "nested": {"a": [1.10, None, True]},
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def rows_of(path, content: str | bytes) -> list[dict]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(str(path), "train")


@catches("a table's text is guessed to be numbers, dates or nothing")
@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_a_table_gives_the_text_that_stands_there(tmp_path, separator, in_folder):
    answers = ["None", "NA", "null", "nan", "007", "1.10", "1e5", "true", "2024-01-01", " x ", "5"]
    answers += ["12345678901234567890123", 'say ""yes""']
    lines = [f'"a\r\nb"{separator}"{x}"' for x in answers] + [f"empty{separator}"]
    path = tmp_path / ("train.csv" if separator == "," else "train.tsv")
    path.write_bytes("\r\n".join([f"prompt{separator}answer", *lines, "", ""]).encode())
    rows = read_rows(str(tmp_path if in_folder else path), "train")
    assert [row["answer"] for row in rows] == [*answers[:-1], 'say "yes"', None]
    assert {row["prompt"] for row in rows[:-1]} == {"a\r\nb"}


@catches("a JSON file reads otherwise in its folder than alone")
@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz", "jsonl.xz"])
@pytest.mark.parametrize("written", ["lines", "array", "pretty array", "pretty objects"])
def test_json_gives_the_same_values_alone_in_a_folder_and_compressed(tmp_path, ending, written):
    rows = [ODD, {"prompt": "b"}]
    content = {
        "lines": "\ufeff" + "\r\n".join(map(json.dumps, rows)) + "\r\n",
        "array": json.dumps(rows),
        "pretty array": json.dumps(rows, indent=2),
        "pretty objects": "\n".join(json.dumps(row, indent=2) for row in rows),
    }[written].encode()
    pack = {"gz": gzip.compress, "xz": lzma.compress}.get(ending.rpartition(".")[2], bytes)
    assert rows_of(tmp_path / f"train.{ending}", pack(content)) == rows
    assert read_rows(str(tmp_path), "train") == rows


def test_a_description_beside_the_data_is_left_out_and_named(tmp_path, caplog):
    (tmp_path / "info.json").write_text(json.dumps({"about": "these", "rows": 1}, indent=1))
    (tmp_path / "table.csv").write_text("prompt\nx\n")
    (tmp_path / "data.jsonl").write_text('{"prompt": "a"}')
    with caplog.at_level(logging.WARNING):
        assert read_rows(str(tmp_path), "train") == [{"prompt": "a"}]
    assert "info.json" in caplog.text
    assert "table.csv" in caplog.text
    assert read_rows(str(tmp_path / "info.json"), "train") == [{"about": "these", "rows": 1}]


def test_chats_and_tools_of_parquet_have_the_keys_that_were_given(tmp_path):
    call = {"role": "assistant", "tool_calls": [{"name": "rain", "arguments": {"city": "Bonn"}}]}
    messages = [{"role": "user", "content": "Rain?"}, call]
    tools = [{"name": "rain", "parameters": {"city": {"type": "string"}}}, {"name": "sun"}]
    row = {"messages": messages, "tools": tools, "given": [{"a": None}]}
    Dataset.from_list([row]).to_parquet(tmp_path / "a.parquet")
    assert read_rows(str(tmp_path / "a.parquet"), "train") == [row]
    assert read_rows(str(tmp_path), "train") == [row]


@catches("half a character of a cut export ends the run")
def test_half_a_character_is_read_as_its_replacement_and_said(tmp_path, caplog):
    lines = [
        '{"prompt": "whole \\ud83d\\ude00"}',
        '{"prompt": "cut \\ud83d", "\\uDE00": ["\\udc00"]}',
    ]
    with caplog.at_level(logging.WARNING):
        rows = rows_of(tmp_path / "a.jsonl", "\n".join(lines))
    assert rows == [{"prompt": "whole 😀"}, {"prompt": "cut \ufffd", "\ufffd": ["\ufffd"]}]
    assert "a.jsonl, line 2 holds half a character" in caplog.text
    texts_from_rows([{"text": rows[1]["prompt"]}], character_tokenizer(), 50)


REFUSED = {  # what is wrong: the file's ending, its content, what is said
    "nested too deeply": ("jsonl", '{"a": ' + "[" * 100_000, "line 1 is nested deeper than 100"),
    "nested too deeply to pass on": ("json", [{"a": json.loads("[" * 95 + "]" * 95)}] * 2, None),
    "beyond use": ("jsonl", '{"a": ' + "[" * 150 + "]" * 150 + "}", "line 1 is nested deeper"),
    "integer without end": (
        "jsonl",
        '{"a": 1}\n{"a": ' + "1" * 5000 + "}",
        "line 2 holds an integer of 5000",
    ),
    "same key twice": ("jsonl", '{"a": {"b": 1, "b": 2}}', "line 1 has the key 'b' twice"),
    "object with a fault": (
        "json",
        '{\n "a": 1\n}\n{\n "a": 1,\n}',
        "line 4 begins an object .* in line 6",
    ),
    "NUL": ("jsonl", b'{"a": "\x00"}', "line 1 holds a NUL byte"),
    "binary": ("jsonl", b"\x89PNG\r\n\x1a\n\x00", "line 3 holds a NUL byte, .* no text"),
    "Latin-1": (
        "csv",
        "prompt\ncafé,\n".encode("latin1"),
        "line 2 is not UTF-8 .* iconv -f WINDOWS",
    ),
    "UTF-16": ("csv", "prompt\nx\n".encode("utf-16"), "UTF-16 text, expected .* iconv -f UTF-16 "),
    "UTF-32": ("csv", "prompt\nx\n".encode("utf-32"), "UTF-32 text, expected .* iconv -f UTF-32 "),
    "UTF-16 without mark": ("txt", "x".encode("utf-16-le"), "line 1 holds a NUL byte.* iconv"),
    "short row": ("csv", "a,b\n1,2\n3\n", "line 3 has 1 of the 2 fields .* double quotes"),
    "long row": ("csv", "a,b\n1,2,3\n", "line 2 has 3 of the 2 fields .* double quotes"),
    "open quote": ("csv", 'a\n"b\n', "line 2 doesn't parse as a table"),
    "semicolons": ("csv", "a;b\n1;2\n", "separates its fields by ';'"),
    "two columns of a name": ("csv", "a,a\n1,2\n", "has two columns 'a'"),
    "pointer": ("jsonl", "version https://git-lfs.github.com/spec/v1\noid", "run git lfs pull"),
    "pointer of a table": (
        "parquet",
        "version https://git-lfs.github.com/spec/v1\n",
        "git lfs pull",
    ),
    "cut archive": ("jsonl.gz", gzip.compress(b'{"a": 1}')[:12], "damaged"),
    "no archive": ("jsonl.gz", b'{"a": 1}', "damaged"),
    "hidden archive": ("jsonl", gzip.compress(b'{"a": 1}'), "compressed with gzip.* ending .gz"),
    "hidden parquet": ("csv", b"PAR1", "is parquet, .* ending .parquet"),
    "no parquet": ("parquet", b"PAR2", "smaller than"),
    "empty parquet": ("parquet", b"", "size is 0"),
    "spaces": ("jsonl", " \n\n", "is empty: it has no rows"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_cannot_be_read_right_is_refused_with_place_and_fix(tmp_path, what):
    ending, content, said = REFUSED[what]
    if said is None:
        assert len(rows_of(tmp_path / f"a.{ending}", json.dumps(content))) == 2
        return
    with pytest.raises(UserError, match=rf"(?s)data.path: .*a\.{ending}.*{said}") as info:
        rows_of(tmp_path / f"a.{ending}", content)
    assert "\n" not in str(info.value)


def test_what_is_neither_file_nor_folder_is_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"pipe.jsonl is a pipe or a device, expected a file"):
        read_rows(str(tmp_path / "pipe.jsonl"), "train")
    with pytest.raises(UserError, match=r"train.jsonl is a link to nowhere, which doesn't exist"):
        read_rows(str(tmp_path / "folder" / "train.jsonl"), "train")
    with pytest.raises(UserError, match=r"train.jsonl is a link to nowhere, which doesn't exist"):
        read_rows(str(tmp_path / "folder"), "train")
    with pytest.raises(UserError, match=r"data.eval_path: 'a\\x00b' holds a NUL character"):
        read_rows("a\0b", "train", "data.eval_path")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", 1.0), ("-2.5", -2.5), (" 1e3 ", 1000.0), ("True", True), ("false", False), (".5", 0.5)],
)
def test_the_text_of_a_number_is_one_where_a_number_is_needed(text, expected):
    assert number(text) == expected
    assert type(number(text)) is type(expected)


@pytest.mark.parametrize("text", ["nan", "inf", "1_000", "1,5", "", "good", "0x1", "١"])
def test_other_text_is_no_number(text):
    assert number(text) == text


@catches("labels of a table are text and no labels")
def test_labels_and_margins_are_read_from_text(tmp_path):
    path = tmp_path / "rows.csv"
    settings = DataSettings(path=str(path))
    lines = [f"q{i},a{i},{'true' if i % 2 else 'False'}" for i in range(10)]
    path.write_text("\n".join(["prompt,completion,label", *lines, "q,a,"]))
    found = load_labelled_completions(settings, character_tokenizer(), 50)
    assert sum(x.desirable for x in [*found.train, *found.held_out]) == 5
    assert found.skipped == {"empty": 1}
    path.write_text("\n".join(["text,label", *(f"t{i},{i / 2}" for i in range(10))]))
    scored = load_reward_pairs(settings, character_tokenizer(), 50)
    assert {x.label for x in [*scored.train, *scored.held_out]} == {i / 2 for i in range(10)}
    path.write_text("\n".join(["prompt,chosen,rejected,margin", *["p,a,b,0.5"] * 9, "p,a,b,"]))
    pairs = load_reward_pairs(settings, character_tokenizer(), 50)
    assert sorted(x.margin for x in [*pairs.train, *pairs.held_out]) == [0.0] + [0.5] * 9


@pytest.mark.parametrize(
    ("header", "line", "said"),
    [
        ("prompt,completion,label", "q,a,good", r"row 2 has the label 'good'; expected true and"),
        ("text,label", "t,high", r"row 2, column 'label' holds 'high', expected a finite number"),
        ("text,label", "t,nan", r"row 2, column 'label' holds 'nan', expected a finite number"),
        ("prompt,chosen,rejected,margin", "p,a,b,1_0", r"row 2, column 'margin' holds '1_0'"),
    ],
)
def test_text_that_is_no_number_is_refused_with_its_row(tmp_path, header, line, said):
    first = ",".join(["x"] * header.count(",") + ["1"])
    (tmp_path / "rows.csv").write_text("\n".join([header, first.replace("x,x,1", "x,y,1"), line]))
    load = load_labelled_completions if "completion" in header else load_reward_pairs
    with pytest.raises(UserError, match=said):
        load(DataSettings(path=str(tmp_path / "rows.csv")), character_tokenizer(), 50)
