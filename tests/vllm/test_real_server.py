"""A real vLLM server, where there is one: VLLM=ENVIRONMENT/bin/vllm pytest -m slow tests/vllm"""

from __future__ import annotations

import json
import statistics
import threading
import time

import pytest
import torch

from lmpg.language.models.loading import load_policy
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.language.sampling.server import transfer
from lmpg.language.sampling.server.tried_servers import server_sampler
from lmpg.language.sampling.settings import SamplingSettings
from lmpg.runtime.processes import Processes
from lmpg.settings.section import RunStopped
from tests.support.planted import catches
from tests.support.programs import metrics, run_here
from tests.support.tiny import tiny_tokenizer
from tests.vllm.real_server import PROGRAM, real_server, small_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="VLLM names no vllm program, see setup.sh"),
    pytest.mark.timeout(3600),
]
PROMPTS = [[5, 6, 7], [9], list(range(10, 40))]
LEARNING = {
    "sampling.max-new-tokens": 16,
    "update.rollout-size": 64,
    "update.minibatch-size": 32,
    "update.microbatch-size": 64,
    "update.learning-rate": 1e-3,
    "update.adam-eps": 1e-5,
    "algorithm.kl-coef": 0.0,
    "model.precision": "fp32",
    "evaluation.size": 16,
    "run.total-steps": 15,
}
METHODS = {"ppo": {"algorithm.value-coef": 0.1}, "grpo": {"algorithm.group-size": 8}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    with real_server(model, tmp_path_factory.mktemp("server")) as found:
        yield found


def loaded(model, temperature=1.0, **settings):
    asked = ModelSettings(path=str(model), precision="fp32", **settings)
    return load_policy(asked, tiny_tokenizer(), critic=False, temperature=temperature)


def sampler_for(server, policy, folder, **settings):
    asked = SamplingSettings(max_new_tokens=24, server=(server.url,), **settings)
    return server_sampler(asked, policy, tiny_tokenizer(), PROMPTS, folder / "weights", Processes())


def moved(policy):
    """The policy after an update."""
    with torch.no_grad():
        for i, p in enumerate(x for x in policy.model.parameters() if x.requires_grad):
            p += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * p.std()


def test_ids_log_probs_and_new_weights_are_the_policys(server, model, tmp_path):
    policy = loaded(model)
    sampler = sampler_for(server, policy, tmp_path)
    for _ in range(2):
        sampler.publish(Processes())
        samples = sampler.sample(PROMPTS, 16, torch.rand(48, 24))
        new_BT = policy.evaluate(samples.inputs).logprobs_BT.detach()
        torch.testing.assert_close(samples.logprobs_BT, new_BT, atol=2e-4, rtol=0)
        ids, lengths = samples.inputs["response_ids"], samples.inputs["response_lengths"]
        last = ids.gather(1, lengths[:, None] - 1)[:, 0]
        assert torch.equal(last == policy.eos_token_ids[0], samples.finished_B)
        assert samples.finished_B.any()
        moved(policy)
    greedy = sampler.sample(PROMPTS, 1, None)
    assert greedy.mask_BT.any()


def test_raw_log_probs_are_known_as_such(server, model, tmp_path):
    policy = loaded(model, 0.6)
    assert not sampler_for(server, policy, tmp_path, temperature=0.6).comparable


def curve(folder):
    """Mean reward of the last third of a run, and of its first step."""
    rewards = [line["reward"] for line in metrics(folder)]
    return statistics.mean(rewards[-5:]), rewards[0]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_learning_is_the_native_engines_within_noise(server, model, tmp_path, method):
    rows = [{"prompt": "abcdefgh"[i % 8]} for i in range(64)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.py").write_text(
        "def vowels(completions):\n"
        "    return [sum(x in 'aeiou' for x in c) / 16 for c in completions]\n"
    )
    parts = {
        "model.path": model,
        "data.path": tmp_path / "prompts.jsonl",
        "rewards.functions": f"{tmp_path / 'reward.py'}:vowels",
        **LEARNING,
        **METHODS[method],
    }
    ends: dict[str, list[float]] = {"native": [], "vllm": []}
    for engine, found in ends.items():
        for seed in range(3):
            own = {"sampling.server": server.url} if engine == "vllm" else {}
            output = {"run.output-dir": tmp_path / f"{engine}{seed}", "run.seed": seed}
            end, first = curve(run_here(method, {**parts, **own, **output}))
            assert end > first + 0.1
            found.append(end)
    print(f"{method}: {ends}")
    gap = abs(statistics.mean(ends["native"]) - statistics.mean(ends["vllm"]))
    noise = max(statistics.stdev(x) for x in ends.values())
    assert gap < 3 * noise + 0.05


def test_a_server_killed_amid_a_run_and_started_again_costs_a_rollout(model, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n")
    rows = [{"prompt": "abcdefgh"[i % 8]} for i in range(64)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with real_server(model, tmp_path) as server:

        def killer():
            while not list((tmp_path / "run").glob("metrics.jsonl")):
                time.sleep(0.2)
            time.sleep(2)
            server.kill()
            server.start()

        thread = threading.Thread(target=killer, daemon=True)
        thread.start()
        parts = LEARNING | {"run.total-steps": 60, "sampling.server": server.url}
        own = {"model.path": model, "data.path": tmp_path / "prompts.jsonl"}
        reward = {"rewards.functions": "length", "run.output-dir": tmp_path / "run"}
        folder = run_here("grpo", {**parts, **own, **reward, "algorithm.group-size": 8})
        thread.join()
    assert len(metrics(folder)) == 60
    assert "asked for again once it is back" in capsys.readouterr().out


@catches("tied embeddings written as one for a real server")
def test_tied_embeddings_arrive_as_they_are_written_apart(tmp_path, monkeypatch):
    tied = small_llama(tmp_path / "tied", tied=True)
    with real_server(tied, tmp_path) as server:
        policy = loaded(tied)
        sampler = sampler_for(server, policy, tmp_path)
        for _ in range(2):
            sampler.publish(Processes())
            moved(policy)
        monkeypatch.setattr(transfer, "untied", without_an_output_layer)
        with pytest.raises(RunStopped, match="Embedding and output layer of this model are one"):
            sampler.publish(Processes())


def without_an_output_layer(model, state):
    return {name: x for name, x in state.items() if name != "lm_head.weight"}


def test_adapters_are_loaded_at_run_time(model, tmp_path):
    options = "--enable-lora", "--max-lora-rank", "8"
    with real_server(model, tmp_path, *options) as server:
        policy = loaded(model, lora=LoraSettings(rank=4))
        sampler = sampler_for(server, policy, tmp_path, transfer="lora")
        for _ in range(2):
            sampler.publish(Processes())
            samples = sampler.sample(PROMPTS, 4, torch.rand(12, 24))
            new_BT = policy.evaluate(samples.inputs).logprobs_BT.detach()
            torch.testing.assert_close(samples.logprobs_BT, new_BT, atol=1e-3, rtol=0)
            moved(policy)
