"""The command line: YAML and flags become settings; errors are short and end with exit code 2."""

from __future__ import annotations

import sys

import pytest

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.reinforce import REINFORCE
from lmpg.cli import flags
from lmpg.cli.main import agent_settings, main, train_by_name
from lmpg.gym.settings import GymSettings
from lmpg.language.settings import LanguageSettings
from lmpg.language.stages.settings import SftSettings
from lmpg.runs import folder as run_folder
from lmpg.settings.section import UserError
from tests.support.planted import catches

Settings = LanguageSettings[PPO]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "x.yaml"

    def write(text):
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def parse(*argv, settings=Settings, preset=None):
    line = flags.read(argv)
    flags.refuse_other_algorithm(settings, line)
    given = flags.given_settings(settings, line)
    return flags.settings_or_help(settings, line, preset or {}, given)


def test_no_arguments_give_the_defaults():
    assert parse() == Settings(algorithm=PPO())


def test_arguments_come_from_the_command_line_when_none_are_handed_over(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_ppo.py", "--run.sed", "5"])
    with pytest.raises(UserError, match=r"unknown flag --run\.sed 5; did you mean --run\.seed"):
        train_by_name("ppo")


def test_flags_of_every_kind_are_read():
    settings = parse(
        "--algorithm.clip=0.1", "--update.learning-rate", "1e-5", "--update.rollout_size", "128",
        "--algorithm.value-clip", "None", "--rewards.functions", "a.py:f", "b.py:g",
        "--rewards.weights", "1", "-0.5", "--data.path", "d.jsonl", "--model.path", "m",
        "--run.resume", "--run.output-dir", "o", "--algorithm.whiten", "False",
        "--model.lora.rank", "8", "--run.trackers", "--data.overlong", "truncate-left",
    )  # fmt: skip
    assert settings.algorithm == PPO(clip=0.1, value_clip=None, whiten=False)
    assert (settings.update.learning_rate, settings.update.rollout_size) == (1e-5, 128)
    assert settings.rewards.functions == ("a.py:f", "b.py:g")
    assert settings.rewards.weights == (1.0, -0.5)
    assert settings.run.resume is True
    assert settings.run.trackers == ()
    assert (settings.model.lora.rank, settings.data.overlong) == (8, "truncate-left")


@catches("YAML wins over flags")
def test_flags_win_over_yaml_over_presets_over_class_defaults(config):
    file = config("update: {epochs: 2, weight_decay: 0.2}\nalgorithm: {lam: 0.5}\n")
    preset = {"update": {"epochs": 1, "weight_decay": 0.1, "warmup_steps": 3}}
    settings = parse("--config", file, "--update.epochs", "9", preset=preset)
    update = settings.update
    assert (update.epochs, update.weight_decay, update.warmup_steps) == (9, 0.2, 3)
    assert (update.max_grad_norm, settings.algorithm.lam) == (1.0, 0.5)


def test_config_may_stand_anywhere(config):
    file = config("run: {seed: 4}\n")
    for argv in (
        ["--config", file, "--update.epochs", "2"],
        ["--update.epochs", "2", f"--config={file}"],
    ):
        settings = parse(*argv)
        assert (settings.run.seed, settings.update.epochs) == (4, 2)


def test_only_the_final_combination_is_checked(config):
    file = config("update: {rollout_size: 100}\n")  # not a multiple of the default minibatch, 16
    assert parse("--config", file, "--update.minibatch-size", "50").update.rollout_size == 100
    with pytest.raises(UserError, match=r"rollout_size = 100 .*minibatch_size = 16"):
        parse("--config", file)


def test_what_the_user_gave_is_known_before_it_is_converted(config):
    def given(*argv):
        return flags.given_settings(GymSettings[PPO], flags.read(argv))

    assert given() == {}
    file = config("env: {id: Pendulum-v1}\nupdate: {epochs: 2}\n")
    assert given("--update.epochs", "3", "--config", file, "--help") == {
        "env": {"id": "Pendulum-v1"},
        "update": {"epochs": "3"},
    }


def test_a_dict_is_given_as_yaml():
    settings = parse(
        "--env.kwargs", "{g: 9.8, x: [1, 2]}", "--algorithm.kl-coef", "0", settings=GymSettings[PPO]
    )
    assert settings.env.kwargs == {"g": 9.8, "x": [1, 2]}


def test_algorithm_name_picks_the_algorithm_where_the_script_leaves_it_open(config):
    def algorithm(*argv):
        return type(agent_settings(argv)[0].algorithm)

    assert algorithm() is PPO
    assert algorithm("--algorithm.name", "reinforce") is REINFORCE
    file = config("algorithm: {name: reinforce, baseline: value}\n")
    assert algorithm("--config", file) is REINFORCE
    file = config("algorithm: {name: reinforce}\n")
    assert algorithm("--config", file, "--algorithm.name=ppo") is PPO


def test_algorithm_name_must_be_that_of_the_script(config):
    file = config("algorithm: {name: ppo, clip: 0.1}\n")
    assert parse("--config", file).algorithm.clip == 0.1
    with pytest.raises(UserError, match=r"algorithm\.name = 'ppo', but this script trains with gr"):
        parse("--config", file, settings=LanguageSettings[GRPO])
    with pytest.raises(UserError, match="expected one of ppo, reinforce, "):
        parse("--algorithm.name", "pop")


def test_settings_without_an_algorithm_are_read_as_well():
    assert parse("--update.epochs", "7", settings=SftSettings).update.epochs == 7


def test_the_resolved_settings_of_a_run_reproduce_it(tmp_path, config):
    given = parse("--update.epochs", "3", "--algorithm.kl-coef", "0.1", "--rewards.timeout", "9")
    folder = tmp_path / "run"
    run = given.run.model_copy(update={"output_dir": str(folder)})
    opened = run_folder.open_run(given.model_copy(update={"run": run}), "x")
    opened.start({})
    opened.close()
    assert parse("--config", str(folder / "config.yaml")) == given


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--algorithm.clp 0.1", "unknown flag --algorithm.clp 0.1; did you mean --algorithm.clip?"),
        ("--clip 1", "unknown flag --clip 1; did you mean --algorithm.clip?"),
        ("--quux", "unknown flag --quux; see --help all for all flags"),
        ("--env.id X", "unknown flag --env.id X; see --help all for all flags"),
        ("--algorithm.clip", "--algorithm.clip needs a value after it"),
        ("--algorithm.clip --run.seed 1", "--algorithm.clip needs a value after it"),
        ("--algorithm.clip 1 2", "--algorithm.clip takes one value, not 1 2"),
        ("--run.seed 1 --run.seed 2", "--run.seed stands there twice; give it once"),
        ("words --run.seed 1", "unexpected 'words'; settings are given as --section.name VALUE"),
        ("--algorithm.clip -1", "algorithm.clip = '-1': expected greater than 0"),
        ("--update.epochs two", "update.epochs = 'two': expected a valid integer"),
        ("--run.resume maybe", "run.resume = "),
        ("--config", "--config needs a value after it"),
        ("--config --run.seed 1", "--config needs a value after it"),
        ("--config missing.yaml", "--config missing.yaml: No such file or directory"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_told_in_one_line(argv, message):
    with pytest.raises(UserError) as error:
        parse(*argv.split())
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1


def test_unknown_keys_of_yaml_and_flags_are_told_together(config):
    file = config("update: {epoch: 1}\nruns: {seed: 1}\n")
    with pytest.raises(UserError) as error:
        parse("--config", file, "--run.sed", "3")
    lines = str(error.value).splitlines()
    assert lines[0] == f"{file}: unknown setting update.epoch = 1; did you mean update.epochs?"
    assert lines[1].startswith(f"{file}: unknown section runs; did you mean run? ")
    assert lines[2] == "unknown flag --run.sed 3; did you mean --run.seed?"


def test_a_misspelt_preset_is_refused():
    with pytest.raises(UserError, match=r"preset: unknown setting update\.epoch = 1"):
        parse(preset={"update": {"epoch": 1}})


def test_help_shows_descriptions_and_the_defaults_that_will_hold(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    file = config("update: {epochs: 77}\n")
    with pytest.raises(SystemExit) as exit_:
        parse("--help", "all", "--config", file, preset={"run": {"seed": 9}})
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Fine-tune a causal language model" in text
    assert "--config FILE" in text
    for part in (
        "(default: 77)",
        "(default: 9)",
        "--algorithm.clip FLOAT",
        "{constant,linear,cosine}",
    ):
        assert part in text


def ended(function):
    with pytest.raises(SystemExit) as exit_:
        main(function)
    return exit_.value.code


def test_bad_input_ends_with_its_message_and_exit_code_2(capsys):
    assert ended(lambda: parse("--update.epochs", "0", "--update.learning-rate", "0")) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.splitlines()[0] == "error: update.learning_rate = '0': expected greater than 0"
    assert err.splitlines()[1].startswith("       update.epochs = '0'")


def test_ctrl_c_says_how_to_go_on_and_ends_with_130(tmp_path, capsys):
    folder = None

    def interrupted():
        nonlocal folder
        settings = parse("--run.output-dir", str(tmp_path / "mine"))
        folder = run_folder.open_run(settings, "x")
        raise KeyboardInterrupt

    assert ended(interrupted) == 130
    folder.close()
    assert f"--run.output-dir {tmp_path / 'mine'} --run.resume" in capsys.readouterr().err


def test_a_programming_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        main(lambda: 1 / 0)


def test_success_returns_quietly_and_the_process_group_is_closed(tmp_path, capsys):
    import torch.distributed as dist

    def grouped():
        store = dist.FileStore(str(tmp_path / "store"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)

    main(grouped)
    assert not dist.is_initialized()
    assert capsys.readouterr() == ("", "")
