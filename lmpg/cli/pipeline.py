"""Stages one after the other, each from what those before it made: `lmpg pipeline sft dpo`.

Every stage is a run of its own, in a folder of its own. Flags go to every stage that knows them,
`--STAGE.section.key` to one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmpg.algorithms import ALGORITHMS
from lmpg.cli.flags import groups
from lmpg.cli.train import methods, settings_class, settings_of, train
from lmpg.language.worlds import PREFIX, chosen_world
from lmpg.runs import folder as run_folder
from lmpg.runs.folder import FINISHED, RunFolder, fresh_name, read_summary
from lmpg.runtime.processes import Processes
from lmpg.settings.presets import named_preset
from lmpg.settings.raw import nearest, paths_of
from lmpg.settings.section import UserError

Flags = dict[str, list[str]]
OWN = ("--run.output-dir", "--run.resume")
USAGE = (
    "usage: lmpg pipeline STAGE STAGE … [--section.key VALUE …] [--STAGE.section.key VALUE …]\n"
    "such as: lmpg pipeline sft reward_model ppo\n"
    "(lmpg train STAGE --help: a stage's settings; --STAGE.config FILE reads them from a file)"
)


@dataclass
class Step:
    """A stage of a pipeline: its name, method, folder, and the flags that are for it; `own` are
    those that the user gave it alone."""

    name: str
    method: str
    folder: Path
    flags: Flags = field(default_factory=dict)
    own: set[str] = field(default_factory=set)

    @property
    def argv(self) -> list[str]:
        """Its command line."""
        return [word for flag, words in self.flags.items() for word in (flag, *words)]

    @property
    def result(self) -> Path:
        """Where its model lies, or will lie."""
        final = self.folder / "final"
        return final / "merged" if (final / "merged").is_dir() else final


def pipeline(argv: Sequence[str]) -> None:
    """Carry out `STAGE STAGE … --flags`; with --run.resume go on where it was interrupted."""
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    names, given = list(argv[:count]), groups(list(argv[count:]))
    if not names or {"-h", "--help"} & set(argv):
        print(USAGE)
        return
    processes = Processes()
    folder, resume = _own_flags(given, processes)
    steps = [
        Step(name, named_preset(name, methods())[0], folder / f"{i}_{name}")
        for i, name in enumerate(names, start=1)
    ]
    _hand_out([(flag, words) for flag, words in given if flag not in OWN], steps)
    for step in steps:
        step.flags |= {"--run.output-dir": [str(step.folder)], **resume}
    for number in range(len(steps)):
        _connect(steps, number)
        settings_of(steps[number].name, steps[number].argv)  # all of them, before any work
    _refuse_other_files(folder)
    _carry_out(steps, folder, processes)


def _carry_out(steps: list[Step], folder: Path, processes: Processes) -> None:
    for number, step in enumerate(steps):
        _connect(steps, number)  # a model with an adapter lies elsewhere, and now it is there
        if processes.is_main:
            print(f"stage {number + 1} of {len(steps)}: {step.name}, {step.folder}", flush=True)
        try:
            train(step.name, step.argv)
        except KeyboardInterrupt:
            for path in run_folder.opened():  # or the way to go on would be told for the stage
                RunFolder(path, "resuming").close()
            print(_how_to_go_on(folder), file=sys.stderr)
            raise
        processes.wait()
        if read_summary(step.folder).get("exit_reason") != FINISHED:
            if processes.is_main:
                print(_how_to_go_on(folder), flush=True)
            return


def _own_flags(given: list[tuple[str, list[str]]], processes: Processes) -> tuple[Path, Flags]:
    """The pipeline's folder, and --run.resume where it is there."""
    own: Flags = {}
    for flag, words in given:
        if flag in OWN and (flag in own or (flag == OWN[0] and len(words) != 1)):
            raise UserError(f"{flag} is given once, with one value")
        if flag in OWN:
            own[flag] = words
    path = own.get(OWN[0]) or processes.on_main(lambda: [str(fresh_name("pipeline"))])
    return Path(path[0]), {flag: words for flag, words in own.items() if flag == OWN[1]}


def _hand_out(given: list[tuple[str, list[str]]], steps: list[Step]) -> None:
    """Give each flag to the stages that it is for; those for one stage win."""
    known = {step.name: set(_flags_of(step)) for step in steps}
    single: list[tuple[Step, str, list[str]]] = []
    seen: set[str] = set()
    for flag, words in given:
        if flag in seen:
            raise UserError(f"{flag} stands there twice; give it once, with all its values")
        seen.add(flag)
        stage, _, rest = flag.removeprefix("--").partition(".")
        own = [step for step in steps if step.name.replace("_", "-") == stage]
        single += [(step, f"--{rest}", words) for step in own]
        takers = own or [x for x in steps if flag in known[x.name] and flag != "--config"]
        if not takers or any(f"--{rest}" not in known[step.name] for step in own):
            raise UserError(_unknown(flag, words, steps))
        for step in takers if not own else ():
            step.flags[flag] = words
    for step, flag, words in single:
        step.flags[flag] = words
        step.own.add(flag)


def _flags_of(step: Step) -> Iterator[str]:
    yield "--config"
    for path in paths_of(settings_class(step.method)):
        yield f"--{path}".replace("_", "-")


def _unknown(flag: str, words: list[str], steps: list[Step]) -> str:
    if flag == "--config":
        return f"--config is for one stage: --{steps[-1].name}.config {' '.join(words)}"
    known = list(dict.fromkeys(f[2:] for step in steps for f in _flags_of(step)))
    known += [f"{step.name.replace('_', '-')}.{f[2:]}" for step in steps for f in _flags_of(step)]
    match = nearest(flag.removeprefix("--"), known)
    hint = f"did you mean --{match}?" if match else "see lmpg train STAGE --help"
    return f"no stage of the pipeline knows the flag {' '.join([flag, *words])}; {hint}"


def _connect(steps: list[Step], number: int) -> None:
    """Let a stage start from the newest policy, and be rewarded by the newest reward model, that
    the stages before it made; its data stay the user's, or those of the world."""
    step, earlier = steps[number], steps[:number]
    policies = [x for x in earlier if x.method != "reward_model"]
    judges = [x for x in earlier if x.method == "reward_model"]
    if policies and "--model.path" not in step.own:
        step.flags["--model.path"] = [str(policies[-1].result)]
    if "--data.path" not in step.flags and "--data.path" not in steps[0].flags:
        world = _world(steps)
        step.flags |= {"--data.path": [PREFIX + world]} if policies else {"--data.world": [world]}
    if judges and step.method in ALGORITHMS:
        step.flags.setdefault("--rewards.models", [str(judges[-1].result)])


def _world(steps: list[Step]) -> str:
    """The one that a flag names, or else a preset."""
    flags = [step.flags["--data.world"][0] for step in steps if "--data.world" in step.flags]
    presets = [named_preset(x.name, methods())[1].get("data", {}) for x in steps]
    named = [*flags, *(data["world"] for data in presets if "world" in data)]
    return named[0] if named else chosen_world({})


def _refuse_other_files(folder: Path) -> None:
    found = [x.name for x in folder.iterdir()] if folder.is_dir() else []
    others = [name for name in found if not re.match(r"\d+_", name)]
    if others:
        raise UserError(
            f"run.output_dir = {folder} holds files that are no pipeline's ({min(others)}); "
            "choose a folder that is empty or does not exist"
        )


def _how_to_go_on(folder: Path) -> str:
    return f"go on with the same command and --run.output-dir {folder} --run.resume"
