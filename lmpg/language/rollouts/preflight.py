"""Self-test at the start of a new run: checks what must hold exactly before the first update.

Ratio 1 and KL 0 catch, in seconds, mistakes that otherwise cost a run: other positions with
padding, dropout, a temperature on one side only, a head applied differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lmpg.language.data.prompts import Prompt, shortest_and_longest
from lmpg.language.models.architectures import has_experts
from lmpg.language.models.inputs import unpadded_rows
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.reference import Reference
from lmpg.language.rollouts.generation import Generator
from lmpg.runtime.seeding import generator as seeded
from lmpg.settings.section import UserError

TOLERANCE = 1e-5  # of means over tokens, in fp32, at temperatures from 1 on
TOKEN_TOLERANCE = 1e-4  # of the worst single token; deep models round by a few 1e-5
ROUNDINGS = 3.0  # what two forwards that round differ by at most, in multiples of the model's own
NUM_PROMPTS = 4
IN_WORDS = {
    "sampled": "as sampled",
    "recomputed": "computed again",
    "update": "the update's own",
}


@dataclass(frozen=True)
class SelfTest:
    """Deviations found, in nats per token, and how the model is set up.

    sampler, padding, logits: of the worst token; root mean squares where products are rounded.
    old_logprobs, backend: where the old log-probs of this run come from, and how completions are
    sampled, in words. temperature: one below 1 magnifies logits, and with them their rounding.
    products: what they are rounded to, bf16 or TF32. rounding: how far the model's own forward then
    is from its fp32 one (a root mean square); None in fp32. remote: a server has sampled, whose
    log-probs were compared as its weights arrived.
    """

    ratio: float
    reference_kl: float
    sampler: float
    padding: float
    logits: float
    old_logprobs: str
    backend: str
    eos_token_ids: tuple[int, ...]
    critic: str
    value_head: tuple[int, int] | None
    temperature: float = 1.0
    rounding: float | None = None
    products: str = "fp32"
    remote: bool = False

    def line(self) -> str:
        """One line for the log."""
        head = "none" if self.value_head is None else "{}→{}".format(*self.value_head)
        return (
            f"self-test: ratio {self.ratio:.6f}, KL to reference {self.reference_kl:.6f}, "
            f"padded vs unpadded {self.padding:.1e}, sampled vs fresh {self.sampler:.1e}, "
            f"vs model's own logits {self.logits:.1e}, {self._said_of_rounding()}"
            f"old log-probs {self.old_logprobs}, "
            f"sampled {self.backend}, "
            f"EOS ids {list(self.eos_token_ids)}, critic {self.critic}, value head {head}"
        )

    def _said_of_rounding(self) -> str:
        if self.rounding is None:
            return ""
        moves = f"moves the model's own log-probs by {self.rounding:.1e}"
        return f"all rms in {self.products}, which {moves}, "

    @property
    def limits(self) -> tuple[float, float]:
        """How far means over tokens may be off, and how far each deviation. Where products are
        rounded the model's own rounding decides, as it grows with depth, and unlikely tokens round
        by most."""
        magnified = max(1.0, 1 / self.temperature)
        mean, token = TOLERANCE * magnified, TOKEN_TOLERANCE * magnified
        if self.rounding is None:
            return mean, token
        # sums, so that a NaN stays one, which nothing is within
        return mean + self.rounding / 4, token + ROUNDINGS * self.rounding

    def problems(self) -> list[str]:
        """What is wrong, in words; empty when all is well."""
        found = []
        mean, worst = self.limits
        if not self.padding <= worst:
            found.append(
                f"log-probs differ by {self.padding:.1e} with padding: the model ignores "
                "attention_mask or position_ids"
            )
        if not self.logits <= worst:
            found.append(
                f"log-probs differ by {self.logits:.1e} from the model's own logits: it changes "
                "them after its output layer, which lmpg does not know of"
            )
        sampled = self.remote or self.sampler <= worst
        if not (sampled and abs(self.ratio - 1) <= mean):
            found.append(
                f"sampled log-probs differ by {self.sampler:.1e} from a fresh forward's: the "
                "model's key-value cache does not give what its plain forward gives"
            )
        if not abs(self.reference_kl) <= mean:
            found.append(f"KL to the reference is {self.reference_kl:.1e} before any training")
        return found


def ids_to_test(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Ids of the prompts of a data set that `self_test` takes, without reading all others."""
    return [prompt.ids for prompt in shortest_and_longest(prompts, NUM_PROMPTS)]


