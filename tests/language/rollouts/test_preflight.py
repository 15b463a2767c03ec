"""The self-test stops a run whose numbers are wrong, before anything was learned or left behind."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from transformers import LlamaModel

from lmpg.cli.main import main
from lmpg.language.models.head import Head
from lmpg.language.models.policy import Reference
from lmpg.language.rollouts import preflight
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.preflight import SelfTest, judged, require_sound, self_test
from lmpg.language.sampling import decoding
from lmpg.language.sampling.sampler import Sampler
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.programs import own_parts, run_here
from tests.support.tiny import deep_policy, tiny_tokenizer

SOUND = SelfTest(
    ratio=1.0,
    reference_kl=0.0,
    sampler=0.0,
    padding=0.0,
    logits=0.0,
    old_logprobs="",
    backend="",
    eos_token_ids=(1,),
    critic="none",
    value_head=None,
)


@pytest.fixture
def flags(tmp_path):
    shorter = {"run.total-steps": 1, "sampling.temperature": 0.7}
    return {**own_parts(tmp_path / "parts"), **shorter, "run.output-dir": tmp_path / "run"}


def ignoring_padding(monkeypatch):
    forward = LlamaModel.forward

    def unmasked(self, *args, attention_mask=None, **arguments):
        return forward(self, *args, **arguments)

    monkeypatch.setattr(LlamaModel, "forward", unmasked)
    monkeypatch.setattr(
        "lmpg.language.models.forward.response_states.unsupported", lambda *_: "a test"
    )


def sampling_at_another_temperature(monkeypatch):
    choose = decoding.choose
    monkeypatch.setattr(decoding, "choose", lambda logits, *rest: choose(logits * 0.7, *rest))


def with_another_reference(monkeypatch):
    logprobs = Reference.logprobs
    monkeypatch.setattr(Reference, "logprobs", lambda self, inputs: logprobs(self, inputs) - 0.01)


@catches("padding attended to in a whole run", "a failed check before training only warns")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (ignoring_padding, "the model ignores attention_mask or position_ids"),
        (sampling_at_another_temperature, "from a fresh forward's"),
        (with_another_reference, "KL to the reference is 1.0e-02 before any training"),
    ],
)
def test_a_failed_self_test_stops_the_run_and_leaves_nothing_behind(
    plant, said, precision, flags, tmp_path, monkeypatch, capsys
):
    flags["model.precision"] = precision
    with monkeypatch.context() as planted:
        plant(planted)
        with pytest.raises(SystemExit) as ending:
            main(lambda: run_here("ppo", flags))
    assert ending.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the self-test failed")
    assert said in error
    assert not (tmp_path / "run").exists()
    assert (run_here("ppo", flags) / "final").is_dir()


@catches("bf16 deviations held against a fixed number of nats", "bf16 deviations not judged")
def test_in_bf16_the_self_test_judges_by_the_models_own_rounding(monkeypatch):
    policy = deep_policy()
    sampler = Sampler(policy, 8)
    generator = Generator(policy, sampler, tiny_tokenizer(), 0, Processes(), 2)
    prompts = [list(range(5, 5 + n)) for n in (2, 5, 9, 14)]

    def result():
        return self_test(generator, None, prompts)

    sound = result()
    assert sound.rounding > 0.05
    assert sound.logits > 0.05
    require_sound(sound)
    assert "which moves the model's own log-probs by" in sound.line()
    with monkeypatch.context() as planted:
        planted.setattr(Head, "token_logprobs", louder(Head.token_logprobs))
        with pytest.raises(UserError, match="from the model's own logits"):
            require_sound(result())
    assert len(replace(sound, rounding=math.nan).problems()) == 4
    assert len(replace(sound, padding=10 * sound.rounding).problems()) == 1


@catches("a model with experts refused in bf16 because its router rounds otherwise")
@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("sound_in_fp32", [True, False])
def test_a_model_with_experts_is_judged_in_fp32_where_bf16_is_too_coarse(
    experts, sound_in_fp32, monkeypatch
):
    policy, precisions = deep_policy(num_hidden_layers=2), []
    policy.causal_lm.config.num_local_experts = experts
    generator = Generator(policy, Sampler(policy, 8), tiny_tokenizer(), 0, Processes(), 2)

    def tested(generator, reference, prompts):
        precisions.append((policy.bf16, reference.policy.bf16))
        failing = policy.bf16 or not sound_in_fp32
        return replace(SOUND, padding=math.inf if failing else 0.0)

    monkeypatch.setattr(preflight, "self_test", tested)
    found = judged(generator, Reference(policy), [[5]])
    assert precisions == [(True, True)] + [(False, False)] * (experts > 0)
    assert bool(found.problems()) == (not sound_in_fp32 or not experts)


def louder(token_logprobs):
    def changed(self, hidden_ND, *tokens):
        return token_logprobs(self, hidden_ND * 3, *tokens)

    return changed


@pytest.mark.parametrize("name", ["padding", "logits", "sampler"])
def test_rounding_is_judged_by_what_the_temperature_makes_of_it(name):
    assert SOUND.problems() == []
    rounded = replace(SOUND, **{name: 5e-4})
    assert len(rounded.problems()) == 1
    assert replace(rounded, temperature=0.1).problems() == []
    assert len(replace(rounded, temperature=0.5).problems()) == 1
    assert len(replace(SOUND, **{name: math.nan}, temperature=1e-6).problems()) == 1
