"""Whose folder it is: fresh, to go on with, finished, or refused before anything is touched."""

from __future__ import annotations

import json
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import yaml

from lmpg.algorithms.ppo import PPO
from lmpg.gym.settings import GymSettings
from lmpg.language.settings import LanguageSettings
from lmpg.runs import folder as run_folder
from lmpg.runs.folder import open_run, read_summary, write_summary
from lmpg.runtime.machine import versions
from lmpg.settings.raw import defaults_of, merged, validated
from lmpg.settings.section import UserError
from tests.support.planted import catches


@pytest.fixture(autouse=True)
def _let_go():
    yield
    for path in run_folder.opened():
        run_folder.RunFolder(path, "fresh").close()


def settings_for(folder: Path, kind=LanguageSettings[PPO], **sections):
    own = {"run": {"output_dir": str(folder)}}
    return validated(kind, merged(defaults_of(kind), own, sections))


def opened(folder: Path, **sections):
    """A run that has done one step."""
    run = open_run(settings_for(folder, **sections), "ppo")
    if run.status != "finished":
        run.start({})
        (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
    run.close()
    return run


def resumed(folder: Path, **sections):
    return opened(folder, **merged(sections, {"run": {"resume": True}}))


def test_a_new_folder_is_made_and_holds_the_resolved_settings(tmp_path):
    run = opened(tmp_path / "a" / "b", run={"seed": 7})
    assert (run.path, run.status) == (tmp_path / "a" / "b", "fresh")
    values = yaml.safe_load((run.path / "config.yaml").read_text())
    assert values["algorithm"]["name"] == "ppo"
    assert values["run"]["seed"] == 7
    assert {"output_dir", "resume"}.isdisjoint(values["run"])


def test_without_output_dir_every_run_gets_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = settings_for(tmp_path)
    settings = settings.model_copy(
        update={"run": settings.run.model_copy(update={"output_dir": None})}
    )
    paths = {open_run(settings, "ppo").path for _ in range(3)}
    assert len(paths) == 3
    assert all(path.parent == Path("runs") and path.name.startswith("ppo-") for path in paths)


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = validated(LanguageSettings[PPO], defaults_of(LanguageSettings[PPO]))
    free = run_folder.fresh_name("ppo")

    def taken_meanwhile(name):  # another run takes the name between the look and the making
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        free.mkdir(parents=True)
        return free

    monkeypatch.setattr(run_folder, "fresh_name", taken_meanwhile)
    assert open_run(settings, "ppo").path not in (free, None)


def test_another_runs_folder_is_refused_without_resume(tmp_path):
    opened(tmp_path)
    with pytest.raises(UserError, match=r"holds another run; add --run\.resume"):
        opened(tmp_path)


def test_resume_goes_on_or_starts_where_nothing_is(tmp_path):
    assert resumed(tmp_path / "run").status == "fresh"
    assert resumed(tmp_path / "run").status == "resuming"


def test_a_start_that_died_before_the_settings_were_written_counts_as_nothing(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "config.yaml.tmp").write_text("model:")
    assert resumed(tmp_path).status == "fresh"


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"files that are no run of lmpg \(thesis\.tex\)"):
        opened(tmp_path, run={"resume": resume})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "changed",
    [
        {"run": {"total_steps": 200}},
        {"run": {"save_every": 7, "keep_checkpoints": 5}},
        {"run": {"trackers": ["tensorboard"]}},
    ],
)
def test_steps_saving_and_trackers_may_differ_on_resume(tmp_path, changed):
    opened(tmp_path)
    assert resumed(tmp_path, **changed).status == "resuming"
    new = yaml.safe_load((tmp_path / "config.yaml").read_text())["run"]
    assert {key: new[key] for key in changed["run"]} == changed["run"]


@catches("the seed may differ on resume")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"run": {"seed": 1}}, "run.seed = 1, but the run in {} has 0"),
        ({"algorithm": {"clip": 0.3}}, "algorithm.clip = 0.3, but the run in {} has 0.2"),
        ({"model": {"lora": {"rank": 4}}}, "model.lora.rank = 4, but the run in {} has 0"),
        ({"run": {"samples_every": 3}}, "run.samples_every = 3, but the run in {} has 10"),
    ],
)
def test_anything_else_is_refused_by_name_on_resume(tmp_path, changed, message):
    opened(tmp_path)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(UserError) as error:
        resumed(tmp_path, **changed)
    lines = str(error.value).splitlines()
    assert lines[0] == message.format(tmp_path)
    assert len(lines) == 2
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_another_kind_of_run_is_refused_on_resume(tmp_path):
    opened(tmp_path)
    gym = settings_for(tmp_path, GymSettings[PPO], algorithm={"kl_coef": 0.0}, run={"resume": True})
    with pytest.raises(UserError, match=r"env\.id = 'CartPole-v1', but the run in .* has None"):
        open_run(gym, "gym")


