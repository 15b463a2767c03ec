"""Responses of a policy to prompts: sampled, as text, with what the policy thinks of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lmpg.language.data.prompts import Prompt
from lmpg.language.data.tokenizing import completion_texts
from lmpg.language.models.forward.response_states import one_token_more
from lmpg.language.models.policy import CausalLMPolicy, Reference
from lmpg.language.rewards.scorer import PendingScores, Scorer, Scores
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.sampling.samples import Samples, concatenated
from lmpg.runtime.processes import Processes
from lmpg.runtime.seeding import generator
from lmpg.runtime.stopwatch import Stopwatch
from lmpg.training.microbatches import microbatches
from lmpg.types import Evaluation

Key = tuple[int | str, ...]


@dataclass(frozen=True)
class Responses:
    """This rank's responses, one prompt for each, as text and as token ids (EOS included)."""

    prompts: list[Prompt]
    samples: Samples
    completions: list[str]
    ids: list[list[int]]

    @property
    def finished(self) -> list[bool]:
        """Whether each ended by an EOS token, not at the limit."""
        return self.samples.finished_B.tolist()

    def scored_by(self, scorer: Scorer) -> Scores:
        """Their scores."""
        return self.submitted_to(scorer).result()

    def submitted_to(self, scorer: Scorer) -> PendingScores:
        """Begins to score them."""
        names = sorted({name for p in self.prompts for name in p.columns})
        columns = {name: [p.columns.get(name) for p in self.prompts] for name in names}
        prompts = [p.prompt for p in self.prompts]
        return scorer.submit(prompts, self.completions, self.ids, columns)


