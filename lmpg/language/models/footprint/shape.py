"""The numbers of a model that decide how much memory it takes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmpg.language.models.architectures import READERS, architecture, trunk_of
from lmpg.language.models.forward.kept_weights import shape_of_weight
from lmpg.language.models.lora import is_lora, linear_layers, rank_of

_ADDED = re.compile(r"\b(lora_|modules_to_save\b)")
"""What adapters add to a model, in the names of weights."""


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes. weights: of the whole model, tied ones once; trunk: without a head of its
    own. linear_width: inputs and outputs of all linear layers that get an adapter, summed; times
    the rank, an adapter's weights. linear: weights of all linear layers but the head. hidden,
    inner: numbers of a token in the stream, in an MLP. mlp_kept: multiples of `inner` that an MLP
    keeps for its backward pass. head_norms: whether queries and keys are normalised. known: whether
    lmpg's own forward serves it.
    """

    weights: int
    trunk: int
    linear_width: int
    linear: int
    layers: int
    vocabulary: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    mlp_kept: int = 3
    head_norms: bool = False
    known: bool = True

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.trunk == self.weights

    @property
    def block(self) -> float:
        """Weights of a layer."""
        return (self.trunk - self.head) / self.layers

    @property
    def head(self) -> int:
        """Weights of the output layer."""
        return self.vocabulary * self.hidden

    @property
    def queries(self) -> int:
        """Numbers of all heads of queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Numbers of all heads of keys, as many as of values."""
        return self.kv_heads * self.head_dim


def shape_of(model: Any, adapted: Callable[[str], bool] = lambda name: True) -> Shape:
    """The shape of a causal LM or a classifier of transformers, on any device, `meta` too.

    adapted: whether a linear layer, by its name, is to get an adapter.
    """
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    weights = sum(_size(p) for name, p in model.named_parameters() if not _ADDED.search(name))
    embedding = model.get_input_embeddings().weight
    untied = head is not None and head.weight is not embedding
    heads = _known(config, "num_attention_heads", 1)
    hidden = _known(config, "hidden_size", embedding.shape[1])
    parts: dict[str, Any] = {
        "layers": _known(config, "num_hidden_layers", 1),
        "heads": heads,
        "kv_heads": _known(config, "num_key_value_heads", heads),
        "head_dim": _known(config, "head_dim", hidden // heads),
        "inner": _inner(config, hidden),
        "known": type(trunk_of(model)) in READERS,
    }
    return Shape(
        weights=weights,
        trunk=weights - (head.weight.numel() if untied else 0),
        linear_width=_linear_width(model, adapted),
        linear=sum(_size(x.weight) for x in _linear(model)),
        vocabulary=embedding.shape[0],
        hidden=hidden,
        **parts | (_read(model) if parts["known"] else {}),
    )


def _read(model: Any) -> dict[str, Any]:
    """What the reader of the model's family knows better than its config."""
    found = architecture(model)
    layer = found.layers[0]
    kept = 2 if not found.gated else 3 if found.activation_name == "silu" else 4
    if found.activation_name == "gelu_new":  # a formula of several steps
        kept += 3
    return {
        "heads": found.heads,
        "kv_heads": found.kv_heads,
        "head_dim": found.head_dim,
        "mlp_kept": kept,
        "head_norms": layer.q_norm is not None,
    }


def _linear_width(model: Any, adapted: Callable[[str], bool]) -> int:
    """Of the layers that have an adapter, or of those that may get one where none has."""
    if any(map(is_lora, model.modules())):  # a wrapper of experts has factors for each of them
        factors = (p for name, p in model.named_parameters() if "lora_" in name)
        return sum(map(_size, factors)) // rank_of(model)
    may = [model.get_submodule(name) for name in linear_layers(model) if adapted(name)]
    return sum(sum(shape_of_weight(module.weight)) for module in may)


def _linear(model: Any) -> list[Any]:
    """All linear layers but the head, without their adapters'."""
    found = [model.get_submodule(x) for x in linear_layers(model) if "lora_" not in x]
    return [layer for layer in found if not is_lora(layer)]


def _size(weight: Any) -> int:
    return math.prod(shape_of_weight(weight))


def _inner(config: Any, hidden: int) -> int:
    """Numbers of a token in an MLP; of a mixture's experts, those of all that a token goes to."""
    experts = _known(config, "num_experts_per_tok", 0)
    whole = _known(config, "intermediate_size", 0) or _known(config, "n_inner", 4 * hidden)
    return experts * _known(config, "moe_intermediate_size", whole) if experts else whole


def _known(config: Any, name: str, otherwise: int) -> int:
    """What a config says of a size; of one that each layer has for itself, the largest."""
    if getattr(config, "is_heterogeneous", False):  # it refuses to tell what layers differ in
        layers = (config.per_layer_config[i] for i in range(config.num_hidden_layers))
        return max(_known(layer, name, otherwise) for layer in layers)
    value = getattr(config, name, None)
    return value if isinstance(value, int) else otherwise
