"""`lmpg generate` and `lmpg chat` over a tiny model: what they read, print, and how they end."""

from __future__ import annotations

import io
import json
import sys

import pytest

from lmpg.cli.asking import generate
from lmpg.cli.chat_loop import chat
from lmpg.language.trained.command_settings import ChatSettings, GenerateSettings
from lmpg.language.trained.conversation import begun
from lmpg.language.trained.of_run import asked
from lmpg.settings import said_once
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny import tiny_model, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<pad>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny model that has a chat template."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model(max_position_embeddings=160).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


def generated(capsys, model, *words):
    generate([*words, "--model.path", model, "--sampling.max-new-tokens", "8"])
    return capsys.readouterr().out


def test_a_prompt_is_answered_as_the_sampler_of_training_does_and_the_same_each_time(model, capsys):
    once = generated(capsys, model, "abc", "de")
    assert once == generated(capsys, model, "abc", "de", "--batch-size", "1")
    assert once != generated(capsys, model, "abc", "de", "--seed", "1")
    heads = [line for line in once.splitlines() if line.startswith("---")]
    assert heads == ["--- abc", "--- de"]
    alone = generated(capsys, model, "abc", "--greedy")
    assert "---" not in alone
    assert alone == generated(capsys, model, "abc", "--greedy", "--seed", "7")


def test_prompts_come_from_words_a_file_or_standard_input(model, capsys, monkeypatch, tmp_path):
    from_words = generated(capsys, model, "abc", "de", "--jsonl")
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\n\nde\n"))
    assert generated(capsys, model, "--jsonl") == from_words
    (tmp_path / "rows.jsonl").write_text('{"question": "abc"}\n{"question": "de"}\n')
    data = ("--data.path", str(tmp_path / "rows.jsonl"), "--data.prompt-column", "question")
    assert generated(capsys, model, "--jsonl", *data) == from_words
    behind = ["--model.path", model, "--sampling.max-new-tokens", "8", "--jsonl", "--", "abc", "de"]
    generate(behind)
    assert capsys.readouterr().out == from_words
    rows = [json.loads(line) for line in from_words.splitlines()]
    assert [row["prompt"] for row in rows] == ["abc", "de"]
    assert {"text", "length", "ended"} < rows[0].keys()


