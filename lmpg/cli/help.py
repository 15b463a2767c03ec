"""--help of a settings class: its sections in a screen, or what is asked for behind --help."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import Any

from lmpg.algorithms import algorithm_name
from lmpg.settings.hints import did_you_mean_setting
from lmpg.settings.raw import RawSettings, is_section, paths_of
from lmpg.settings.section import Section, UserError

WIDTH = 80
FILE = "--config FILE reads settings from a YAML file with the same names; flags win over it."
FIRST = (
    *("env.id", "env.num_envs", "policy.hidden_sizes", "policy.trunk"),
    *("model.path", "model.lora.rank", "data.path", "data.prompt_column", "data.eval_path"),
    *("rewards.functions", "rewards.models", "sampling.max_new_tokens", "sampling.temperature"),
    *("algorithm.group_size", "algorithm.kl_coef", "algorithm.beta", "algorithm.step_size"),
    *("algorithm.clip", "algorithm.gamma"),
    *("update.learning_rate", "update.rollout_size", "update.minibatch_size", "update.epochs"),
    *("evaluation.every", "evaluation.size"),
    *("run.total_steps", "run.total_timesteps", "run.output_dir", "run.resume", "run.seed"),
)
"""What is set most often; the overview shows the first that fit on a line."""


def show_help(
    settings: type[Section],
    shown: RawSettings,
    asked: Sequence[str],
    program: str,
    names: Sequence[str] = (),
) -> None:
    """Print settings with the values `shown`, and exit: an overview, or the settings that are
    `asked` for by section, by name or by "all".

    names: of the methods that `--algorithm.name` may pick, where it may. program: what the command
    line begins with.
    """
    known = list(paths_of(settings))
    if not asked:
        print(overview(settings, shown, known, program, bool(names)))
        sys.exit(0)
    from lmpg.cli.settings_shown import print_settings  # it brings tyro along

    paths = {path for word in asked for path in _asked_for(word, known)}
    about = f"{_doc(settings)}\n\n{FILE}"
    if any(path.startswith("algorithm.") for path in paths):
        about += _names(settings, names)
    print_settings(settings, shown, paths, about, program)


def overview(
    settings: type[Section], shown: RawSettings, known: list[str], program: str, several: bool
) -> str:
    """The sections in a screen, with the values of what is set most often."""
    lines = [f"usage: {program} [--config FILE] [--section.key VALUE …]", _doc(settings), ""]
    width = max(map(len, settings.model_fields))
    for name, field in settings.model_fields.items():
        section: Any = field.annotation
        text = section.__doc__ if is_section(section) else field.description
        text = (text or "").partition("\n")[0]
        text = textwrap.shorten(text, WIDTH - width - 4, placeholder=" …")
        lines.append(f"  {name:{width}}  {text}")
        lines += _first(name, shown.get(name) or {}, known, " " * (width + 3))
    lines += [
        "",
        "--help SECTION shows its settings, --help WORD those that are called like it,",
        f"--help all shows all {len(known)}. A YAML file has the same names; flags win over it.",
    ]
    if several:
        lines.append("--algorithm.name NAME picks the method; --help algorithm lists the names.")
    return "\n".join(lines)


def _first(section: str, values: RawSettings, known: Collection[str], margin: str) -> list[str]:
    """A line with the flags of a section that are set most often, and their values, if any are."""
    line = margin
    for path in FIRST:
        if path.startswith(f"{section}.") and path in known:
            value: Any = values
            for key in path.split(".")[1:]:
                value = (value or {}).get(key)
            several = isinstance(value, list | tuple)
            word = " ".join(map(str, value)) if several else str("none" if value is None else value)
            more = f" --{path.replace('_', '-')} {word or 'none'}"
            line += more if len(line + more) <= WIDTH else ""
    return [line] if line.strip() else []


def _asked_for(word: str, known: list[str]) -> list[str]:
    """The settings that a word behind --help names; UserError where there are none."""
    name = word.removeprefix("--").replace("-", "_")
    own = [path for path in known if name == "all" or f"{path}.".startswith(f"{name}.")]
    found = own or [path for path in known if name in path]
    if not found:
        hint = did_you_mean_setting(word, known) or "expected a section, a word of a name, or all"
        raise UserError(f"--help {word}: no setting is called so; {hint}")
    return found


def _doc(settings: type[Section]) -> str:
    origin = settings.__pydantic_generic_metadata__["origin"] or settings
    return origin.__doc__ or ""


def _names(settings: type[Section], names: Sequence[str]) -> str:
    if not names:
        return ""
    own = algorithm_name(settings.model_fields["algorithm"].annotation)  # type: ignore[arg-type]
    return (
        f"\n\n--algorithm.name NAME picks the method, one of {', '.join(names)}; the settings "
        f"below are those of {own}."
    )
