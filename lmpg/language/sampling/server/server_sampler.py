"""Responses from vLLM servers, in place of the engines that sample in the process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.samples import DistinctPrompts, Recorded, Samples, recorded_samples
from lmpg.language.sampling.server.completions import (
    Answer,
    answers_of,
    own_logprobs,
    prompt_logprobs,
    request_of,
)
from lmpg.language.sampling.server.connection import Server, ServerGone
from lmpg.language.sampling.server.threads import Threads
from lmpg.language.sampling.settings import SamplingSettings
from lmpg.language.sampling.stops import NewSearch
from lmpg.runtime.parts import mine
from lmpg.runtime.processes import Processes
from lmpg.settings.section import RunStopped

_ATTEMPTS = 3
"""Times that weights are sent, or a rollout is asked for, before the run is given up."""
_GROWTH, _LEAST = 10.0, 1e-3
"""How far log-probs may part from the policy's: in multiples of how far they were at the start,
and nats beside these."""


class ServerSampler:
    """Asks servers for responses: prompt i of a process goes to server i, round and round.

    exact: whether its log-probs are the training forward's. comparable: whether they are of the
    distribution that tokens were drawn from, so that they can be compared at all. remote: it is no
    part of this process, and `publish` has compared it with the policy. backend: how
    responses are sampled, in words. ahead: rollouts that are asked for
    before they are due. restarts: those that were asked for again.
    """

    exact = False
    remote = True

    def __init__(
        self,
        policy: CausalLMPolicy,
        settings: SamplingSettings,
        servers: list[Server],
        transfer: Any,
        rows: list[list[int]],
        *,
        stops: NewSearch | None = None,
        comparable: bool = True,
        seeded: bool = True,
        backend: str = "",
    ) -> None:
        """rows: the texts whose tokens' log-probs are compared after each transfer."""
        self.policy, self.backend = policy, backend
        self.max_new_tokens, self.ahead = settings.max_new_tokens, settings.ahead
        self.comparable, self.max_deviation = comparable, settings.max_deviation
        self.restarts = 0
        self._servers, self._transfer, self._rows = servers, transfer, rows
        self._stops, self._settings, self._seeded = stops, settings, seeded
        self._threads = Threads()
        self._ahead: dict[Any, list[Future]] = {}
        self._own: list[list[float]] = []
        self._mark: tuple[float, ...] | None = None
        self._most = settings.max_deviation
        self._rank = 0

    def publish(self, processes: Processes) -> None:
        """Send the policy's weights to all servers, if they have changed, and see that they have
        arrived; every rank must come here. RunStopped where they have not."""
        wait([future for asked in self._ahead.values() for future in asked])
        mark = weights_mark(self.policy)
        if not any(processes.gather_list([mark != self._mark])):
            return
        self._rank = processes.rank
        problem, most = processes.on_main(lambda: _problem(self._send))
        if problem:
            raise RunStopped(problem)
        self._most, self._mark = most, mark
        own, version = processes.on_main(lambda: (self._own, self._transfer.version))
        self._own, self._transfer.version = own, version
        self._name_model()

    def ask_ahead(
        self, prompts: list[list[int]], group_size: int, uniforms_BT: Tensor | None
    ) -> None:
        """Ask now for what `sample` will be asked for with the same arguments."""
        key = _key(prompts, group_size, uniforms_BT)
        self._ahead[key] = self._asked(prompts, group_size, uniforms_BT)

    def reading_once(self) -> AbstractContextManager[None]:
        """A block in which the policy does not learn; servers have its weights already."""
        return nullcontext()

    @torch.no_grad()
    def sample(
        self, prompts: list[list[int]], group_size: int, uniforms_BT: Tensor | None
    ) -> Samples:
        """`group_size` responses to each prompt; row b is sample b % G of prompt b // G.

        uniforms_BT: random numbers, out of which a server's seeds are made; None asks for the
        likeliest tokens. Where a server goes amid this, all is asked for again once it is back.
        """
        asked = self._ahead.pop(_key(prompts, group_size, uniforms_BT), None)
        for attempt in range(_ATTEMPTS):
            asked = asked or self._asked(prompts, group_size, uniforms_BT)
            try:
                wait(asked)
                return self._samples(prompts, group_size, [x.result() for x in asked])
            except ServerGone as error:
                asked = None
                if attempt + 1 == _ATTEMPTS:
                    raise RunStopped(
                        f"sampling.server: a rollout failed {_ATTEMPTS} times, expected responses "
                        f"within sampling.server_timeout = {self._settings.server_timeout:g} s. "
                        f"The last time: {error}"
                    ) from None
                self._restore(error)
        raise AssertionError

    def _asked(
        self, prompts: list[list[int]], group_size: int, uniforms_BT: Tensor | None
    ) -> list[Future]:
        """A request for each prompt, under way."""
        asked = []
        for i, (ids, limit) in enumerate(zip(prompts, self._limits(prompts))):
            of_group = slice(i * group_size, (i + 1) * group_size)
            uniforms = None if uniforms_BT is None else uniforms_BT[of_group]
            parts = self.policy, self._settings, ids, group_size, limit, uniforms
            body = request_of(*parts, seeded=self._seeded)
            server = self._servers[(i + self._rank) % len(self._servers)]
            asked.append(self._threads(partial(answers_of, server, body, group_size)))
        return asked

    def _samples(
        self, prompts: list[list[int]], group_size: int, groups: list[list[Answer]]
    ) -> Samples:
        """The answers as tensors; a row ends with its first EOS token, where a stop string is
        complete, or where the server has ended it."""
        policy, rows = self.policy, [answer for group in groups for answer in group]
        lengths = [len(ids) for ids, _, _ in rows]
        width = max(lengths)
        ids_BT = torch.full((len(rows), width), policy.pad_token_id)
        logprobs_BT = torch.zeros(len(rows), width)
        for b, (ids, logprobs, _) in enumerate(rows):
            ids_BT[b, : len(ids)] = torch.tensor(ids)
            logprobs_BT[b, : len(ids)] = torch.tensor(logprobs)
        embedding: Any = policy.causal_lm.get_input_embeddings()
        vocabulary = len(embedding.weight)
        if int(ids_BT.max()) >= vocabulary:
            raise RunStopped(
                f"sampling.server: token {int(ids_BT.max())} came, but the policy's vocabulary has "
                f"{vocabulary} tokens, expected a server of the same model; start it with that"
            )
        if not self.comparable:
            logprobs_BT = torch.zeros_like(logprobs_BT)
        prompts_of = DistinctPrompts.of(prompts, group_size, policy.pad_token_id)
        limits = [x for x in self._limits(prompts) for _ in range(group_size)]
        ends = [n - 1 if ended else width for n, (_, _, ended) in zip(lengths, rows)]
        stop_B = torch.tensor(ends)
        if self._stops is not None:
            search = self._stops(prompts_of)
            search.read(list(range(len(rows))), ids_BT.T.tolist())
            stop_B = torch.minimum(stop_B, search.last_tokens(width))
        device = policy.device
        recorded = Recorded(ids_BT.to(device), logprobs_BT.to(device), None, None)
        given = torch.tensor(limits, device=device), prompts_of.to(device), policy
        return recorded_samples(recorded, *given, stop_B.to(device))

    def _limits(self, prompts: list[list[int]]) -> list[int]:
        """Tokens that each response may have."""
        room = [self.policy.context_length - len(ids) for ids in prompts]
        return [min(x, self.max_new_tokens) for x in room]

    def _send(self) -> float:
        """Send the weights of this moment to every server; returns how far log-probs may deviate
        from now on."""
        self._transfer.write(self.policy)
        self._own = own_logprobs(self.policy, self._rows)
        return max(self._deliver(server) for server in self._servers)

    def _deliver(self, server: Server) -> float:
        """Send the weights and look what has arrived; a server that goes meanwhile is waited for.
        Returns how far log-probs may deviate from now on."""
        for attempt in range(_ATTEMPTS):
            try:
                self._transfer.send(server)
                self._name_model()
                found = deviation(self._own, [prompt_logprobs(server, x) for x in self._rows])
                break
            except ServerGone as error:
                if attempt + 1 == _ATTEMPTS:
                    raise RunStopped(
                        f"sampling.server: weights were sent {_ATTEMPTS} times {self._said} and "
                        f"have not arrived: {error}"
                    ) from None
                print(f"warning: {error}; it gets the weights once it is back", flush=True)
                server.wait()
                self._transfer.forget(server)
        if not found <= self._most:
            raise RunStopped(
                f"sampling.server = {server.url}: after weights were sent {self._said}, its "
                f"log-probs deviate from the policy's by {found:.2g} nats per token, expected "
                f"{self._most:.2g} at most (sampling.max_deviation = "
                f"{self._settings.max_deviation:g}). {self._hint()}"
            )
        return min(self._most, _GROWTH * found + _LEAST)

    def _restore(self, error: ServerGone) -> None:
        """Give servers the weights again, one of which may have been started anew; not where they
        have them: other processes would find the adapter gone that they are asking for."""
        self.restarts += 1
        if not self._transfer.can_send:
            raise RunStopped(
                f"sampling.server: {error}. Its weights come from rank 0 and cannot be sent again "
                "here; start it again, and the run with --run.resume"
            )
        print(f"warning: {error}; the rollout is asked for again once it is back", flush=True)
        for server in self._servers:
            server.wait()
            if not self._transfer.is_there(server):
                self._transfer.forget(server)
                self._deliver(server)

    def _name_model(self) -> None:
        for server in self._servers:
            server.model = self._transfer.model or server.model

    @property
    def _said(self) -> str:
        return self._transfer.said

    def _hint(self) -> str:
        if (
            self.policy.causal_lm.config.get_text_config().tie_word_embeddings
            and self._transfer.folder
        ):
            return (
                "Embedding and output layer of this model are one, of which some servers take but "
                f"the embedding: start the server with {self._transfer.folder}, where they are two"
            )
        return "Start the server with the model that the run trains, in like precision"


