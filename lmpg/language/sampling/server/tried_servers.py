"""From URLs to a sampler: what servers are, and whether they suit the policy, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lmpg.language.models.lora import rank_of
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.server.completions import Answer, answers_of, own_logprobs, request_of
from lmpg.language.sampling.server.connection import Server, ServerGone
from lmpg.language.sampling.server.nccl_transfer import NcclTransfer
from lmpg.language.sampling.server.server_sampler import ServerSampler, deviation
from lmpg.language.sampling.server.transfer import AdapterTransfer, FolderTransfer
from lmpg.language.sampling.settings import SamplingSettings
from lmpg.language.sampling.stops import NewSearch
from lmpg.runtime.processes import Processes
from lmpg.settings.section import RunStopped, UserError

_ROWS, _TOKENS = 4, 64
"""Texts whose tokens' log-probs are compared, and how many tokens of each."""
_PATIENCE = 10.0
"""Seconds that a server which has never answered is waited for."""
_DEV_MODE = "a server that was started with the environment variable VLLM_SERVER_DEV_MODE=1"
_WANTED = {
    "auto": f"{_DEV_MODE}, or with --enable-lora for a policy with an adapter (model.lora.rank)",
    "nccl": f"a policy on a GPU, and {_DEV_MODE} and "
    """--weight-transfer-config '{"backend": "nccl"}'""",
    "folder": _DEV_MODE,
    "lora": "a policy with an adapter; set model.lora.rank",
}


def server_sampler(
    settings: SamplingSettings,
    policy: CausalLMPolicy,
    tokenizer: Any,
    prompts: list[list[int]],
    folder: Path,
    processes: Processes,
    stops: NewSearch | None = None,
    *,
    compared: bool = False,
) -> ServerSampler:
    """What asks the servers of the settings; UserError where one of them does not suit.

    prompts: some of the data's, whose tokens are compared. folder: where weights go over, unless
    settings name another. compared: whether the servers' log-probs are learned with.
    """
    servers = [Server(url, settings.server_timeout) for url in settings.server]
    rows = compared_rows(prompts)
    infos = processes.on_main(lambda: [_known(x, tokenizer, rows, policy) for x in servers])
    for server, info in zip(servers, infos):
        server.model = info["model"]
        _refuse_short_context(server, info["context"], settings, prompts)
    place = folder if settings.transfer_folder is None else Path(settings.transfer_folder)
    transfer = transfer_of(settings, policy, infos, place.expanduser(), tokenizer)
    seeded = not any(x["loses_seeds"] for x in infos)
    comparable = _comparable(settings, policy, servers[0], rows[0], processes)
    if compared and not comparable:
        raise UserError(
            f"sampling.server = {servers[0].url} gives the log-probs of another distribution than "
            "it samples from (raw ones), expected processed ones, as update.sampler_correction and "
            "sampling.ahead compute with them; start it with --logprobs-mode processed_logprobs"
        )
    parts = policy, settings, servers, transfer, rows
    return ServerSampler(
        *parts,
        stops=stops,
        comparable=comparable,
        seeded=seeded,
        backend=_backend(servers, infos, transfer.said, seeded),
    )


def _backend(
    servers: list[Server], infos: list[dict[str, Any]], how_sent: str, seeded: bool
) -> str:
    """How responses are sampled, in words."""
    names = ", ".join(f"{x.url} (vLLM {info['version']})" for x, info in zip(servers, infos))
    without = "" if seeded else "; without seeds, which vLLM on a CPU does not survive"
    return f"by {names}, weights sent {how_sent}{without}"


def _refuse_short_context(
    server: Server, context: int, settings: SamplingSettings, prompts: list[list[int]]
) -> None:
    longest = max(map(len, prompts))
    if longest + settings.max_new_tokens > context:
        raise UserError(
            f"sampling.server = {server.url} holds {context} tokens, but the longest prompt has "
            f"{longest} and sampling.max_new_tokens is {settings.max_new_tokens}, expected room "
            "for both; start it with a larger --max-model-len, or set max_new_tokens lower"
        )


def compared_rows(prompts: list[list[int]]) -> list[list[int]]:
    """A few texts of two tokens or more."""
    longer = [ids[:_TOKENS] if len(ids) > 1 else ids * 2 for ids in prompts]
    return [list(ids) for ids in dict.fromkeys(map(tuple, longer))][:_ROWS]


