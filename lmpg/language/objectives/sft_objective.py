"""Supervised fine-tuning: maximum likelihood of the tokens of given texts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmpg.language.data.order import epoch_order
from lmpg.language.data.packing import rows_of
from lmpg.language.data.texts import Text
from lmpg.language.models.packing_check import packed_logprobs, refuse_unpackable
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.objectives.text_logprobs import evaluated_texts
from lmpg.language.rollouts.evaluation import Evaluator
from lmpg.runtime.processes import Processes

EVALUATED_TOGETHER = 64


class NextToken:
    """−log π(token | tokens before it) in nats, meant over the learned tokens of a minibatch."""

    best_metric = "loss"
    lower_is_better = True
    step_name = "tokens"

    def __init__(
        self,
        policy: CausalLMPolicy,
        train: list[Text],
        held_out: list[Text],
        seed: int,
        processes: Processes,
        sampled: Evaluator | None = None,
    ) -> None:
        self.module = policy
        self.train = [text for text in train if any(text.learned)]
        self.held_out = [text for text in held_out if any(text.learned)]
        self.seed = seed
        self.processes = processes
        self.sampled = sampled

    def epoch(self, number: int) -> list[Text]:
        """All texts, shuffled anew for each epoch."""
        return [self.train[i] for i in epoch_order(len(self.train), number, self.seed)]

    def weight(self, example: Text) -> int:
        """Tokens to be predicted."""
        return sum(example.learned)

    def num_tokens(self, example: Text) -> int:
        """Tokens to be read."""
        return len(example.ids)

    def survey(self, batch: list[Text], parts: list[list[Text]]) -> None:
        """Nothing has to be known of a minibatch as a whole."""

    def sums(self, examples: list[Text]) -> dict[str, Tensor]:
        """Summed loss, and the summed entropy of the predictions."""
        device = self.module.device
        if not examples:
            return {name: torch.zeros((), device=device) for name in ("loss", "entropy")}
        new, mask_BT = evaluated_texts(self.module, examples)
        return {
            "loss": -torch.where(mask_BT, new.logprobs_BT, 0).sum(),
            "entropy": torch.where(mask_BT, new.entropy_BT, 0).sum(),
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """loss: nats per held-out token. perplexity: e to that. And figures of sampled responses
        where they are asked for."""
        mine = self.processes.share(sorted(self.held_out, key=self.num_tokens))
        starts = range(0, len(mine), EVALUATED_TOGETHER)
        parts = [self.sums(mine[i : i + EVALUATED_TOGETHER])["loss"] for i in starts]
        total = torch.stack([torch.zeros((), device=self.module.device), *parts]).double().sum()
        loss = float(self.processes.sum(total)) / sum(map(self.weight, self.held_out))
        found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        return found | (self.sampled.evaluate() if self.sampled else {})


Row = tuple[Text, ...]


class PackedNextToken:
    """`NextToken` with rows of texts as its examples; which texts share a row never changes."""

    best_metric = NextToken.best_metric
    lower_is_better = NextToken.lower_is_better
    step_name = NextToken.step_name

    def __init__(self, plain: NextToken) -> None:
        self.plain = plain
        self.module = plain.module
        refuse_unpackable(self.module)
        lengths = [len(text.ids) for text in plain.train]
        rows = rows_of(lengths, self.module.context_length)
        self.rows: list[Row] = [tuple(plain.train[i] for i in row) for row in rows]

    def epoch(self, number: int) -> list[Row]:
        """All rows, shuffled anew for each epoch."""
        return [self.rows[i] for i in epoch_order(len(self.rows), number, self.plain.seed)]

    def weight(self, example: Row) -> int:
        """Tokens to be predicted."""
        return sum(map(self.plain.weight, example))

    def num_tokens(self, example: Row) -> int:
        """Tokens to be read."""
        return sum(map(self.plain.num_tokens, example))

    def survey(self, batch: list[Row], parts: list[list[Row]]) -> None:
        """Nothing has to be known of a minibatch as a whole."""

    def sums(self, examples: list[Row]) -> dict[str, Tensor]:
        """Summed loss, and the summed entropy of the predictions."""
        if not examples:
            return self.plain.sums([])
        rows = [[(text.ids, text.learned) for text in row] for row in examples]
        logprobs_N, entropy_N = packed_logprobs(self.module, rows)
        return {"loss": -logprobs_N.sum(), "entropy": entropy_N.sum()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out figures, each text in a row of its own."""
        return self.plain.evaluate()
