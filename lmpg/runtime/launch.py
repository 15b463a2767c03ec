"""What a launch asks for. Every field of an accelerate config is obeyed, or refused with what to
set instead: docs/gpus.md has the table.

accelerate's launcher, and whoever sets its variables by hand, tells a program through the
environment (`environ` here); what it did not pass on comes from its options (`told`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lmpg.runtime.sharding_asked import AskedSharding, sharding_asked
from lmpg.settings.section import Problems, Section, UserError

S = TypeVar("S", bound=Section)

OF_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
SIZES = ("WORLD_SIZE", *OF_MPI)
"""How many processes torch's launcher or one of MPI's has started, by the first that is set."""

PASSED_ON = (
    *("compute_environment", "distributed_type", "use_cpu", "cpu", "multi_gpu"),
    *("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port"),
    *("rdzv_backend", "rdzv_conf", "same_network", "gpu_ids", "enable_cpu_affinity"),
    *("num_cpu_threads_per_process", "monitor_interval", "tee", "log_dir"),
    *("role", "debug", "quiet", "module", "no_python", "mpirun_hostfile", "mixed_precision"),
    *("use_fsdp", "use_deepspeed", "use_megatron_lm", "use_parallelism_config"),
    *("aws_access_key_id", "aws_secret_access_key"),
)
"""Options that the launcher, torch or accelerate's state obeys, or that the environment tells."""

DYNAMO = (
    *("dynamo_backend", "dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic"),
    *("dynamo_use_regional_compilation",),
)
_FSDP = (
    *("version", "sharding_strategy", "reshard_after_forward", "offload_params"),
    *("min_num_params", "auto_wrap_policy", "transformer_layer_cls_to_wrap"),
    *("backward_prefetch", "state_dict_type", "forward_prefetch", "use_orig_params"),
    *("cpu_ram_efficient_loading", "sync_module_states", "activation_checkpointing"),
    *("activation_checkpointing_offload", "ignored_modules"),
)
_PARALLELISM = (
    *("dp_replicate_size", "dp_shard_size", "tp_size", "cp_size", "cp_backend"),
    *("cp_comm_strategy", "sp_size", "sp_backend", "sp_seq_length"),
    *("sp_seq_length_is_variable", "sp_attn_implementation"),
)
FSDP = tuple(f"fsdp_{x}" for x in _FSDP)
PARALLELISM = tuple(f"parallelism_config_{x}" for x in _PARALLELISM)
OF_TPUS = (
    *("tpu", "tpu_name", "tpu_zone", "tpu_use_cluster", "tpu_use_sudo", "tpu_vm", "tpu_env"),
    *("vm", "env", "command_file", "commands", "downcast_bf16", "main_training_function"),
)
OF_DEEPSPEED = ("deepspeed", "zero", "offload_", "gradient_clipping")
ACCUMULATION = "gradient_accumulation_steps"

KINDS = ("multi_gpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm", "tpu_use_cluster")
"""Options that choose the kind of a launch, whatever the config file has."""

_UNUSED = "the launcher passes it over: remove it, or "
_SHARDED = (
    "set distributed_type: FSDP and fsdp_config: {fsdp_version: 2}, or start torchrun with "
    "--run.sharding"
)
_UNKNOWN = "lmpg does not know this option: expected one of accelerate's; remove it"
_TPUS = "TPUs are not supported, expected GPUs or CPUs: remove it"
_ACCUMULATED = (
    "expected 1: a step has --update.minibatch-size responses however many fit into memory at "
    "once (--update.microbatch-size); set it to 1"
)
_RESTARTS = (
    "expected 0: processes that the launcher starts anew cannot connect again; start the same "
    "command once more, with --run.resume"
)
_NOTHING = frozenset(("", "none", "no", "false", "[]", "{}", "['']"))


