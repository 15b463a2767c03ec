"""Objectives of offline learning on a few random texts and a tiny model."""

from __future__ import annotations

import copy

import torch

from lmpg.algorithms.dpo import DPO
from lmpg.algorithms.kto import KTO
from lmpg.language.data.policy_pairs import Comparison, mismatched
from lmpg.language.data.reward_pairs import Pair, PairSet
from lmpg.language.data.texts import Text
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.objectives.dpo_objective import Comparing
from lmpg.language.objectives.kto_objective import Judging
from lmpg.language.objectives.reward_model_objective import BradleyTerry
from lmpg.language.objectives.sft_objective import NextToken, PackedNextToken
from lmpg.runtime.processes import SingleProcess
from lmpg.training.offline import OfflineUpdater
from lmpg.training.settings import OfflineSettings
from tests.support.tiny import CONTEXT, EOS, PAD, VOCABULARY, tiny_model, tiny_tokenizer

A, B = 3, 4


def tiny_policy(model=None, **options) -> CausalLMPolicy:
    """A tiny policy, of the model that is given."""
    return CausalLMPolicy(
        model or tiny_model(),
        None,
        temperature=1.0,
        eos_token_ids=(EOS,),
        pad_token_id=PAD,
        context_length=CONTEXT,
        **options,
    )


def random_ids(count: int, seed: int) -> list[list[int]]:
    """Rows of 3 to 19 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 20, (count,), generator=generator).tolist()
    return [torch.randint(B + 1, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def random_texts(count: int, seed: int = 0) -> list[Text]:
    """Whole texts, completions of prompts, and turns with a gap between them."""
    kinds = [
        lambda n: [False] + [True] * (n - 1),
        lambda n: [False] * (n // 2 + 1) + [True] * (n - n // 2 - 1),
        lambda n: [False, True] + [False] * (n - 3) + [True],
    ]
    return [Text(ids, kinds[i % 3](len(ids))) for i, ids in enumerate(random_ids(count, seed))]


def random_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Two texts each, for a reward model."""
    ids = random_ids(2 * count, seed)
    return [Pair(ids[i], ids[i + count]) for i in range(count)]


def answered(prompt: list[int], answer: list[int]) -> Text:
    """Of a prompt and its answer only the answer is learned."""
    return Text(prompt + answer, [False] * len(prompt) + [True] * len(answer))


def random_comparisons(count: int, seed: int = 0) -> list[Comparison]:
    """Prompts and answers of many lengths."""
    ids = random_ids(3 * count, seed)
    return [
        Comparison(answered(ids[i], ids[i + count]), answered(ids[i], ids[i + 2 * count]))
        for i in range(count)
    ]


def random_answers(count: int, seed: int = 0):
    """One of three is desirable."""
    judged = [(pair.chosen, i % 3 == 0) for i, pair in enumerate(random_comparisons(count, seed))]
    return mismatched(judged, CONTEXT, [])


def supervised(train: list[Text], held_out: list[Text] | None = None, processes=None):
    """Next-token prediction."""
    return NextToken(tiny_policy(), train, held_out or train, 0, processes or SingleProcess())


def packed(train: list[Text], held_out: list[Text] | None = None, processes=None):
    """Next-token prediction on rows of several texts."""
    return PackedNextToken(supervised(train, held_out, processes))


def preferences(train, held_out=None, processes=None, method=None) -> BradleyTerry:
    """A reward model."""
    pairs = PairSet(train, held_out or train)
    parts = tiny_model("reward"), tiny_tokenizer(), pairs, 0, processes or SingleProcess()
    return BradleyTerry(*parts, method=method)


def comparing(train: list, held_out: list | None = None, processes=None, method=None, policy=None):
    """DPO; its policy has moved away from the reference where it is not handed in."""
    made = Comparing(
        policy or tiny_policy(),
        method or DPO(),
        (train, held_out or train),
        0,
        processes or SingleProcess(),
    )
    return made if policy else moved(made)


def judging(train: list, held_out: list | None = None, processes=None, method=None):
    """KTO, away from the reference."""
    parts = (train, held_out or train)
    return moved(Judging(tiny_policy(), method or KTO(), parts, 0, processes or SingleProcess()))


def moved(objective):
    """The objective with another policy than the reference."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in objective.module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.05 * parameter.abs().mean() * noise
    return objective


MADE = {
    "supervised": lambda processes=None: supervised(random_texts(11), processes=processes),
    "packed": lambda processes=None: packed(random_texts(60), processes=processes),
    "preferences": lambda processes=None: preferences(random_pairs(11), processes=processes),
    "dpo": lambda processes=None: comparing(random_comparisons(11), processes=processes),
    "kto": lambda processes=None: judging(random_answers(11), processes=processes),
}


def learned(objective, steps: int, **changes) -> dict[str, torch.Tensor]:
    """The weights after `steps` steps."""
    settings = {"learning_rate": 1e-3, "minibatch_size": 6, "epochs": 3, **changes}
    updater = OfflineUpdater(objective, OfflineSettings(**settings), SingleProcess())
    for step in range(1, steps + 1):
        updater.update(step)
    return copy.deepcopy(objective.module.state_dict())


def largest_difference(found: dict, expected: dict) -> float:
    """Of all tensors, relative to the largest number in each."""
    return max(float((found[k] - x).abs().max() / x.abs().max()) for k, x in expected.items())
