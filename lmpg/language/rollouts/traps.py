"""Mistakes in a set-up that a run would not refuse: each in a line that names it and the fix.

Of data as token ids, of settings, and of a first few responses with their scores.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from lmpg.language.data.prompts import Prompt
from lmpg.language.data.settings import DataSettings
from lmpg.language.rewards.results.scores import Scores, listed
from lmpg.language.rollouts.completed import Completions
from lmpg.runs.printable import printable

MOST = 2000
"""Examples of each part that are looked at."""
REPEATED, UNKNOWN, FOREIGN, CUT = 0.05, 0.01, 0.1, 0.05
"""Shares of examples or tokens from which on something is a trap."""
FAILED = 0.2
"""Share of responses; a few without a score may be meant."""
FACTOR, FACTOR_OF_SMALL = 30.0, 3000.0
"""How far a learning rate may be from the one that suits; models of a few weights bear more."""
FEW_WEIGHTS = 50_000_000
WIDTH = 400
"""Characters of a text that are shown."""
SLOW = 1.0
"""Seconds that a reward may take for a rollout before it counts as slow."""
_MARKS = re.compile(r"<\|[A-Za-z_]+\|>|\[/?INST\]|<(?:start|end)_of_turn>|</?s>|<\|eot_id\|>")


def of_data(
    parts: tuple[Sequence[Any], Sequence[Any]],
    tokenizer: Any,
    data: DataSettings,
    eos_token_ids: Sequence[int],
) -> Iterator[str]:
    """Traps of (train, held-out) examples: prompts, texts, pairs or labelled answers.

    eos_token_ids: what ends a response; none where the model writes none.
    """
    train, held_out = ([ids_of(x) for x in islice(part, MOST)] for part in parts)
    yield from _duplicates(train, held_out)
    rows = [ids for example in train for ids in example]
    texts = [tokenizer.decode(ids) for ids in rows]
    bos = tokenizer.bos_token_id
    if bos is not None and (twice := sum(ids[:2] == [bos, bos] for ids in rows)):
        yield (
            f"BOS twice: {twice} of {len(rows)} texts begin with it two times; take it out of the "
            "data or the chat template, as the tokenizer adds it"
        )
    unk = tokenizer.unk_token_id
    share = sum(ids.count(unk) for ids in rows) / max(1, sum(map(len, rows)))
    if unk is not None and share > UNKNOWN:
        yield (
            f"unknown tokens: {share:.0%} of the data's tokens are {tokenizer.unk_token}; take the "
            "tokenizer that belongs to the model (--model.tokenizer), or other data"
        )
    foreign = _foreign(texts, tokenizer)
    if sum(foreign.values()) > FOREIGN * len(rows):
        yield (
            f"special tokens of another model: the data spell {', '.join(sorted(foreign))}, which "
            "this tokenizer reads as letters; give messages instead of rendered text, so that the "
            "model's own chat template is used"
        )
    yield from _of_chats(parts[0], train, tokenizer, data, eos_token_ids)


def of_labels(examples: Sequence[Any]) -> Iterator[str]:
    """Answers that are all desirable, or none, from which KTO learns one half of its loss."""
    first = getattr(examples[0], "desirable", None)
    if first is not None and all(x.desirable == first for x in examples):
        kind = "desirable" if first else "undesirable"
        yield (
            f"labels of one kind: all answers are {kind}, so that there is nothing to tell apart; "
            "look at data.label_column, or give answers of the other kind, too"
        )


def of_rate(rate: float, suiting: float, num_weights: int, adapters: bool) -> Iterator[str]:
    """A learning rate that is far from `suiting`, which fits what is trained."""
    factor = FACTOR_OF_SMALL if num_weights < FEW_WEIGHTS else FACTOR
    if suiting / FACTOR <= rate <= suiting * factor:
        return
    what = "adapters (LoRA)" if adapters else "the whole model"
    how = "high" if rate > suiting else "low"
    yield (
        f"learning rate too {how}: update.learning_rate = {rate:g}, where about {suiting:g} fits "
        f"{what}; set --update.learning-rate {suiting:g} and go on from there"
    )


def of_warmup(warmup: int, total_steps: int) -> Iterator[str]:
    """A learning rate that never gets where it is to go."""
    if warmup >= total_steps:
        yield (
            f"warm-up as long as the run: update.warmup_steps = {warmup}, and the run has "
            f"{total_steps}; lower --update.warmup-steps, or make the run longer"
        )


def of_prompts(lengths: Sequence[int], room: int, num_groups: int, cut: bool) -> Iterator[str]:
    """Prompts that are too many tokens (cut: those are cut on the left), or too few."""
    full = sum(n >= room for n in lengths)
    if cut and full > CUT * len(lengths):
        yield (
            f"prompts truncated: {full} of {len(lengths)} have lost their beginning, as only "
            f"{room} tokens fit beside a response; lower --sampling.max-new-tokens, shorten them, "
            "or leave them out with --data.overlong skip"
        )
    if len(lengths) < num_groups:
        yield (
            f"few prompts: an iteration asks for {num_groups}, there are {len(lengths)}, so it "
            "sees each several times; give more data, or a smaller --update.rollout-size"
        )


def of_responses(completions: Completions, scores: Scores, group_size: int) -> Iterator[str]:
    """Traps of responses and their scores."""
    texts, count = completions.texts, len(completions.texts)
    if not any(completions.finished) and not completions.talks:
        longest = max(map(len, completions.ids))
        yield (
            f"all responses cut: none of {count} ended within {longest} tokens, EOS was never "
            "sampled; raise --sampling.max-new-tokens, set --sampling.stop, or take a model that "
            "ends its answers (an instruct model with --data.chat True)"
        )
    if not any(text.strip() for text in texts):
        yield (
            "all responses empty: the model ends at once; look at the prompts below, which may "
            "end where the answer is over, and at --sampling.min-new-tokens"
        )
    elif count > 1 and len(set(texts)) == 1:
        yield (
            "all responses alike: there is nothing to choose from; raise --sampling.temperature, "
            "or leave --sampling.top-k and --sampling.top-p out"
        )
    if scores.errors > FAILED * count:
        yield (
            f"reward fails: {scores.errors} of {count} responses have no score; mend the reward. "
            f"It said:{listed(scores.messages)}"
        )
    yield from _of_scores(scores.totals, group_size)


def of_time(metrics: dict[str, float]) -> Iterator[str]:
    """Traps of a step's seconds."""
    score, sample = metrics.get("time/score", 0.0), metrics.get("time/sample", 0.0)
    if score > max(SLOW, sample):
        yield (
            f"reward slower than sampling: it takes {score:.1f} s of a step, sampling "
            f"{sample:.1f} s; raise --rewards.workers or --rewards.chunks, or make it faster"
        )


