"""`lmpg runs FOLDER` and `lmpg compare RUN …`: tables on the terminal, and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmpg.cli.flags import HELP, taken
from lmpg.settings.section import Problems, UserError

RUNS = "usage: lmpg runs [FOLDER]   (a table of the runs in a folder; without FOLDER of runs/)"
COMPARE = (
    "usage: lmpg compare RUN … [--output FILE.html]   (runs, or folders of runs; those that\n"
    "differ in their seeds alone are one curve with its 95 % interval; the page is compare.html)"
)


def runs(argv: Sequence[str]) -> None:
    """Prints a table of the runs in a folder."""
    if {*HELP} & {*argv}:
        print(RUNS)
        return
    if len(argv) > 1 or any(word.startswith("-") for word in argv):
        raise UserError(f"expected one folder of runs\n{RUNS}")
    from lmpg.runs.side_by_side.listed_runs import lines, runs_in

    folder = Path(argv[0] if argv else "runs").expanduser()
    print("\n".join(lines(runs_in(folder), folder)))


def compare(argv: Sequence[str]) -> None:
    """Prints what became of runs and writes their curves to a page."""
    if {*HELP} & {*argv}:
        print(COMPARE)
        return
    problems = Problems()
    paths, output = taken(list(argv), "--output", problems)
    problems.extend(f"unknown flag {word}\n{COMPARE}" for word in paths if word.startswith("-"))
    problems.refuse()
    from lmpg.runs.side_by_side.compared_runs import compare

    compared, page = compare(paths), Path(output or "compare.html").expanduser()
    print("\n".join(compared.lines()))
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        compared.write(page)
    except OSError as error:
        raise UserError(
            f"output = {page} cannot be written ({error.strerror}), expected a file in a folder "
            "that you may write to; choose another --output"
        ) from None
    print(f"curves: {page}")