@catches("old summary.json kept: a longer run that died counts as finished")
def test_a_finished_run_is_recognised_until_more_steps_are_asked_of_it(tmp_path):
    opened(tmp_path)
    write_summary(tmp_path, {"exit_reason": "finished"})
    assert resumed(tmp_path).status == "finished"
    assert resumed(tmp_path, run={"total_steps": 50}).status == "finished"
    assert resumed(tmp_path, run={"total_steps": 101}).status == "resuming"
    assert resumed(tmp_path, run={"total_steps": 101}).status == "resuming"  # died on the way


def test_an_interrupted_run_is_not_finished(tmp_path):
    opened(tmp_path)
    write_summary(tmp_path, {"exit_reason": "interrupted"})
    assert resumed(tmp_path).status == "resuming"


def test_settings_that_cannot_be_read_are_refused_on_resume(tmp_path):
    opened(tmp_path)
    for text in ("run: [", "just words", "run: 3"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match="does not hold a run's settings"):
            resumed(tmp_path)


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run cannot be written \(Not a directory\)"):
        opened(tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"file cannot be written \(File exists\)"):
        opened(tmp_path / "file")


def test_a_full_disk_is_told_as_an_unwritable_folder(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        opened(tmp_path / "run")


def hold(folder: Path, told: Connection) -> None:
    """A live run in another process."""
    run = open_run(settings_for(folder), "ppo")
    run.start({})
    (run.path / "metrics.jsonl").write_text("a step")
    told.send("holding")
    time.sleep(60)


@catches("no lock on the run folder")
def test_two_live_runs_cannot_share_a_folder_but_a_killed_one_lets_go(tmp_path):
    fork = multiprocessing.get_context("fork")
    receiving, sending = fork.Pipe(duplex=False)
    process = fork.Process(target=hold, args=(tmp_path, sending), daemon=True)
    process.start()
    assert receiving.poll(60)
    assert receiving.recv() == "holding"
    with pytest.raises(UserError, match="in use by a run that is still going"):
        resumed(tmp_path)
    process.kill()
    process.join()
    assert resumed(tmp_path).status == "resuming"


def test_a_fresh_folder_can_be_taken_back_when_bad_input_is_found(tmp_path):
    run = open_run(settings_for(tmp_path / "run"), "ppo")
    run.start({})
    run.abandon()
    assert not run.path.exists()
    assert opened(tmp_path / "run").status == "fresh"


def test_a_run_that_has_begun_is_never_taken_back(tmp_path):
    run = open_run(settings_for(tmp_path), "ppo")
    run.start({})
    (run.checkpoints / "step_1").mkdir(parents=True)
    run.abandon()
    run.close()
    assert (tmp_path / "config.yaml").exists()
    assert resumed(tmp_path).status == "resuming"


def test_the_summary_is_strict_json_written_in_one_piece(tmp_path, monkeypatch):
    write_summary(tmp_path, {"after": {"kl": float("nan"), "reward": 0.1}, "text": "ε"})
    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"after": {"kl": None, "reward": 0.1}, "text": "ε"}
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("died before the rename"))
    with pytest.raises(pytest.fail.Exception):
        write_summary(tmp_path, {"after": {}})
    assert read_summary(tmp_path)["text"] == "ε"


def test_versions_name_what_decides_the_numbers():
    assert {"python", "lmpg", "torch", "transformers"} <= versions().keys()


@catches("a run of an older version refused for a setting that it did not have yet")
def test_a_setting_that_the_runs_version_did_not_have_counts_as_its_default(tmp_path):
    opened(tmp_path)
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del values["data"]["special_tokens"], values["sampling"]["temperature"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"^sampling\.temperature = 0\.5, but the run in .* has 1"):
        resumed(tmp_path, sampling={"temperature": 0.5})
    assert resumed(tmp_path).status == "resuming"
