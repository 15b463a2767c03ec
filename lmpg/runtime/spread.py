"""How a run is spread over its processes: alone, as replicas, or with its weights shared out."""

from __future__ import annotations

from lmpg.runtime.company import Company
from lmpg.runtime.processes import Processes, local_rank_and_count
from lmpg.runtime.sharding import Sharing
from lmpg.runtime.sharding_asked import AskedSharding
from lmpg.settings.section import UserError


def spread(processes: Processes, asked: str, optimizer: str) -> None:
    """Let the processes share out the weights of models from now on as `asked` (`run.sharding`) or
    as their launch does, and say so; UserError where that cannot be. optimizer: its name."""
    launched = processes.launch.sharding
    if asked == "none" and launched is not None:
        raise UserError(
            "run.sharding = none, but accelerate's launch asks for FSDP: expected the same of "
            "both; leave run.sharding out, or set distributed_type: MULTI_GPU"
        )
    if asked == "none" or (asked == "auto" and launched is None):
        return
    shape = _shape(processes, asked, launched)
    if launched is not None:
        _refuse_what_is_not(launched)
    if optimizer != "adamw":
        raise UserError(
            f"update.optimizer = {optimizer} with weights that are shared out (run.sharding): it "
            "looks at whole rows of weights, of which each process holds a part; set "
            "update.optimizer to adamw, whose states are shared out too"
        )
    classes = () if launched is None else launched.layer_classes
    share(processes, shape, launched is None or launched.reshard_after_forward, classes)
    if processes.is_main:
        said = f"weights are shared out over {shape[-1]} processes"
        said += f", in {shape[0]} replicas" if len(shape) == 2 else ""
        print(f"{said} (--run.sharding)", flush=True)


def share(
    processes: Processes,
    shape: tuple[int, ...],
    reshard: bool = True,
    layer_classes: tuple[str, ...] = (),
) -> None:
    """Share out over a mesh of this shape: (replicas, processes of each), or processes alone."""
    from torch.distributed.device_mesh import init_device_mesh

    names = ("replica", "part")[-len(shape) :]
    mesh = init_device_mesh(processes.device.type, shape, mesh_dim_names=names)
    processes.sharing = Sharing(mesh, Company(processes.device), reshard, layer_classes)


def _shape(processes: Processes, asked: str, launched: AskedSharding | None) -> tuple[int, ...]:
    """(replicas, processes of each), or all processes alone."""
    count, on_a_machine = processes.count, local_rank_and_count()[1]
    if count == 1:
        raise UserError(
            "run.sharding shares weights out, but there is one process, which has nobody to share "
            "with; start several (torchrun --nproc_per_node 2 …), or set run.sharding to none"
        )
    machines = count // on_a_machine
    if asked == "hybrid" and (machines < 2 or on_a_machine < 2):
        raise UserError(
            f"run.sharding = hybrid, but there are {machines} machines with {on_a_machine} "
            "processes each, expected 2 of either at least: weights are shared out within a "
            "machine, and machines are replicas; set run.sharding to full"
        )
    parts = {"full": count, "hybrid": on_a_machine}.get(asked, count)
    if launched is not None:
        if asked != "auto" and launched.shards != parts:
            raise UserError(
                f"run.sharding = {asked} shares out over {parts} processes, but accelerate's "
                f"launch over {launched.shards}: expected the same of both; leave run.sharding out"
            )
        parts = launched.shards
    if parts == 1:
        raise UserError(
            "accelerate's launch asks for FSDP over 1 process each, expected 2 or more: set "
            "parallelism_config_dp_shard_size, or distributed_type: MULTI_GPU"
        )
    return (count,) if parts == count else (count // parts, parts)


def _refuse_what_is_not(launched: AskedSharding) -> None:
    if launched.cpu_offload:
        raise UserError(
            "fsdp_offload_params = true, expected false: what is trained stays where it computes. "
            "Set it to false, and start more processes or set --model.lora.rank"
        )
    if launched.whole_state_dict:
        raise UserError(
            "fsdp_state_dict_type = FULL_STATE_DICT, expected SHARDED_STATE_DICT: checkpoints hold "
            "parts, of which any number of processes can go on; final/ is whole anyway"
        )