def weights_mark(policy: CausalLMPolicy) -> tuple[float, ...]:
    """Numbers that change with the policy's weights, those of the critic aside."""
    learning: list[Any] = [p.detach() for p in policy.model.parameters() if p.requires_grad]
    local = [mine(x) for x in learning]
    sums = [x.sum(dtype=torch.float32) for x in local]
    norms = [x.float().norm() for x in local]
    return tuple(torch.stack([*sums, *norms]).tolist()) if local else (0.0,)


def deviation(own: list[list[float]], theirs: list[list[float]]) -> float:
    """Mean |difference| of log-probs, in nats per token."""
    pairs = [pair for rows in zip(own, theirs) for pair in zip(*rows)]
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def _problem(action: Callable[[], float]) -> tuple[str | None, float]:
    """What stops the run, in words, as only words travel between ranks; else the result."""
    try:
        return None, action()
    except RunStopped as error:
        return str(error), 0.0
    except (OSError, SafetensorError) as error:
        return f"sampling.transfer_folder cannot be written: {error}. Make room there", 0.0


def _key(prompts: list[list[int]], group_size: int, uniforms_BT: Tensor | None) -> Any:
    drawn = None if uniforms_BT is None else tuple(uniforms_BT.flatten()[:64].tolist())
    return tuple(map(tuple, prompts)), group_size, drawn
