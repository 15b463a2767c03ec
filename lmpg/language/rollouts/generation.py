"""Generates completions of the policy, and evaluates them again with the training forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmpg.language.data.prompts import Prompt
from lmpg.language.data.tokenizing import completion_texts
from lmpg.language.models.forward.recompute import is_set_to_recompute
from lmpg.language.models.forward.response_states import one_token_more
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.reference import Reference
from lmpg.language.rollouts.completed import Completions, Draw, Key
from lmpg.language.rollouts.several_turns import Environments
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.sampling.samples import Samples
from lmpg.language.sampling.server.server_sampler import ServerSampler
from lmpg.language.sampling.stops import NewSearch, stopping
from lmpg.runtime.processes import Processes
from lmpg.runtime.room import GAPS
from lmpg.training.old_logprobs import RECOMPUTED, OldLogprobs
from lmpg.training.update import microbatches
from lmpg.types import Evaluation

Evaluate = Callable[[dict[str, Tensor]], Tensor]
WITHOUT_GRADIENTS = 4
"""Micro-batches that a pass without gradients takes at once: what they need is one layer's memory,
not that of all layers."""


def stop_search(
    strings: tuple[str, ...],
    tokenizer: Any,
    policy: CausalLMPolicy,
    tell: Callable[[str], object] | None = None,
) -> NewSearch | None:
    """What looks for stop strings while the policy is sampled; None where there are none.

    tell: is given the first response piece by piece, as it is sampled.
    """
    if not strings and tell is None:
        return None
    texts = partial(completion_texts, tokenizer, eos_token_ids=())
    return stopping(strings, texts, policy.eos_token_ids, tell)


@dataclass(frozen=True)
class Generator:
    """Generates completions; random numbers follow from the seed and a key alone.

    microbatch_size, microbatch_tokens: rows and tokens per forward with gradients; without, see
    `evaluated`. 0 tokens is no limit. old_logprobs: where the log-probs of a rollout come from.
    environments: whom the policy talks to; None where a completion is one turn.
    """

    policy: CausalLMPolicy
    sampler: Sampler | ServerSampler
    tokenizer: Any
    seed: int
    processes: Processes
    microbatch_size: int
    microbatch_tokens: int = 0
    old_logprobs: OldLogprobs = RECOMPUTED
    environments: Environments | None = None

    def completed(self, prompts: list[Prompt], draw: Draw) -> Completions:
        """Completions of each of this rank's prompts, of several turns where there are
        environments."""
        if self.environments is None:
            return self.generate(prompts, draw.group_size, draw.uniforms())
        if not self.policy.is_small:
            GAPS.give_back()  # by loading and learning, in other sizes
        assert isinstance(self.sampler, Sampler)  # no servers where there are environments
        return self.environments.converse(self.sampler, self.tokenizer, prompts, draw)

    def generate(
        self, prompts: list[Prompt], group_size: int, uniforms_BT: Tensor | None
    ) -> Completions:
        """`group_size` completions of each of this rank's prompts; greedy without uniforms."""
        if not self.policy.is_small:
            GAPS.give_back()  # by loading and learning, in other sizes
        samples = self.sampler.sample([p.ids for p in prompts], group_size, uniforms_BT)
        repeated = [p for p in prompts for _ in range(group_size)]
        lengths = samples.inputs["response_lengths"].tolist()
        ids = [row[:n] for row, n in zip(samples.inputs["response_ids"].tolist(), lengths)]
        prompt_ids, ends = [p.ids for p in repeated], self.policy.eos_token_ids
        texts = completion_texts(self.tokenizer, prompt_ids, ids, ends)
        return Completions(repeated, samples, texts, ids, samples.finished_B.tolist())

    def draw(self, key: Key, num_prompts: int, group_size: int, greedy: bool = False) -> Draw:
        """Which random numbers this rank's share of `num_prompts` prompts takes."""
        mine = self.processes.share_of(num_prompts)
        shape = num_prompts, group_size, self.sampler.max_new_tokens
        return Draw((self.seed, *key), *shape, range(mine.start, mine.stop), greedy)

    def uniforms(self, key: Key, num_prompts: int, group_size: int) -> Tensor | None:
        """This rank's rows of the global batch's uniforms [B, T], one per (completion, token)."""
        return self.draw(key, num_prompts, group_size).uniforms()

    @torch.no_grad()
    def old_evaluation(self, samples: Samples) -> Evaluation:
        """Old log-probs, entropy and values of a rollout, as `old_logprobs` says.

        The sampler's log-probs are used as they are, unless they must be recomputed by the training
        forward. A critic with weights of its own is always evaluated here.
        """
        if self.old_logprobs.source == "recomputed":
            return Evaluation(*self._before_update(samples.inputs, self._stacked))
        values_BT = samples.values_BT
        unread = values_BT is None and self.policy.value_head is not None
        if self.policy.critic is not None or unread:
            values_BT = self._before_update(samples.inputs, self.policy.state_values)
        entropy_BT = samples.entropy_BT
        if entropy_BT is None:  # servers tell none; nobody reads that of a rollout
            entropy_BT = torch.zeros_like(samples.logprobs_BT)
        return Evaluation(samples.logprobs_BT, entropy_BT, values_BT)

    def publish(self) -> None:
        """Let the sampler have the policy's weights of this moment; every rank must come here."""
        self.sampler.publish(self.processes)

    @torch.no_grad()
    def entropy(self, samples: Samples) -> Tensor:
        """Entropy of the distribution that each token was drawn from, [B, T] in nats."""
        if samples.entropy_BT is not None:
            return samples.entropy_BT
        return self.evaluated(samples.inputs, lambda x: self.policy.evaluate(x).entropy_BT)

    @torch.no_grad()
    def values_after(self, samples: Samples) -> Tensor:
        """V of the state after each completion's last token, [B]."""
        values_BT = self.evaluated(one_token_more(samples.inputs), self.policy.state_values)
        return values_BT.gather(1, samples.inputs["response_lengths"][:, None])[:, 0]

    @torch.no_grad()
    def sequence_kl(self, reference: Reference, samples: Samples) -> Tensor:
        """log π − log π_ref summed over each completion, [B] in nats."""
        return self.token_kl(reference, samples).sum(1)

    @torch.no_grad()
    def token_kl(self, reference: Reference, samples: Samples) -> Tensor:
        """log π − log π_ref of each token, [B, T] in nats, 0 in padding."""
        logprobs_BT = samples.logprobs_BT
        if not self.sampler.exact:  # the sampler's own differ from the training forward's there
            logprobs_BT = self.evaluated(samples.inputs, self.policy.logprobs)
        difference_BT = logprobs_BT - self.evaluated(samples.inputs, reference.logprobs)
        return torch.where(samples.mask_BT, difference_BT, 0)

    def _stacked(self, inputs: dict[str, Tensor]) -> Tensor:
        """Log-probs, entropy and, if there is a critic, values: [2 or 3, B, T]."""
        new = self.policy.evaluate(inputs)
        found = (new.logprobs_BT, new.entropy_BT, new.values_BT)
        return torch.stack([x for x in found if x is not None])

    def _before_update(self, inputs: dict[str, Tensor], evaluate: Evaluate) -> Tensor:
        """`evaluate` of all rows. Keeps the forward with its graph if the update's first forward
        is over the same rows, so that it is not computed twice."""
        if not self.old_logprobs.keep_forward:
            return self.evaluated(inputs, evaluate)
        with self.policy.keep_forward():
            return evaluate({name: x.cpu() for name, x in inputs.items()}).detach()

    def evaluated(self, inputs: dict[str, Tensor], evaluate: Evaluate) -> Tensor:
        """`evaluate` of all rows, [..., B, T], part by part, in the order of rows. A part is larger
        than a micro-batch that is learned from, unless that keeps little more than one layer, too,
        as the backward pass computes its layers again."""
        host = {name: x.cpu() for name, x in inputs.items()}
        times = 1 if is_set_to_recompute(self.policy.trunk) else WITHOUT_GRADIENTS
        parts = microbatches(host, times * self.microbatch_size, times * self.microbatch_tokens)
        found = []
        for part in parts:
            found.append(evaluate({n: x.index_select(0, part) for n, x in host.items()}))
        place = torch.cat(parts).argsort().to(found[0].device)
        return torch.cat(found, -2).index_select(-2, place)
