"""Damaged runs: `python -m tests.attacks.damage` prints a table.

A run that was interrupted is copied, one of its files is cut, changed, emptied, deleted or
replaced by odd JSON, and the run is resumed. It has to end as a run that nobody interrupted, but
for the damaged file if it is one that is never read again (`best/`), or to refuse in a line (exit
code 2): no traceback, no other numbers.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.attacks.lives import begin, differences, ended, kinds, last_words, print_rows

ODD_JSON = ("null", "[]", "{}", "3", '"text"', "[" * 5000, '{"format": 1}', '{"files": 7}', "NaN")
KINDS = ("LM (PPO)", "DPO", "gym")


def cut(data: bytes, dice: random.Random) -> bytes:
    """The beginning of a file."""
    return data[: dice.randrange(len(data))] if data else b""


def flipped(data: bytes, dice: random.Random) -> bytes:
    """A file with one bit changed."""
    if not data:
        return data
    place = dice.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]


def zeros(data: bytes, _: random.Random) -> bytes:
    """What a file system leaves of a file whose blocks were never written."""
    return bytes(len(data))


def odd(data: bytes, dice: random.Random) -> bytes:
    """JSON that is something else than what belongs there."""
    return dice.choice(ODD_JSON).encode()


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "cut": cut,
    "a bit flipped": flipped,
    "zeros": zeros,
    "odd JSON": odd,
    "emptied": lambda *_: b"",
    "deleted": lambda *_: None,
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, help="at most so many files of each run, at random")
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = attacked(Path(place), asked.kinds, asked.files, asked.seed)
    print("\n| damage | tried | exact | exact but for this file | refused | faults |")
    print("|---|---|---|---|---|---|")
    print_rows(found, COLUMNS)


COLUMNS = ("tried", "exact", "but for itself", "refused")


def attacked(
    place: Path, chosen: list[str] | tuple[str, ...], files: int | None = None, seed: int = 0
) -> dict[str, Counter[str]]:
    """Damage → how often it was tried, how often the end was exact or a refusal, and faults."""
    found = {damage: Counter[str]() for damage in DAMAGE}
    dice = random.Random(seed)
    works = kinds(place / "parts")
    for kind in chosen:
        whole, stopped = _whole_and_stopped(works[kind], place / kind.replace(" ", "_"))
        names = [p.relative_to(stopped) for p in sorted(stopped.rglob("*")) if p.is_file()]
        for name in dice.sample(names, min(files or len(names), len(names))):
            for damage, harm in DAMAGE.items():
                copy = stopped.with_name("damaged")
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(stopped, copy)
                changed = harm((copy / name).read_bytes(), dice)
                (copy / name).unlink() if changed is None else (copy / name).write_bytes(changed)
                outcome = _resumed(works[kind], copy, whole, name)
                found[damage].update(["tried", outcome])
                if outcome not in ("exact", "refused"):
                    print(f"  {kind}, {name}, {damage}: {outcome}", flush=True)
        print(f"{kind}: {len(names)} files", flush=True)
    return found


def _whole_and_stopped(work: Callable[[dict], object], place: Path) -> tuple[Path, Path]:
    """The folders of a run that nobody interrupted, and of one that was killed near its end."""
    place.mkdir()
    whole, stopped = {"run.output-dir": place / "whole"}, {"run.output-dir": place / "stopped"}
    assert ended(begin(work, whole)) == [0], last_words(whole)
    ended(begin(work, {"run.output-dir": place / "counted"}, at=-1))
    touched = (place / "counted.touches").read_text().splitlines()
    last = max(n for n, line in enumerate(touched) if "/checkpoints/step_" in line)
    ended(begin(work, stopped, at=last))
    return place / "whole", place / "stopped"


def _resumed(work: Callable[[dict], object], folder: Path, whole: Path, name: Path) -> str:
    """One of the columns, or what is wrong with the way the run goes on."""
    log = folder.with_name(f"{folder.name}.log")
    log.unlink(missing_ok=True)
    flags = {"run.output-dir": folder, "run.resume": True}
    (code,) = ended(begin(work, flags))
    if "Traceback" in log.read_text(errors="replace"):
        return f"traceback: {last_words(flags)}"
    if code == 2 and "error: " in log.read_text(errors="replace"):
        return "refused"
    if code == 0:
        said = differences(whole, folder)
        others = [what for what in said if not what.endswith(f": {name}")]
        return "; ".join(others) or ("but for itself" if said else "exact")
    return f"exit code {code}: {last_words(flags)}"


if __name__ == "__main__":
    main()
