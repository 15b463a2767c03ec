"""Responses of a server's double: ids, log-probs, weights, and what goes wrong with servers."""

from __future__ import annotations

import math

import pytest
import torch

from lmpg.language.models.loading import load_policy
from lmpg.language.models.lora import is_lora
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.language.rollouts.generation import stop_search
from lmpg.language.sampling.server.completions import own_logprobs, seed_of
from lmpg.language.sampling.server.tried_servers import server_sampler
from lmpg.language.sampling.settings import SamplingSettings
from lmpg.runtime.processes import Processes
from lmpg.settings.section import RunStopped, UserError
from tests.support.planted import catches
from tests.support.tiny import CONTEXT, EOS, PAD, save_tiny, tiny_tokenizer
from tests.support.vllm_double import serving

PROMPTS = [[5, 6, 7], [9], [10, 11, 12, 13]]
ORDER = ["/pausewait", "/collective_rpc", "/reset_prefix_cache", "/resume"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def loaded(model, temperature=1.0, **settings):
    return load_policy(
        ModelSettings(path=model, precision="fp32", **settings),
        tiny_tokenizer(),
        critic=False,
        temperature=temperature,
    )


def asking(server, policy, folder, /, **settings):
    """A sampler that asks the server, once weights have gone over."""
    given = {"max_new_tokens": 6, "server": (server.url,), "server_timeout": 5.0}
    asked = SamplingSettings(**(given | settings))
    tokenizer, processes = tiny_tokenizer(), Processes()
    stops = stop_search(asked.stop, tokenizer, policy)
    parts = asked, policy, tokenizer, PROMPTS, folder / "weights", processes, stops
    sampler = server_sampler(*parts)
    sampler.publish(processes)
    return sampler


def uniforms(rows, seed=0):
    return torch.rand(rows, 6, generator=torch.Generator().manual_seed(seed))


def moved(policy, by=0.3):
    """The policy after an update."""
    with torch.no_grad():
        for i, p in enumerate(x for x in policy.model.parameters() if x.requires_grad):
            p += by * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * p.std()


@catches("a request without the temperature")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_server_gives_ids_and_log_probs_of_the_policy(model, tmp_path, temperature):
    policy = loaded(model, temperature)
    with serving(model, processed=True) as server:
        sampler = asking(server, policy, tmp_path, temperature=temperature)
        samples = sampler.sample(PROMPTS, 8, uniforms(24))
    new = policy.evaluate(samples.inputs)
    torch.testing.assert_close(samples.logprobs_BT, new.logprobs_BT.detach(), atol=1e-5, rtol=0)
    lengths = samples.inputs["response_lengths"]
    assert torch.equal(samples.mask_BT.sum(1), lengths)
    for ids, n, ended in zip(samples.inputs["response_ids"], lengths, samples.finished_B):
        assert (int(ids[n - 1]) == EOS) == bool(ended)
        assert ended or n == 6
        assert (ids[n:] == PAD).all()
    assert sampler.comparable
    assert samples.finished_B.any()


def test_rows_have_seeds_of_their_own_that_follow_from_their_random_numbers(model, tmp_path):
    policy = loaded(model)
    with serving(model) as server:
        sampler = asking(server, policy, tmp_path)
        whole = sampler.sample(PROMPTS, 2, uniforms(6))
        part = sampler.sample(PROMPTS[1:], 2, uniforms(6)[2:])
        other = sampler.sample(PROMPTS, 2, uniforms(6, seed=1))
        seeds = server.seeds
    assert len(set(seeds[:3])) == 3
    assert set(seeds[3:5]) < set(seeds[:3])  # requests arrive in any order
    assert not set(seeds[5:]) & set(seeds[:3])
    assert all(0 <= x < 2**48 for x in seeds)
    ids = whole.inputs["response_ids"]
    rest = part.inputs["response_ids"]
    assert torch.equal(ids[2:, : rest.shape[1]], rest)
    assert not torch.equal(ids, other.inputs["response_ids"])
    assert seed_of(torch.tensor([[0.5]])) == 2**47 + 2**23


def test_a_server_on_a_cpu_gets_no_seed_which_is_said(model, tmp_path):
    with serving(model, cpu=True) as server:
        sampler = asking(server, loaded(model), tmp_path)
        sampler.sample(PROMPTS, 2, uniforms(6))
        assert set(server.seeds) == {None}
    assert "without seeds" in sampler.backend


@catches("raw log-probs taken for those of the temperature")
def test_raw_log_probs_are_known_as_such_and_not_compared(model, tmp_path):
    with serving(model) as server:
        sampler = asking(server, loaded(model, 0.5), tmp_path, temperature=0.5)
        samples = sampler.sample(PROMPTS, 2, uniforms(6))
        assert not sampler.comparable
        assert not samples.logprobs_BT.any()
        parts = SamplingSettings(server=(server.url,), temperature=0.5, max_new_tokens=6)
        rest = loaded(model, 0.5), tiny_tokenizer(), PROMPTS, tmp_path, Processes()
        with pytest.raises(UserError, match="--logprobs-mode processed_logprobs"):
            server_sampler(parts, *rest, compared=True)


def test_greedy_responses_stop_strings_and_early_ends(model, tmp_path):
    policy = loaded(model)
    with serving(model) as server:
        greedy = asking(server, policy, tmp_path).sample(PROMPTS, 2, None)
        rows = greedy.inputs["response_ids"]
        assert torch.equal(rows[0::2], rows[1::2])
        text = tiny_tokenizer().decode(rows[0][:3])
        stopped = asking(server, policy, tmp_path, stop=(text[1:],)).sample(PROMPTS[:1], 1, None)
        assert stopped.inputs["response_lengths"].tolist() == [3]
        assert stopped.finished_B.tolist() == [True]
        policy.head.forbid_early(policy.eos_token_ids, 4)
        late = asking(server, policy, tmp_path, min_new_tokens=4)
        assert late.sample(PROMPTS, 4, uniforms(12)).inputs["response_lengths"].min() >= 4


@catches("weights sent anew although none has changed", "reload before the pause")
def test_weights_go_over_when_they_have_changed_in_the_one_order_that_is_right(model, tmp_path):
    policy = loaded(model)
    with serving(model) as server:
        sampler = asking(server, policy, tmp_path)
        first = [x for x in server.asked if x in ORDER]
        sampler.publish(Processes())
        assert [x for x in server.asked if x in ORDER] == first == ORDER
        sampler.sample(PROMPTS, 2, uniforms(6))  # what servers keep of prompts becomes old
        moved(policy)
        sampler.publish(Processes())
        samples = sampler.sample(PROMPTS, 2, uniforms(6))
        assert [x for x in server.asked if x in ORDER] == ORDER * 2
    new = policy.evaluate(samples.inputs).logprobs_BT.detach()
    torch.testing.assert_close(samples.logprobs_BT, new, atol=1e-5, rtol=0)


@catches("tied embeddings written once", "the deviation that was found passed over")
@pytest.mark.parametrize("fault", ["weights", "tied"])
def test_weights_that_do_not_arrive_end_the_run(tmp_path, fault):
    tied = fault == "tied"
    model = save_tiny(tmp_path / "model", tie_word_embeddings=tied)
    policy = loaded(model)
    with serving(model) as server:
        sampler = asking(server, policy, tmp_path)
        moved(policy, by=0.01)
        if tied:
            server.keeps_output_layer = True
        else:
            server.ignores = "/collective_rpc"
        with pytest.raises(RunStopped, match=r"log-probs deviate .* nats per token") as said:
            sampler.publish(Processes())
    assert ("start the server with" in str(said.value)) == tied
    again = loaded(str(tmp_path / "weights"))  # what was written is whole
    ids = [[5, 6, 7, 8]]
    assert own_logprobs(again, ids)[0] == pytest.approx(own_logprobs(policy, ids)[0], abs=1e-5)


def test_a_server_with_other_weights_gets_the_policys(model, tmp_path):
    policy = loaded(model)
    with serving(save_tiny(tmp_path / "other", seed=5)) as server:
        samples = asking(server, policy, tmp_path).sample(PROMPTS, 2, uniforms(6))
    new = policy.evaluate(samples.inputs).logprobs_BT.detach()
    torch.testing.assert_close(samples.logprobs_BT, new, atol=1e-5, rtol=0)


@catches("an adapter under the name of the one before")
@pytest.mark.parametrize("way", ["lora", "folder"])
def test_adapters_go_over_alone_or_merged(model, tmp_path, way):
    policy = loaded(model, lora=LoraSettings(rank=4))
    with serving(model, dev=way == "folder") as server:
        sampler = asking(server, policy, tmp_path)
        sampler.sample(PROMPTS, 2, uniforms(6))  # what servers keep of prompts becomes old
        for layer in (x for x in policy.modules() if is_lora(x)):
            layer.lora_B["default"].weight.data.normal_(
                generator=torch.Generator().manual_seed(0), std=0.05
            )
        sampler.publish(Processes())
        samples = sampler.sample(PROMPTS, 2, uniforms(6))
        assert ("/collective_rpc" in server.asked) == (way == "folder")
    new = policy.evaluate(samples.inputs).logprobs_BT.detach()
    torch.testing.assert_close(samples.logprobs_BT, new, atol=1e-5, rtol=0)
    assert ("LoRA adapter" in sampler.backend) == (way == "lora")


@catches("an adapter that another process is loading ends the run", "one is taken from others")
@pytest.mark.parametrize("lacks_it", [True, False])
def test_an_adapter_that_a_server_lacks_for_a_moment_is_loaded_anew(model, tmp_path, lacks_it):
    with serving(model, dev=False) as server:
        sampler = asking(server, loaded(model, lora=LoraSettings(rank=4)), tmp_path)
        server.adapters = {} if lacks_it else server.adapters
        server.start_anew, server.breaks = lambda: None, int(not lacks_it)
        sampler.sample(PROMPTS, 2, uniforms(6))
        assert server.asked.count("/v1/load_lora_adapter") == 1 + lacks_it


def test_an_adapter_over_other_weights_is_refused(model, tmp_path):
    policy = loaded(model, lora=LoraSettings(rank=4))
    other = save_tiny(tmp_path / "other", seed=5)
    with serving(other, dev=False) as server, pytest.raises(RunStopped, match="deviate"):
        asking(server, policy, tmp_path)


@catches("a server that comes back is sampled from with its first weights")
def test_a_server_that_dies_costs_a_rollouts_restart(model, tmp_path, capsys):
    policy = loaded(model)
    with serving(model) as server:
        sampler = asking(server, policy, tmp_path)
        moved(policy)
        sampler.publish(Processes())
        server.breaks = 1
        samples = sampler.sample(PROMPTS, 2, uniforms(6))
    new = policy.evaluate(samples.inputs).logprobs_BT.detach()
    torch.testing.assert_close(samples.logprobs_BT, new, atol=1e-5, rtol=0)
    assert sampler.restarts == 1
    assert "asked for again once it is back" in capsys.readouterr().out


def test_a_folder_that_takes_no_weights_ends_the_run_with_the_reason(model, tmp_path):
    (tmp_path / "file").touch()
    with (
        serving(model) as server,
        pytest.raises(
            RunStopped, match=r"sampling\.transfer_folder cannot be written: .*Not a dir"
        ),
    ):
        asking(server, loaded(model), tmp_path / "file", transfer="folder")


def test_a_server_that_does_not_come_back_or_is_too_slow_ends_the_run(model, tmp_path):
    policy = loaded(model)
    with serving(model) as server:
        sampler = asking(server, policy, tmp_path, server_timeout=0.2)
        server.busy = 0.6
        with pytest.raises(RunStopped, match=r"failed 3 times.*server_timeout = 0\.2"):
            sampler.sample(PROMPTS[:1], 1, uniforms(1))
    with pytest.raises(RunStopped, match=r"server_timeout = 0\.2 s are over\. Start it again"):
        sampler.sample(PROMPTS, 1, uniforms(3))


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        ({"wide": True}, {}, "another tokenizer"),
        ({"context": 9}, {}, "holds 9 tokens"),
        ({"dev": False}, {}, "VLLM_SERVER_DEV_MODE=1"),
        ({}, {"transfer": "lora"}, "model.lora.rank"),
        ({}, {"transfer": "nccl"}, "on a GPU"),
    ],
)
def test_servers_that_do_not_suit_are_refused_before_any_work(
    model, tmp_path, options, settings, said
):
    with serving(model, **options) as server, pytest.raises(UserError, match=said):
        asking(server, loaded(model), tmp_path, **settings)


