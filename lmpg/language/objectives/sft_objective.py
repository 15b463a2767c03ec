"""Supervised fine-tuning: maximum likelihood of the tokens of given texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lmpg.algorithms.fixed_data.maximum_likelihood import MaximumLikelihood
from lmpg.language.data.order import epoch_order
from lmpg.language.data.packing import rows_of
from lmpg.language.data.storage.examples_store import Stored
from lmpg.language.data.texts import Text, learnable
from lmpg.language.models.packing_check import packed_logprobs
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.objectives.text_logprobs import evaluated_texts
from lmpg.runtime.machine import widest
from lmpg.runtime.processes import Processes

EVALUATED_TOGETHER = 64
PackedRow = tuple[Text, ...]


class SFTObjective:
    """The algorithm's loss of each token in nats, the mean over a minibatch's loss masks.

    An example is a row: one text, or with `packing` as many as fit into the model's context, which
    needs less padding. Which texts share a row never changes. Held-out texts are not packed.
    parts: (train, held out) texts. sample_metrics: further held-out metrics, of sampled responses.
    """

    best_metric = "loss"
    lower_is_better = True
    step_name = "tokens"

    def __init__(
        self,
        policy: CausalLMPolicy,
        algorithm: MaximumLikelihood,
        parts: tuple[Sequence[Text], Sequence[Text]],
        seed: int,
        processes: Processes,
        sample_metrics: Callable[[], dict[str, float]] | None = None,
        packing: bool = False,
    ) -> None:
        self.module = policy
        self.algorithm = algorithm
        self.counters: dict[str, float] = {}
        train, held_out = parts
        texts, lengths = learnable(train)
        rows = (
            rows_of(lengths, policy.context_length) if packing else [[i] for i in range(len(texts))]
        )
        self.train: Stored[PackedRow] = Stored(
            lambda i: tuple(texts[j] for j in rows[i]), range(len(rows))
        )
        self.held_out, _ = learnable(held_out)
        self.seed = seed
        self.processes = processes
        self.sample_metrics = sample_metrics
        self.packing = packing

    def epoch(self, number: int) -> Sequence[PackedRow]:
        """All rows, shuffled anew for each epoch."""
        return self.train.take(epoch_order(len(self.train), number, self.seed))

    def weight(self, example: PackedRow) -> int:
        """Number of tokens that the loss predicts."""
        return sum(sum(text.loss_mask) for text in example)

    def num_tokens(self, example: PackedRow) -> int:
        """Number of tokens that the model reads."""
        return sum(len(text.ids) for text in example)

    def prepare(self, batch: list[PackedRow], parts: list[list[PackedRow]]) -> None:
        """Does nothing: no loss depends on the minibatch as a whole."""

    def loss_sums(self, examples: list[PackedRow]) -> dict[str, Tensor]:
        """Summed loss, and the summed entropy of the predictions."""
        if not self.packing:
            return self._sums([text for row in examples for text in row])
        rows = [[(text.ids, text.loss_mask) for text in row] for row in examples]
        logprobs_N, entropy_N = packed_logprobs(self.module, rows)
        terms = self.algorithm.loss_terms(logprobs_N)
        return {name: x_N.sum() for name, x_N in terms.items()} | {"entropy": entropy_N.sum()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """loss: nats per held-out token, whatever the algorithm's loss is: that of DFT may rise as
        the model gets better. perplexity: e to that. And metrics of sampled responses where they
        are asked for."""
        mine = self.processes.share(sorted(self.held_out, key=lambda text: len(text.ids)))
        starts = range(0, len(mine), EVALUATED_TOGETHER)
        sums = [self._sums(mine[i : i + EVALUATED_TOGETHER]) for i in starts]
        parts = [found.get("nll", found["loss"]) for found in sums]
        zero = torch.zeros((), device=self.module.device)
        total = torch.stack([zero, *parts]).to(widest(zero.device)).sum()
        loss = float(self.processes.sum(total)) / sum(sum(text.loss_mask) for text in self.held_out)
        found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        return found | (self.sample_metrics() if self.sample_metrics else {})

    def samples(self, with_tokens: bool) -> list[dict[str, Any]]:
        """No rows of samples.jsonl: its texts are the data's own, and the loss says it all."""
        return []

    def _sums(self, texts: list[Text]) -> dict[str, Tensor]:
        """The sums of texts in rows of their own."""
        new, mask_BT = evaluated_texts(self.module, texts)
        terms = {**self.algorithm.loss_terms(new.logprobs_BT), "entropy": new.entropy_BT}
        return {name: torch.where(mask_BT, x_BT, 0).sum() for name, x_BT in terms.items()}
