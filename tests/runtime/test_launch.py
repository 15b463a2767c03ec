"""Every field of an accelerate config is obeyed or refused, in the environment that it makes."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch.distributed.run as torchrun
import yaml
from accelerate.commands import launch as accelerate_launch

from lmpg.language.stages.settings import SftSettings
from lmpg.runtime import launcher
from lmpg.runtime.launch import Launch, launch_of
from lmpg.runtime.sharding_asked import AskedSharding
from lmpg.settings.section import UserError
from tests.support.planted import catches

SCRIPT = ["train.py", "--run.seed", "3"]
FSDP = {
    "distributed_type": "FSDP",
    "num_processes": 4,
    "num_machines": 1,
    "main_training_function": "main",
    "downcast_bf16": "no",
    "tpu_env": [],
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    },
}
SECTION = FSDP["fsdp_config"]


def fsdp(**changed):
    """The config with some fields of its section changed."""
    section = {**SECTION, **{f"fsdp_{name}": value for name, value in changed.items()}}
    return {**FSDP, "fsdp_config": section}


def parallel(replicas=1, shards=1, **sizes):
    """The config with a section for meshes."""
    sizes |= {"dp_replicate_size": replicas, "dp_shard_size": shards}
    section = {f"parallelism_config_{name}": size for name, size in sizes.items()}
    return {**fsdp(), "parallelism_config": section}


ALONE = {"distributed_type": "NO", "num_machines": 1}
GPUS = {"distributed_type": "MULTI_GPU", "num_processes": 4, "num_machines": 1}


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """(config, words) → what a process learns of its launch, from accelerate's own launcher."""
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(accelerate_launch, "is_deepspeed_available", lambda: True)
    runner = SimpleNamespace(DEEPSPEED_ENVIRONMENT_NAME="")
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "deepspeed.launcher", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "deepspeed.launcher.runner", runner)
    found = {}

    def popen(command, env):
        found.update(env)
        return SimpleNamespace(wait=lambda: None, returncode=0)

    def run(args):  # what torch's launcher adds for each process
        machines, of_each = int(args.nnodes.split(":")[0]), int(args.nproc_per_node)
        found.update(os.environ, LOCAL_RANK="0", RANK="0")
        found.update(WORLD_SIZE=str(machines * of_each), GROUP_WORLD_SIZE=str(machines))

    monkeypatch.setattr(accelerate_launch.subprocess, "Popen", popen)
    monkeypatch.setattr(torchrun, "run", run)

    def made(config, *words):
        found.clear()
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        words = ["--config_file", "config.yaml", *map(str, words), *SCRIPT]
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            args = accelerate_launch.launch_command_parser().parse_args(words)
            accelerate_launch.launch_command(args)
        return launch_of(found, launcher.options(words, tmp_path)), found

    return made


