"""The rows of samples.jsonl: texts, scores and, where they are asked for, the texts of tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from lmpg.language.data.tokenizing import completion_text
from lmpg.language.models.reference import Reference
from lmpg.language.rewards.process_rewards import token_widths
from lmpg.language.rollouts.completed import turns_shown
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.scoring import ScoredGroups
from lmpg.training.token_view import TOKENS, kept, of_rows

ALONE, TOGETHER = 4, 8
LONGEST_PROMPT = 2000
"""Characters of a prompt beside its tokens, from its end."""
VIEWS = 16
"""About how many of a run's steps have the numbers of tokens."""


def num_shown(group_size: int) -> int:
    """How many of a rollout's first rows are shown: four prompts, or whole groups, side by side."""
    if group_size == 1:
        return ALONE
    return TOGETHER // group_size * group_size or TOGETHER


def is_due(iteration: int, every: int, total: int) -> bool:
    """Whether samples are written: in the first iteration, the last, and every so many."""
    return bool(every) and (iteration in (1, total) or iteration % every == 0)


def views_tokens(iteration: int, every: int, total: int) -> bool:
    """Whether they have the numbers of their tokens: about `VIEWS` times in a run, however long."""
    stride = every * max(1, -(-total // (every * VIEWS))) if every else 0
    return is_due(iteration, stride, total)


def shown_rows(raw: ScoredGroups, processed: ScoredGroups, changed: bool) -> list[dict[str, Any]]:
    """A row of samples.jsonl for each of the rollout's first completions, {} for the others.

    changed: whether processed scores can differ from raw ones, so that both are told.
    """
    completions, size = raw.completions, raw.group_size
    found: list[dict[str, Any]] = []
    for b, (prompt, text) in enumerate(zip(completions.prompts, completions.texts)):
        slot, member = raw.slots[b // size], b % size
        if slot * size + member >= num_shown(size):
            found.append({})
            continue
        row: dict[str, Any] = {
            "prompt": prompt.prompt,
            "completion": text,
            "score": raw.scores.totals[b],
        }
        row["rewards"] = {name: x[b] for name, x in raw.scores.by_reward.items()}
        if raw.scores.extras:
            row["logged"] = {name: x[b] for name, x in raw.scores.extras.items()}
        if changed:
            row["processed_score"] = processed.scores.totals[b]
        row["finished"] = completions.finished[b]
        if completions.talks:
            row |= turns_shown(completions.talks[b])
        found.append(row | ({"group": slot} if size > 1 else {}))
    return found


def with_tokens(
    rows: list[dict[str, Any]],
    raw: ScoredGroups,
    generator: Generator,
    reference: Reference | None,
) -> list[dict[str, Any]]:
    """The rows with the texts of their prompt and tokens as the model reads and writes them, the
    entropy of each token's distribution, and its KL to the reference where there is one; of several
    turns, also the number of the turn that the policy wrote each token in, −1 for others' tokens.
    """
    shown = [b for b, row in enumerate(rows) if row]
    if not shown:
        return rows
    samples = raw.completions.samples.rows(torch.tensor(shown))
    lengths = [len(raw.completions.ids[b]) for b in shown]
    mask_BT, turns_BT = samples.mask_BT, samples.inputs.get("response_turns")
    entropy_BT = generator.entropy(samples)
    columns: dict[str, list] = {"entropy": of_rows(entropy_BT, lengths, mask_BT)}
    if reference is not None:
        columns["kl"] = of_rows(generator.token_kl(reference, samples), lengths, mask_BT)
    if turns_BT is not None:
        numbers = (turns_BT - 1).tolist()
        columns["turn"] = [[row[t] for t in kept(n)] for row, n in zip(numbers, lengths)]
    made = list(rows)
    for i, b in enumerate(shown):
        ids, prompt = raw.completions.ids[b], raw.completions.prompts[b].ids
        text = generator.tokenizer.decode(prompt, skip_special_tokens=False)
        tokens = {
            "prompt": text[-LONGEST_PROMPT:],
            "length": len(ids),
            "texts": token_texts(generator.tokenizer, prompt, ids),
        }
        made[b] = {**rows[b], TOKENS: tokens | {name: x[i] for name, x in columns.items()}}
    return made


def token_texts(tokenizer: Any, prompt: list[int], ids: list[int]) -> list[str]:
    """What each kept token of a response writes, special tokens too; a character that spans several
    tokens stands with the last of them."""
    text = partial(completion_text, tokenizer, eos_token_ids=())
    whole = text(prompt, ids)
    places, end = [], 0
    for width in token_widths(whole, ids, text):
        places.append(whole[end : end + width])
        end += width
    return [places[t] for t in kept(len(ids))]
