"""The vocabulary of a tokenizer beside the ids that a model has."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmpg.language.models.pretrained import pretrained_tokenizer
from lmpg.language.models.start.trained_adapter import tokenizer_place
from lmpg.settings.section import UserError

logger = logging.getLogger(__name__)


def absent_ids(
    key: str, path: str | None, model: PreTrainedModel, tokenizer, eos_token_ids: tuple[int, ...]
) -> Tensor | None:
    """Ids that the model has logits for, but the tokenizer no token; None where there are none."""
    rows = len(getattr(model.get_output_embeddings(), "weight", ()))
    known = {*tokenizer.get_vocab().values(), *eos_token_ids}
    absent = [i for i in range(rows) if i not in known]
    if not absent:
        return None
    logger.warning(
        "%s = %s: %d of the model's %d ids have no token in its tokenizer (%d and others); "
        "their probability is 0, in sampling as in learning",
        *(key, path, len(absent), rows, absent[0]),
    )
    return torch.tensor(absent)


def refuse_other_vocabulary(
    key: str,
    path: str,
    tokenizer,
    trust_remote_code: bool,
    fix: str = "Choose a model of the same family",
) -> None:
    """UserError where the tokenizer at `path`, which the setting `key` names, gives other ids."""
    place, revision = tokenizer_place(key, path)
    other = pretrained_tokenizer(key, place, trust_remote_code, revision)
    mine, its = tokenizer.get_vocab(), other.get_vocab()
    if mine != its:
        apart = sum(mine.get(token) != its.get(token) for token in mine.keys() | its.keys())
        raise UserError(
            f"{key} = {path}: its tokenizer differs from that of model.path in {apart} tokens, "
            f"expected the same vocabulary, as it is to read the policy's token ids. {fix}"
        )


def refuse_smaller_vocabulary(key: str, path: str | None, model: Any, tokenizer) -> None:
    """UserError where the tokenizer gives ids that the model, of the setting `key`, embeds not."""
    embedding: Any = model.get_input_embeddings()
    rows = len(embedding.weight)
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise UserError(
            f"{key} = {path}: the tokenizer's largest id is {largest}, but the model embeds "
            f"only ids below {rows}, expected a tokenizer and a model that belong together; "
            "save the right tokenizer there, or call model.resize_token_embeddings"
        )


def all_eos_token_ids(model: PreTrainedModel, tokenizer) -> tuple[int, ...]:
    """Every id that ends a response: the tokenizer's, then those of the generation_config, but for
    ids that the model cannot write."""
    extra = getattr(model.generation_config, "eos_token_id", None)
    extra = extra if isinstance(extra, list | tuple) else [] if extra is None else [extra]
    if not all(type(x) is int for x in extra):
        raise UserError(
            f"{model.config.name_or_path}: the eos_token_id of its generation_config.json is "
            f"{extra}, expected a token id or a list of them; mend the file"
        )
    rows = len(getattr(model.get_output_embeddings(), "weight", ()))
    if strange := [x for x in extra if rows and not 0 <= x < rows]:
        logger.warning(
            "%s: the eos_token_id of its generation_config.json names %s, but the model's ids go "
            "from 0 to %d; left out",
            *(model.config.name_or_path, ", ".join(map(str, strange)), rows - 1),
        )
    kept = [x for x in extra if x not in strange]
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *kept]))