@catches("special tokens left out where they are asked for")
def test_special_tokens_are_shown_where_they_are_asked_for(model, capsys):
    words = ("hi", "--data.chat", "--greedy", "--data.system-prompt", "be brief")
    plain = generated(capsys, model, *words)
    shown = generated(capsys, model, *words, "--show-special")
    assert shown.startswith("system: be brief<pad>user: hi<pad>assistant: " + plain[:2])
    assert "<pad>" not in plain


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.path", "{model}"], "no prompt is given, expected some"),
        (["a", "", "--model.path", "{model}"], "prompt 2 of 2 is empty"),
        (["a"], "model.path is not set"),
        (["a", "--data.path", "{model}", "--model.path", "{model}"], "prompts are given twice"),
        (
            ["a", "--model.path", "{model}", "--sampling.max-new-tokens", "500"],
            "leaves no token for the prompt .*max_new_tokens is 341 too large",
        ),
        (["a", "--model.path", "{model}", "--samples", "x"], "samples = 'x': expected a valid int"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_line(words, message, model, monkeypatch):
    monkeypatch.setattr(
        sys, "stdin", type("Terminal", (io.StringIO,), {"isatty": lambda _: True})()
    )
    with pytest.raises(UserError, match=message):
        generate([word.format(model=model) for word in words])


def talk(monkeypatch, capsys, model, said, *flags):
    """What a chat prints where the user types these lines, and then Ctrl-D."""
    lines = iter(said)

    def typed(prompt=""):
        line = next(lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typed)
    chat(["--model.path", model, "--sampling.max-new-tokens", "8", *flags])
    return capsys.readouterr().out


@catches("the history left out of the next prompt")
def test_a_chat_remembers_what_was_said_until_it_is_told_to_forget(model):
    given = {"model": {"path": model}, "sampling": {"max_new_tokens": 8}}
    pieces = []
    chatted = begun(asked(ChatSettings, given), pieces.append)
    first = chatted.answer("hi")
    second = chatted.answer("and")
    assert second.read == f"user: hi<pad>assistant: {first.text}<pad>user: and<pad>assistant: "
    assert "".join(pieces) == first.text + second.text
    assert len(pieces) > 2  # told while they were sampled
    chatted.forget()
    chatted.system = "be kind"
    third = chatted.answer("hi")
    assert third.read == "system: be kind<pad>user: hi<pad>assistant: "


def test_a_chat_that_outgrows_the_context_forgets_its_oldest_turns_and_goes_on(model):
    given = {"model": {"path": model}, "sampling": {"max_new_tokens": 8}, "greedy": True}
    chatted = begun(asked(ChatSettings, given), lambda piece: None)
    for _ in range(6):
        response = chatted.answer("tell me more about it")
    assert chatted.forgotten >= 2
    assert response.read.startswith("user: tell")
    assert len(chatted.history) < 12
    before = list(chatted.history)
    with pytest.raises(
        UserError, match=r"has \d+ tokens as the chat template writes it, but only 1"
    ):
        chatted.answer("a" * 200)
    assert chatted.history == before


@pytest.mark.parametrize("end", [EOFError(), KeyboardInterrupt(), "/exit"])
def test_a_chat_ends_cleanly(end, model, monkeypatch, capsys):
    shown = talk(monkeypatch, capsys, model, ["hi", end, "not reached"])
    assert shown.count("cut off") <= 1
    assert shown.endswith("\n")


def test_the_commands_of_a_chat(model, monkeypatch, capsys):
    said = ["/special", "hi", "/system be kind", "/new", "yo", "/what", "", "/special"]
    shown = talk(monkeypatch, capsys, model, said)
    assert "user: hi<pad>assistant: " in shown
    assert "system: be kind<pad>user: yo<pad>assistant: " in shown
    assert "unknown command /what" in shown
    assert "(the chat is forgotten)" in shown
    assert "(the system message is set)" in shown
    assert shown.index("special tokens are shown") < shown.index("special tokens are hidden")
    assert "user: hi<pad>" in shown.split("be kind")[0]


def test_a_response_does_not_steer_the_terminal(model, monkeypatch, capsys):
    shown = talk(monkeypatch, capsys, model, ["/special", "\x1b[31mhi"])
    assert "\x1b" not in shown


def test_a_model_without_a_chat_template_is_refused_with_what_to_do(tmp_path, monkeypatch, capsys):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no chat template, expected one. Give --data.chat-templ"):
        talk(monkeypatch, capsys, str(tmp_path), ["hi"])


def test_the_settings_of_a_run_are_those_of_its_prompts_and_responses(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "model: {path: x, precision: bf16, lora: {rank: 8}}\n"
        "data: {path: gone.jsonl, chat: true, system_prompt: be brief, eval_path: gone2.jsonl}\n"
        "sampling: {max_new_tokens: 5, max_refills: 2}\nrun: {seed: 4}\n"
    )
    found = asked(GenerateSettings, {"model": {"path": str(tmp_path)}})
    assert (found.data.path, found.data.chat, found.data.eval_path) == ("-", True, None)
    assert (found.data.system_prompt, found.sampling.max_new_tokens) == ("be brief", 5)
    assert (found.seed, found.model.precision) == (4, "auto")
    assert asked(ChatSettings, {"model": {"path": str(tmp_path)}}).data.system_prompt == "be brief"


def test_a_model_that_chats_and_is_given_texts_is_told_of_its_template(model, capsys, caplog):
    told = "the model has a chat template, and goes on with the prompts as plain texts"
    for words, expected in (
        (["user: a<pad>assistant: "], False),
        (["a", "--data.chat", "True"], False),
        (["a"], True),
    ):
        said_once._said.clear()
        caplog.clear()
        generated(capsys, model, *words)
        assert (told in caplog.text) == expected, words
