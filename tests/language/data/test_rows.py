from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from lmpg.language.data.rows import read_rows
from lmpg.settings.section import UserError

ROWS = [{"prompt": "one", "answer": 1}, {"prompt": "two", "answer": 2}]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path_factory):
    """Any look-up of a host is an error, and fails the test that made it."""
    hosts = []

    def refuse(host, *args, **kwargs):
        hosts.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    yield
    assert hosts == []


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet", "array.json"])
def test_every_local_format_gives_the_same_rows_without_network(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    if ending in ("jsonl", "json"):
        write_lines(path, ROWS)
    elif ending == "array.json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif ending == "parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    else:
        separator = "," if ending == "csv" else "\t"
        path.write_text(f"prompt{separator}answer\none{separator}1\ntwo{separator}2\n")
    as_text = [{name: str(x) for name, x in row.items()} for row in ROWS]
    assert read_rows(str(path), "train") == (as_text if ending in ("csv", "tsv") else ROWS)


def test_a_folder_has_the_splits_that_its_file_names_say(tmp_path):
    write_lines(tmp_path / "train.jsonl", ROWS)
    write_lines(tmp_path / "test.jsonl", ROWS[:1])
    assert read_rows(str(tmp_path), "train") == ROWS
    assert read_rows(str(tmp_path), "test") == ROWS[:1]
    assert read_rows(str(tmp_path), "train[:1]+test") == [ROWS[0], ROWS[0]]
    with pytest.raises(UserError, match=r"Unknown split \"dev\".*--data.split"):
        read_rows(str(tmp_path), "dev")


def test_a_folder_saved_by_datasets_is_read(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "both")
    assert read_rows(str(tmp_path / "both"), "train") == ROWS
    assert read_rows(str(tmp_path / "both"), "train[:1]") == ROWS[:1]
    with pytest.raises(UserError, match=r"both: Unknown split \"test\".*--data.split"):
        read_rows(str(tmp_path / "both"), "test")


def test_a_split_of_a_source_without_splits_is_cut_from_it_or_said(tmp_path, caplog):
    path = write_lines(tmp_path / "rows.jsonl", ROWS)
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    for source in (path, tmp_path / "saved"):
        assert read_rows(str(source), "train[:50%]") == ROWS[:1]
        assert not caplog.text
        assert read_rows(str(source), "test") == ROWS
        assert f"{source} has no splits, so the split 'test' is all of it" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "dataset_dict.json"])
@pytest.mark.parametrize("content", ["[]", "{}", "{"])
def test_a_damaged_folder_of_datasets_is_refused_in_one_line(tmp_path, name, content):
    if name == "dataset_dict.json":
        DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path)
    else:
        Dataset.from_list(ROWS).save_to_disk(tmp_path)
    (tmp_path / name).write_text(content)
    if (name, content) == ("dataset_info.json", "{}"):  # says nothing, and nothing is needed
        assert read_rows(str(tmp_path), "train") == ROWS
        return
    with pytest.raises(UserError, match=rf"^data.path: cannot read {tmp_path}: .+") as info:
        read_rows(str(tmp_path), "train")
    assert "\n" not in str(info.value)


def test_a_pointer_in_a_folder_of_datasets_is_called_one(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path)
    [file] = tmp_path.glob("*.arrow")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=rf"{file} is a Git LFS pointer"):
        read_rows(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("README.md", "---\nconfigs: [\n---\n", "ParserError"),
        (
            "README.md",
            "---\nconfigs:\n- config_name: a\n  data_files: x.jsonl\n- config_name: b\n"
            "  data_files: x.jsonl\n---\n",
            "take the others out of the README.md",
        ),
        (
            "README.md",
            "---\nconfigs:\n- config_name: default\n  data_files: y.jsonl\n---\n",
            "y.json",
        ),
        ("FOLDER.py", "raise SystemExit", "Code of a data set is never run"),
    ],
)
def test_what_describes_a_folder_wrongly_is_refused_in_one_line(tmp_path, name, content, said):
    write_lines(tmp_path / "x.jsonl", ROWS)
    (tmp_path / name.replace("FOLDER", tmp_path.name)).write_text(content)
    with pytest.raises(UserError, match=rf"cannot read {tmp_path}: .*{said}") as info:
        read_rows(str(tmp_path), "train")
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 700


def test_a_state_json_beside_data_makes_it_no_folder_of_datasets(tmp_path):
    write_lines(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "state.json").write_text("{\n}")
    assert read_rows(str(tmp_path), "train") == ROWS


@pytest.mark.parametrize("source", ["https://host/rows.jsonl", "hf://datasets/a/b", "s3://a/b.csv"])
def test_an_address_is_called_one(source):
    with pytest.raises(UserError, match=rf"{source} is an address, expected .*download it"):
        read_rows(source, "train")


@pytest.mark.parametrize("in_folder", [False, True])
def test_a_line_that_does_not_parse_is_named_with_file_and_number(tmp_path, in_folder):
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b"\n')
    with pytest.raises(UserError, match=r"(?s)train.jsonl, line 3, column 15 .*Fix ") as info:
        read_rows(str(tmp_path if in_folder else path), "train")
    assert '{"prompt": "b"' in str(info.value)


def test_lines_with_commas_in_brackets_are_told_where_they_break(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"prompt": "a"}\n{"prompt": "b"}]')
    with pytest.raises(UserError, match=r"rows.json, line 2, column 1 .*one array of objects"):
        read_rows(str(path), "train")


def test_a_line_that_is_no_object_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n"b"\n')
    with pytest.raises(UserError, match="line 2 is a JSON str, expected an object"):
        read_rows(str(path), "train")


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path):
    write_lines(tmp_path / "prompts.jsonl", ROWS)
    with pytest.raises(UserError, match=r"data.path: .*prompt.jsonl doesn't exist. Did .*prompts"):
        read_rows(str(tmp_path / "prompt.jsonl"), "train")
    with pytest.raises(UserError, match="neither does the folder"):
        read_rows(str(tmp_path / "nowhere" / "prompt.jsonl"), "train")
    with pytest.raises(UserError, match=r"data.eval_path: the file dev.csv doesn't exist"):
        read_rows("dev.csv", "train", "data.eval_path")


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", ""), ("a.json", "[]"), ("a.csv", ""), ("a.csv", "prompt\n")]
)
def test_an_empty_data_set_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} is empty: it has no rows"):
        read_rows(str(tmp_path / name), "train")


def test_a_parquet_without_rows_is_called_empty(tmp_path):
    Dataset.from_dict({"prompt": []}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet is empty: it has no rows"):
        read_rows(str(tmp_path / "a.parquet"), "train")


def test_unknown_endings_and_folders_without_data_are_refused(tmp_path):
    (tmp_path / "a.docx").write_text("")
    with pytest.raises(UserError, match=r"ending '.docx', expected .json, .jsonl"):
        read_rows(str(tmp_path / "a.docx"), "train")
    with pytest.raises(UserError, match="holds no data files"):
        read_rows(str(tmp_path), "train")


def test_a_hub_name_that_cannot_be_reached_is_a_readable_error(monkeypatch):
    def unreachable(*args, **kwargs):
        assert args == ("someone/something", "main")
        raise ConnectionError("Couldn't reach 'someone/something' on the Hub (LocalEntry)")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(UserError, match=r"cannot read someone/something:main.*no local file"):
        read_rows("someone/something:main", "train")