@dataclass(frozen=True)
class Launch:
    """What the user's launch asks for.

    asked, machines: how many processes, and on how many machines. cpu: to stay off accelerators.
    bf16: to compute in bfloat16. checkpointing: to compute activations again. sharding: to share
    one copy of what is trained among processes; None where nothing is said of it.
    """

    asked: int = 1
    machines: int = 1
    cpu: bool = False
    bf16: bool = False
    checkpointing: bool = False
    sharding: AskedSharding | None = None

    def refuse_fewer(self, count: int, machines: int) -> None:
        """UserError where more processes or machines were asked for than there are."""
        if self.asked > count:
            raise UserError(
                f"{self.asked} processes were asked for (num_processes, WORLD_SIZE), but the "
                f"launcher started {count}. On a CPU use torchrun --nproc_per_node {self.asked}, "
                "on GPUs distributed_type: MULTI_GPU (--multi_gpu)"
            )
        if self.machines > machines:
            raise UserError(
                f"num_machines = {self.machines}, but the launcher started processes on {machines}."
                f" Start on each of them torchrun --nnodes {self.machines} --nproc_per_node N "
                "--rdzv_backend c10d --rdzv_endpoint HOST:29500, or on GPUs set distributed_type: "
                "MULTI_GPU"
            )

    def obeyed_by(self, settings: S) -> S:
        """The settings with what the launch asks of the model; UserError where they contradict."""
        model: Any = settings.model  # type: ignore[attr-defined]
        if self.bf16 and model.precision == "fp32":
            raise UserError(
                "model.precision = fp32, but accelerate's launch has mixed_precision = bf16: "
                "expected the same of both. Set mixed_precision: no, or --model.precision bf16"
            )
        changed: dict[str, Any] = {"precision": "bf16"} if self.bf16 else {}
        changed |= {"gradient_checkpointing": True} if self.checkpointing else {}
        if not changed:
            return settings
        values = settings.model_dump()
        values["model"] |= changed
        return type(settings).model_validate(values)

    def refuse_what_is_not(self, precision: str | None, what: str) -> None:
        """UserError where more is asked than processes, of `what` computes in this `precision`."""
        if self.sharding is not None:
            raise UserError(
                f"accelerate's launch asks for FSDP, but {what} shards no model: start it without "
                "a launcher"
            )
        if self.bf16 and precision != "bf16":
            raise UserError(
                f"accelerate's launch has mixed_precision = bf16, but {what} computes in "
                f"{precision or 'fp32'}: start it without a launcher, or set mixed_precision: no"
                + (" or --model.precision bf16" if precision else "")
            )


def launch_of(environ: Mapping[str, str], told: Mapping[str, Any]) -> Launch:
    """What was asked for; UserError with all of it that cannot be had.

    told: options that the launcher's command line and its config file give.
    """
    problems = Problems()
    of_another = _refuse_other_programs(environ, told, problems)
    _refuse_options(environ, told, problems, of_another)
    bf16 = _asks_for_bf16(environ, problems)
    if is_on(environ, "ACCELERATE_DYNAMO_BACKEND"):
        problems.append(
            f"dynamo_backend = {environ['ACCELERATE_DYNAMO_BACKEND']}: expected no, as nothing is "
            "compiled; set dynamo_backend: no"
        )
    started = size(environ)
    sharding = sharding_asked(environ, started, problems)
    problems[:] = [f"accelerate's launch: {line}" for line in problems]
    problems.refuse()
    return Launch(
        asked=max(started, _number(told.get("num_processes"))),
        machines=max(1, _number(told.get("num_machines"))),
        cpu=_is_given(told.get("use_cpu")) or _is_given(told.get("cpu")),
        bf16=bf16,
        checkpointing=sharding is not None and is_on(environ, "FSDP_ACTIVATION_CHECKPOINTING"),
        sharding=sharding,
    )


def size(environ: Mapping[str, str], names: Sequence[str] = SIZES) -> int:
    """How many processes a launcher has started, this one among them."""
    return max(1, _number(next((environ[name] for name in names if name in environ), 1)))


def is_on(environ: Mapping[str, str], name: str) -> bool:
    """Whether a variable asks for something: it is set, and neither to `no` nor to `false`."""
    return environ.get(name, "").lower() not in ("", "0", "no", "none", "false")