def _known(
    server: Server, tokenizer: Any, rows: list[list[int]], policy: CausalLMPolicy
) -> dict[str, Any]:
    """What the server is: version, the model's name, context; UserError where it does not suit."""
    found = _first_answer(server, "/version")
    if not isinstance(found, dict) or "version" not in found:
        raise UserError(
            f"sampling.server = {server.url} answers, but not as a vLLM server does, expected its "
            "URL without a path, such as http://localhost:8000"
        )
    models = (_first_answer(server, "/v1/models") or {}).get("data") or [{}]
    model: dict[str, Any] = next((x for x in models if not x.get("parent")), {})
    context = model.get("max_model_len") or policy.context_length
    texts = [tokenizer.decode(ids) for ids in rows]
    for text in texts:
        mine = tokenizer(text, add_special_tokens=False)["input_ids"]
        body = {"model": model.get("id"), "prompt": text, "add_special_tokens": False}
        theirs = (_first_answer(server, "/tokenize", body) or {}).get("tokens")
        if theirs != mine:
            raise UserError(
                f"sampling.server = {server.url} has another tokenizer than the policy: {text!r} "
                f"is {theirs} there and {mine} here, expected the same; start it with the model "
                "and the tokenizer that the run trains"
            )
    try:
        info = (server.ask("/server_info?config_format=json") or {}).get("vllm_config") or {}
    except (RunStopped, ServerGone):
        info = None  # as without VLLM_SERVER_DEV_MODE
    return {
        "version": found["version"],
        "model": model.get("id"),
        "context": context,
        "dev": info is not None,
        "nccl": "nccl" in str((info or {}).get("weight_transfer_config")),
        "loses_seeds": "cpu" in str((info or {}).get("device_config")),
    }


def _first_answer(server: Server, path: str, body: Any = None) -> Any:
    try:
        return server.ask(path, body, seconds=min(_PATIENCE, server.timeout))
    except (ServerGone, RunStopped) as error:
        said = str(error).removeprefix(f"sampling.server = {server.url}: ")
        raise UserError(
            f"sampling.server = {server.url}: {said.removeprefix(server.url).strip()}, expected a "
            "vLLM server of the model that is trained; start it (vllm serve MODEL), or mend the URL"
        ) from None


def transfer_of(
    settings: SamplingSettings,
    policy: CausalLMPolicy,
    infos: list[dict[str, Any]],
    folder: Path,
    tokenizer: Any,
) -> Any:
    """How weights go over: as the settings ask, or the first way that both sides can go."""
    asked = settings.transfer
    possible = {
        "nccl": policy.device.type == "cuda" and all(x["nccl"] for x in infos),
        "folder": all(x["dev"] for x in infos),
        "lora": rank_of(policy.model) > 0,
    }
    chosen = next((way for way, can in possible.items() if can and asked in ("auto", way)), None)
    if chosen is None:
        raise UserError(
            f"sampling.transfer = {asked}: weights cannot go to {', '.join(settings.server)} that "
            f"way, expected {_WANTED[asked]}"
        )
    if chosen == "nccl":
        return NcclTransfer()
    if chosen == "lora":
        return AdapterTransfer(folder)
    return FolderTransfer(folder, tokenizer)


def _comparable(
    settings: SamplingSettings,
    policy: CausalLMPolicy,
    server: Server,
    prompt: list[int],
    processes: Processes,
) -> bool:
    """Whether the log-probs that the server gives are of what it samples from.

    vLLM gives those at temperature 1, of all tokens, unless --logprobs-mode says otherwise; which
    it is, a few tokens tell.
    """
    cut = settings.top_k > 0 or settings.top_p < 1
    if settings.temperature == 1 or cut:
        return not cut and settings.min_new_tokens == 0

    def processed() -> bool:
        found = _tried(policy, settings, server, prompt)
        ids, logprobs = prompt + found[0], found[1]
        raw, other = (
            own_logprobs(policy, [ids], temperature)[0][-len(logprobs) :]
            for temperature in (1.0, policy.temperature)
        )
        return deviation([other], [logprobs]) < deviation([raw], [logprobs])

    return processes.on_main(processed)


def _tried(
    policy: CausalLMPolicy, settings: SamplingSettings, server: Server, prompt: list[int]
) -> Answer:
    limit = min(8, policy.context_length - len(prompt))
    body = request_of(policy, settings, prompt, 1, limit, torch.full((1, 2), 0.5), seeded=False)
    try:
        return answers_of(server, body, 1)[0]
    except ServerGone as error:
        raise UserError(f"sampling.server: {error}") from None
