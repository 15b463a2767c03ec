"""Settings: merged from all sources, checked once, every problem told in one line."""

from __future__ import annotations

import pytest

from lmpg.algorithms import ALGORITHMS, algorithm_name
from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.reinforce import REINFORCE
from lmpg.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from lmpg.algorithms.remax import ReMax
from lmpg.algorithms.rloo import RLOO
from lmpg.gym.settings import GymSettings
from lmpg.language.settings import LanguageSettings
from lmpg.language.stages.settings import SftSettings
from lmpg.settings.raw import (
    defaults_of,
    merged,
    misplaced,
    validated,
)
from lmpg.settings.section import Section, UserError
from lmpg.settings.yaml_files import read_yaml
from tests.support.planted import catches

Settings = LanguageSettings[PPO]


def built(settings, **sections):
    return validated(settings, merged(defaults_of(settings), sections))


def test_no_values_at_all_give_the_defaults():
    assert built(Settings) == Settings(algorithm=PPO())


def test_values_are_laid_over_each_other_setting_by_setting():
    low = {"update": {"epochs": 1, "rollout_size": 64}, "run": {"seed": 1}}
    high = {"update": {"epochs": 2}, "run": None, "data": {"path": "x"}}
    expected = {"update": {"epochs": 2, "rollout_size": 64}, "run": {"seed": 1}}
    assert merged(low, high) == {**expected, "data": {"path": "x"}}
    assert low["update"]["epochs"] == 1


@catches("a section's own defaults lost when one setting changes")
def test_defaults_of_a_section_survive_when_one_of_its_settings_is_changed():
    class Inner(Section):
        a: int = 1
        b: int = 2

    class Outer(Section):
        inner: Inner = Inner(a=10)

    assert built(Outer, inner={"b": 3}) == Outer(inner=Inner(a=10, b=3))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"algorithm": {"clip": -1}}, "algorithm.clip = -1: expected greater than 0"),
        ({"update": {"schedule": "cosin"}}, "update.schedule = 'cosin': expected 'constant', "),
        ({"run": {"seed": "x"}}, "run.seed = 'x': expected a valid integer"),
        ({"rewards": {"functions": ["a", 3]}}, "rewards.functions[1] = 3: expected a valid string"),
        ({"model": {"lora": {"rank": -8}}}, "model.lora.rank = -8: expected greater than or equal"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_was_expected(section, message):
    with pytest.raises(UserError) as error:
        built(Settings, **section)
    assert str(error.value).startswith(message)
    assert "pydantic" not in str(error.value)
    assert "\n" not in str(error.value)


def test_every_problem_has_its_line():
    with pytest.raises(UserError) as error:
        built(Settings, algorithm={"clip": 0, "lam": 2}, run={"seed": 0.5})
    assert len(str(error.value).splitlines()) == 3


def test_minibatches_must_be_whole():
    with pytest.raises(UserError, match=r"update\.rollout_size = 64 .* update\.minibatch_size = 7"):
        built(Settings, update={"minibatch_size": 7})


@catches("groups split across rollouts")
def test_groups_must_be_whole():
    with pytest.raises(UserError, match=r"update\.rollout_size = 64 .*algorithm\.group_size = 7"):
        built(LanguageSettings[GRPO], algorithm={"group_size": 7})
    built(LanguageSettings[GRPO], algorithm={"group_size": 64})  # may exceed the minibatch


def test_a_group_of_one_is_refused():
    with pytest.raises(UserError, match=r"algorithm\.group_size = 1: expected greater than or eq"):
        built(LanguageSettings[GRPO], algorithm={"group_size": 1})


OWN = {
    "model": {"path": "my-model"},
    "data": {"path": "my-data"},
    "rewards": {"functions": ["f.py:f"]},
}


def test_own_model_data_and_reward_are_given_together():
    assert built(Settings, **OWN).model.path == "my-model"
    models = {"models": ["my-reward-model"]}
    assert built(Settings, **{**OWN, "rewards": models}).rewards.models == ("my-reward-model",)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (("model",), "data.path and rewards.functions or rewards.models missing"),
        (("model", "data"), "rewards.functions or rewards.models missing"),
        (("model", "rewards"), "data.path missing"),
        (("data", "rewards"), "model.path missing"),
        (("rewards",), "model.path and data.path missing"),
        (("data",), "model.path and rewards.functions or rewards.models missing"),
    ],
)
def test_what_is_missing_beside_an_own_part_is_named(given, missing):
    with pytest.raises(UserError) as error:
        built(Settings, **{name: OWN[name] for name in given})
    assert missing in str(error.value)


