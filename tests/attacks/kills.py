"""kill −9 at random instants: `python -m tests.attacks.kills --kills 200` prints a table.

Half of the instants are spread over the seconds of a run, half over the moments when it touches a
file of its folder (checkpoints, pruning, summary, report). A run that was killed is resumed, some
are killed again, and what it leaves is compared with a run that nobody interrupted: every file's
name and content, but for clocks. Nothing that it has started may be alive a second later.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.attacks.lives import (
    RANKS,
    begin,
    differences,
    ended,
    kill,
    kinds,
    last_words,
    print_rows,
    survivors,
)

AGAIN = 0.25  # of the lives that go on are killed, too


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="in all, shared out over the kinds")
    parser.add_argument("--kinds", nargs="*", help="only these")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = attacked(Path(place), asked.kills, asked.seed, asked.kinds)
    print("\n| run | kill −9 | amid the run | runs resumed | bit-equal | faults |")
    print("|---|---|---|---|---|---|")
    print_rows(found, COLUMNS)


COLUMNS = ("kills", "mid-run", "runs", "equal")


def attacked(
    place: Path, kills: int, seed: int = 0, only: list[str] | None = None
) -> dict[str, Counter[str]]:
    """Kind → how many kills, how many hit a living run, runs resumed, those equal, faults."""
    found: dict[str, Counter[str]] = {}
    chosen = {
        kind: work for kind, work in kinds(place / "parts").items() if kind in (only or [kind])
    }
    for number, (kind, work) in enumerate(chosen.items()):
        share = kills * (number + 1) // len(chosen) - kills * number // len(chosen)
        started = time.monotonic()
        found[kind] = _kills(
            work,
            place / f"kind_{number}",
            share,
            random.Random(f"{seed} {kind}"),
            RANKS.get(kind, 1),
        )
        print(f"{kind}: {dict(found[kind])}, {time.monotonic() - started:.0f} s", flush=True)
    return found


def _kills(
    work: Callable[[dict], object], place: Path, number: int, dice: random.Random, ranks: int
) -> Counter[str]:
    """What happened to `number` lives that were killed, and to those that went on."""
    place.mkdir()
    whole = {"run.output-dir": place / "whole"}
    started = time.monotonic()
    codes = ended(begin(work, whole, ranks))
    seconds = time.monotonic() - started
    if any(codes):
        return Counter({f"the whole run ended with {codes}: {last_words(whole)}": 1})
    touches = _touches(work, place, ranks)
    counts: Counter[str] = Counter()
    for n in range(number):
        flags = {"run.output-dir": place / "killed", "run.resume": True}
        shutil.rmtree(place / "killed", ignore_errors=True)
        (place / "killed.log").unlink(missing_ok=True)
        said = _life_and_death(work, flags, ranks, dice, n, seconds, touches, counts)
        if not said:
            said = differences(place / "whole", place / "killed")
        counts["runs"] += 1
        counts["equal"] += not said
        counts.update(said[:3])
        for what in said:
            print(f"  kill {n}: {what}", flush=True)
    return counts


def _life_and_death(
    work: Callable[[dict], object],
    flags: dict,
    ranks: int,
    dice: random.Random,
    n: int,
    seconds: float,
    touches: int,
    counts: Counter[str],
) -> list[str]:
    """Faults of a run that is killed, perhaps killed again, and goes on to its end."""
    again = True
    while again:
        if n % 2:
            codes = ended(begin(work, flags, ranks, at=dice.randint(1, touches)))
        else:
            life = begin(work, flags, ranks)
            time.sleep(dice.uniform(0, seconds))
            kill(life)
            codes = ended(life)
        counts["kills"] += 1
        counts["mid-run"] += -signal.SIGKILL in codes
        if alive := survivors(flags):
            return [f"alive a second later: {alive[0]}"]
        again = dice.random() < AGAIN
    codes = ended(begin(work, flags, ranks))
    return [f"resuming ended with {codes}: {last_words(flags)}"] if any(codes) else []


def _touches(work: Callable[[dict], object], place: Path, ranks: int) -> int:
    """How often a run touches a file of its folder."""
    ended(begin(work, {"run.output-dir": place / "counted"}, ranks, at=-1))
    return len((place / "counted.touches").read_text().splitlines())


if __name__ == "__main__":
    main()
