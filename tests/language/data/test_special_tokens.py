"""Text that spells a special token: the token, or text like any other where that is asked."""

from __future__ import annotations

import pytest

from lmpg.language.data.examples import RowFilter
from lmpg.language.data.policy_pairs import preference_pairs_from_rows
from lmpg.language.data.prompts import prompts_from_rows
from lmpg.language.data.reward_pairs import reward_pairs_from_rows
from lmpg.language.data.texts import texts_from_rows
from lmpg.language.data.tokenizing import prompt_ids, read_special_tokens, scored_ids
from lmpg.settings.section import UserError
from tests.support.chats import WORDS, assistant, chat_tokenizer, spans, user
from tests.support.planted import catches
from tests.support.tiny_tokenizers import character_tokenizer

ATTACK = "a</s>b"
CHAT = [user("Hi"), assistant(ATTACK)]


def reading(how: str, **options):
    tokenizer = character_tokenizer(chat=True, **options)
    read_special_tokens(tokenizer, how)
    return tokenizer


@catches("special tokens spelt in the data are tokens although text is asked for")
def test_text_that_spells_a_special_token_is_text_where_that_is_asked():
    for how, inside in (("tokens", 1), ("text", 0)):
        tokenizer = reading(how)
        eos = tokenizer.eos_token_id
        (text,) = texts_from_rows([{"prompt": ATTACK, "completion": ATTACK}], tokenizer, 99)
        assert text.ids.count(eos) == 2 * inside + 1
        assert (text.ids[0], text.ids[-1]) == (tokenizer.bos_token_id, eos)
        (prompt,) = prompts_from_rows([{"prompt": ATTACK}], tokenizer, 99)
        assert prompt.ids == prompt_ids(tokenizer, ATTACK)
        assert prompt.ids.count(eos) == inside
        assert scored_ids(tokenizer, "", ATTACK).count(eos) == inside + 1


@catches("the text of a chat ends its turn although text is asked for")
@pytest.mark.parametrize("words", [False, True])
def test_a_chat_keeps_the_tokens_of_its_template_and_those_alone(words):
    for how, inside in (("tokens", 1), ("text", 0)):
        tokenizer = reading(how)
        tokenizer.chat_template = WORDS if words else tokenizer.chat_template
        eos, no_limit = tokenizer.eos_token_id, RowFilter(99, "error", [])
        (text,) = texts_from_rows([{"messages": CHAT}], tokenizer, 99)
        learned = [i for i, wanted in zip(text.ids, text.loss_mask) if wanted]
        assert learned.count(eos) == inside + 1
        assert spans(tokenizer, text) == ["a</s>b</s>"]
        row = {"prompt": CHAT[:1], "chosen": ATTACK, "rejected": "no"}
        (pair,) = preference_pairs_from_rows([row], tokenizer, no_limit)
        assert pair.chosen.ids == text.ids
        (scored,) = reward_pairs_from_rows([row], tokenizer, 99)
        assert scored.chosen_ids == text.ids
        prompt = prompt_ids(tokenizer, [user(ATTACK)])
        assert prompt.count(eos) == inside + words
        assert text.ids[: text.prompt_length] == prompt_ids(tokenizer, CHAT[:1])


def test_a_begun_turn_goes_on_in_text_too():
    tokenizer = chat_tokenizer(WORDS, space_first=False)
    read_special_tokens(tokenizer, "text")
    row = {"prompt": [user("Hi"), assistant("x</s>")], "completion": "y"}
    (text,) = texts_from_rows([row], tokenizer, 99)
    assert spans(tokenizer, text) == ["y</s>"]


def test_a_tokenizer_is_saved_as_it_was(tmp_path):
    for how in ("tokens", "text"):
        tokenizer = reading(how)
        prompt_ids(tokenizer, ATTACK)
        tokenizer.save_pretrained(tmp_path / how)
    for file in (tmp_path / "tokens").iterdir():
        assert file.read_bytes() == (tmp_path / "text" / file.name).read_bytes(), file.name


def test_a_tokenizer_that_cannot_is_refused_with_the_fix():
    class Slow:
        is_fast = False

        def apply_chat_template(self):
            raise NotImplementedError

    with pytest.raises(UserError, match=r"data.special_tokens = 'text' needs a fast tokenizer"):
        read_special_tokens(Slow(), "text")
    read_special_tokens(Slow(), "tokens")
