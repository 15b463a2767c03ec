"""The rows of samples.jsonl: texts, scores and, where they are asked for, the texts of tokens."""

from __future__ import annotations

from typing import Any

import torch

from lmpg.language.data.tokenizing import token_texts
from lmpg.language.models.reference import Reference
from lmpg.language.rollouts.completed import turns_shown
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.scoring import ScoredGroups
from lmpg.training.token_view import LONGEST_PROMPT, TOKENS, kept_of, of_rows

ALONE, TOGETHER = 4, 8


def num_shown(group_size: int) -> int:
    """How many of a rollout's first rows are shown: four prompts, or whole groups, side by side."""
    if group_size == 1:
        return ALONE
    return TOGETHER // group_size * group_size or TOGETHER


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
        columns["turn"] = [kept_of(row[:n]) for row, n in zip(numbers, lengths)]
    made = list(rows)
    for i, b in enumerate(shown):
        ids, prompt = raw.completions.ids[b], raw.completions.prompts[b].ids
        text = generator.tokenizer.decode(prompt, skip_special_tokens=False)
        tokens = {
            "prompt": text[-LONGEST_PROMPT:],
            "length": len(ids),
            "texts": kept_of(token_texts(generator.tokenizer, prompt, ids)),
        }
        made[b] = {**rows[b], TOKENS: tokens | {name: x[i] for name, x in columns.items()}}
    return made
