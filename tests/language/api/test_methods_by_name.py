"""Every method by its name, from Python as from the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

import lmpg
from lmpg.language.api.objects import settings_and_objects
from lmpg.language.methods import methods, preset_below, settings_class
from lmpg.settings.presets import named_preset, preset_names
from lmpg.settings.raw import completed
from lmpg.settings.section import UserError
from tests.support.programs import outcome, run_here
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer

PAIRS = [{"prompt": f"{i} ", "chosen": "ab", "rejected": "cd" * (i % 3)} for i in range(30)]
ROWS = {
    "sft": [{"prompt": f"{i} ", "completion": "ab" * (i % 3)} for i in range(30)],
    "simpo": PAIRS,
    "reward_model": PAIRS,
    "kto": [{"prompt": f"{i} ", "completion": "ab", "label": i % 2 == 0} for i in range(30)],
}


@pytest.mark.parametrize("name", ROWS)
def test_stages_learn_from_objects_as_from_files(name, tmp_path):
    save_tiny(tmp_path / "model")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS[name])
    (tmp_path / "rows.jsonl").write_text(lines)
    update: dict[str, Any] = {"minibatch_size": 8, "microbatch_size": 4}
    small = {"update.minibatch-size": 8, "update.microbatch-size": 4, "run.total-steps": 2}
    paths = {"model.path": tmp_path / "model", "data.path": tmp_path / "rows.jsonl"}
    command = run_here(name, {**paths, **small, "run.output-dir": tmp_path / "command"})
    run = lmpg.train(
        name,
        tiny_model(),
        ROWS[name],
        tokenizer=tiny_tokenizer(),
        update=update,
        run={"total_steps": 2, "output_dir": tmp_path / "run"},
    )
    assert outcome(run.folder) == outcome(command)
    assert type(run.model).__name__.endswith(
        "ForSequenceClassification" if name == "reward_model" else "ForCausalLM"
    )


@pytest.mark.parametrize("name", sorted({*methods(), *preset_names()}))
def test_every_name_gives_the_settings_of_the_command_line(name):
    from lmpg.cli.main import settings_of

    kind = settings_class(named_preset(name, methods())[0])
    model, data = "org/model", "org/rows"
    words = ["--model.path", model, "--data.path", data, "--run.total-steps", "7"]
    rewards = None
    if "rewards" in kind.model_fields:
        words += ["--rewards.functions", "exact_match"]
        rewards = ["exact_match"]
    sections: dict[str, Any] = {"run": {"total_steps": 7}}
    found = []
    for make in (
        lambda: settings_of(name, words),
        lambda: _completed(kind, name, model, data, rewards, sections),
    ):
        try:
            found.append(make())
        except UserError as error:  # what is missing is said alike
            found.append(str(error).splitlines()[0])  # the file is missing, too
    assert found[0] == found[1]


def _completed(kind, name, model, data, rewards, sections):
    raw, _ = settings_and_objects(kind, model, None, data, rewards, None, sections)
    return completed(kind, preset_below(name, raw), raw)
