"""Adapters go where they can learn and be merged, in every kind of family."""

from __future__ import annotations

import pytest
import torch

from lmpg.language.models.footprint.shape import shape_of
from lmpg.language.models.lora import is_lora, merged_copy, with_adapter
from lmpg.language.models.settings import LoraSettings
from lmpg.language.models.start.adaptable import not_adaptable, refuse_shared_weights
from lmpg.settings.section import UserError
from tests.support.causal_families import tiny_of_family
from tests.support.planted import catches
from tests.support.tiny import tiny_model

IDS = torch.tensor([[5, 6, 7, 8]])
LEFT_OUT = {
    "llama4_text": {"router"},
    "phimoe": {"router"},
    "deepseek_v4": {"o_a_proj"},
    "mamba2": {"out_proj"},
    "zamba": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "falcon": set(),
    "mixtral": set(),
    "gemma4_text": set(),
    "inkling_text": set(),
    "bigbird_pegasus": set(),
}


@catches("two adapters merged into the weight that their layers share", "a router adapted")
@pytest.mark.parametrize("family", LEFT_OUT)
@pytest.mark.filterwarnings("ignore")  # transformers tells of kernels that are not installed
def test_adapters_of_every_layer_that_can_have_one_are_counted_and_merge(family):
    model = tiny_of_family(family)
    assert {name.rpartition(".")[2] for name in not_adaptable(model)} == LEFT_OUT[family]
    whole = with_adapter(model, LoraSettings(rank=2))
    for name, p in whole.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    learning = sum(p.numel() for p in whole.parameters() if p.requires_grad)
    assert 2 * shape_of(whole.get_base_model()).linear_width == learning
    with torch.no_grad():
        adapted, merged = whole(IDS).logits, merged_copy(whole, torch.float32).eval()(IDS).logits
        with whole.disable_adapter():
            plain = whole(IDS).logits
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    assert (plain - adapted).abs().max() > 1e-3


def test_layers_that_share_a_weight_are_refused_where_they_are_asked_for():
    asked = LoraSettings(rank=2, target_modules=("q_proj",))
    with pytest.raises(UserError, match=r"target_modules = \['q_proj'\] adapts .*which share one"):
        with_adapter(tiny_of_family("zamba"), asked)
    refuse_shared_weights(with_adapter(tiny_model(), asked), "it")


def test_dense_models_leave_out_nothing_but_the_head():
    whole = with_adapter(tiny_model(), LoraSettings(rank=2))
    assert whole.peft_config["default"].exclude_modules is None
    assert sum(map(is_lora, whole.modules())) == 7 * len(whole.get_base_model().model.layers)


class Odd(torch.nn.Linear):
    """A linear layer that computes what it is told."""

    def __init__(self, computes):
        super().__init__(4, 4)
        self.forward = lambda x: computes(torch.nn.functional.linear(x, self.weight, self.bias))


@pytest.mark.parametrize(
    ("computes", "left_out"),
    [
        (lambda x: x, False),
        (lambda x: x.double(), False),
        (lambda x: x.softmax(-1), True),
        (lambda x: (x, x), True),
        (lambda x: x.reshape(2, 2), True),
        (lambda x: x[:, :3], True),
    ],
)
def test_a_layer_of_another_class_gets_an_adapter_if_it_is_a_product(computes, left_out):
    model = tiny_model()
    model.model.layers[0].mlp.router = Odd(computes)
    assert not_adaptable(model) == ["model.layers.0.mlp.router"] * left_out
