"""Learning from answers that were judged, beside a reference: what DPO and KTO have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from itertools import chain
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lmpg.language.data.order import epoch_order
from lmpg.language.data.policy_pairs import Answer, Comparison
from lmpg.language.data.texts import Text
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.objectives.text_logprobs import reference_logprobs
from lmpg.language.rollouts.evaluation import Evaluator
from lmpg.runtime.processes import Processes
from lmpg.settings.section import Section

J = TypeVar("J", Comparison, Answer)
M = TypeVar("M", bound=Section)


class JudgedObjective(ABC, Generic[J, M]):
    """Log-probs of two texts for each example, beside those of the reference.

    The reference is the policy as it is handed over; its two numbers per example are computed here,
    once. rows: examples per forward where nothing is learned. sampled: further held-out figures.
    """

    best_metric = "loss"
    lower_is_better = True
    step_name = "tokens"

    def __init__(
        self,
        policy: CausalLMPolicy,
        method: M,
        parts: tuple[list[J], list[J]],
        seed: int,
        processes: Processes,
        rows: int = 32,
        sampled: Evaluator | None = None,
    ) -> None:
        self.module = policy
        self.method = method
        self.seed = seed
        self.processes = processes
        self.rows = rows
        self.sampled = sampled
        self.train: list[J] = self._referred(parts[0])
        self.held_out: list[J] = self._referred(parts[1])

    @abstractmethod
    def texts(self, example: J) -> tuple[Text, Text]:
        """The two texts of an example whose log-probs are compared with the reference's."""

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether there is a reference at all."""

    @abstractmethod
    def figures(self, examples: list[J]) -> dict[str, Tensor]:
        """`loss`, with gradient, and further figures of each example, [N] each."""

    @abstractmethod
    def held_out_figures(self) -> dict[str, float]:
        """Means over the held-out examples, the same on every rank."""

    def epoch(self, number: int) -> list[J]:
        """All examples, shuffled anew for each epoch."""
        return [self.train[i] for i in epoch_order(len(self.train), number, self.seed)]

    def weight(self, example: J) -> int:
        """Each example counts once."""
        return 1

    def num_tokens(self, example: J) -> int:
        """Tokens to be read."""
        return sum(len(text.ids) for text in self.texts(example))

    def survey(self, batch: list[J], parts: list[list[J]]) -> None:
        """Nothing has to be known of a minibatch as a whole."""

    def sums(self, examples: list[J]) -> dict[str, Tensor]:
        """Summed loss and figures."""
        if examples:
            return {name: x.sum() for name, x in self.figures(examples).items()}
        with torch.no_grad():  # for their names: a rank may have no part in a minibatch
            return {name: x.sum() * 0 for name, x in self.figures(self.train[:1]).items()}

    def evaluate(self) -> dict[str, float]:
        """Held-out figures of judged answers, and of sampled ones where they are asked for."""
        return self.held_out_figures() | (self.sampled.evaluate() if self.sampled else {})

    @torch.no_grad()
    def gathered(self, examples: list[J]) -> dict[str, list[float]]:
        """The figures of many examples, in their order, on every rank."""
        mine = self.processes.share(examples)
        parts = [self.figures(part) for part in in_parts(mine, self.rows)]
        names = self.figures(examples[:1])
        gather = self.processes.gather_list
        return {
            name: gather(list(chain(*(part[name].tolist() for part in parts)))) for name in names
        }

    def _referred(self, examples: list[J]) -> list[J]:
        if not self.needs_reference or not examples:
            return examples
        texts = [text for example in examples for text in self.texts(example)]
        found = reference_logprobs(self.module, texts, 2 * self.rows, self.processes)
        return [
            replace(example, reference=two)
            for example, two in zip(examples, zip(found[::2], found[1::2]))
        ]


def in_parts(items: list[Any], size: int) -> list[list[Any]]:
    """`items` cut into lists of at most `size`."""
    return [items[i : i + size] for i in range(0, len(items), size)]
