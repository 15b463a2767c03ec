"""How a launch wants a model to be shared among processes: the fields of accelerate's FSDP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmpg.settings.section import Problems

_AS_FSDP2 = {  # what FSDP2 does anyway, the only values that these can have
    "SHARDING_STRATEGY": (
        ("FULL_SHARD", "1"),
        "set fsdp_reshard_after_forward for SHARD_GRAD_OP, for hybrid sharding "
        "parallelism_config: {parallelism_config_dp_replicate_size: MACHINES, "
        "parallelism_config_dp_shard_size: PROCESSES OF EACH}",
    ),
    "BACKWARD_PREFETCH": (("BACKWARD_PRE", "1"), "FSDP2 fetches the next layer early; remove it"),
    "FORWARD_PREFETCH": (("FALSE",), "FSDP2 has no such switch; set it to false"),
    "USE_ORIG_PARAMS": (("TRUE",), "FSDP2 always does; remove it"),
    "SYNC_MODULE_STATES": (("TRUE",), "all processes start from the same weights; remove it"),
    "AUTO_WRAP_POLICY": (
        ("TRANSFORMER_BASED_WRAP",),
        "models are sharded by layers; set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP",
    ),
    "STATE_DICT_TYPE": (
        ("SHARDED_STATE_DICT", "3", "FULL_STATE_DICT", "1"),
        "set fsdp_state_dict_type: SHARDED_STATE_DICT",
    ),
    "ACTIVATION_CHECKPOINTING_OFFLOAD": (
        ("FALSE",),
        "activations are computed again and kept nowhere (fsdp_activation_checkpointing); set it "
        "to false",
    ),
}
_SWITCHES = (
    *("RESHARD_AFTER_FORWARD", "OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING"),
    "CPU_RAM_EFFICIENT_LOADING",
)
_LENGTHWISE = {"tp": "tensors", "cp": "contexts", "sp": "sequences"}


@dataclass(frozen=True)
class AskedSharding:
    """FSDP2 as a launch asks for it.

    shards: processes that hold one copy together, those of ranks i·shards to (i+1)·shards − 1.
    reshard_after_forward: whether a layer's weights are let go between forward and backward.
    cpu_offload: whether what is trained waits in the host's memory. whole_state_dict: whether
    checkpoints hold the whole rather than parts. layer_classes: names of the classes of layers that
    are sharded one by one; () leaves the choice.
    """

    shards: int
    reshard_after_forward: bool = True
    cpu_offload: bool = False
    whole_state_dict: bool = False
    layer_classes: tuple[str, ...] = ()


def sharding_asked(
    environ: Mapping[str, str], count: int, problems: Problems
) -> AskedSharding | None:
    """The sharding among `count` processes that the environment asks for; None where it does not.
    What cannot be had is added to the problems."""
    shards = _shards(environ, count, problems)
    if environ.get("ACCELERATE_USE_FSDP", "").lower() not in ("true", "1"):
        return None
    if (version := environ.get("FSDP_VERSION", "1")) != "2":
        problems.append(
            f"fsdp_version = {version}: expected 2; set fsdp_version: 2 (`accelerate to-fsdp2` "
            "rewrites a config file)"
        )
        return None
    for name, (values, instead) in _AS_FSDP2.items():
        value = environ.get(f"FSDP_{name}")
        if value is not None and value.upper() not in values:
            problems.append(f"fsdp_{name.lower()} = {value}: {instead}")
    for name in _SWITCHES:
        value = environ.get(f"FSDP_{name}", "false")
        if value.lower() not in ("true", "false", "1", "0", "yes", "no"):
            problems.append(f"fsdp_{name.lower()} = {value}: expected true or false")
    if environ.get("FSDP_IGNORED_MODULES"):
        problems.append("fsdp_ignored_modules: all that is trained is sharded; remove it")
    named = environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").replace(" ", "")
    return AskedSharding(
        shards=shards,
        reshard_after_forward=_is_true(environ.get("FSDP_RESHARD_AFTER_FORWARD", "true")),
        cpu_offload=_is_true(environ.get("FSDP_OFFLOAD_PARAMS", "false")),
        whole_state_dict=environ.get("FSDP_STATE_DICT_TYPE", "").upper()
        in ("FULL_STATE_DICT", "1"),
        layer_classes=tuple(filter(None, named.split(","))),
    )


def _shards(environ: Mapping[str, str], count: int, problems: Problems) -> int:
    """How many of `count` processes hold one copy together."""
    if environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "").lower() not in ("true", "1"):
        return count
    sizes = {x: int(environ.get(f"PARALLELISM_CONFIG_{x.upper()}_SIZE", "1")) for x in _LENGTHWISE}
    for kind, what in _LENGTHWISE.items():
        if sizes[kind] > 1:
            problems.append(
                f"parallelism_config_{kind}_size = {sizes[kind]}: expected 1, as {what} are not "
                f"split; set it to 1, and parallelism_config_dp_shard_size to {count}"
            )
    replicas, shards = (
        int(environ.get(f"PARALLELISM_CONFIG_DP_{x}_SIZE", "1")) for x in ("REPLICATE", "SHARD")
    )
    if replicas * shards != count and max(sizes.values()) == 1:
        problems.append(
            f"parallelism_config_dp_replicate_size = {replicas} times "
            f"parallelism_config_dp_shard_size = {shards} is {replicas * shards}, expected the "
            f"number of processes, {count}: change one of them"
        )
    return shards


def _is_true(value: str) -> bool:
    return value.lower() in ("true", "1", "yes")
