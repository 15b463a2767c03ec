"""Settings that suit a run where the user leaves them out, found without loading any model."""

from __future__ import annotations

from pydantic import ValidationError

from lmpg.language.data.reasoning import PREFIX
from lmpg.language.models.paths import is_adapter_folder
from lmpg.language.models.settings import ADAPTERS_FASTER
from lmpg.language.worlds.registry import WORLDS, world_asked_for, world_stage
from lmpg.settings.raw import RawSettings, merged
from lmpg.settings.section import Section
from lmpg.training.settings import UpdateSettings

IN_A_WORLD: RawSettings = {"model": {"precision": "fp32"}, "update": {"adam_eps": 1e-5}}
"""Of every built-in world: its models are small, and its runs the same on any hardware."""


def suitable_settings(
    algorithm: type[Section], preset: RawSettings, given: RawSettings
) -> RawSettings:
    """`preset` over what suits the world that a run with these settings learns in; without a world,
    over the reward that belongs to the data and steps of a size for the model and the algorithm.

    given: the user's own settings, which win over all that.
    """
    world = world_asked_for(merged(preset, given))
    if world is not None:
        return merged(IN_A_WORLD, WORLDS[world].preset(algorithm), preset)
    return merged(own_reward(given), steps(algorithm, merged(preset, given)), preset)


def suitable_stage_settings(
    method: str, stage: type[Section], preset: RawSettings, given: RawSettings
) -> RawSettings:
    """`preset` over what suits the world that the stage `method` learns in with these settings;
    without a world, over the learning rate for what is trained. stage: its settings' class.

    given: the user's own settings, which win over all that.
    """
    world = world_asked_for(merged(preset, given))
    if world is not None:
        return merged(IN_A_WORLD, world_stage(world, method).preset, preset)
    default = stage.model_fields["update"].default.learning_rate
    rate = rate_that_suits(merged(preset, given), default)
    return merged({"update": {"learning_rate": rate}}, preset)


CRITIC_FASTER = 10
"""How much larger the critic's learning rate is than the policy's: it has to learn its values from
nothing, and a wrong one costs variance, not the policy."""
PPO_MINIBATCHES = 4


def steps(algorithm: type[Section], chosen: RawSettings) -> RawSettings:
    """The optimizer steps that suit a model of the user's own, in micro-batches that fit.

    One for each rollout, of which responses are compared with each other, and whose gradient is
    right for the policy that sampled; a method with ratios and a critic divides the rollout into
    four. Once a learning rate is given, the critic has it too.
    """
    needs, given = _needs(algorithm, chosen), chosen.get("update") or {}
    fields = UpdateSettings.model_fields
    rate = rate_that_suits(chosen, fields["learning_rate"].default)
    update: RawSettings = {"learning_rate": rate, "microbatch_tokens": "auto"}
    size = str(given.get("rollout_size", fields["rollout_size"].default))
    if size.isdecimal():  # else it is refused when all settings are checked
        several = {"ratios", "critic"} <= needs and int(size) % PPO_MINIBATCHES == 0
        update["minibatch_size"] = int(size) // (PPO_MINIBATCHES if several else 1)
    if "critic" in needs and "learning_rate" not in given:
        update["critic_learning_rate"] = round(CRITIC_FASTER * rate, 12)
    return {"update": update}


def _needs(algorithm: type[Section], chosen: RawSettings) -> frozenset[str]:
    """What the algorithm needs as it is set up, or by default where its settings are refused."""
    try:
        found = algorithm(**(chosen.get("algorithm") or {}))
    except (ValidationError, TypeError):  # said in words when all settings are checked
        found = algorithm()
    return found.needs  # type: ignore[attr-defined]


def rate_that_suits(chosen: RawSettings, whole_model: float) -> float:
    """The learning rate of what is trained: the whole model, or adapters (LoRA)."""
    model = chosen.get("model") or {}
    rank = (model.get("lora") or {}).get("rank", 0)
    whole = str(rank) == "0" and not is_adapter_folder(model.get("path"))
    return whole_model if whole else round(ADAPTERS_FASTER * whole_model, 12)


def own_reward(given: RawSettings) -> RawSettings:
    """The reward that belongs to the data (reasoning-gym tasks), where the user names none."""
    source, rewards = given.get("data", {}).get("path"), given.get("rewards", {})
    if not str(source).startswith(PREFIX) or rewards.get("functions") or rewards.get("models"):
        return {}
    return {"rewards": {"functions": ["reasoning_gym"]}}
