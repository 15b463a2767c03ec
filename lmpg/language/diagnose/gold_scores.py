"""Scores of a gold reward for the responses that a run has kept in samples.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmpg.language.data.prompts import Prompt, load_all_prompts, prompts_from_rows
from lmpg.language.data.tokenizing import reading_tokenizer
from lmpg.language.diagnose.diagnose_settings import OveroptimisationSettings
from lmpg.language.models.loading import tokenizer_of
from lmpg.language.models.settings import ModelSettings
from lmpg.language.rewards.results.scores import listed
from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rewards.settings import ScoringSettings
from lmpg.language.rewards.specs import parsed_spec
from lmpg.language.trained.command_settings import EvaluateSettings
from lmpg.language.trained.measured import world_of
from lmpg.language.trained.of_run import asked, start_of
from lmpg.settings.section import UserError

_ROOM = 2**30
"""Tokens of a prompt: it was read once, and is not read again."""


def gold_scores(
    folder: Path, rows: Sequence[dict[str, Any]], settings: OveroptimisationSettings
) -> list[float | None]:
    """The gold score of each row of samples.jsonl; None where it gives none.

    A function gets the columns of the run's data as the run's own rewards did; token ids are those
    of the text, encoded again.
    """
    is_function = _names_a_function(settings.gold)
    gold = {"functions" if is_function else "models": [settings.gold]}
    own = asked(EvaluateSettings, {"model": {"path": str(folder)}, "rewards": gold})
    tokenizer = reading_tokenizer(tokenizer_of(_first_model(folder, own)), own.data)
    columns = _columns(own, tokenizer) if is_function else {}
    rewards = ScoringSettings(
        functions=(settings.gold,) if is_function else (),
        models=() if is_function else (settings.gold,),
        timeout=settings.timeout,
    )
    names = sorted({name for of_prompt in columns.values() for name in of_prompt})
    prompts = [row["prompt"] for row in rows]
    of_rows = [columns.get(_key(prompt), {}) for prompt in prompts]
    texts = [row["completion"] for row in rows]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    scorer = Scorer(
        rewards,
        columns=names if is_function else None,
        trust_remote_code=settings.trust_remote_code,
        special_tokens=own.data.special_tokens,
    )
    with scorer:
        given = {name: [x.get(name) for x in of_rows] for name in names}
        scores = scorer.score(prompts, texts, ids, given)
    if all(total is None for total in scores.totals):
        raise UserError(
            f"gold = {settings.gold} scores none of the {len(rows)} responses, expected numbers. "
            f"It said:{listed(scores.messages)}"
        )
    return scores.totals


def _names_a_function(gold: str) -> bool:
    """Whether it is a spec of a function; UserError where it looks like one that is not there."""
    if Path(gold).expanduser().is_dir():
        return False
    try:
        parsed_spec(gold)
    except UserError:
        if "/" in gold and ":" not in gold:
            return False  # an id on the Hub
        raise UserError(
            f"gold = {gold} is neither a metric that the run has logged nor the folder of a reward "
            "model nor a reward function (FILE.py:NAME, package.module:NAME, or a built-in name); "
            "mend the name"
        ) from None
    return True


def _first_model(folder: Path, own: EvaluateSettings) -> ModelSettings:
    """Where the tokenizer lies that the run had: in what it left, else where it began."""
    left = [folder / name for name in ("final", "best") if (folder / name).is_dir()]
    began = left[0] if left else start_of(str(folder))["path"]
    remote = own.model.trust_remote_code
    return ModelSettings(path=str(began), trust_remote_code=remote)


def _columns(own: EvaluateSettings, tokenizer: Any) -> dict[str, dict[str, Any]]:
    """The data's columns by their prompts."""
    world = world_of(own)
    prompts: Sequence[Prompt]
    if world is not None:
        prompts = prompts_from_rows([*world.train_rows, *world.held_out_rows], tokenizer, _ROOM)
    else:
        prompts = load_all_prompts(own.data, tokenizer, _ROOM)
    return {_key(prompt.prompt): prompt.columns for prompt in prompts}


def _key(prompt: Any) -> str:
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False)