@dataclass(frozen=True)
class Responder:
    """Samples from the policy; random numbers follow from the seed and a key alone.

    microbatch_size, microbatch_tokens: rows and tokens per forward where responses are evaluated
    again; 0 tokens is no limit. whole_update: the update's first pass is over all of a rollout at
    once, so that what it computes can be computed ahead.
    """

    policy: CausalLMPolicy
    sampler: Sampler
    tokenizer: Any
    seed: int
    processes: Processes
    microbatch_size: int
    microbatch_tokens: int = 0
    whole_update: bool = False

    def respond(
        self, prompts: list[Prompt], group_size: int, uniforms_BT: Tensor | None
    ) -> Responses:
        """`group_size` responses to each of this rank's prompts; None for uniforms is greedy."""
        samples = self.sampler.sample([p.ids for p in prompts], group_size, uniforms_BT)
        asked = [p for p in prompts for _ in range(group_size)]
        lengths = samples.inputs["response_lengths"].tolist()
        ids = [row[:n] for row, n in zip(samples.inputs["response_ids"].tolist(), lengths)]
        completions = completion_texts(self.tokenizer, [p.ids for p in asked], ids)
        return Responses(asked, samples, completions, ids)

    def uniforms(self, key: Key, num_prompts: int, group_size: int) -> Tensor:
        """This rank's rows of the global batch's uniforms [B, T], one per (response, token)."""
        shape = (num_prompts * group_size, self.sampler.max_new_tokens)
        drawn = torch.rand(shape, generator=generator(self.seed, *key))
        mine = self.processes.share_of(num_prompts)
        return drawn[mine.start * group_size : mine.stop * group_size]

    @torch.no_grad()
    def recorded(self, samples: Samples, sampled_will_do: bool = False) -> Evaluation:
        """Log-probs and values before the update: the sampler's own where they are exact (fp32) or
        will do, else those of a fresh forward, so that the first ratio is 1. With `whole_update`
        the policy keeps that forward's graph, for the update."""
        if not self.policy.bf16 or sampled_will_do:
            values_BT = samples.values_BT
            if self.policy.critic is not None:
                values_BT = self._evaluated_ahead(samples.inputs, self.policy.state_values)
            return Evaluation(samples.logprobs_BT, samples.entropy_BT, values_BT)
        found = self._evaluated_ahead(samples.inputs, self._numbers)
        return Evaluation(found[0], found[1], found[2] if len(found) > 2 else None)

    @torch.no_grad()
    def values_after(self, samples: Samples) -> Tensor:
        """V of the state after each response's last token, [B]."""
        values_BT = self._evaluated(one_token_more(samples.inputs), self.policy.state_values)
        return values_BT.gather(1, samples.inputs["response_lengths"][:, None])[:, 0]

    def reference_logprobs(self, reference: Reference, samples: Samples) -> Tensor:
        """log π_ref of the responses, [B, T]."""
        return self._evaluated(samples.inputs, reference.logprobs)

    def sequence_kl(self, reference: Reference, samples: Samples) -> Tensor:
        """log π − log π_ref summed over each response, [B] in nats."""
        known_BT = replace(self, whole_update=False).recorded(samples).logprobs_BT  # none follows
        difference_BT = known_BT - self.reference_logprobs(reference, samples)
        return torch.where(samples.mask_BT, difference_BT, 0).sum(1)

    def _numbers(self, inputs: dict[str, Tensor]) -> Tensor:
        """Log-probs, entropy and values, if there is a critic, [2 or 3, B, T]."""
        new = self.policy.evaluate(inputs)
        found = (new.logprobs_BT, new.entropy_BT, new.values_BT)
        return torch.stack([x for x in found if x is not None])

    def _evaluated_ahead(
        self, inputs: dict[str, Tensor], evaluate: Callable[[dict[str, Tensor]], Tensor]
    ) -> Tensor:
        """`evaluate` of all rows, in one piece where the update then need not do it again."""
        if not self.whole_update:
            return self._evaluated(inputs, evaluate)
        with self.policy.forward_reuse.recording():
            return evaluate({name: x.cpu() for name, x in inputs.items()}).detach()

    def _evaluated(
        self, inputs: dict[str, Tensor], evaluate: Callable[[dict[str, Tensor]], Tensor]
    ) -> Tensor:
        """`evaluate` of all rows, [..., B, T], micro-batch by micro-batch, in the order of rows."""
        host = {name: x.cpu() for name, x in inputs.items()}
        parts = microbatches(host, self.microbatch_size, self.microbatch_tokens)
        found = [evaluate({n: x.index_select(0, part) for n, x in host.items()}) for part in parts]
        place = torch.cat(parts).argsort().to(found[0].device)
        return torch.cat(found, -2).index_select(-2, place)


def scored_responses(
    responder: Responder,
    scorer: Scorer,
    prompts: list[Prompt],
    group_size: int,
    uniforms_BT: Tensor,
    chunks: int,
    watch: Stopwatch,
) -> tuple[Responses, Scores]:
    """`group_size` responses to each of this rank's prompts, with their scores.

    The prompts are divided into `chunks` parts, so groups stay whole; the responses are the same
    whatever their number. Only the wait for scores after the last part counts as time/score.
    """
    size = -(-len(prompts) // chunks)
    parts, pending = [], []
    with watch("time/sample"):
        for start in range(0, len(prompts), size):
            rows = slice(start * group_size, (start + size) * group_size)
            part = prompts[start : start + size]
            parts.append(responder.respond(part, group_size, uniforms_BT[rows]))
            pending.append(parts[-1].submitted_to(scorer))
        responses = _joined(parts, responder.policy.pad_token_id)
    with watch("time/score"):
        scores = Scores.joined([one.result() for one in pending])
    return responses, scores


def _joined(parts: list[Responses], pad_token_id: int) -> Responses:
    return Responses(
        prompts=list(chain.from_iterable(x.prompts for x in parts)),
        samples=concatenated([x.samples for x in parts], pad_token_id),
        completions=list(chain.from_iterable(x.completions for x in parts)),
        ids=list(chain.from_iterable(x.ids for x in parts)),
    )
