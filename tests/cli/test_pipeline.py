"""Pipelines: flags reach the stages they are for, and each stage goes on from those before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lmpg.cli.pipeline import pipeline
from lmpg.settings.section import UserError
from lmpg.training.offline import Offline
from tests.language.worlds.test_worlds import small  # noqa: F401
from tests.support.planted import catches
from tests.support.programs import let_go
from tests.support.tiny import save_tiny

SMALL = ["--update.minibatch-size", "8", "--update.microbatch-size", "4"]
ONLINE = ["--ppo.sampling.max-new-tokens", "6", "--ppo.evaluation.size", "4"]
ONLINE += ["--ppo.update.rollout-size", "8", "--ppo.run.total-steps", "2"]
SHARED = (
    "\n\nHuman: tell me about {i}\n\nAssistant: it is so.\n\nHuman: and {i} more?\n\nAssistant:"
)


@pytest.fixture(autouse=True)
def folders_given_back():
    yield
    let_go()


def nasty(folder: Path) -> list[str]:
    """Flags of a tiny model and of preferences with an implicit prompt of several turns; some are
    longer than the context, some lack an answer, some answers are the same."""
    model = save_tiny(folder / "model", max_position_embeddings=96)
    rows = []
    for i in range(30):
        shared = SHARED.format(i="x" * (i % 5)) if i % 6 else SHARED.format(i="long " * 12)
        answers = [" it is fine", " it is poor"]
        if i % 10 == 3:
            answers[i // 10 % 2] = ""
        if i % 10 == 7:
            answers[0] = answers[1]
        rows.append({"chosen": shared + answers[0], "rejected": shared + answers[1]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model.path", model, "--data.path", str(folder / "rows.jsonl"), *SMALL]
    return [*flags, "--data.overlong", "truncate-left"]


def config(folder: Path) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text())


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["sft", "dpo", "--algorithm.bta", "1"],
            "knows the flag --algorithm.bta 1; did you mean --algorithm.beta",
        ),
        (["sft", "dpo", "--dpo.algorithm.bta", "1"], "did you mean --dpo.algorithm.beta"),
        (["sft", "dqo"], "unknown method 'dqo'; did you mean dpo"),
        (["sft", "--config", "x.yaml"], "--config is for one stage: --sft.config x.yaml"),
        (["sft", "dpo", "--run.seed", "1", "--run.seed", "2"], "stands there twice"),
        (["sft", "dpo", "--dpo.algorithm.beta", "-1"], "algorithm.beta = '-1': expected"),
        (
            ["sft", "ppo", "--model.path", "m", "--data.path", "d"],
            "rewards.functions or rewards.models missing",
        ),
        (["sft", "ppo", "--ppo.rewards.functions", "nowhere.py:f"], "nowhere.py"),
        (["sft", "ppo", "--ppo.rewards.models", "/nowhere"], "rewards.models = /nowhere does not"),
        (["sft", "dpo", "--dpo.data.path", "nowhere.jsonl"], "the file nowhere.jsonl doesn.t"),
    ],
)
def test_bad_flags_and_paths_are_refused_before_any_stage_starts(argv, message, tmp_path):
    with pytest.raises(UserError, match=message):
        pipeline([*argv, "--run.output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UserError, match=r"files that are no pipeline's \(thesis.txt\)"):
        pipeline(["sft", "--run.output-dir", str(tmp_path)])


def test_without_stages_the_usage_is_shown(capsys):
    pipeline([])
    assert "lmpg pipeline sft reward_model ppo" in capsys.readouterr().out


@catches(
    "a pipeline's later stages start from its first model",
    "a pipeline's PPO without the reward model it made",
)
@pytest.mark.slow
@pytest.mark.parametrize("stages", [["sft", "reward_model", "ppo"], ["sft", "dpo"], ["sft", "kto"]])
def test_a_local_file_of_preferences_goes_through_the_whole_pipeline(stages, tmp_path, capsys):
    flags = [*nasty(tmp_path), *(ONLINE if "ppo" in stages else []), "--run.seed", "5"]
    out = tmp_path / "out"
    pipeline([*stages, *flags, "--run.output-dir", str(out)])
    folders = [out / f"{i}_{name}" for i, name in enumerate(stages, 1)]
    assert all(summary(folder)["exit_reason"] == "finished" for folder in folders)
    assert all(config(folder)["run"]["seed"] == 5 for folder in folders)
    assert config(folders[1])["model"]["path"] == str(folders[0] / "final")
    said = capsys.readouterr().out
    assert "empty" in said
    assert "cut on the left" in said
    if stages[-1] == "ppo":
        assert config(folders[2])["model"]["path"] == str(folders[0] / "final")
        assert config(folders[2])["rewards"]["models"] == [str(folders[1] / "final")]
        shown = json.loads((folders[2] / "samples.jsonl").read_text().splitlines()[0])
        assert str(shown["prompt"]).endswith("\n\nAssistant:")


@pytest.mark.slow
@pytest.mark.parametrize("stages", [["sft", "reward_model", "ppo"], ["sft", "dpo"]])
def test_the_reviews_world_goes_through_the_whole_pipeline(stages, small, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    flags = ["--run.total-steps", "2", "--evaluation.size", "4", *SMALL]
    if stages[-1] == "ppo":
        flags += ["--ppo.update.rollout-size", "8"]
    pipeline([*stages, *flags, "--run.output-dir", str(out)])
    last = out / f"{len(stages)}_{stages[-1]}"
    assert config(last)["data"]["path"] == "world:reviews"
    assert {"gold_positive", "kl", "distinct"} <= summary(last)["after"].keys()
    made = {path.name.rpartition("-")[0] for path in (small).iterdir() if path.is_dir()}
    assert made == {"reviews-blank"}  # what the pipeline makes, the world need not


@pytest.mark.slow
def test_an_interrupted_pipeline_goes_on_in_its_stage(tmp_path, monkeypatch, capsys):
    flags = [*nasty(tmp_path), "--run.output-dir", str(tmp_path / "out"), "--run.save-every", "1"]
    iterate = Offline.iterate

    def breaks_down(self: Offline, step: int) -> dict[str, float]:
        if "2_dpo" in str(self.folder) and step == 2:
            raise KeyboardInterrupt
        return iterate(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(Offline, "iterate", breaks_down)
        with pytest.raises(KeyboardInterrupt):
            pipeline(["sft", "dpo", *flags])
    assert f"--run.output-dir {tmp_path / 'out'} --run.resume" in capsys.readouterr().err
    written = (tmp_path / "out" / "1_sft" / "summary.json").stat().st_mtime_ns
    pipeline(["sft", "dpo", *flags, "--run.resume"])
    said = capsys.readouterr().out
    assert "1_sft has finished already" in said
    assert "2_dpo at step 1" in said
    assert (tmp_path / "out" / "1_sft" / "summary.json").stat().st_mtime_ns == written
    assert summary(tmp_path / "out" / "2_dpo")["exit_reason"] == "finished"
