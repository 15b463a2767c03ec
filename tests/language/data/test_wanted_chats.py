"""What the settings make of chats: roles, system prompt, template and its variables."""

from __future__ import annotations

import json
import logging

import pytest
from datasets import Dataset

from lmpg.language.data import rows as rows_module
from lmpg.language.data.data_files import data_inputs
from lmpg.language.data.policy_pairs import load_labelled_completions, load_preference_pairs
from lmpg.language.data.prompts import load_prompts
from lmpg.language.data.reward_pairs import load_reward_pairs
from lmpg.language.data.rows import read_rows
from lmpg.language.data.settings import DataSettings
from lmpg.language.data.texts import load_texts
from lmpg.language.data.tokenizing import reading_tokenizer
from lmpg.language.missing import refuse_missing_paths
from lmpg.language.stages.settings import SftSettings
from lmpg.settings import said_once
from lmpg.settings.section import UserError
from tests.support.chats import WORDS, assistant, user
from tests.support.planted import catches
from tests.support.programs import run_here
from tests.support.tiny import save_tiny, tiny_tokenizer
from tests.support.tiny_tokenizers import CHAT, character_tokenizer

THINKING = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if not think %}<no>{% endif %}{% endif %}"
)
SYSTEM = {"role": "system", "content": "Be brief"}


@pytest.fixture
def write(tmp_path):
    def write_rows(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows * 5))
        return str(path)

    return write_rows


def prompts_of(path, **settings):
    """The first prompt as rewards get it and as the model reads it."""
    data = DataSettings(path=path, **settings)
    tokenizer = reading_tokenizer(character_tokenizer(chat=True), data)
    prompt = load_prompts(data, tokenizer, 200).train[0]
    return prompt, tokenizer.decode(prompt.ids)


@catches("a system prompt put in front of a system message")
def test_a_system_prompt_stands_in_front_of_every_chat_that_has_none(write):
    wanted = {"system_prompt": "Be brief"}
    prompt, text = prompts_of(write({"prompt": [user("Hi")]}), **wanted)
    assert text == "<|system|>Be brief<|user|>Hi<|assistant|>"
    assert prompt.prompt == [SYSTEM, user("Hi")]
    own = {"role": "system", "content": "Rhyme"}
    assert prompts_of(write({"prompt": [own, user("Hi")]}), **wanted)[0].prompt == [own, user("Hi")]
    assert prompts_of(write({"prompt": "Hi"}), **wanted)[1] == text


def test_texts_become_chats_only_where_that_is_asked_for(write):
    path = write({"prompt": "Hi"})
    assert prompts_of(path, chat=True)[1] == "<|user|>Hi<|assistant|>"
    assert prompts_of(path)[1] == "<s>Hi"


LEARNED = {
    "sft": (load_texts, {"prompt": "Hi", "completion": "Yo"}),
    "sft on messages": (load_texts, {"messages": [user("Hi"), assistant("Yo")]}),
    "sft on preferences": (load_texts, {"prompt": "Hi", "chosen": "Yo", "rejected": "No"}),
    "dpo": (load_preference_pairs, {"prompt": "Hi", "chosen": "Yo", "rejected": "No"}),
    "dpo, implicit": (
        load_preference_pairs,
        {"chosen": [user("Hi"), assistant("Yo")], "rejected": [user("Hi"), assistant("No")]},
    ),
    "kto": (load_labelled_completions, {"prompt": "Hi", "completion": "Yo", "label": True}),
    "reward model": (load_reward_pairs, {"prompt": "Hi", "chosen": "Yo", "rejected": "No"}),
}


@catches("a stage that passes over data.system_prompt")
@pytest.mark.parametrize("kind", LEARNED)
def test_every_stage_reads_the_same_chat(write, kind):
    load, row = LEARNED[kind]
    rows = [row, {**row, "label": False}] if "label" in row else [row]
    data = DataSettings(path=write(*rows), system_prompt="Be brief")
    tokenizer = character_tokenizer(chat=True)
    example = load(data, tokenizer, 200).train[0]
    first = getattr(example, "chosen", None) or getattr(example, "text", example)
    ids = first.ids if hasattr(first, "ids") else example.chosen_ids
    assert tokenizer.decode(ids) == "<|system|>Be brief<|user|>Hi<|assistant|>Yo</s>"


def test_a_text_without_a_prompt_of_its_own_is_no_chat(write):
    tokenizer = character_tokenizer(chat=True)
    whole = [
        (load_texts, {"text": "Hi"}),
        (load_preference_pairs, {"chosen": "Hi Yo", "rejected": "Hi No"}),
        (load_reward_pairs, {"text": "Hi", "label": 1}),
    ]
    for load, row in whole:
        with pytest.raises(UserError, match=r"data\.chat = True: .*row 1 holds a whole text, exp"):
            load(DataSettings(path=write(row), chat=True), tokenizer, 200)


@catches("a row's own chat_template_kwargs overruled by the settings")
def test_variables_of_the_template_reach_every_row_and_rewards_but_a_rows_own_win(write, tmp_path):
    (tmp_path / "t.jinja").write_text(THINKING)
    data = {"chat": True, "chat_template": str(tmp_path / "t.jinja")}
    assert prompts_of(write({"prompt": "Hi"}), **data)[1] == "[user]Hi[assistant]<no>"
    given = {**data, "chat_template_kwargs": {"think": True, "other": 1}}
    prompt, text = prompts_of(write({"prompt": "Hi"}), **given)
    assert text == "[user]Hi[assistant]"
    assert prompt.columns["chat_template_kwargs"] == {"think": True, "other": 1}
    for own in ({"think": False}, '{"think": false}'):
        row = {"prompt": "Hi", "chat_template_kwargs": own}
        assert prompts_of(write(row), **given)[1] == "[user]Hi[assistant]<no>"
    with pytest.raises(UserError, match=r"kwargs = \{'tools': 1\}, expected variables of the chat"):
        prompts_of(write({"prompt": "Hi"}), chat=True, chat_template_kwargs={"tools": 1})
    with pytest.raises(UserError, match=r"row 1, column 'chat_template_kwargs' holds"):
        prompts_of(write({"prompt": "Hi", "chat_template_kwargs": 3}), **given)


