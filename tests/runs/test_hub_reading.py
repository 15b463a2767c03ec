"""What is read from the Hub: the commit is recorded, and refusals say what to do."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import pytest

from lmpg.language.data import rows as rows_module
from lmpg.language.data.rows import read_rows
from lmpg.language.models.loading import tokenizer_of
from lmpg.language.models.pretrained import pretrained_model
from lmpg.language.models.settings import ModelSettings
from lmpg.settings.on_the_hub import access_advice, commits_of, remember_commit
from lmpg.settings.section import UserError
from tests.support.hub import cached_on_the_hub
from tests.support.hub_server import hub_server
from tests.support.planted import catches
from tests.support.programs import own_parts, run_here
from tests.support.tiny import save_tiny


def hub(run) -> dict:
    return json.loads((run / "inputs.json").read_text())["hub"]


@catches("a run from the Hub that nobody can repeat once its model moves on")
def test_the_commits_of_a_run_are_recorded_and_named_when_the_hub_moves_on(tmp_path, monkeypatch):
    parts = own_parts(tmp_path / "parts")
    revisions = {"main": partial(save_tiny, seed=1), "v2": partial(save_tiny, seed=2)}
    cached_on_the_hub(tmp_path / "cache", "me/tiny", revisions, monkeypatch)
    own = {"model.path": "me/tiny", "rewards.functions": "length(target=3)"}
    flags = {**parts, **own, "run.output-dir": tmp_path / "run"}
    run = run_here("grpo", {**flags, "run.total-steps": 1})
    assert hub(run) == {"model.path": {"me/tiny": "1" * 40}}
    (tmp_path / "cache" / "models--me--tiny" / "refs" / "main").write_text("2" * 40)
    again = {**flags, "run.total-steps": 2, "run.resume": True}
    with pytest.raises(UserError) as error:
        run_here("grpo", again)
    assert f"me/tiny has moved on; add --model.revision {'1' * 40}" in str(error.value)
    run_here("grpo", {**again, "run.resume-anyway": True})
    assert hub(run) == {"model.path": {"me/tiny": "2" * 40}}


def test_the_commit_of_a_data_set_is_that_of_its_cached_table(monkeypatch):
    commit = "ab" * 20
    file = {"filename": f"/cache/me___data/default/0.0.0/{commit}/data-train.arrow"}
    table = SimpleNamespace(cache_files=[file], column_names=["prompt"])
    datasets = rows_module._quiet_datasets()
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: table)
    monkeypatch.setattr(rows_module, "of_table", lambda table, change: ["a row"])
    read_rows("me/data:hard", "train")
    settings = {"data": {"path": "me/data:hard", "world": None}, "rewards": {"models": ["x"]}}
    assert commits_of(settings) == {"data.path": {"me/data": commit}}
    remember_commit("me/data2", "/no/commit/here")
    assert commits_of({"data": {"path": "me/data2"}}) == {}


@catches("a gated model that is said to be missing")
@pytest.mark.parametrize(
    ("name", "told"),
    [("big/gated", "it is gated: ask for access on its page"), ("big/private", "or it is private")],
)
def test_a_gated_or_private_model_says_what_to_do(name, told, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with hub_server(monkeypatch) as server:
        server.gated = ("big/gated",)
        for load in (lambda: tokenizer_of(ModelSettings(path=name)), lambda: loaded(name)):
            with pytest.raises(UserError) as error:
                load()
            assert str(error.value).startswith(f"model.path = {name}: no ")
            assert told in str(error.value)
            assert "hf auth login" in str(error.value)


def loaded(name: str):
    from transformers import AutoModelForCausalLM

    return pretrained_model("model.path", AutoModelForCausalLM, name)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Dataset 'a/b' is a gated dataset on the Hub. Visit the page to ask for acc", "it is ga"),
        ("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed.", "the Hub has nothing of"),
    ],
)
def test_a_gated_or_private_data_set_says_what_to_do(said, told, monkeypatch):
    from datasets.exceptions import DatasetNotFoundError

    def refuse(*names, **options):
        raise DatasetNotFoundError(said)

    monkeypatch.setattr(rows_module._quiet_datasets(), "load_dataset", refuse)
    with pytest.raises(UserError, match=rf"data\.path: cannot read a/b: .* Either {told}"):
        read_rows("a/b", "train")
    assert access_advice(ValueError("no such file")) == ""
