"""Where a run goes on: from a checkpoint that the main process reads for all.

Only the main process's machine need see the run's folder. The others are sent what they need.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch

from lmpg.runs import checkpoint
from lmpg.runs.folder import RunFolder
from lmpg.runs.saved.state_encoding import Encoder, decoded
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError
from lmpg.training.loop import Loop

log = logging.getLogger(__name__)


def resume(loop: Loop, folder: RunFolder) -> None:
    """Go on from the newest whole checkpoint that fits; start over where there is none yet."""
    if folder.status != "resuming":
        return
    refused: str | None = None
    for step, state in whole_for_all(folder, loop.processes):
        problem = None
        try:
            loop.load_state(state)
        except Exception as error:
            problem = repr(error)
        problems = loop.processes.gather_list([problem])
        if any(problems):
            refused = next(filter(None, problems))
            log.warning("step %d of %s does not fit: %s", step, folder.checkpoints, refused)
            continue
        loop.tracker.say(f"resumed {folder.path} at step {step}")
        return
    if refused is not None:  # starting over would delete what was learned
        raise UserError(
            f"no checkpoint in {folder.checkpoints} fits the model and the settings ({refused}); "
            "restore what has changed, or choose another --run.output-dir"
        )
    loop.tracker.cut_back({})
    loop.tracker.say(f"no checkpoint in {folder.path} yet: starting over")


def whole_for_all(folder: RunFolder, processes: Processes) -> Iterator[tuple[int, Any]]:
    """Steps and states of the whole checkpoints, newest first, as the main process reads them;
    where weights are shared out each process reads its parts."""
    if processes.sharing is not None:
        yield from checkpoint.whole(folder.checkpoints, processes.sharing)
        return
    own = checkpoint.whole(folder.checkpoints) if processes.is_main else iter(())
    while True:
        found = next(own, None)
        if processes.count > 1:
            found = _sent(found, processes)
        if found is None:
            return
        yield found


def _sent(found: tuple[int, Any] | None, processes: Processes) -> tuple[int, Any] | None:
    """The main process's step and state, on every rank: tensors one by one."""
    encoder = Encoder()
    tree = encoder.encode(found, "state")
    kinds = {name: (x.shape, x.dtype) for name, x in encoder.tensors.items()}
    tree, kinds = processes.gather_list([(tree, kinds)])[0]
    received = {
        name: processes.from_main(encoder.tensors.get(name, torch.empty(shape, dtype=kind)))
        for name, (shape, kind) in kinds.items()
    }
    return found if processes.is_main else decoded(tree, received)
