"""What the machines of a run must have in common, and what only the first one may have."""

from __future__ import annotations

import socket

from lmpg.runs import fingerprints
from lmpg.runs.files import TEMPORARY
from lmpg.runs.fingerprints import Inputs
from lmpg.runs.folder import CONFIG, RunFolder
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError


def refuse_other_files(inputs: Inputs, processes: Processes) -> None:
    """UserError on every rank where a machine reads other data, rewards or models than the first:
    its share of the run would not be that of one process."""
    if processes.machines == 1:
        return
    prints = fingerprints.of(inputs) if processes.is_first_here else {}
    everywhere = processes.gather_list([(socket.gethostname(), prints)])
    for rank, (machine, found) in enumerate(everywhere):
        for key, parts in everywhere[0][1].items() if found else ():
            others = found.get(key, {})
            for name in sorted(parts.keys() | others.keys()):
                if parts.get(name) != others.get(name):
                    raise UserError(
                        f"{key}: {name} on the machine {machine} of rank {rank} is not what the "
                        "main process has, expected the same files on every machine; copy it there"
                    )


def require_one_disk(folder: RunFolder, processes: Processes) -> None:
    """UserError on every rank where weights are shared out and a machine does not see the run's
    folder, which every process writes its part of a checkpoint into."""
    if processes.machines == 1 or processes.sharing is None:
        return
    probe = folder.path / f"seen_by_all{TEMPORARY}"
    processes.on_main(probe.touch)
    sees = [(socket.gethostname(), probe.exists())]
    blind = [machine for machine, seen in processes.gather_list(sees) if not seen]
    processes.on_main(lambda: probe.unlink(missing_ok=True))
    if blind:
        raise UserError(
            f"run.output_dir = {folder.path} is not seen by the machine {blind[0]}, expected a "
            "folder that all machines see, as weights are shared out (run.sharding) and each saves "
            "its part there; put it on a shared disk, or leave run.sharding out"
        )


def refuse_run_elsewhere(folder: RunFolder, processes: Processes) -> None:
    """UserError on every rank where the run lies on another machine's disk than the first's."""
    if processes.machines == 1:
        return
    holds = not processes.is_main and (folder.path / CONFIG).exists()
    where = processes.gather_list([(socket.gethostname(), holds)])
    found = [machine for machine, holds in where if holds]
    if found and folder.status == "fresh":
        if processes.is_main:
            folder.abandon()
        raise UserError(
            f"run.output_dir = {folder.path}: the machine {found[0]} holds a run there, the first "
            "machine does not. Let that one be the first (--node-rank 0), or remove the folder"
        )
