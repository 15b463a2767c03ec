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
from lmpg.cli import flags
from lmpg.cli.main import methods, nothing_collected, preset_below, run_with, settings_class
from lmpg.language.missing import refuse_missing_paths
from lmpg.language.worlds.registry import PREFIX, chosen_world
from lmpg.runs import folder as run_folder
from lmpg.runs.files import whole_model
from lmpg.runs.folder import RunFolder, fresh_name
from lmpg.runtime.processes import Processes
from lmpg.settings.hints import did_you_mean_setting
from lmpg.settings.presets import named_preset
from lmpg.settings.raw import RawSettings, checked, layered, merged, paths_of, validated
from lmpg.settings.section import Problems, Section, UserError
from lmpg.training.disks.copied_folders import copied

Flags = dict[str, list[str]]
OWN = ("--run.output-dir", "--run.resume")
USAGE = (
    "usage: lmpg pipeline STAGE STAGE … [--section.key VALUE …] [--STAGE.section.key VALUE …]\n"
    "such as: lmpg pipeline sft reward_model ppo\n"
    "(lmpg train STAGE --help: a stage's settings; --STAGE.config FILE reads them from a file)"
)


@dataclass
class PipelineStage:
    """A stage of a pipeline: its name, method and folder, and what the user gave it.

    flags: those that are for it. own: those of them that the user gave it alone. given: its
    settings by these flags and its --config file.
    """

    name: str
    method: str
    folder: Path
    flags: Flags = field(default_factory=dict)
    own: set[str] = field(default_factory=set)
    given: RawSettings = field(default_factory=dict)

    @property
    def result(self) -> Path:
        """The folder of the stage's model, which is there once the stage has finished."""
        return whole_model(self.folder / "final")


def pipeline(argv: Sequence[str]) -> None:
    """Carry out `STAGE STAGE … --flags`; with --run.resume go on where it was interrupted."""
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    names, given = list(argv[:count]), flags.groups(argv[count:])
    if not names or {"-h", "--help"} & set(argv):
        print(USAGE)
        return
    processes = Processes()
    folder, stages = _checked(names, given, processes)
    _carry_out(stages, folder, processes)


@nothing_collected()
def _checked(
    names: list[str], given: list[tuple[str, list[str]]], processes: Processes
) -> tuple[Path, list[PipelineStage]]:
    """The pipeline's folder and its stages; all settings and paths are looked at before any
    work."""
    problems = Problems()
    folder, resume = _own_flags(given, processes)
    stages = []
    for i, name in enumerate(names, start=1):
        with problems.gathered():
            method = named_preset(name, methods())[0]
            stages.append(PipelineStage(name, method, folder / f"{i}_{name}"))
    problems.refuse()
    _hand_out([(flag, words) for flag, words in given if flag not in OWN], stages, problems)
    for stage in stages:
        stage.flags |= {"--run.output-dir": [str(stage.folder)], **resume}
        stage.given = _given_to(stage, problems)
    with problems.gathered():
        _refuse_one_repository(stages)
    for number in range(len(stages)):
        to_come = [str(stage.result) for stage in stages[:number]]
        found, wrong = checked(*_values(stages, number), problems)
        problems.extend(wrong)
        with problems.gathered():
            refuse_missing_paths(found, to_come)
    with problems.gathered():
        _refuse_other_files(folder)
    problems.refuse()
    return folder, stages


def _carry_out(stages: list[PipelineStage], folder: Path, processes: Processes) -> None:
    for number, stage in enumerate(stages):
        # anew: a model with an adapter now lies elsewhere
        settings = validated(*_values(stages, number))
        if processes.is_main:
            print(f"stage {number + 1} of {len(stages)}: {stage.name}, {stage.folder}", flush=True)
        try:
            run_with(settings, stage.name)
        except (KeyboardInterrupt, SystemExit):
            for path in run_folder.opened():  # or the way to go on would be told for the stage
                RunFolder(path, "resuming").close()
            print(_how_to_go_on(folder), file=sys.stderr)
            raise
        processes.wait()
        copied(stage.folder / "final", processes)


def _own_flags(given: list[tuple[str, list[str]]], processes: Processes) -> tuple[Path, Flags]:
    """The pipeline's folder, and the flag --run.resume if it was given."""
    own: Flags = {}
    for flag, words in given:
        if flag in OWN and (flag in own or (flag == OWN[0] and len(words) != 1)):
            raise UserError(f"{flag} is given once, with one value")
        if flag in OWN:
            own[flag] = words
    if OWN[0] not in own and {OWN[1], "--run.resume-anyway"} & {flag for flag, _ in given}:
        raise UserError(
            "--run.resume is given, but --run.output-dir is not: expected the folder of the "
            "pipeline to go on with, such as --run.output-dir runs/pipeline-20250131-120000"
        )
    if own.get(OWN[0]) == [""]:
        raise UserError("run.output_dir = '': expected a folder; leave it out for a fresh one")
    path = own.get(OWN[0]) or processes.on_main(lambda: [str(fresh_name("pipeline"))])
    return Path(path[0]).expanduser(), {
        flag: words for flag, words in own.items() if flag == OWN[1]
    }


