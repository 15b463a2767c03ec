"""What every program is wrapped in: errors in one line, exit codes, leaving the process group."""

from __future__ import annotations

import sys
from collections.abc import Callable

from lmpg.runs import folder as run_folder
from lmpg.settings.section import UserError


def main(function: Callable[[], object]) -> None:
    """Run a script's function: bad input ends with a message and exit code 2, Ctrl-C with 130."""
    code = 0
    try:
        function()
    except UserError as error:
        print(f"error: {error}".replace("\n", "\n       "), file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(f"\ninterrupted{_how_to_go_on()}", file=sys.stderr)
        code = 130
    _close_process_group()
    if code:
        sys.exit(code)


def _how_to_go_on() -> str:
    folders = run_folder.opened()
    if not folders:
        return ""
    return f"; go on with the same command and --run.output-dir {folders[-1]} --run.resume"


def _close_process_group() -> None:
    """Leave torch.distributed in order, where a launcher started several processes."""
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