def test_a_wrong_url_is_told_at_once(model, tmp_path):
    with serving(model) as server:
        url = server.url
        with pytest.raises(UserError, match="expected a vLLM server"):
            asking(server, loaded(model), tmp_path, server=(f"{url}/nothing",))
    with pytest.raises(UserError, match=r"did not answer.*start it"):
        asking(server, loaded(model), tmp_path, server=(url,))


def test_rows_are_shared_out_among_servers_and_asked_for_ahead(model, tmp_path):
    policy = loaded(model)
    with serving(model) as one, serving(model) as two:
        sampler = asking(one, policy, tmp_path, server=(one.url, two.url))
        plain = sampler.sample(PROMPTS, 2, uniforms(6))
        assert len(one.seeds) == 2
        assert len(two.seeds) == 1
        sampler.ask_ahead(PROMPTS, 2, uniforms(6))
        moved(policy)
        sampler.publish(Processes())  # waits for what is under way
        ahead = sampler.sample(PROMPTS, 2, uniforms(6))
        later = sampler.sample(PROMPTS, 2, uniforms(6))
    assert torch.equal(ahead.logprobs_BT, plain.logprobs_BT)
    assert not torch.equal(later.logprobs_BT[:, :1], plain.logprobs_BT[:, :1])
    assert CONTEXT == 64
    assert math.isfinite(float(later.logprobs_BT.sum()))
