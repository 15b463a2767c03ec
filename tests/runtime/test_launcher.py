"""The launcher's options are found and known, all of them."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands import launch as accelerate_launch
from accelerate.commands.config import config_args
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.utils.launch import prepare_sagemager_args_inputs

from lmpg.runtime import launch, launcher
from lmpg.runtime.launch import launch_of
from lmpg.settings.section import UserError


def test_no_option_of_accelerate_is_unknown():
    parser = accelerate_launch.launch_command_parser()
    names = {x.dest for x in parser._actions} | {x.name for x in fields(ClusterConfig)}
    sections = {x.name for x in fields(ClusterConfig) if x.name.endswith("_config")}
    unused = {"help", "config_file", "training_script", "training_script_args", *sections}
    told = dict.fromkeys(names - unused, "3")
    with pytest.raises(UserError) as refused:
        launch_of({}, told)
    assert "does not know" not in str(refused.value)
    known = {*launch.PASSED_ON, *launch.DYNAMO, *launch.FSDP, *launch.PARALLELISM}
    assert known <= names | {"fsdp_ignored_modules"}  # which its environment alone has


def test_sagemaker_is_refused_by_its_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_PROFILE", "")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "")
    config = argparse.Namespace(profile="me", region="r", sagemaker_inputs_file=None)
    config.distributed_type = SimpleNamespace(value="NO")
    vars(config).update(dict.fromkeys(("sagemaker_metrics_file", "additional_args", "image_uri")))
    names = ("iam_role_name", "ec2_instance_type", "transformers_version", "pytorch_version")
    vars(config).update(dict.fromkeys((*names, "py_version", "base_job_name"), "x"))
    config.num_machines = 1
    args = accelerate_launch.launch_command_parser().parse_args(
        ["--mixed_precision", "no", "--dynamo_backend", "no", "t.py"]
    )
    environ = prepare_sagemager_args_inputs(config, args)[0]["environment"]
    with pytest.raises(UserError, match=r"SageMaker .compute_environment. is not supported"):
        launch_of(environ, {})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/v/bin/python /v/bin/accelerate launch --cpu t.py", ["--cpu", "t.py"]),
        ("/v/bin/python /v/bin/accelerate-launch t.py", ["t.py"]),
        ("python -m accelerate.commands.launch -m lmpg train", ["-m", "lmpg", "train"]),
        ("python /v/accelerate/commands/accelerate_cli.py launch t.py", ["t.py"]),
        ("python /v/accelerate/commands/launch.py t.py", ["t.py"]),
        ("/v/bin/accelerate config", None),
        ("vim accelerate.txt launch", None),
        ("torchrun --nproc_per_node 2 t.py", None),
    ],
)
def test_the_launcher_is_known_by_its_command_line(line, words):
    assert launcher.words_for_launcher(line.split()) == words


def test_the_default_config_file_counts_unless_it_is_told_to_stay_on_the_cpu(monkeypatch, tmp_path):
    file = tmp_path / "default.json"
    file.write_text('{"distributed_type": "NO", "num_processes": 3, "fp16": true}')
    monkeypatch.setattr(config_args, "default_config_file", str(file))
    assert launcher.options(["train.py"], Path("/"))["mixed_precision"] == "fp16"
    assert launcher.options(["--num_processes", "2", "train.py"], Path("/"))["num_processes"] == 2
    assert launcher.options(["--cpu", "train.py"], Path("/")) == {"cpu": True}
