"""A run is resumed with the inputs that it began with, wherever they lie now, or says so."""

from __future__ import annotations

import json
import shutil

import pytest

from lmpg.runs import fingerprints
from lmpg.runs.fingerprints import numbered, of, read, refuse_changed, source_files, write
from lmpg.settings.section import UserError
from tests.support.planted import catches


def refusal(folder, inputs) -> list[str]:
    with pytest.raises(UserError) as error:
        refuse_changed(folder, inputs, of(inputs), read(folder), anyway=False)
    return str(error.value).splitlines()


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "weights.bin"):
        (tmp_path / "model" / name).write_bytes(name.encode() * 1000)
    return {"model.path": {x.name: x for x in (tmp_path / "model").iterdir()}}


@catches("a model that was trained further in place, taken as the same on resume")
def test_each_file_that_changed_came_or_went_is_named_with_its_setting(tmp_path, model):
    write(tmp_path, of(model))
    folder = tmp_path / "model"
    assert refuse_changed(tmp_path, model, of(model), read(tmp_path), anyway=False) == []
    (folder / "weights.bin").write_bytes(b"weights.biN" * 1000)
    (folder / "added.json").touch()
    (folder / "config.json").unlink()
    now = {"model.path": {x.name: x for x in folder.iterdir()}}
    lines = refusal(tmp_path, now)
    run = f"the run in {tmp_path} began"
    assert lines[:3] == [
        f"model.path: {folder / 'added.json'} was not there when {run}",
        f"model.path: config.json is gone since {run}",
        f"model.path: {folder / 'weights.bin'} has changed since {run}",
    ]
    assert "--run.resume-anyway" in lines[3]
    warned = refuse_changed(tmp_path, now, of(now), read(tmp_path), anyway=True)
    assert [line.startswith("warning: model.path: ") for line in warned] == [True] * 3


def test_the_same_content_elsewhere_and_written_anew_is_no_change(tmp_path, model):
    write(tmp_path, of(model))
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    moved = {"model.path": {x.name: x for x in (tmp_path / "other").iterdir()}}
    assert of(moved) == read(tmp_path)
    assert refuse_changed(tmp_path, moved, of(moved), read(tmp_path), anyway=False) == []


def test_runs_without_fingerprints_or_with_damaged_ones_resume_as_before(tmp_path, model, caplog):
    assert refuse_changed(tmp_path, model, of(model), read(tmp_path), anyway=False) == []
    for text in ("[1, 2", "[]", '{"inputs": 3}', '{"inputs": {"a": 3}}', "[" * 100_000):
        (tmp_path / "inputs.json").write_text(text)
        assert read(tmp_path) == {}
        assert refuse_changed(tmp_path, model, of(model), read(tmp_path), anyway=False) == []
    assert "is missing or holds no fingerprints" in caplog.text


@catches("only the first piece of a large file looked at")
def test_every_byte_of_a_file_of_many_pieces_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "PIECE", 1000)
    content = bytearray(10_500)
    path = tmp_path / "large"
    path.write_bytes(content)
    first = of({"x": {"large": path}})
    for place in (0, 999, 1000, 5555, 10_499):
        changed = bytearray(content)
        changed[place] = 1
        path.write_bytes(changed)
        assert of({"x": {"large": path}}) != first
    path.write_bytes(content)
    assert of({"x": {"large": path}}) == first


@catches("a helper that a reward imports, not looked at")
def test_a_source_brings_along_all_local_modules_that_it_imports(tmp_path, monkeypatch):
    tree = {
        "rewards/main.py": "import json, torch, helper\nfrom kit.inner import deep\n",
        "rewards/helper.py": "def f():\n    import late\n",
        "rewards/late.py": "from lmpg.types import Rollout\nbroken(",
        "work/kit/__init__.py": "",
        "work/kit/inner/__init__.py": "from . import deep\nfrom ..side import x\n",
        "work/kit/inner/deep.py": "import nowhere\n",
        "work/kit/side.py": "",
        "work/unused.py": "",
    }
    for name, text in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path / "work")
    found = source_files(str(tmp_path / "rewards" / "main.py"))
    names = {str(x.relative_to(tmp_path)) for x in found.values()}
    assert names == tree.keys() - {"work/unused.py"}
    assert source_files("kit.side").keys() == {"kit", "kit.side"}
    assert source_files("json.decoder") == source_files("torch") == {}


def test_parts_of_a_list_keep_their_places(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("a")
    b.write_text("b")
    assert of({"m": numbered([{"x": a}, {"x": b}])}) != of({"m": numbered([{"x": b}, {"x": a}])})


def test_fingerprints_are_those_that_sha256sum_prints(tmp_path):
    (tmp_path / "x").write_text("abc")
    write(tmp_path, of({"data.path": {"*": tmp_path / "x"}}))
    text = json.loads((tmp_path / "inputs.json").read_text())["inputs"]["data.path"]["*"]
    assert text == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
