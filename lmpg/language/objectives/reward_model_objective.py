"""Training a reward model on preferences: the chosen text is to score above the rejected one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmpg.algorithms.bradley_terry import RewardModel
from lmpg.functional.preference_losses import all_comparisons, bradley_terry, off_centre, won
from lmpg.language.data.reward_pairs import LabelledText, Pair, PairSet
from lmpg.language.models.sequence_classifier import SequenceScorer, sequence_scores
from lmpg.runtime.processes import Processes


class BradleyTerry:
    """−log σ(score of the chosen text − score of the rejected one − margin), meant over pairs,
    and a term that centres scores on 0 where that is asked for."""

    best_metric = "pair_accuracy"
    lower_is_better = False
    step_name = "tokens"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        pairs: PairSet,
        seed: int,
        processes: Processes,
        bf16: bool = False,
        method: RewardModel | None = None,
    ) -> None:
        self.module = model.eval()  # no dropout: scores while learning are those of later use
        self.scorer = SequenceScorer(model, tokenizer)
        self.pairs = pairs
        self.seed = seed
        self.processes = processes
        self.bf16 = bf16
        self.method = method or RewardModel()

    def epoch(self, number: int) -> list[Pair]:
        """All pairs, shuffled; labelled texts meet new partners in each epoch."""
        return self.pairs.epoch(number, self.seed)

    def weight(self, example: Pair) -> int:
        """Each pair counts once."""
        return 1

    def num_tokens(self, example: Pair) -> int:
        """Tokens to be read."""
        return len(example.chosen_ids) + len(example.rejected_ids)

    def survey(self, batch: list[Pair], parts: list[list[Pair]]) -> None:
        """Nothing has to be known of a minibatch as a whole."""

    def sums(self, examples: list[Pair]) -> dict[str, Tensor]:
        """Summed loss, and the number of pairs that are ranked rightly."""
        device = self.processes.device
        if not examples:
            return {name: torch.zeros((), device=device) for name in ("loss", "pair_accuracy")}
        ids = [pair.chosen_ids for pair in examples] + [pair.rejected_ids for pair in examples]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            chosen, rejected = sequence_scores(self.module, ids).chunk(2)
        return {
            "loss": self._loss(chosen, rejected, [pair.margin for pair in examples]).sum(),
            "pair_accuracy": won(chosen.detach(), rejected.detach()).sum(),
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """pair_accuracy: share of held-out pairs that are ranked rightly, ties counted half; of
        labelled texts, every pair with different labels. loss: the mean over these pairs."""
        held_out: list[Any] = self.pairs.held_out
        if isinstance(held_out[0], LabelledText):
            labels = torch.tensor([text.label for text in held_out], dtype=torch.float64)
            chosen, rejected = all_comparisons(self._scores([x.ids for x in held_out]), labels)
            margins = [0.0] * len(chosen)
        else:
            chosen = self._scores([pair.chosen_ids for pair in held_out])
            rejected = self._scores([pair.rejected_ids for pair in held_out])
            margins = [pair.margin for pair in held_out]
        return {
            "pair_accuracy": float(won(chosen, rejected).mean()),
            "loss": float(self._loss(chosen, rejected, margins).mean()),
        }

    def _loss(self, chosen: Tensor, rejected: Tensor, margins: list[float]) -> Tensor:
        margin = torch.tensor(margins, device=chosen.device) + self.method.margin
        loss = bradley_terry(chosen, rejected, margin)
        if self.method.centring:
            loss = loss + self.method.centring * off_centre(chosen, rejected)
        return loss

    def _scores(self, ids: list[list[int]]) -> Tensor:
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.bf16):
            mine = self.scorer.score(self.processes.share(ids))
        return torch.tensor(self.processes.gather_list(mine))
