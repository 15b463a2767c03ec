"""What the machines of a run must have in common, and what only the first one may have."""

from __future__ import annotations

import socket

from lmpg.runs import fingerprints
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