WHOLE = AskedSharding(4)
OBEYED = {
    "one process": (ALONE, [], Launch()),
    "on the CPU": (ALONE, ["--cpu"], Launch(cpu=True)),
    "use_cpu": ({**ALONE, "use_cpu": True}, [], Launch(cpu=True)),
    "four GPUs": (GPUS, [], Launch(asked=4)),
    "gpu_ids": ({**GPUS, "gpu_ids": "0,1,2,3", "debug": True}, [], Launch(asked=4)),
    "threads": (GPUS, ["--num_cpu_threads_per_process", 2], Launch(asked=4)),
    "bf16": ({**GPUS, "mixed_precision": "bf16"}, [], Launch(asked=4, bf16=True)),
    "two machines": (
        {**GPUS, "num_machines": 2, "machine_rank": 1, "main_process_ip": "h", "same_network": True}
        | {"main_process_port": 29499, "rdzv_backend": "c10d"},
        [],
        Launch(asked=4, machines=2),
    ),
    "FSDP 2": (fsdp(), [], Launch(asked=4, sharding=WHOLE)),
    "FSDP 2 by flags": (
        {**GPUS, "num_processes": 2},
        ["--use_fsdp", "--fsdp_version", 2, "--fsdp_offload_params", "true"],
        Launch(asked=2, sharding=AskedSharding(2, cpu_offload=True)),
    ),
    "its fields": (
        fsdp(
            reshard_after_forward=False,
            offload_params=True,
            activation_checkpointing=True,
            state_dict_type="FULL_STATE_DICT",
            transformer_layer_cls_to_wrap="LlamaDecoderLayer,Block",
            cpu_ram_efficient_loading=False,
            backward_prefetch="BACKWARD_PRE",
        ),
        [],
        Launch(
            asked=4,
            checkpointing=True,
            sharding=AskedSharding(4, False, True, True, ("LlamaDecoderLayer", "Block")),
        ),
    ),
    "hybrid": (parallel(2, 2), [], Launch(asked=4, sharding=AskedSharding(2))),
    "keys without a prefix": (
        {**FSDP, "fsdp_config": {"version": 2, "reshard_after_forward": False}},
        [],
        Launch(asked=4, sharding=AskedSharding(4, reshard_after_forward=False)),
    ),
}
REFUSED = {
    "FSDP 1": (fsdp(version=1), [], "fsdp_version = 1: expected 2; set fsdp_version: 2"),
    "no version": ({**FSDP, "fsdp_config": {}}, [], "fsdp_version = 1: expected 2"),
    "a strategy": (fsdp(sharding_strategy="HYBRID_SHARD"), [], "fsdp_sharding_strategy = HYBRID"),
    "wrapped by size": (fsdp(auto_wrap_policy="SIZE_BASED_WRAP"), [], "sharded by layers"),
    "prefetch": (fsdp(forward_prefetch=True), [], "fsdp_forward_prefetch = true"),
    "later": (fsdp(backward_prefetch="BACKWARD_POST"), [], "fsdp_backward_prefetch = BACKWARD_P"),
    "a local state": (fsdp(state_dict_type="LOCAL_STATE_DICT"), [], "SHARDED_STATE_DICT"),
    "offloaded activations": (
        fsdp(activation_checkpointing=True, activation_checkpointing_offload=True),
        [],
        "fsdp_activation_checkpointing_offload = true",
    ),
    "ignored modules": (fsdp(ignored_modules="lm_head"), [], "fsdp_ignored_modules: all"),
    "a typing error": (fsdp(reshard_after_forwrd=False), [], "fsdp_reshard_after_forwrd = False"),
    "not a switch": (fsdp(reshard_after_forward="FULL_SHARD"), [], "expected true or false"),
    "FSDP on the CPU": ({**fsdp(), "num_processes": 1}, ["--cpu"], "start it without --cpu"),
    "a section that is passed over": ({**fsdp(), **GPUS}, [], "fsdp_version = 2: the launcher"),
    "tensors": (parallel(shards=2, tp_size=2), [], "parallelism_config_tp_size = 2: expected 1"),
    "contexts": (parallel(shards=2, cp_size=2), [], "parallelism_config_cp_size = 2: expected 1"),
    "a mesh of another size": (parallel(2, 4), [], "is 8, expected the number of processes, 4"),
    "DeepSpeed": (
        {**GPUS, "distributed_type": "DEEPSPEED"}
        | {"deepspeed_config": {"zero_stage": 3, "gradient_accumulation_steps": 4}},
        [],
        "^accelerate's launch: DeepSpeed .distributed_type. is not supported[^\n]*$",
    ),
    "Megatron": (
        {**GPUS, "distributed_type": "MEGATRON_LM"}
        | {"megatron_lm_config": {"megatron_lm_tp_degree": 2}},
        [],
        "^accelerate's launch: Megatron-LM .distributed_type. is not supported[^\n]*$",
    ),
    "a TPU": (
        {**ALONE, "downcast_bf16": True, "tpu_name": "v4"},
        [],
        "(?s)downcast_bf16 = True: TPUs.*tpu_name = v4: TPUs",
    ),
    "accumulation": (GPUS, ["--gradient_accumulation_steps", 4], "update.minibatch-size"),
    "fp16": ({**GPUS, "mixed_precision": "fp16"}, [], "mixed_precision = fp16: expected no or b"),
    "fp8": ({**GPUS, "fp8_config": {"backend": "TE"}}, [], "fp8_backend = TE: fp8 is not"),
    "a compiler": (
        {**GPUS, "dynamo_config": {"dynamo_backend": "INDUCTOR"}},
        [],
        "dynamo_backend = INDUCTOR: expected no",
    ),
    "restarts": (GPUS, ["--max_restarts", 3], "max_restarts = 3: expected 0"),
    "a worker of MPI's": ({**GPUS, "mpirun_config": {"mpirun_ccl": "2"}}, [], "mpirun_ccl = 2"),
}
FEWER = {
    "MULTI_CPU": (
        {"distributed_type": "MULTI_CPU", "num_processes": 2, "num_machines": 1, "use_cpu": True},
        [],
        "2 processes were asked for .* started 1. On a CPU use torchrun --nproc_per_node 2",
    ),
    "--cpu": (ALONE, ["--cpu", "--num_processes", 2], "torchrun --nproc_per_node 2"),
    "the kind is missing": ({**ALONE, "num_processes": 4}, [], "distributed_type: MULTI_GPU"),
    "machines": (
        {**ALONE, "num_machines": 2, "num_processes": 1}
        | {"main_process_ip": "h", "main_process_port": 29499},
        [],
        "num_machines = 2, .* on 1. Start on each of them torchrun --nnodes 2",
    ),
}


