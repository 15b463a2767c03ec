"""What a run gives to the Hub: a card, and the model; checked before the run, never its loss."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM

from lmpg.cli.pipeline import pipeline
from lmpg.language.models.loading import load_policy, tokenizer_of
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.runs.hub.card import base_on_the_hub, model_card, without_folders
from lmpg.settings.section import UserError
from tests.support.hub import cached_on_the_hub
from tests.support.hub_server import hub_server
from tests.support.planted import catches
from tests.support.programs import run_here
from tests.support.tiny import save_tiny

SETTINGS = {
    "model": {"path": "org/base", "revision": None},
    "data": {"path": "org/data:hard", "world": "reviews"},
    "rewards": {"functions": ["/home/me/secret/my_reward.py:f(scale=2)"]},
    "run": {"push_to_hub": None, "seed": 3},
}
SUMMARY = {
    "name": "ppo",
    "before": {"reward": 0.25, "kl": 0.0},
    "after": {"reward": 0.5, "kl": 1.234567},
    "steps": 7,
    "device": "cpu",
    "num_processes": 1,
    "versions": {"python": "3.11", "lmpg": "0.1.0"},
}


def card(task="text-generation", *, adapter=False, **changes):
    settings = {key: {**value, **changes.get(key, {})} for key, value in SETTINGS.items()}
    return ModelCard(model_card(task, settings, SUMMARY, adapter=adapter))


def test_a_cards_metadata_name_base_data_library_and_task_as_the_hub_does():
    found = card()
    assert found.data.to_dict() == {
        "base_model": "org/base",
        "datasets": ["org/data"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lmpg", "ppo"],
    }
    assert "| reward | 0.25 | 0.5 | mean score of held-out samples |" in found.text
    assert "Made from org/base by `ppo` in lmpg 0.1.0, on org/data:hard." in found.text
    assert "| method | `ppo`, 7 steps |" in found.text
    settings = yaml.safe_load(found.text.split("```yaml\n")[1].partition("```")[0])
    assert settings["run"]["seed"] == 3
    scoring = card("text-classification", run={"push_to_hub": "me/judge"})
    assert scoring.data.pipeline_tag == "text-classification"
    assert 'AutoModelForSequenceClassification.from_pretrained("me/judge")' in scoring.text
    assert "revision abc" in card(model={"revision": "abc"}).text


@catches("folders of the user's computer in a card")
def test_a_card_tells_names_of_local_files_and_nothing_of_where_they_lie(tmp_path):
    base, data = tmp_path / "my-base", tmp_path / "rows.jsonl"
    base.mkdir()
    data.write_text("{}")
    found = card(model={"path": str(base)}, data={"path": str(data)})
    assert found.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    assert "Made from my-base" in found.text
    assert "on rows.jsonl." in found.text
    (base / "final" / "merged").mkdir(parents=True)
    assert "Made from my-base" in card(model={"path": str(base / "final" / "merged")}).text
    assert "my_reward.py:f(scale=2)" in found.text
    assert "/home" not in found.content
    assert str(tmp_path) not in found.content
    assert without_folders("a/mine.py:f(b='c/d')") == "mine.py:f(b='c/d')"
    for text in ("org/data", "a/b or c", "\n\n", "world:reviews"):
        assert without_folders(text) == text


def test_what_was_made_of_a_model_of_the_hub_keeps_its_name_through_several_runs(tmp_path):
    assert base_on_the_hub(str(tmp_path)) is None
    (tmp_path / "README.md").write_text(card().content)
    assert base_on_the_hub(str(tmp_path)) == "org/base"
    assert card(model={"path": str(tmp_path)}).data.base_model == "org/base"
    (tmp_path / "README.md").write_text("---\nbase_model: [\n---\n")
    assert base_on_the_hub(str(tmp_path)) is None


def test_models_and_data_of_a_built_in_world_are_called_so():
    found = card(model={"path": None}, data={"path": None})
    assert "Made from the model of the built-in world reviews by" in found.text
    assert "datasets" not in found.data.to_dict()


@catches("an adapter that does not say which revision it is for")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # within peft
def test_an_adapters_folder_finds_its_base_model_and_revision(tmp_path, monkeypatch):
    revisions = {"main": save_tiny, "v2": lambda folder: save_tiny(folder, seed=2)}
    cached_on_the_hub(tmp_path / "cache", "me/tiny", revisions, monkeypatch)
    settings = ModelSettings(path="me/tiny", revision="v2", lora=LoraSettings(rank=2))
    tokenizer = tokenizer_of(settings)
    policy = load_policy(settings, tokenizer, critic=False, temperature=1.0)
    policy.save_pretrained(tmp_path / "final", tokenizer)
    config = json.loads((tmp_path / "final" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/tiny", "v2")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "final")
    mine = policy.causal_lm.get_input_embeddings().weight
    assert (loaded.get_input_embeddings().weight == mine).all()
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "here")
    here = ModelSettings(path="here", lora=LoraSettings(rank=2))
    policy = load_policy(here, tokenizer, critic=False, temperature=1.0)
    assert policy.model.peft_config["default"].base_model_name_or_path == str(tmp_path / "here")


@pytest.fixture
def flags(tmp_path):
    rows = [{"prompt": "ab", "completion": "c"}, {"prompt": "d", "completion": "e"}] * 5
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model.path": save_tiny(tmp_path / "model"),
        "data.path": tmp_path / "rows.jsonl",
        "update.minibatch-size": 4,
        "run.total-steps": 1,
        "run.push-to-hub": "me/tiny-sft",
        "run.output-dir": tmp_path / "run",
    }


@catches("a failed upload that loses the run, or is passed over in silence")
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # within huggingface_hub
def test_a_run_uploads_final_and_after_a_failure_the_same_command_does(flags, monkeypatch, capsys):
    folder = flags["run.output-dir"]
    with hub_server(monkeypatch) as hub:
        hub.fails = ("/commit/",)
        with pytest.raises(
            UserError, match=r"me/tiny-sft: .*run/final could not be uploaded \(.*or"
        ):
            run_here("sft", flags)
        assert json.loads((folder / "summary.json").read_text())["exit_reason"] == "finished"
        assert (folder / "report.html").is_file()
        assert hub.repositories == {"me/tiny-sft": {}}
        hub.fails = ()
        run_here("sft", {**flags, "run.resume": True})
        assert f"final/ is at {hub.url}/me/tiny-sft" in capsys.readouterr().out
        held = hub.repositories["me/tiny-sft"]
        final = folder / "final"
        files = {str(x.relative_to(final)): x for x in final.rglob("*") if x.is_file()}
        assert {name: path.read_bytes() for name, path in files.items()} == held
        assert hub.private == {"me/tiny-sft": True}
        assert hub.messages == ["sft, trained by lmpg"]
        assert b"# tiny-sft" in held["README.md"]


REFUSED = {
    "no token": ({}, None, r"Token is required"),
    "a stranger's token": ({}, "hf_other", r"Invalid user token"),
    "someone else's place": ({"run.push-to-hub": "other/a"}, "hf_secret", r"you may not make"),
    "no owner": ({"run.push-to-hub": "tiny"}, "hf_secret", r"names no owner, as me/tiny does"),
}


@catches("a token that is looked for only after the run")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_repository_that_cannot_be_written_is_refused_before_the_run(flags, kind, monkeypatch):
    changes, token, said = REFUSED[kind]
    with hub_server(monkeypatch, token), pytest.raises(UserError) as error:
        run_here("sft", {**flags, **changes})
    name = {**flags, **changes}["run.push-to-hub"]
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"run.push_to_hub = {name}: ")
    assert re.search(said, line)
    assert not flags["run.output-dir"].exists()


def test_a_hub_that_cannot_be_reached_is_refused_before_the_run(flags, monkeypatch):
    with hub_server(monkeypatch):
        pass
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(UserError, match=r"^run\.push_to_hub = me/tiny-sft: .*expected the name"):
        run_here("sft", flags)
    assert not flags["run.output-dir"].exists()


def test_stages_of_a_pipeline_do_not_share_a_repository(tmp_path):
    both = ["sft", "dpo", "--run.push-to-hub", "me/a", "--run.output-dir", str(tmp_path / "p")]
    with pytest.raises(
        UserError, match=r"push_to_hub = me/a .*sft and dpo.*--dpo\.run\.push-to-hub"
    ):
        pipeline(both)
