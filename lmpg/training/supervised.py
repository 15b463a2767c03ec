"""Supervised fine-tuning: maximum likelihood of the tokens of given texts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmpg.data.order import epoch_order
from lmpg.data.texts import Text
from lmpg.models.inputs import language_inputs, pad_right
from lmpg.models.policy import CausalLMPolicy
from lmpg.training.processes import Processes

EVALUATED_TOGETHER = 64


class NextToken:
    """−log π(token | tokens before it) in nats, meant over the learned tokens of a minibatch."""

    headline = "loss"
    lower_is_better = True
    unit = "tokens"

    def __init__(
        self,
        policy: CausalLMPolicy,
        train: list[Text],
        held_out: list[Text],
        seed: int,
        processes: Processes,
    ) -> None:
        self.module = policy
        self.train = [text for text in train if any(text.learned)]
        self.held_out = [text for text in held_out if any(text.learned)]
        self.seed = seed
        self.processes = processes

    def epoch(self, number: int) -> list[Text]:
        """All texts, shuffled anew for each epoch."""
        return [self.train[i] for i in epoch_order(len(self.train), number, self.seed)]

    def weight(self, example: Text) -> int:
        """Tokens to be predicted."""
        return sum(example.learned)

    def num_tokens(self, example: Text) -> int:
        """Tokens to be read."""
        return len(example.ids)

    def sums(self, examples: list[Text]) -> dict[str, Tensor]:
        """Summed loss, and the summed entropy of the predictions."""
        device = self.module.device
        if not examples:
            return {name: torch.zeros((), device=device) for name in ("loss", "entropy")}
        starts = [text.learned.index(True) for text in examples]
        inputs = language_inputs(
            [text.ids[:start] for text, start in zip(examples, starts)],
            [text.ids[start:] for text, start in zip(examples, starts)],
            self.module.pad_token_id,
        )
        learned = [list(map(int, x.learned[start:])) for x, start in zip(examples, starts)]
        mask_BT = pad_right(learned, 0).bool().to(device)
        new = self.module.evaluate({name: x.to(device) for name, x in inputs.items()})
        return {
            "loss": -torch.where(mask_BT, new.logprobs_BT, 0).sum(),
            "entropy": torch.where(mask_BT, new.entropy_BT, 0).sum(),
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """loss: nats per held-out token. perplexity: e to that."""
        mine = self.processes.share(sorted(self.held_out, key=self.num_tokens))
        starts = range(0, len(mine), EVALUATED_TOGETHER)
        parts = [self.sums(mine[i : i + EVALUATED_TOGETHER])["loss"] for i in starts]
        total = torch.stack([torch.zeros((), device=self.module.device), *parts]).double().sum()
        loss = float(self.processes.sum(total)) / sum(map(self.weight, self.held_out))
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
