"""Environments and tools by name: in settings, in what a resumed run must find, from Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmpg.algorithms.ppo import PPO
from lmpg.language.api.objects import settings_and_objects
from lmpg.language.environments.named import GYMNASIUM, environment_spec, source_of
from lmpg.language.missing import refuse_missing_paths
from lmpg.language.rewards.local_functions import fingerprint
from lmpg.language.run_inputs import inputs_of
from lmpg.language.settings import LanguageSettings
from lmpg.runs import fingerprints
from lmpg.settings.section import UserError
from tests.support.planted import catches

OWN = {"model": {"path": "model"}, "run": {"output_dir": "x"}}


def settings_of(**sections) -> LanguageSettings:
    return LanguageSettings[PPO](**{**OWN, "algorithm": PPO(), **sections})


@pytest.mark.parametrize(
    ("text", "arguments", "source"),
    [
        ("Guess-v0", {"id": "Guess-v0"}, None),
        ("games:own/Guess-v0(high=7)", {"id": "games:own/Guess-v0", "high": 7}, "games"),
        ("gymnasium(id='Guess')", {"id": "Guess"}, None),
    ],
)
def test_an_id_of_gymnasium_is_told_from_a_name_of_python(text, arguments, source):
    spec = environment_spec(text)
    assert (spec.function, spec.arguments) == (GYMNASIUM, arguments)
    assert source_of(spec) == source
    own = environment_spec("games:Guess(high=7)")
    assert (own.function, own.arguments, source_of(own)) == ("games:Guess", {"high": 7}, "games")


@catches("the file of an environment not among the inputs")
def test_a_resumed_run_finds_out_that_its_environment_or_a_tool_was_edited(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("deck.py").write_text("CARDS = 52\n")
    Path("game.py").write_text("import deck\nclass Game: ...\n")
    Path("tool.py").write_text("def add(): ...\n")
    environment = {"path": "game.py:Game", "tools": ("tool.py:add",)}
    data = {"path": "rows.jsonl"}
    Path("rows.jsonl").write_text("{}\n")
    Path("model").mkdir()

    def prints():
        found = inputs_of(settings_of(environment=environment, data=data), None)
        names = ("environment.path", "environment.tools")
        return fingerprints.of({name: found[name] for name in names})

    before = prints()
    assert {key: [*x] for key, x in before.items()} == {
        "environment.path": ["game.py", "deck"],
        "environment.tools": ["0: tool.py"],
    }
    for file, key in (("deck.py", "environment.path"), ("tool.py", "environment.tools")):
        Path(file).write_text("edited = 1\n")
        after = prints()
        assert after[key] != before[key]
        before = after
    assert "environment.path" not in inputs_of(settings_of(data=data, rewards=SOME), None)


SOME = {"functions": ("length(target=3)",)}


def test_a_class_or_tool_of_python_is_named_and_what_cannot_be_imported_is_kept():
    class Here: ...

    def raw(environment):
        return settings_and_objects(
            LanguageSettings[PPO], None, None, None, None, None, {"environment": environment}
        )

    found, given = raw(Here)
    assert found == {"environment": {"path": "memory:Here"}}
    assert given.functions == {"memory:Here": Here}
    found, given = raw({"path": "game.py:Game", "tools": [len, Here(), "tool.py:add"]})
    assert found["environment"]["tools"] == ["memory:len", "memory:Here", "tool.py:add"]
    found, given = raw(Path)
    assert found["environment"]["path"] == "pathlib:Path"
    assert not given.functions


@catches("an instance known by its address")
def test_an_instance_is_known_by_its_class_and_the_plain_values_that_it_holds():
    class Game:
        def __init__(self, size):
            self.size, self.board = size, object()

    small, again, large = (fingerprint(Game(size)) for size in (3, 3, 4))
    assert small == again != large
    changed = type("Game", (Game,), {"__module__": Game.__module__, "limit": 3})
    assert fingerprint(changed(3)) != small


def test_names_that_lead_nowhere_are_told_all_at_once():
    environment = {"path": "none.py:Game", "tools": ("other.py:add",)}
    with pytest.raises(UserError) as told:
        refuse_missing_paths(settings_of(environment=environment), ("model",))
    assert [line.partition(":")[0] for line in str(told.value).splitlines()] == [
        "environment.path",
        "environment.tools",
    ]
    found = settings_of(environment={"path": "memory:Game"})
    refuse_missing_paths(found, ("model", "memory:Game"))


def test_an_environment_brings_prompts_and_rewards_but_no_model():
    assert settings_of(environment={"path": "game.py:Game"}).environment.wanted
    with pytest.raises(ValueError, match=r"model\.path missing: your own model and environment"):
        settings_of(environment={"path": "game.py:Game"}, model={})
    with pytest.raises(ValueError, match=r"data\.path and rewards\.functions .* missing"):
        settings_of()
    ours = {"path": "lmpg.language.worlds.tasks.guessing:Guess"}
    assert settings_of(environment=ours, model={}).environment.is_built_in


def test_an_environment_does_not_talk_to_the_world_of_a_preset():
    """GRPO's is addition; without a model of the user's the run is refused, in no world of its own
    choosing."""
    for data in ({"world": "addition"}, {}):
        with pytest.raises(ValueError, match=r"model\.path missing: your own model and environ"):
            settings_of(environment={"path": "game.py:Game"}, model={}, data=data)