@catches("ratios allowed with top-p")
@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"top_k": 20}])
def test_ratios_are_refused_for_samples_of_a_cut_off_distribution(sampling):
    for name in ("ppo", "grpo", "off_policy"):
        with pytest.raises(UserError, match=rf"algorithm\.name = {name}, which compares"):
            built(LanguageSettings[ALGORITHMS[name]], sampling=sampling)
    with pytest.raises(UserError, match=r"algorithm\.name = rloo, which compares"):
        built(LanguageSettings[RLOO], sampling=sampling, algorithm={"kl_in": "loss"})
    with pytest.raises(UserError, match=r"which compares π with the reference"):
        built(LanguageSettings[RLOO], sampling=sampling)
    found = built(LanguageSettings[RLOO], sampling=sampling, algorithm={"kl_coef": 0})
    assert found.sampling.temperature == 1


def test_only_numbers_of_the_algorithm_that_nothing_steers_can_be_annealed():
    anneal = {"update": {"anneal": ["clip", "kl_coef"]}}
    assert built(Settings, **anneal).update.anneal == ("clip", "kl_coef")
    with pytest.raises(UserError, match=r"algorithm\.kl_coef is steered to its target"):
        built(Settings, **anneal, algorithm={"kl_target": 3.0})
    for name in ("clipp", "whiten", "entropy_coef"):
        with pytest.raises(UserError, match=rf"anneal = {name}, .* expected some of value_coef"):
            built(Settings, update={"anneal": [name]})
    with pytest.raises(UserError, match=r"algorithm\.dual_clip cannot be annealed"):
        built(Settings, update={"anneal": ["dual_clip"]}, algorithm={"dual_clip": 3.0})
    with pytest.raises(UserError, match=r"update\.anneal = clip_high"):
        built(GymSettings[PPO], algorithm=NO_KL, update={"anneal": ["clip_high"]})


@pytest.mark.parametrize(
    ("algorithm", "section", "message"),
    [
        (PPO, {"rewards": {"overlong_tokens": 257}},
         r"overlong_tokens = 257, .* sampling\.max_new_tokens = 256"),
        (PPO, {"rewards": {"truncated": "mask", "missing_eos_penalty": 1}},
         r"missing_eos_penalty = 1\.0 with rewards\.truncated = mask"),
        (PPO, {"rewards": {"score_clip": 0}}, r"score_clip = 0: expected greater than 0"),
        (GRPO, {"rewards": {"truncated": "bootstrap"}},
         r"truncated = bootstrap with algorithm\.name = grpo, which has no critic"),
        (REINFORCE, {"rewards": {"truncated": "bootstrap"}}, r"name = reinforce, which has no cri"),
        (GRPO, {"rewards": {"process": "step"}},
         r"process = step with algorithm\.name = grpo, which compares whole responses"),
        (RLOO, {"rewards": {"process": "token"}}, r"algorithm\.name = rloo, which compares whole"),
        (ReMax, {"rewards": {"process": "token"}}, r"algorithm\.name = remax, which compares who"),
        (PPO, {"sampling": {"max_refills": 2}},
         r"max_refills = 2 with algorithm\.name = ppo, whose groups have one response"),
        (ReinforcePlusPlus, {"sampling": {"max_refills": 2}}, r"whose groups have one response"),
        (GRPO, {"model": {"critic": "separate"}},
         r"model\.critic = separate, but algorithm\.name = grpo has no critic"),
        (PPO, {**OWN, "model": {"path": "my-model", "critic": "reward_model"}},
         r"critic = reward_model, but there are no rewards\.models"),
        (GRPO, {"update": {"critic_learning_rate": 1e-3}},
         r"critic_learning_rate = 0\.001, but algorithm\.name = grpo has no critic"),
        (PPO, {"update": {"critic_learning_rate": 0}}, r"critic_learning_rate = 0: expected grea"),
    ],
)  # fmt: skip
def test_what_the_algorithm_cannot_do_is_refused_with_the_reason(algorithm, section, message):
    with pytest.raises(UserError, match=message):
        built(LanguageSettings[algorithm], **section)