def _of_scores(totals: Sequence[float | None], group_size: int) -> Iterator[str]:
    known = [x for x in totals if x is not None]
    if len(known) < 2:
        return
    groups = [totals[i : i + group_size] for i in range(0, len(totals), group_size)]
    if min(known) == max(known):
        yield (
            f"reward constant: all {len(known)} scores are {known[0]:g}, so nothing is better "
            "than anything else; look at the responses below and at what the reward expects of "
            "them, or begin with easier prompts"
        )
    elif group_size > 1 and all(len(set(group)) == 1 for group in groups):
        yield (
            "no group has a spread: the responses to each prompt score alike, so none is better "
            "than another; raise --algorithm.group-size, or take prompts that are neither too "
            "easy nor too hard"
        )


def _duplicates(train: list, held_out: list) -> Iterator[str]:
    known = Counter(_key(example) for example in train)
    both = sum(_key(example) in known for example in held_out)
    if both:
        yield (
            f"held-out rows are trained on: {both} of {len(held_out)} are in the training data "
            "too, so that evaluations praise what was learned by heart; take them out of "
            "data.path or data.eval_path"
        )
    again = len(train) - len(known)
    if again > REPEATED * len(train):
        yield (
            f"duplicate rows: {again} of {len(train)} training rows are there before; leave them "
            "out, or they count several times"
        )


def _of_chats(
    examples: Sequence[Any],
    train: list[list[list[int]]],
    tokenizer: Any,
    data: DataSettings,
    eos_token_ids: Sequence[int],
) -> Iterator[str]:
    """Traps of a tokenizer that has a chat template."""
    if not getattr(tokenizer, "chat_template", None):
        return
    marks, end = _marks_of(tokenizer)
    chats = [
        isinstance(getattr(x, "prompt", None), list) or any(marks & set(ids) for ids in row)
        for x, row in zip(islice(examples, MOST), train)
    ]
    if not any(chats) and not data.chat:
        yield (
            "an instruct model without chat: the tokenizer has a chat template, and no text is a "
            "chat; set --data.chat True, or give messages, unless the model was never taught to "
            "chat"
        )
    if any(chats) and eos_token_ids and end is not None and end not in eos_token_ids:
        yield (
            f"turns end by {tokenizer.convert_ids_to_tokens(end)!r}, which is no EOS of the model "
            f"(its ids: {list(eos_token_ids)}), so that responses run on; set eos_token_id in its "
            f"generation_config.json to {end}, or --sampling.stop"
        )


def _marks_of(tokenizer: Any) -> tuple[set[int], int | None]:
    """The special tokens that a chat template writes, and the one behind an assistant's turn."""
    said = "qxz"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}]
    try:
        ids = list(tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False))
    except Exception:  # a template of other messages; the data have been read by it
        return set(), None
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    plain = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    places = [i for i, x in enumerate(ids) if x in special]
    ends = (ids[i] for i in places if said in tokenizer.decode(ids[:i]))
    return {ids[i] for i in places} - plain, next(ends, None)


def _foreign(texts: Sequence[str], tokenizer: Any) -> Counter[str]:
    """Marks that texts spell and the tokenizer has no token for, and in how many texts each is."""
    known = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    found = Counter(chain.from_iterable(set(_MARKS.findall(text)) for text in texts))
    return Counter({mark: n for mark, n in found.items() if mark not in known})


def in_a_line(tokenizer: Any, ids: Sequence[int]) -> str:
    """A text with its special tokens; the middle of a long one is left out."""
    text = printable(tokenizer.decode(list(ids)).replace("\n", "⏎"))
    half = WIDTH // 2
    return text if len(text) <= WIDTH else f"{text[:half]} … {text[-half:]}"


def ids_of(example: Any) -> list[list[int]]:
    """The token ids of an example, one list for each of its texts."""
    if isinstance(example, tuple):  # several texts in a row
        return [text.ids for text in example]
    if isinstance(example, Prompt):
        return [example.ids]
    if hasattr(example, "chosen_ids"):
        return [example.chosen_ids, example.rejected_ids]
    if hasattr(example, "chosen"):
        return [example.chosen.ids, example.rejected.ids]
    return [list(getattr(example, "text", example).ids)]


def _key(example: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, example))
