"""Training of reward models: the scores of both texts of each pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmpg.algorithms.fixed_data.bradley_terry import BradleyTerry
from lmpg.functional.preference_losses import pairs_by_label
from lmpg.language.data.reward_pairs import (
    Examples,
    LabelledText,
    RewardPair,
    pairs_of_epoch,
)
from lmpg.language.models.sequence_classifier import SequenceScorer, sequence_scores
from lmpg.language.objectives.shown_examples import (
    answer_row,
    first_few,
    parts_of,
    whole_pair_row,
)
from lmpg.runtime.processes import Processes

METRICS = ("loss", "pair_accuracy", "margin", "score/chosen", "score/rejected")


class RewardModelObjective:
    """The chosen text of each pair is to score above the rejected one.

    train, held_out: pairs, or labelled texts, whose pairs differ between epochs.
    """

    best_metric = "pair_accuracy"
    lower_is_better = False
    step_name = "tokens"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        algorithm: BradleyTerry,
        parts: tuple[Examples, Examples],
        seed: int,
        processes: Processes,
        bf16: bool = False,
    ) -> None:
        self.module = model.eval()  # no dropout: scores while learning are those of later use
        self.scorer = SequenceScorer(model, tokenizer)
        self.algorithm = algorithm
        self.train, self.held_out = parts
        self.seed = seed
        self.processes = processes
        self.bf16 = bf16
        self.counters: dict[str, float] = {}

    def epoch(self, number: int) -> Sequence[RewardPair]:
        """The pairs of one epoch, shuffled; labelled texts meet new partners in each."""
        return pairs_of_epoch(self.train, number, self.seed)

    def weight(self, example: RewardPair) -> int:
        """Each pair counts once."""
        return 1

    def num_tokens(self, example: RewardPair) -> int:
        """Number of tokens that the model reads."""
        return len(example.chosen_ids) + len(example.rejected_ids)

    def prepare(self, batch: list[RewardPair], parts: list[list[RewardPair]]) -> None:
        """Does nothing: no loss depends on the minibatch as a whole."""

    def loss_sums(self, examples: list[RewardPair]) -> dict[str, Tensor]:
        """Summed loss, the number of pairs that are ranked rightly, their margins and scores."""
        device = self.processes.device
        ids = [pair.chosen_ids for pair in examples] + [pair.rejected_ids for pair in examples]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            scores_2N = sequence_scores(self.module, ids).view(2, -1)
        margins_N = torch.tensor([pair.margin for pair in examples], device=scores_2N.device)
        terms = self.algorithm.loss_terms(scores_2N, margins_N)
        chosen_N, rejected_N = scores_2N.detach()
        terms |= {"margin": chosen_N - rejected_N}
        terms |= {"score/chosen": chosen_N, "score/rejected": rejected_N}
        return {name: terms[name].sum() for name in METRICS}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """pair_accuracy: share of held-out pairs that are ranked rightly, ties counted half; of
        labelled texts, every pair with different labels. loss: the mean over these pairs. margin:
        by how much the better texts score higher."""
        held_out: list[Any] = list(self.held_out)
        if isinstance(held_out[0], LabelledText):
            labels = torch.tensor([text.label for text in held_out], dtype=torch.float64)
            scores_2N = torch.stack(pairs_by_label(self._scores([x.ids for x in held_out]), labels))
            margins_N = torch.zeros(scores_2N.shape[1])
        else:
            sides = ([x.chosen_ids for x in held_out], [x.rejected_ids for x in held_out])
            scores_2N = torch.stack([self._scores(ids) for ids in sides])
            margins_N = torch.tensor([pair.margin for pair in held_out])
        terms = self.algorithm.loss_terms(scores_2N, margins_N)
        terms["margin"] = scores_2N[0] - scores_2N[1]
        return {name: float(terms[name].mean()) for name in ("pair_accuracy", "loss", "margin")}

    @torch.no_grad()
    def samples(self, with_tokens: bool) -> list[dict[str, Any]]:
        """The first held-out pairs, or labelled texts, as rows of samples.jsonl."""
        tokenizer, few = self.scorer.tokenizer, first_few(self.held_out)
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.bf16):
            if isinstance(few[0], LabelledText):
                scores = self.scorer.score([text.ids for text in few])
                texts = [parts_of(tokenizer, [], text.ids)[1] for text in few]
                rows = zip(texts, few, scores)
                return [answer_row("", text, f"label {x.label:g}", s) for text, x, s in rows]
            ids = [pair.chosen_ids for pair in few], [pair.rejected_ids for pair in few]
            pairs = zip(*ids, *(self.scorer.score(side) for side in ids))
            return [whole_pair_row(tokenizer, (a, b), (x, y)) for a, b, x, y in pairs]

    def _scores(self, ids: list[list[int]]) -> Tensor:
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.bf16):
            mine = self.scorer.score(self.processes.share(ids))
        return torch.tensor(self.processes.gather_list(mine))
