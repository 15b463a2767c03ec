"""Objectives of offline learning on a few random texts and a tiny model."""

from __future__ import annotations

import copy
import math

import torch

from lmpg.algorithms.fixed_data.bradley_terry import BradleyTerry
from lmpg.algorithms.fixed_data.dpo import DPO
from lmpg.algorithms.fixed_data.kto import KTO
from lmpg.algorithms.fixed_data.maximum_likelihood import MaximumLikelihood
from lmpg.language.data.policy_pairs import PreferencePair, with_mismatched
from lmpg.language.data.reward_pairs import RewardPair
from lmpg.language.data.texts import Text
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.objectives.dpo_objective import DPOObjective
from lmpg.language.objectives.kto_objective import KTOObjective
from lmpg.language.objectives.preference_objective import with_reference
from lmpg.language.objectives.reward_model_objective import RewardModelObjective
from lmpg.language.objectives.sft_objective import SFTObjective
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


def random_reward_pairs(count: int, seed: int = 0) -> list[RewardPair]:
    """Two texts each, for a reward model."""
    ids = random_ids(2 * count, seed)
    return [RewardPair(ids[i], ids[i + count]) for i in range(count)]


def answered(prompt: list[int], answer: list[int]) -> Text:
    """Of a prompt and its answer only the answer is learned."""
    return Text(prompt + answer, [False] * len(prompt) + [True] * len(answer))


def random_preference_pairs(count: int, seed: int = 0) -> list[PreferencePair]:
    """Prompts and answers of many lengths."""
    ids = random_ids(3 * count, seed)
    return [
        PreferencePair(answered(ids[i], ids[i + count]), answered(ids[i], ids[i + 2 * count]))
        for i in range(count)
    ]


def random_labelled_completions(count: int, seed: int = 0):
    """One of three is desirable."""
    pairs = random_preference_pairs(count, seed)
    return with_mismatched([(pair.chosen, i % 3 == 0) for i, pair in enumerate(pairs)], CONTEXT, [])


def sft_objective(
    train: list[Text], held_out=None, processes=None, policy=None, packing=False, method=None
):
    """Next-token prediction, on rows of one text or of several."""
    policy, method = policy or tiny_policy(), method or MaximumLikelihood()
    parts = (train, held_out or train)
    return SFTObjective(policy, method, parts, 0, processes or SingleProcess(), packing=packing)


def reward_model_objective(train, held_out=None, processes=None, method=None, model=None):
    """A reward model."""
    parts = (train, held_out or train)
    model, method = model or tiny_model("reward"), method or BradleyTerry()
    return RewardModelObjective(
        model, tiny_tokenizer(), method, parts, 0, processes or SingleProcess()
    )


def dpo_objective(train: list, held_out=None, processes=None, method=None, policy=None):
    """DPO; its policy has moved away from the reference where it is not handed in."""
    method, processes = method or DPO(), processes or SingleProcess()
    made = policy or tiny_policy()
    parts = (train, held_out or train)
    if method.reference:
        parts = tuple(with_reference(x, made, 32, processes) for x in parts)
    objective = DPOObjective(made, method, parts, 0, processes)
    return objective if policy else moved(objective)


def kto_objective(train: list, held_out=None, processes=None, method=None):
    """KTO, away from the reference."""
    policy, processes = tiny_policy(), processes or SingleProcess()
    parts = tuple(with_reference(x, policy, 32, processes) for x in (train, held_out or train))
    return moved(KTOObjective(policy, method or KTO(), parts, 0, processes))


def moved(objective):
    """The objective with another policy than the reference."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in objective.module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.05 * parameter.abs().mean() * noise
    return objective


MADE = {
    "sft": lambda processes=None: sft_objective(random_texts(11), processes=processes),
    "packed": lambda processes=None: sft_objective(
        random_texts(60), processes=processes, packing=True
    ),
    "reward_model": lambda processes=None: reward_model_objective(
        random_reward_pairs(11), processes=processes
    ),
    "dpo": lambda processes=None: dpo_objective(random_preference_pairs(11), processes=processes),
    "kto": lambda processes=None: kto_objective(
        random_labelled_completions(11), processes=processes
    ),
    "dft": lambda processes=None: sft_objective(
        random_texts(11), processes=processes, method=MaximumLikelihood(loss="dft")
    ),
    "packed dft": lambda processes=None: sft_objective(
        random_texts(60),
        processes=processes,
        packing=True,
        method=MaximumLikelihood(loss="dft"),
    ),
    "mpo": lambda processes=None: dpo_objective(
        random_preference_pairs(11),
        processes=processes,
        method=DPO(loss=("sigmoid", "bco_pair", "sft"), loss_weights=(0.8, 0.2, 1.0)),
    ),
    "bco": lambda processes=None: kto_objective(
        random_labelled_completions(11), processes=processes, method=KTO(loss="bco")
    ),
}


def plain_logprob(model, text: Text) -> tuple[float, int]:
    """Sum over the learned tokens, and their number, from the model's own logits."""
    with torch.no_grad():
        logps = model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
    learned = [i for i, wanted in enumerate(text.loss_mask) if wanted]
    return sum(float(logps[i - 1, text.ids[i]]) for i in learned), len(learned)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


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
