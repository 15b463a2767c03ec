"""Which revision of a model is loaded, and which tokenizer goes with it."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lmpg.language.missing import refuse_missing_paths
from lmpg.language.models.loading import load_policy, load_sequence_classifier, tokenizer_of
from lmpg.language.models.model_files import start_files
from lmpg.language.models.settings import ModelSettings
from lmpg.language.stages.settings import SftSettings
from lmpg.settings.section import UserError
from tests.support.hub import cached_on_the_hub
from tests.support.planted import catches
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer


def with_template(folder, text):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = text
    tokenizer.save_pretrained(folder)


def filled(folder, seed, template):
    save_tiny(folder, seed=seed)
    with_template(folder, template)


@pytest.fixture
def on_the_hub(tmp_path, monkeypatch):
    """me/tiny with two revisions, of which `main` is the first."""
    revisions = {
        "main": partial(filled, seed=1, template="main"),
        "v2": partial(filled, seed=2, template="v2"),
    }
    cached_on_the_hub(tmp_path / "cache", "me/tiny", revisions, monkeypatch)


@catches("model and tokenizer of different revisions")
@pytest.mark.parametrize(("revision", "seed"), [(None, 1), ("v2", 2), ("2" * 40, 2)])
def test_model_tokenizer_and_fingerprints_are_those_of_the_revision(on_the_hub, revision, seed):
    settings = ModelSettings(path="me/tiny", revision=revision)
    tokenizer = tokenizer_of(settings)
    policy = load_policy(settings, tokenizer, critic=False, temperature=1.0)
    for mine, expected in zip(policy.model.parameters(), tiny_model(seed=seed).parameters()):
        assert torch.equal(mine, expected)
    assert tokenizer.chat_template == ("main" if seed == 1 else "v2")
    files = start_files(settings)["model.path"]
    assert files["chat_template.jinja"].read_text() == tokenizer.chat_template
    head = load_sequence_classifier("me/tiny", new_head=True, revision=revision)
    assert torch.equal(head.get_input_embeddings().weight, policy.model.model.embed_tokens.weight)


def test_a_revision_that_is_not_there_is_refused_by_name(on_the_hub):
    with pytest.raises(UserError, match=r"me/tiny \(model\.revision = v9\): no tokenizer could"):
        tokenizer_of(ModelSettings(path="me/tiny", revision="v9"))


def test_a_name_that_is_neither_here_nor_on_the_hub_is_told_to_be_no_folder(on_the_hub):
    with pytest.raises(UserError, match=r"model\.path = me/tyni, which is no folder here: no tok"):
        tokenizer_of(ModelSettings(path="me/tyni"))


def test_a_folder_and_no_model_at_all_have_no_revision(tmp_path):
    settings = {"path": str(tmp_path), "revision": "v1"}
    with pytest.raises(UserError, match=rf"revision = v1, but model\.path = {tmp_path} is a fold"):
        tokenizer_of(ModelSettings(**settings))
    with pytest.raises(UserError, match=r"model\.revision = v1, but"):
        refuse_missing_paths(SftSettings(model=settings, data={"path": str(tmp_path)}))
    for key in ("revision", "tokenizer"):
        with pytest.raises(ValueError, match=rf"model\.{key} = x, but there is no model\.path"):
            ModelSettings(**{key: "x"})


def test_a_tokenizer_without_an_end_is_refused_under_its_own_name(tmp_path):
    tiny_tokenizer(eos=False).save_pretrained(tmp_path / "mine")
    settings = ModelSettings(path="me/tiny", tokenizer=str(tmp_path / "mine"))
    with pytest.raises(UserError, match=rf"model\.tokenizer = {tmp_path / 'mine'}: its tokeni"):
        tokenizer_of(settings)