def test_settings_for_chats_that_meet_texts_say_so_once(write, caplog):
    said_once._said.clear()
    with caplog.at_level(logging.WARNING):
        prompts_of(write({"prompt": "Hi"}), chat_template_kwargs={"think": True})
    assert (
        caplog.text.count("data.chat_template_kwargs is for chats, not for texts; --data.chat") == 1
    )


def test_a_chat_template_that_cannot_be_read_is_refused(tmp_path, write):
    def template(content):
        path = tmp_path / "t.jinja"
        path.write_bytes(content)
        data = DataSettings(path="x", chat_template=str(path))
        return reading_tokenizer(character_tokenizer(), data).chat_template

    assert template(CHAT.encode()) == CHAT
    with pytest.raises(UserError, match=r"chat_template = .*t\.jinja, line 2: .*Jinja templ"):
        template(b"a\n{% if %}")
    with pytest.raises(UserError, match=r"it is no text in UTF-8"):
        template(b"\xff\xfe")
    data = {"path": write({"prompt": "a"}), "chat_template": str(tmp_path / "no.jinja")}
    with pytest.raises(UserError, match=r"chat_template = .*no\.jinja is no file"):
        refuse_missing_paths(SftSettings(model={"path": str(tmp_path)}, data=data))


@catches(
    "the tokenizer of model.path where model.tokenizer names another",
    "a chat template that changes before a run is resumed, unnoticed",
)
def test_a_run_keeps_tokenizer_and_template_in_final_and_resumes_with_them_alone(tmp_path, write):
    template, mine = tmp_path / "t.jinja", tmp_path / "mine"
    template.write_text(WORDS)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<mine>"])
    tokenizer.save_pretrained(mine)
    flags = {
        "model.path": save_tiny(tmp_path / "model", vocab_size=99),
        "model.tokenizer": mine,
        "data.path": write({"prompt": "ab", "completion": "c"}, {"prompt": "d", "completion": "e"}),
        "data.chat": True,
        "data.chat-template": template,
        "data.chat-template-kwargs": "{enable_thinking: false}",
        "update.minibatch-size": 4,
        "run.total-steps": 1,
        "run.output-dir": tmp_path / "run",
    }
    final = run_here("sft", flags) / "final"
    assert (final / "chat_template.jinja").read_text() == WORDS
    assert "<mine>" in (final / "tokenizer.json").read_text()
    known = json.loads((tmp_path / "run" / "inputs.json").read_text())["inputs"]
    assert "tokenizer.json" in known["model.tokenizer"]
    on = {**flags, "run.total-steps": 2, "run.resume": True}
    (mine / "tokenizer.json").write_text((mine / "tokenizer.json").read_text() + "\n")
    template.write_text(WORDS.replace("</s>", "</s>\n"))
    with pytest.raises(UserError) as error:
        run_here("sft", on)
    first, second, _ = str(error.value).splitlines()
    assert first.startswith(f"data.chat_template: {template} has changed since the run")
    assert second.startswith(f"model.tokenizer: {mine / 'tokenizer.json'} has changed since the")
    template.write_text(WORDS)
    copy = tmp_path / "copy.jinja"
    copy.write_text(WORDS)
    (mine / "tokenizer.json").write_text((mine / "tokenizer.json").read_text()[:-1])
    run_here("sft", {**on, "data.chat-template": copy})


WORLDLESS = {"chat": True, "system_prompt": "a", "revision": "a", "chat_template_kwargs": {"a": 1}}


@pytest.mark.parametrize("path", [None, "world:reviews"])
@pytest.mark.parametrize("key", WORLDLESS)
def test_built_in_worlds_take_none_of_it(path, key):
    with pytest.raises(
        ValueError, match=rf"data\.{key} = .*, but the data are those of a built-in"
    ):
        DataSettings(path=path, **{key: WORLDLESS[key]})


@catches("data.revision not asked for, or asked for of data.eval_path")
def test_the_revision_of_a_data_set_on_the_hub_is_the_one_read(monkeypatch, tmp_path):
    asked = []

    def load_dataset(*names, **options):
        asked.append((*names, options.get("revision")))
        return Dataset.from_list([{"prompt": "a"}] * 9)

    monkeypatch.setattr(rows_module._quiet_datasets(), "load_dataset", load_dataset)
    both = DataSettings(path="me/data:hard", eval_split="test", revision="v2")
    load_prompts(both, character_tokenizer(), 20)
    data_inputs(both)
    assert asked == [("me/data", "hard", "v2")] * 3
    asked.clear()
    other = DataSettings(path="me/data", eval_path="me/other", revision="v2")
    load_prompts(other, character_tokenizer(), 20)
    assert asked == [("me/data", "v2"), ("me/other", None)]
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n')
    for source in (str(tmp_path / "a.jsonl"), "reasoning_gym:chain_sum"):
        with pytest.raises(UserError, match=r"data\.revision = v2, but data\.path = .* is not on"):
            read_rows(source, "train", revision="v2")