def _hand_out(
    given: list[tuple[str, list[str]]], stages: list[PipelineStage], problems: Problems
) -> None:
    """Give each flag to the stages that know it; one that names its stage wins there."""
    known = {stage.name: set(_flags_of(stage)) for stage in stages}
    single: list[tuple[PipelineStage, str, list[str]]] = []
    seen: set[str] = set()
    for flag, words in given:
        if flag in seen:
            problems.append(f"{flag} stands there twice; give it once, with all its values")
            continue
        seen.add(flag)
        name, _, rest = flag.removeprefix("--").partition(".")
        own = [stage for stage in stages if stage.name.replace("_", "-") == name]
        takers = own or [x for x in stages if flag in known[x.name] and flag != "--config"]
        if not takers or any(f"--{rest}" not in known[stage.name] for stage in own):
            problems.append(_unknown(flag, words, stages))
            continue
        single += [(stage, f"--{rest}", words) for stage in own]
        for stage in takers if not own else ():
            stage.flags[flag] = words
    for stage, flag, words in single:
        stage.flags[flag] = words
        stage.own.add(flag)


def _flags_of(stage: PipelineStage) -> Iterator[str]:
    yield "--config"
    for path in paths_of(settings_class(stage.method)):
        yield f"--{path}".replace("_", "-")


def _unknown(flag: str, words: list[str], stages: list[PipelineStage]) -> str:
    if flag == "--config":
        return f"--config is for one stage: --{stages[-1].name}.config {' '.join(words)}"
    known = list(dict.fromkeys(f[2:] for stage in stages for f in _flags_of(stage)))
    own = {x.name.replace("_", "-"): x for x in stages}
    if (name := flag[2:].partition(".")[0]) in own:
        known = [f"{name}.{f[2:]}" for f in _flags_of(own[name])]
    names = [name.replace("-", "_") for name in known]
    hint = did_you_mean_setting(flag, names) or "see lmpg train STAGE --help"
    return f"no stage of the pipeline knows the flag {' '.join([flag, *words])}; {hint}"


def _given_to(stage: PipelineStage, problems: Problems) -> RawSettings:
    """The settings that the user gave a stage, by its flags and its file."""
    line = flags.read([word for flag, words in stage.flags.items() for word in (flag, *words)])
    kind = settings_class(stage.method)
    flags.refuse_other_algorithm(kind, line)
    given = flags.given_settings(kind, line)
    problems.extend(line.problems)
    return given


def _values(stages: list[PipelineStage], number: int) -> tuple[type[Section], RawSettings]:
    """The class of a stage's settings, and their values with what the stages before it make."""
    stage = stages[number]
    given = merged(stage.given, _made_before(stages, number))
    kind = settings_class(stage.method)
    named = {"run": {"name": f"{stage.folder.parent.name}-{stage.folder.name}"}}  # for trackers
    return kind, layered(kind, merged(named, preset_below(stage.name, given)), given)


def _made_before(stages: list[PipelineStage], number: int) -> RawSettings:
    """A stage starts from the newest policy, and is rewarded by the newest reward model, that the
    stages before it made; its data stay the user's, or those of the world."""
    stage, earlier = stages[number], stages[:number]
    policies = [x for x in earlier if x.method != "reward_model"]
    reward_models = [x for x in earlier if x.method == "reward_model"]
    made: RawSettings = {}
    if policies and "--model.path" not in stage.own:
        made["model"] = {"path": str(policies[-1].result)}
    if "--data.path" not in stage.flags and "--data.path" not in stages[0].flags:
        world = _world(stages)
        made["data"] = {"path": PREFIX + world} if policies else {"world": world}
    if reward_models and stage.method in ALGORITHMS and "--rewards.models" not in stage.flags:
        made["rewards"] = {"models": [str(reward_models[-1].result)]}
    return made


def _world(stages: list[PipelineStage]) -> str:
    """The world of the pipeline: the one that a flag names, else that of a preset."""
    named = [stage.flags["--data.world"][0] for stage in stages if "--data.world" in stage.flags]
    presets = [named_preset(x.name, methods())[1].get("data", {}) for x in stages]
    named += [data["world"] for data in presets if "world" in data]
    return named[0] if named else chosen_world({})


def _refuse_one_repository(stages: list[PipelineStage]) -> None:
    """UserError where two stages would upload their models to the same place."""
    first: dict[str, str] = {}
    for stage in stages:
        name = (stage.given.get("run") or {}).get("push_to_hub")
        if name is not None and name in first:
            raise UserError(
                f"run.push_to_hub = {name} is given to the stages {first[name]} and {stage.name}, "
                "expected a repository for each: give it to one of them, "
                f"--{stage.name.replace('_', '-')}.run.push-to-hub {name}"
            )
        if name is not None:
            first[name] = stage.name


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
