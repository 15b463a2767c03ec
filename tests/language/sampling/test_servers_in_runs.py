"""Whole runs whose responses come from a server's double."""

from __future__ import annotations

import json
from contextlib import suppress
from types import SimpleNamespace

import pytest

from lmpg.cli.checking import check
from lmpg.cli.main import settings_of, train_by_name
from lmpg.language.run_generator import refuse_long_waits
from lmpg.settings.section import RunStopped, UserError
from tests.support.planted import catches
from tests.support.programs import let_go, metrics, own_parts, run_here, words
from tests.support.several_runs import forked
from tests.support.vllm_double import serving

GROUPS = {"algorithm.group-size": 4, "algorithm.kl-coef": 0.1}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return own_parts(tmp_path_factory.mktemp("parts"))


def flags(parts, server, folder, **changes):
    given = {"sampling.server": server.url, "model.precision": "fp32"}
    return {**parts, **given, "run.output-dir": folder / "run", **changes}


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("grpo", GROUPS | {"sampling.temperature": 0.7}),
        pytest.param("ppo", {"update.sampler-correction": "truncated"}, marks=pytest.mark.slow),
        pytest.param(
            "ppo", {"model.lora.rank": 4, "sampling.transfer": "lora"}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_run_on_a_server_learns_from_the_policys_own_numbers(
    parts, tmp_path, capsys, method, changes
):
    with serving(parts["model.path"], processed=True) as server:
        folder = run_here(method, flags(parts, server, tmp_path, **changes))
        sent = server.asked.count("/collective_rpc") + server.asked.count("/v1/load_lora_adapter")
    assert sent == 1 + 3  # the first weights, and those after each update
    told = capsys.readouterr().out
    assert f"sampled by {server.url} (vLLM 0.0.double), weights sent" in told
    lines = metrics(folder)
    assert len(lines) == 3
    for line in lines:
        assert abs(line["sampler/kl"]) < 1e-6
        assert line["policy/ratio_mean"] == pytest.approx(1, abs=0.2)
    rows = [json.loads(x) for x in (folder / "samples.jsonl").read_text().splitlines()]
    assert any(row["tokens"]["entropy"][0] for row in rows if "tokens" in row)


@pytest.mark.slow
def test_a_server_that_dies_amid_a_run_costs_no_step(parts, tmp_path, capsys):
    with serving(parts["model.path"]) as server:
        plain = run_here("ppo", flags(parts, server, tmp_path / "plain"))
        server.start_anew()
        server.breaks = 0

        order, sent = server.order, []

        def dying(path, body):
            sent.append(path)
            if sent.count("/collective_rpc") == 3:
                server.breaks = 1
            return order(path, body)

        server.order = dying
        killed = run_here("ppo", flags(parts, server, tmp_path / "killed"))
    assert "asked for again once it is back" in capsys.readouterr().out
    assert metrics(killed) == metrics(plain)


@catches("no rollout asked for ahead", "values of such a rollout left out")
def test_rollouts_sampled_ahead_are_one_update_old_and_their_ratios_say_so(parts, tmp_path):
    changes = {
        "sampling.ahead": 1,
        "update.epochs": 1,
        "update.minibatch-size": 8,
        "update.learning-rate": 3e-3,
        "run.total-steps": 3,
    }
    with serving(parts["model.path"]) as server:
        lines = metrics(run_here("ppo", flags(parts, server, tmp_path, **changes)))
    assert lines[0]["policy/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert min(line["policy/approx_kl"] for line in lines[1:]) > 1e-5


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("rloo", {"sampling.ahead": 1}, "no ratio to correct"),
        ("ppo", {"sampling.ahead": 1, "update.sampler-correction": "masked"}, "own ratio is to"),
        ("reinforce", {"sampling.top-k": 5, "update.sampler-correction": "masked"}, "cut off"),
        ("gkd", {"update.sampler-correction": "masked"}, "whole distributions"),
        ("dapo", {"sampling.ahead": 1, "sampling.max-refills": 1}, "known too late"),
        (
            "ppo",
            {"environment.path": "games.py:Chess"},
            "conversations are sampled in this process",
        ),
        ("ppo", {"sampling.engine": "native"}, "samples in the process"),
        ("ppo", {"sampling.server": "localhost:8000"}, "expected a URL"),
        ("ppo", {"update.sampler-cap": 3.0}, "no effect"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(method, given, said):
    base = {"sampling.server": "http://localhost:8000"}
    with pytest.raises(UserError, match=said):
        settings_of(method, words(base | given))


@pytest.mark.parametrize("key", ["ahead", "transfer", "server-timeout"])
def test_settings_of_servers_without_any_are_refused(key):
    value = {"ahead": 1, "transfer": "folder", "server-timeout": 3}[key]
    with pytest.raises(UserError, match=r"no effect without sampling\.server"):
        settings_of("ppo", words({f"sampling.{key}": value}))
    with pytest.raises(UserError, match=r"without sampling\.server"):
        settings_of("ppo", words({"sampling.engine": "vllm"}))


def test_of_several_processes_none_may_wait_for_its_server_longer_than_the_others_for_it():
    given = {"sampling.server": "http://localhost:8000", "sampling.server-timeout": 700}
    settings = settings_of("ppo", words(given))
    refuse_long_waits(settings, SimpleNamespace(count=1))
    with pytest.raises(UserError, match=r"700 s is longer than run\.rank_timeout = 600 s"):
        refuse_long_waits(settings, SimpleNamespace(count=2))


def test_a_server_that_does_not_suit_leaves_nothing_behind(parts, tmp_path):
    with serving(parts["model.path"], wide=True) as server:
        with pytest.raises(UserError, match="another tokenizer"):
            train_by_name("ppo", words(flags(parts, server, tmp_path)))
        let_go()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_weights_that_stop_arriving_stop_the_run_which_is_saved(parts, tmp_path):
    changes = {"update.learning-rate": 0.1, "run.total-steps": 5}
    with serving(parts["model.path"]) as server:
        order, seen = server.order, []

        def failing(path, body):
            seen.append(path)
            server.ignores = "/collective_rpc" if seen.count("/collective_rpc") > 2 else ""
            return order(path, body)

        server.order = failing
        with pytest.raises(RunStopped, match="deviate from the policy's"):
            train_by_name("ppo", words(flags(parts, server, tmp_path, **changes)))
        let_go()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "deviate" in summary["exit_reason"]
    assert (tmp_path / "run" / "checkpoints").is_dir()


@pytest.mark.slow
@catches("responses of other weights learned from")
def test_a_server_that_was_started_anew_unseen_is_not_learned_from(parts, tmp_path):
    with serving(parts["model.path"]) as server:
        completions = server.completions

        def with_first_weights(body):
            if "return_token_ids" in body and server.asked.count("/collective_rpc") == 2:
                server.start_anew()
            return completions(body)

        server.completions = with_first_weights
        given = flags(parts, server, tmp_path, **{"update.learning-rate": 0.1})
        with pytest.raises(RunStopped, match="step 2: log-probs of what servers sampled deviate"):
            train_by_name("ppo", words(given))
        let_go()


@pytest.mark.slow
def test_lmpg_check_says_which_engine_samples(parts, tmp_path, capsys):
    with serving(parts["model.path"]) as server:
        with suppress(SystemExit):  # 1: it has found traps
            check(["ppo", *words(flags(parts, server, tmp_path))])
        let_go()
    assert f"by {server.url} (vLLM" in capsys.readouterr().out


def test_an_engine_that_is_asked_for_samples(parts, tmp_path, capsys):
    given = {"sampling.engine": "transformers", "run.total-steps": 1}
    run_here("ppo", {**parts, **given, "run.output-dir": tmp_path / "run"})
    assert "because sampling.engine asks for it" in capsys.readouterr().out


@pytest.mark.slow
@catches("each process's prompts with the first rows' seeds")
def test_processes_that_share_out_the_weights_ask_for_what_one_process_asks_for(parts, tmp_path):
    with serving(parts["model.path"]) as server:
        alone = run_here("ppo", flags(parts, server, tmp_path / "alone"))
        given = flags(parts, server, tmp_path / "two", **{"run.sharding": "full"})
        forked(2, [("ppo", given)], tmp_path / "log")
    for line, expected in zip(metrics(tmp_path / "two" / "run"), metrics(alone), strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-5)