def test_what_the_algorithm_can_do_is_accepted():
    built(Settings, rewards={"truncated": "bootstrap", "overlong_tokens": 48, "process": "step"})
    built(Settings, model={"critic": "separate"}, update={"critic_learning_rate": 1e-3})
    built(Settings, model={"critic": "reward_model"})  # a world may bring a reward model
    built(
        LanguageSettings[REINFORCE], algorithm={"baseline": "value"}, model={"critic": "separate"}
    )
    built(LanguageSettings[GRPO], sampling={"max_refills": 2})


def test_learning_from_fixed_data_has_no_critic():
    with pytest.raises(UserError, match=r"model\.critic = separate, but learning from fixed data"):
        built(SftSettings, model={"critic": "separate"})


NO_KL = {"kl_coef": 0.0}


def test_environments_step_equally_often():
    update = {"rollout_size": 100, "minibatch_size": 50}
    with pytest.raises(UserError, match=r"rollout_size = 100 .* env\.num_envs = 8"):
        built(GymSettings[PPO], algorithm=NO_KL, update=update)


def test_an_environment_has_neither_groups_nor_a_reference():
    with pytest.raises(UserError, match=r"algorithm\.name = grpo"):
        built(GymSettings[GRPO])
    with pytest.raises(UserError, match=r"algorithm\.name = remax"):
        built(GymSettings[ALGORITHMS["remax"]], algorithm=NO_KL)
    with pytest.raises(UserError, match=r"algorithm\.kl_coef is not 0"):
        built(GymSettings[PPO], algorithm={"kl_coef": 0.1})
    assert built(GymSettings[PPO], algorithm=NO_KL).algorithm == PPO(kl_coef=0.0)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_is_called_in_yaml_as_in_the_table(name):
    assert algorithm_name(ALGORITHMS[name]) == name


def written(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml_is_read_as_sections(tmp_path):
    path = written(tmp_path, "update:\n  epochs: 2\n  learning_rate: 1e-4\nrun:\n")
    values = merged(defaults_of(Settings), read_yaml(path))
    settings = validated(Settings, values)
    assert (settings.update.epochs, settings.update.learning_rate) == (2, 1e-4)
    assert read_yaml(written(tmp_path, "# nothing\n")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("update:\n  epochs: [1\n", r"x\.yaml, line 3: "),
        ("update:\n\tepochs: 1\n", r"x\.yaml, line 2: .*'\\t'"),
        ("run:\n  seed: 1\n  seed: 2\n", r"x\.yaml, line 3: `seed` stands here a second time"),
        ("- a\n- b\n", r"x\.yaml: holds a list, expected sections"),
        ("just words\n", r"x\.yaml: holds a str, expected sections"),
        ("a: !!python/object/apply:os.getcwd []\n", r"x\.yaml, line 1: could not determine"),
        ("a: 1\n---\nb: 2\n", r"x\.yaml, line 2: but found another document"),
    ],
)
def test_yaml_that_is_no_settings_file_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_yaml(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"missing\.yaml: No such file or directory; expected"):
        read_yaml(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_yaml(tmp_path / "binary")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"update": {"learning_rat": 1}}, "f: unknown setting update.learning_rat = 1; did you "
         "mean update.learning_rate?"),
        ({"learning_rate": 1}, "f: unknown setting learning_rate = 1; did you mean "
         "update.learning_rate?"),
        ({"train": {"seed": 1}}, "f: unknown section train; expected one of model, data, rewards, "
         "environment, "
         "sampling, algorithm, update, evaluation, run"),
        ({"model": {"lora": {"rnk": 8}}}, "f: unknown setting model.lora.rnk = 8; did you mean "
         "model.lora.rank?"),
        ({"update": 3}, "f: update = 3, expected a section with keys such as update.learning_rate"),
        ({7: 3}, "f: unknown setting 7 = 3; see --help for all settings"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_named_with_the_nearest_right_one(values, line):
    assert misplaced(Settings, values, "f") == [line]


def test_known_keys_are_in_place():
    assert misplaced(Settings, {"update": {"epochs": 1}, "run": None}, "f") == []