@catches("an FSDP config trains replicas", "hybrid sharding shards over all processes")
@pytest.mark.parametrize(("config", "words", "expected"), OBEYED.values(), ids=OBEYED)
def test_what_a_config_asks_for_is_obeyed(launched, config, words, expected):
    found, environ = launched(config, *words)
    assert found == expected
    found.refuse_fewer(int(environ.get("WORLD_SIZE", 1)), int(environ.get("GROUP_WORLD_SIZE", 1)))


@catches("DeepSpeed's config trains replicas", "a misspelt field of a config is passed over")
@pytest.mark.parametrize(("config", "words", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_had_is_refused_with_what_to_set_instead(launched, config, words, said):
    with pytest.raises(UserError, match=said):
        launched(config, *words)


@catches("more processes asked for than started go unnoticed where a config file asks")
@pytest.mark.parametrize(("config", "words", "said"), FEWER.values(), ids=FEWER)
def test_more_than_was_started_is_refused(launched, config, words, said):
    found, environ = launched(config, *words)
    assert "LOCAL_RANK" not in environ
    with pytest.raises(UserError, match=said):
        found.refuse_fewer(1, 1)


def test_everything_wrong_is_told_at_once(launched):
    config = {**fsdp(version=1), "mixed_precision": "fp16", "downcast_bf16": True}
    with pytest.raises(UserError) as refused:
        launched(config)
    assert len(str(refused.value).splitlines()) == 3


def test_mixed_precision_is_that_of_the_model_or_contradicts_it():
    settings = SftSettings()
    assert Launch().obeyed_by(settings) is settings
    found = Launch(bf16=True, checkpointing=True).obeyed_by(settings)
    assert (found.model.precision, found.model.gradient_checkpointing) == ("bf16", True)
    assert found.update == settings.update
    fp32 = settings.model.model_copy(update={"precision": "fp32"})
    with pytest.raises(UserError, match=r"model.precision = fp32, but .* mixed_precision = bf16"):
        Launch(bf16=True).obeyed_by(settings.model_copy(update={"model": fp32}))


def test_what_shards_nothing_and_computes_otherwise_refuses_to_be_asked():
    Launch(bf16=True).refuse_what_is_not("bf16", "this command")
    for asked in (Launch(bf16=True), Launch(sharding=WHOLE)):
        with pytest.raises(UserError, match=r"this command .* without a launcher"):
            asked.refuse_what_is_not("auto", "this command")


def test_processes_that_a_launcher_has_started_anew_are_told_to_resume():
    assert launch_of({"TORCHELASTIC_RESTART_COUNT": "0"}, {}) == Launch()
    with pytest.raises(UserError, match=r"max_restarts = 1: .* with --run.resume"):
        launch_of({"TORCHELASTIC_RESTART_COUNT": "1"}, {})


def test_several_processes_of_mpi_are_several():
    assert launch_of({"OMPI_COMM_WORLD_SIZE": "4"}, {}) == replace(Launch(), asked=4)