@torch.no_grad()
def self_test(
    generator: Generator, reference: Reference | None, prompts: list[list[int]]
) -> SelfTest:
    """Samples a few completions and evaluates them in every way that must agree."""
    policy, sampler = generator.policy, generator.sampler
    prompts = sorted(prompts, key=len)
    chosen = prompts[: NUM_PROMPTS // 2] + prompts[-NUM_PROMPTS // 2 :]  # lengths that differ
    shape = (len(chosen), sampler.max_new_tokens)
    drawn = torch.rand(shape, generator=seeded(generator.seed, "self-test"))
    samples = sampler.sample(chosen, 1, drawn)
    new = policy.evaluate(samples.inputs)
    plain_BT = policy.plain_logprobs(samples.inputs)
    exact = sampler.exact
    sampled_BT = samples.logprobs_BT if exact or sampler.comparable else new.logprobs_BT
    old_BT = samples.logprobs_BT if exact else new.logprobs_BT
    mask_BT = samples.mask_BT
    ref_BT = new.logprobs_BT if reference is None else reference.logprobs(samples.inputs)
    head = policy.value_head if policy.critic is None else policy.critic.head
    rounding, distance = None, _worst
    if policy.rounds:
        with policy.in_float32():
            exact_BT = policy.plain_logprobs(samples.inputs)
        rounding, distance = _rms(plain_BT, exact_BT, mask_BT), _rms
    return SelfTest(
        ratio=float((new.logprobs_BT - old_BT)[mask_BT].exp().mean()),
        reference_kl=float((new.logprobs_BT - ref_BT)[mask_BT].mean()),
        sampler=distance(sampled_BT, new.logprobs_BT, mask_BT),
        padding=distance(_one_by_one(policy, samples.inputs), new.logprobs_BT, mask_BT),
        logits=distance(plain_BT, new.logprobs_BT, mask_BT),
        old_logprobs=f"{IN_WORDS[generator.old_logprobs.source]} ({policy.rounds or 'fp32'})",
        backend="by servers" if sampler.remote else sampler.backend,
        eos_token_ids=policy.eos_token_ids,
        critic="none" if head is None else getattr(policy.critic, "kind", "shared"),
        value_head=None if head is None else (head.in_features, head.out_features),
        temperature=policy.temperature,
        rounding=rounding,
        products=policy.rounds or "fp32",
        remote=sampler.remote,
    )


def judged(generator: Generator, reference: Reference | None, prompts: list[list[int]]) -> SelfTest:
    """The self-test, in fp32 where it fails in bf16 and the model has experts: a router that takes
    another one, as a number rounds otherwise, moves log-probs by far more than rounding does."""
    policy, result = generator.policy, self_test(generator, reference, prompts)
    if not (policy.rounds and result.problems() and has_experts(policy.causal_lm.config)):
        return result
    other = nullcontext() if reference is None else reference.policy.in_float32()
    with policy.in_float32(), other:
        return self_test(generator, reference, prompts)


def require_sound(result: SelfTest) -> None:
    """Stop the run if the self-test failed."""
    problems = result.problems()
    if problems:
        mean, token = result.limits
        expected = f"a mean within {mean:.0e} in fp32, and the worst token within {token:.0e}"
        if result.rounding is not None:
            expected = (
                f"a mean within {mean:.0e} in {result.products}, and a root mean square within "
                f"{token:.0e}, as the model's own {result.products} forward is "
                f"{result.rounding:.0e} from its fp32 one"
            )
        raise UserError(
            f"the self-test failed, expected {expected}:\n  "
            + "\n  ".join(problems)
            + "\nUse another model, or mend its forward; training would learn from wrong numbers"
        )


def check(generator: Generator, reference: Reference | None, prompts: list[list[int]]) -> None:
    """The self-test of a new run, in one line; stops it where something is wrong. reference: only
    where it is the policy as it is now."""
    result = judged(generator, reference, prompts)
    if generator.processes.is_main:
        print(result.line(), flush=True)
    require_sound(result)


def _one_by_one(policy: CausalLMPolicy, inputs: dict[str, Tensor]) -> Tensor:
    """Log-probs of each row evaluated alone and without any padding, [B, T]."""
    result_BT = torch.zeros(inputs["response_ids"].shape, device=inputs["response_ids"].device)
    for b, (prompt, response) in enumerate(unpadded_rows(inputs)):
        alone = {
            "prompt_ids": prompt[None],
            "prompt_lengths": inputs["prompt_lengths"][b : b + 1],
            "response_ids": response[None],
            "response_lengths": inputs["response_lengths"][b : b + 1],
        }
        result_BT[b, : len(response)] = policy.evaluate(alone).logprobs_BT[0]
    return result_BT


def _worst(a_BT: Tensor, b_BT: Tensor, mask_BT: Tensor) -> float:
    """Largest |a − b| where chosen, relative to |b| where that is above 1."""
    return float(_differences(a_BT, b_BT, mask_BT).max())


def _rms(a_BT: Tensor, b_BT: Tensor, mask_BT: Tensor) -> float:
    """Root mean square of the same: one wrong token shows as much as many that are a little off."""
    return float(_differences(a_BT, b_BT, mask_BT).square().mean().sqrt())


def _differences(a_BT: Tensor, b_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return ((a_BT - b_BT).abs() / b_BT.abs().clamp(min=1))[mask_BT]
