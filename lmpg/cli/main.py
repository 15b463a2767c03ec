"""What the programs call: a method's name and flags become a run, bad input an exit code."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmpg.cli import flags
from lmpg.language.methods import methods, preset_below, run_with, settings_class
from lmpg.language.missing import refuse_missing_paths
from lmpg.runs.console import lasting_console
from lmpg.runs.lock import opened
from lmpg.runs.printable import printable
from lmpg.settings.presets import named_preset
from lmpg.settings.section import Section, UserError


def main(function: Callable[[], object]) -> None:
    """Run a script's function: bad input ends with a message and exit code 2, Ctrl-C with
    130, SIGTERM with 143, SIGHUP with 129. A console that goes away ends nothing."""
    with lasting_console():
        code, why = _code_of(function)
        _close_process_group(why, code)
    if code:
        sys.exit(code)


def _code_of(function: Callable[[], object]) -> tuple[int, str]:
    """The exit code, and for which bad input it is not 0."""
    try:
        function()
    except UserError as error:
        print(printable(f"error: {error}").replace("\n", "\n       "), file=sys.stderr)
        return 2, str(error).partition("\n")[0]
    except (KeyboardInterrupt, SystemExit) as end:
        code = 130 if isinstance(end, KeyboardInterrupt) else end.code
        if not isinstance(code, int) or code < 128:  # such as --help
            raise
        print(f"\ninterrupted{_how_to_go_on()}", file=sys.stderr)
        return code, ""
    return 0, ""


def _how_to_go_on() -> str:
    folders = opened()
    if not folders:
        return ""
    return f"; go on with the same command and --run.output-dir {folders[-1]} --run.resume"


def _close_process_group(why: str, code: int) -> None:
    if "lmpg.runtime.processes" in sys.modules:  # else nothing began: --help, or a refusal
        from lmpg.runtime.processes import close_process_group

        close_process_group(why, code)


def train_by_name(name: str, argv: Sequence[str] | None = None) -> None:
    """Train with the method or preset `name`; `argv` holds its flags (None: the command line's)."""
    run_with(settings_of(name, sys.argv[1:] if argv is None else argv), name)


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Spares the garbage collector what is imported meanwhile. All of it stays, and to go through
    it again and again, at the end once more, took a third of a refusal's time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@nothing_collected()
def settings_of(name: str, argv: Sequence[str]) -> Section:
    """The settings that `train_by_name` trains with; bad ones are refused, --help exits."""
    kind = settings_class(named_preset(name, methods())[0])
    line = flags.read(argv, f"lmpg train {name}")
    flags.refuse_other_algorithm(kind, line)
    given = flags.given_settings(kind, line)
    below = preset_below(name, given)
    return flags.settings_or_help(kind, line, below, given, look=refuse_missing_paths)


def train_agent(argv: Sequence[str] | None = None) -> Path:
    """Train a gymnasium agent by flags (None: the command line's); returns the run's folder."""
    from lmpg.gym.program import train_gym

    return train_gym(*agent_settings(sys.argv[1:] if argv is None else argv))


@nothing_collected()
def agent_settings(argv: Sequence[str]) -> tuple[Any, str]:
    """The settings that `train_agent` trains with, and a line that tells where they come from."""
    from lmpg.gym.settings import GYM_METHODS, gym_settings_class, preset_for

    line = flags.read(argv, "lmpg gym")
    kind = gym_settings_class(line.algorithm)
    given = flags.given_settings(kind, line)
    preset, note = preset_for(kind, given, own_file=line.config is not None)
    return flags.settings_or_help(kind, line, preset, given, GYM_METHODS), note
