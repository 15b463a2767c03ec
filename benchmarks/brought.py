"""A model that the user brings, made ready for a race: no response of it ends early."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

QUESTION = "What is {} + {}? Answer with the number only."


def questions(count: int) -> list[str]:
    """Sums of two numbers of two digits, asked in words: about 16 tokens each."""
    return [QUESTION.format(10 + i * 7 % 90, 10 + i * 13 % 90) for i in range(count)]


def save_endless(source: str, folder: Path) -> None:
    """Save model and tokenizer of `source` (a folder or Hub id) in `folder`, with another EOS.

    EOS, and the padding by which TRL's PPO knows ends, is the added token that the model finds
    least likely after a question, so neither side samples it, and each does the work of full
    responses. Weights stay as they are.
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    end = least_likely(model, tokenizer)
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end)
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


@torch.no_grad()
def least_likely(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the added token, neither padding nor the EOS that stood there, of the least logit."""
    taken = {tokenizer.pad_token_id, tokenizer.eos_token_id}
    added = [i for i in tokenizer.added_tokens_decoder if i not in taken]
    if not added:
        raise SystemExit("the model's tokenizer has no added token that could stand for EOS")
    logits = model(**tokenizer(questions(1), return_tensors="pt")).logits[0, -1]
    return min(added, key=lambda i: float(logits[i]))


def shape_of(folder: Path) -> dict[str, int]:
    """What `floor` asks of a model's config: widths, layers, heads, vocabulary."""
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found.setdefault("num_key_value_heads", found["num_attention_heads"])
    return found
