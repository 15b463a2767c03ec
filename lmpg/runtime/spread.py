"""How a run is spread over its processes: alone, as replicas, or with its weights shared out."""

from __future__ import annotations

from lmpg.runtime.company import Company
from lmpg.runtime.processes import Processes, local_rank_and_count
from lmpg.runtime.sharding import Sharing
from lmpg.settings.section import UserError


def spread(processes: Processes, asked: str) -> None:
    """Let the processes share out the weights of models from now on as `asked` (`run.sharding`),
    and say so; UserError where there are too few of them."""
    kind = "none" if asked == "auto" else asked
    if kind == "none":
        return
    on_a_machine = local_rank_and_count()[1]
    machines = processes.count // on_a_machine
    if processes.count == 1:
        raise UserError(
            f"run.sharding = {asked}, but there is one process, which has nobody to share with; "
            "start several (torchrun --nproc_per_node 2 …), or leave run.sharding out"
        )
    if kind == "hybrid" and (machines < 2 or on_a_machine < 2):
        raise UserError(
            f"run.sharding = hybrid, but there are {machines} machines with {on_a_machine} "
            "processes each, expected 2 of either at least: weights are shared out within a "
            "machine, and machines are replicas; set run.sharding to full"
        )
    shape = (machines, on_a_machine) if kind == "hybrid" else (processes.count,)
    share(processes, shape)
    if processes.is_main:
        parts = shape[-1]
        copies = f", in {machines} replicas" if kind == "hybrid" else ""
        print(f"weights are shared out over {parts} processes (run.sharding){copies}", flush=True)


def share(processes: Processes, shape: tuple[int, ...], reshard: bool = True) -> None:
    """The same over a mesh of this shape: (replicas, processes of each), or processes alone."""
    from torch.distributed.device_mesh import init_device_mesh

    names = ("replica", "part")[-len(shape) :]
    mesh = init_device_mesh(processes.device.type, shape, mesh_dim_names=names)
    processes.sharing = Sharing(mesh, Company(processes.device), reshard)
