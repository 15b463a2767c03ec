"""Token-level PPO with a critic, whole on one page.

A tiny Llama with random weights learns to count. The prompt is a digit; the best response is the
next three digits and a full stop, which ends it: "7" → "890.". Nothing is downloaded.

    python examples/ppo_in_one_page.py

A step is one token. Tensors carry their shape in the name: B responses, T steps of a response.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lmpg.algorithms.ppo import PPO
from lmpg.functional.kl import k1
from lmpg.functional.logprobs import token_logprobs
from lmpg.functional.masking import loss_weights, masked_mean
from lmpg.types import Evaluation, Minibatch, Rollout

VOCABULARY = "0123456789."  # a token is a character
EOS = VOCABULARY.index(".")
MAX_NEW_TOKENS = 6
RESPONSES, MINIBATCH, EPOCHS, ITERATIONS = 256, 128, 4, 60
LLAMA = LlamaConfig(
    vocab_size=len(VOCABULARY),
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    initializer_range=0.1,
)


class Policy(nn.Module):
    """A causal language model, and a critic on its hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.model = LlamaForCausalLM(LLAMA)
        self.value_head = nn.Linear(LLAMA.hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)

    def evaluate(self, ids_BL: Tensor) -> Evaluation:
        """Log-probs and entropy of the response tokens, and the critic's values.

        The hidden state at a position predicts the next token, so the T response tokens belong to
        the states one position before them. The value there is read before the token is chosen.
        """
        hidden_BTD = self.model.model(ids_BL[:, :-1]).last_hidden_state
        head, shape = self.model.lm_head, hidden_BTD.shape[:2]
        logprobs, entropy = token_logprobs(
            hidden_BTD.flatten(0, 1), head.weight, None, ids_BL[:, 1:].flatten(), 1.0, chunk=4096
        )
        values_BT = self.value_head(hidden_BTD).squeeze(-1)
        return Evaluation(logprobs.view(shape), entropy.view(shape), values_BT)


@torch.no_grad()
def sample(policy: Policy, prompts_B: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts with sampled responses, ids [B, 1 + T], and the mask [B, T] of the sampled tokens.

    A response ends at its EOS, which is a step as well, or at the limit. The mask leaves out
    what fills up the row behind it.
    """
    ids_BL = prompts_B[:, None]
    going_B, masks = torch.ones_like(prompts_B, dtype=torch.bool), []
    for _ in range(MAX_NEW_TOKENS):
        logits_BV = policy.model(ids_BL).logits[:, -1]
        token_B = torch.multinomial(logits_BV.softmax(-1), 1)[:, 0].where(going_B, EOS)
        masks.append(going_B)
        going_B = going_B & (token_B != EOS)
        ids_BL = torch.cat([ids_BL, token_B[:, None]], dim=1)
    return ids_BL, torch.stack(masks, dim=1)


def texts(ids: Tensor, mask_BT: Tensor) -> list[str]:
    """The responses as text."""
    return ["".join(VOCABULARY[i] for i in row[m]) for row, m in zip(ids[:, 1:], mask_BT)]


def reward(prompt: int, response: str) -> float:
    """One point for each right character in its place, less one for each character too many."""
    right = "".join(str((prompt + i) % 10) for i in (1, 2, 3)) + "."
    return float(sum(a == b for a, b in zip(right, response)) - max(0, len(response) - len(right)))


@torch.no_grad()
def collect(policy: Policy, reference: Policy) -> Rollout:
    """Sample responses to random prompts, score them, and record what PPO compares with later."""
    prompts_B = torch.randint(10, (RESPONSES,))
    ids_BL, mask_BT = sample(policy, prompts_B)
    scores = [reward(int(p), text) for p, text in zip(prompts_B, texts(ids_BL, mask_BT))]
    last_BT = mask_BT & (mask_BT.cumsum(1) == mask_BT.sum(1, keepdim=True))  # of each response
    old = policy.evaluate(ids_BL)
    return Rollout(
        inputs={"ids": ids_BL},
        mask_BT=mask_BT,
        logprobs_BT=old.logprobs_BT,
        ref_logprobs_BT=reference.evaluate(ids_BL).logprobs_BT,
        values_BT=old.values_BT,
        next_values_BT=nn.functional.pad(old.values_BT[:, 1:], (0, 1)),
        rewards_BT=last_BT * torch.tensor(scores)[:, None],  # the score sits on the last token
        terminated_BT=last_BT,  # nothing follows it: no bootstrap
        ended_BT=last_BT,  # and the sums of GAE stop here
        scorable_B=torch.ones(RESPONSES, dtype=torch.bool),
    )


def update(policy: Policy, ppo: PPO, rollout: Rollout, optimizer: torch.optim.Optimizer) -> None:
    """Some epochs of minibatches: PPO's clipped surrogate and the critic's squared error."""
    credit = ppo.assign_credit(rollout)  # rewards less the KL penalty, GAE, returns, whitening
    whole = Minibatch.of(rollout, credit)
    for _ in range(EPOCHS):
        for index in torch.randperm(RESPONSES).split(MINIBATCH):
            batch = whole.rows(index)
            terms = ppo.loss_terms(policy.evaluate(batch.inputs["ids"]), batch)  # [B, T] each
            weights_BT = loss_weights(batch.mask_BT, ppo.reduction, MAX_NEW_TOKENS)
            loss = sum((term_BT * weights_BT).sum() for term_BT in terms.values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()


def main() -> list[float]:
    """Train, print some lines on the way, and return the mean score of every iteration."""
    torch.manual_seed(0)
    policy, ppo = Policy(), PPO(kl_coef=0.05, entropy_coef=0.02)
    reference = copy.deepcopy(policy).requires_grad_(False)  # the policy's first state, for the KL
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, eps=1e-5, weight_decay=0.0)
    means = []
    for iteration in range(1, ITERATIONS + 1):
        rollout = collect(policy, reference)
        update(policy, ppo, rollout, optimizer)
        means.append(float(rollout.scores_B.mean()))
        if iteration == 1 or iteration % 10 == 0:
            kl = masked_mean(k1(rollout.logprobs_BT, rollout.ref_logprobs_BT), rollout.mask_BT)
            ids, mask_BT = rollout.inputs["ids"][:4], rollout.mask_BT[:4]
            shown = "  ".join(f"{int(i[0])} → {t}" for i, t in zip(ids, texts(ids, mask_BT)))
            print(f"{iteration:3}  score {means[-1]:5.2f} of 4  KL {kl:.2f} per token   {shown}")
    return means


if __name__ == "__main__":
    main()