def _refuse_other_programs(
    environ: Mapping[str, str], told: Mapping[str, Any], problems: Problems
) -> list[str]:
    """Refuses what would have another library do the training; returns prefixes of its options,
    which need no word of their own then."""
    chosen = any(_is_given(told.get(name)) for name in KINDS)  # over the config file's
    kind = "" if chosen else str(told.get("distributed_type", "")).upper()
    found: list[str] = []
    if kind == "FSDP" and not is_on(environ, "ACCELERATE_USE_FSDP"):
        problems.append(f"distributed_type = FSDP: {_UNUSED}start it without --cpu")
    if is_on(environ, "ACCELERATE_USE_DEEPSPEED") or kind == "DEEPSPEED":
        problems.append(f"DeepSpeed (distributed_type) is not supported: {_SHARDED}")
        found += [*OF_DEEPSPEED, ACCUMULATION]
    if is_on(environ, "ACCELERATE_USE_MEGATRON_LM") or kind == "MEGATRON_LM":
        problems.append(f"Megatron-LM (distributed_type) is not supported: {_SHARDED}")
        found.append("megatron_lm")
    if is_on(environ, "ACCELERATE_USE_SAGEMAKER"):
        problems.append(
            "SageMaker (compute_environment) is not supported: start torchrun on a machine that "
            "you can reach, with compute_environment: LOCAL_MACHINE"
        )
    variables = ("XLA_USE_BF16", "XLA_DOWNCAST_BF16", "ACCELERATE_IN_TPU_POD")
    if kind in ("XLA", "TPU") or any(is_on(environ, name) for name in variables):
        problems.append(f"distributed_type = {kind or 'XLA'}: {_TPUS}")
        found += OF_TPUS
    return found


def _refuse_options(
    environ: Mapping[str, str], told: Mapping[str, Any], problems: Problems, known: list[str]
) -> None:
    """Refuses options of the launcher's that nobody obeys."""
    if environ.get(name := f"ACCELERATE_{ACCUMULATION.upper()}", "1") not in ("1", "auto"):
        told = {ACCUMULATION: environ[name], **told}
    if is_on(environ, "TORCHELASTIC_RESTART_COUNT"):
        told = {"max_restarts": environ["TORCHELASTIC_RESTART_COUNT"], **told}
    for name, value in told.items():
        if name in PASSED_ON or name.startswith(tuple(known)):
            continue
        instead = _instead_of(name, value, environ)
        nothing = not _is_given(value) or (name, value) == ("main_training_function", "main")
        if instead and (instead == _UNKNOWN or not nothing):
            problems.append(f"{name} = {value}: {instead}")


def _instead_of(name: str, value: Any, environ: Mapping[str, str]) -> str | None:
    """What to do about an option that is given; None where it is obeyed."""
    if name in DYNAMO:  # the environment tells
        return None
    if name in FSDP:
        used = is_on(environ, "ACCELERATE_USE_FSDP")
        return None if used else f"{_UNUSED}set distributed_type: FSDP (--use_fsdp, without --cpu)"
    if name in PARALLELISM:
        used = is_on(environ, "ACCELERATE_USE_PARALLELISM_CONFIG")
        return None if used else f"{_UNUSED}use it with fsdp_version: 2"
    if name == "max_restarts":
        return None if str(value) == "0" else _RESTARTS
    if name == ACCUMULATION:
        return None if str(value) in ("1", "auto") else _ACCUMULATED
    if name in OF_TPUS:
        return _TPUS
    if name.startswith("fp8_"):
        return "fp8 is not supported: remove it (--model.precision has bf16)"
    if name.startswith(OF_DEEPSPEED):
        return f"DeepSpeed is not supported: remove it, or {_SHARDED}"
    if name.startswith("megatron_lm"):
        return f"Megatron-LM is not supported: remove it, or {_SHARDED}"
    return _UNKNOWN


def _asks_for_bf16(environ: Mapping[str, str], problems: Problems) -> bool:
    """Whether mixed precision is asked for; refused are the kinds that there are not."""
    kind = environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if kind in ("fp16", "fp8"):
        problems.append(
            f"mixed_precision = {kind}: expected no or bf16; set mixed_precision: bf16, or leave "
            "it to --model.precision with no"
        )
    return kind == "bf16"


def _is_given(value: Any) -> bool:
    """Whether an option says more than that there is nothing of it."""
    return str(value).lower() not in _NOTHING


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0
