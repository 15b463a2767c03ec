"""What DPO and KTO share: log-probs of answers beside those of a reference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lmpg.algorithms.fixed_data.dpo import DPO
from lmpg.algorithms.fixed_data.kto import KTO
from lmpg.language.data.order import epoch_order
from lmpg.language.data.policy_pairs import LabelledCompletion, PreferencePair
from lmpg.language.data.storage.examples_store import Stored, taken
from lmpg.language.data.texts import Text
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.objectives.shown_examples import first_few, with_answer_tokens
from lmpg.language.objectives.text_logprobs import answer_logprobs, reference_logprobs
from lmpg.runtime.machine import widest
from lmpg.runtime.processes import Processes

E = TypeVar("E", PreferencePair, LabelledCompletion)
A = TypeVar("A", DPO, KTO)


class PreferenceObjective(ABC, Generic[E, A]):
    """The mean of an algorithm's loss over the examples of a minibatch.

    parts: (train, held out) examples, with their `ref_logprobs` where the algorithm compares with
    a reference, see `with_reference`. rows: examples per forward pass in evaluation.
    sample_metrics: further held-out metrics, of sampled responses. tokenizer: to show examples;
    without it none are. judge: what the tokens of shown answers are compared with, as it is now;
    without it they have no numbers.
    """

    best_metric = "loss"
    lower_is_better = True
    step_name = "tokens"

    def __init__(
        self,
        policy: CausalLMPolicy,
        algorithm: A,
        parts: tuple[Sequence[E], Sequence[E]],
        seed: int,
        processes: Processes,
        rows: int = 32,
        sample_metrics: Callable[[], dict[str, float]] | None = None,
        tokenizer: Any = None,
        judge: CausalLMPolicy | None = None,
    ) -> None:
        self.module = policy
        self.algorithm: A = algorithm
        self.train: Sequence[E] = parts[0]
        self.held_out: list[E] = list(parts[1])
        self.seed = seed
        self.processes = processes
        self.rows = rows
        self.sample_metrics = sample_metrics
        self.tokenizer = tokenizer
        self.counters = {"rewards": 0.0, "answers": 0.0}
        self._first_logprobs: list[list[float]] | None = None
        if judge is not None and processes.is_main:
            self._first_logprobs = answer_logprobs(judge, self._shown_texts())

    @abstractmethod
    def rewards(self, examples: list[E]) -> Tensor:
        """βΔ of each answer, without gradient."""

    @abstractmethod
    def metrics(self, examples: list[E]) -> dict[str, Tensor]:
        """`loss`, with gradient, and further metrics of each example, [N] each."""

    @abstractmethod
    def held_out_metrics(self) -> dict[str, float]:
        """Means over the held-out examples, the same on every rank."""

    @abstractmethod
    def shown(self, examples: list[E]) -> list[dict[str, Any]]:
        """The examples as rows of samples.jsonl, with their rewards βΔ."""

    @abstractmethod
    def answers(self, example: E) -> tuple[Text, ...]:
        """The texts whose answers are shown."""

    @torch.no_grad()
    def samples(self, with_tokens: bool) -> list[dict[str, Any]]:
        """The first held-out examples as rows of samples.jsonl."""
        if self.tokenizer is None:
            return []
        rows = self.shown(first_few(self.held_out))
        if not with_tokens or self._first_logprobs is None:
            return rows
        texts = self._shown_texts()
        logprobs = answer_logprobs(self.module, texts), self._first_logprobs
        return with_answer_tokens(rows, self.tokenizer, texts, *logprobs)

    def _shown_texts(self) -> list[Text]:
        return [text for example in first_few(self.held_out) for text in self.answers(example)]

    def epoch(self, number: int) -> Sequence[E]:
        """All examples, shuffled anew for each epoch."""
        return taken(self.train, epoch_order(len(self.train), number, self.seed))

    def weight(self, example: E) -> int:
        """Each example counts once."""
        return 1

    def num_tokens(self, example: E) -> int:
        """Number of tokens that the model reads."""
        return sum(len(text.ids) for text in example.texts)

    def prepare(self, batch: list[E], parts: list[list[E]]) -> None:
        """Count the rewards of the minibatch where its losses compare with the mean reward (BCO):
        `counters` has the sum over all minibatches so far, and the number of answers."""
        if not self.algorithm.compares_with_mean_reward:
            return
        device = self.module.device
        wide = widest(device)
        with torch.no_grad():
            found = [self.rewards(part).to(wide) for part in parts if part]
        rewards, answers = sum(float(x.sum()) for x in found), sum(x.numel() for x in found)
        sums = torch.tensor([rewards, answers], dtype=wide, device=device)
        for name, number in zip(self.counters, self.processes.sum(sums).tolist()):
            self.counters[name] += number

    @property
    def mean_reward(self) -> float:
        """Mean βΔ of the answers that were counted, each as the policy was then; 0 before any."""
        return self.counters["rewards"] / max(self.counters["answers"], 1.0)

    def mean_reward_metric(self, rewards_N: Tensor) -> dict[str, Tensor]:
        """`rewards/mean`, for each of N examples; nothing where no loss compares with it."""
        if not self.algorithm.compares_with_mean_reward:
            return {}
        return {"rewards/mean": torch.full_like(rewards_N, self.mean_reward)}

    def loss_sums(self, examples: list[E]) -> dict[str, Tensor]:
        """Summed loss and metrics."""
        return {name: x.sum() for name, x in self.metrics(examples).items()}

    def evaluate(self) -> dict[str, float]:
        """Metrics of the held-out examples, and of sampled responses where they are asked for."""
        return self.held_out_metrics() | (self.sample_metrics() if self.sample_metrics else {})

    @torch.no_grad()
    def gathered(self, examples: list[E]) -> dict[str, list[float]]:
        """The metrics of many examples, in their order, on every rank."""
        mine = self.processes.share(examples)
        parts = [self.metrics(part) for part in in_parts(mine, self.rows)]
        names = self.metrics(examples[:1])
        gather = self.processes.gather_list
        return {
            name: gather(list(chain(*(part[name].tolist() for part in parts)))) for name in names
        }


def with_reference(
    examples: Sequence[E], policy: CausalLMPolicy, rows: int, processes: Processes
) -> Stored[E]:
    """The examples with their `ref_logprobs`; the reference is the policy as it is now, so this
    comes before training. rows: examples per forward pass."""
    numbers = range(2 * len(examples))
    texts: Stored[Text] = Stored(lambda i: examples[i // 2].texts[i % 2], numbers)
    found = reference_logprobs(policy, texts, 2 * rows, processes) if texts else []

    def make(i: int) -> E:
        return replace(examples[i], ref_logprobs=(found[2 * i], found[2 * i + 1]))

    return Stored(make, range(len(examples)))


def in_parts(items: list[Any], size: int) -> list[list[Any]]:
    """`items` cut into lists of at most `size`."""
    return [items[i : i + size] for i in range(0, len(items), size)]
