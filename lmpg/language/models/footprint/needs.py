"""The memory of a run by part, from sizes and settings alone: pure arithmetic, nothing is loaded.

Each phase holds what stays (weights, optimizer, frozen models) and what only it needs; the largest
decides. Formulas count what lmpg's own forward keeps (`lmpg/language/models/forward/`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate

from lmpg.language.models.footprint.shape import Shape
from lmpg.language.models.forward.attention import PLAIN_UP_TO
from lmpg.language.models.head import KEPT, rows_at_once
from lmpg.language.models.inputs import PROMPT_TOKENS

Parts = dict[str, float]
"""Bytes by part."""
FP32, BF16 = 4, 2
PACKED = 1 / 2 + 4 / 64
"""Bytes of a weight in 4 bits, with its share of its block's scale."""
LIBRARIES = 0.65e9
"""Python, torch, transformers and what they bring, with the buffers of their kernels: measured."""
STATES: dict[str, float] = {"adamw": 2 * FP32, "adamw_8bit": 2.0, "adafactor": 0.0}
"""Bytes of an optimizer's states for each weight that learns; those of rows and columns, or of
blocks, are no matter."""
WHOLE = {"reward models"}
"""Frozen models that every process holds, however others are shared out."""
_PLAIN_UP_TO = {dtype.itemsize: keys for dtype, keys in PLAIN_UP_TO.items()}
"""Keys up to which attention on a CPU keeps its weights, by the bytes of a number."""
_OWN_FORWARD = 2.0
"""How much more a forward of transformers keeps than lmpg's, at most."""


@dataclass(frozen=True)
class Work:
    """A run's sizes. rank: of adapters, 0 where the whole model learns. besides: weights that learn
    beside them. packed: whether the linear layers under them are in 4 bits. kept, product, saved:
    bytes of a frozen weight, of a number in a product, of a weight in `final/`. critic_shape: of a
    critic with weights of its own. frozen: bytes of other models. rows: of a micro-batch, each with
    `prompt` tokens and then `response`; sampled: rows of a rollout. several: whether a minibatch
    has several micro-batches. engine_stays: whether a CUDA engine keeps its memory while learning.
    count: of processes; shards: how many of them share out weights, 1 where each holds all.
    """

    model: Shape
    rows: int
    prompt: int
    response: int
    sampled: int = 0
    rank: int = 0
    besides: int = 0
    packed: bool = False
    kept: int = FP32
    product: int = FP32
    saved: int = FP32
    optimizer: str = "adamw"
    critic_shape: Shape | None = None
    frozen: Parts = field(default_factory=dict)
    recompute: bool = False
    several: bool = True
    engine_stays: bool = True
    count: int = 1
    shards: int = 1
    device: str = "cpu"

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.prompt + self.response

    @property
    def learning(self) -> int:
        """Weights of the policy that the optimizer changes."""
        adapters = self.rank * self.model.linear_width + self.besides
        return adapters if self.rank else self.model.weights


def phases(work: Work) -> dict[str, Parts]:
    """Bytes by phase and part, on the device that computes."""
    stays = staying(work)
    sampling = engine(work) if work.sampled else {}
    stays_there = work.device != "cpu" and work.engine_stays
    resident = {k: v for k, v in sampling.items() if stays_there and k != "logits"}
    found = {
        "sampling": stays | sampling,
        "learning": stays | resident | _learning(work),
        "saving": stays | {"copy to be saved": _saved_copy(work)},
    }
    return found if work.device != "cpu" else {"loading": _loading(work)} | found


def peak(work: Work) -> tuple[str, Parts]:
    """The phase that needs most, and its parts."""
    return max(phases(work).items(), key=lambda found: sum(found[1].values()))


def total(work: Work) -> float:
    """Bytes at the peak."""
    return sum(peak(work)[1].values())


def largest_rows(work: Work, budget: float) -> int:
    """Rows of the largest micro-batch whose peak is within `budget` bytes, `work.rows` at most, at
    least one. Loading takes the same whatever they are."""
    fits, too_many = 1, work.rows + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        found = phases(replace(work, rows=middle, several=True))
        if max(sum(x.values()) for name, x in found.items() if name != "loading") <= budget:
            fits = middle
        else:
            too_many = middle
    return fits


def staying(work: Work) -> Parts:
    """What is there from the first optimizer step to the end."""
    learns, n = work.learning, work.shards
    frozen = _frozen(work, work.kept) if work.rank else 0
    parts = {
        "libraries": LIBRARIES,
        "weights": (frozen + FP32 * learns) / n,
        "optimizer": STATES[work.optimizer] * learns / n,
    }
    if work.critic_shape is not None:
        critic = work.critic_shape.trunk
        parts["weights of the critic"] = FP32 * critic / n
        parts["optimizer of the critic"] = STATES[work.optimizer] * critic / n
    return parts | {k: x if k in WHOLE else x / n for k, x in work.frozen.items()}


def _frozen(work: Work, kept: int) -> float:
    """Bytes of the weights under adapters, where those that are not in 4 bits take `kept` each."""
    packed = work.model.linear if work.packed else 0
    return kept * (work.model.weights - packed) + PACKED * packed


def _loading(work: Work) -> Parts:
    """Weights are read in fp32, beside the pages of their file; in bf16 those of a file in bf16
    under adapters, where nothing that learns is among them or copied from them. Those in 4 bits are
    packed one by one; into the room that each leaves in fp32 the heap lays what is packed, so that
    in the end, as with `widened`, all have had their own."""
    critic = 0 if work.critic_shape is None else work.critic_shape.trunk
    learns = critic or work.besides
    low = work.rank and not (work.packed or learns) and work.kept == work.saved == BF16
    each = (2 - 1 / work.shards) / work.shards  # those that share out load one after the other
    found: Parts = {
        "libraries": LIBRARIES,
        "weights": (_frozen(work, BF16 if low else FP32) + FP32 * critic) * each,
        "files": work.saved * work.model.weights,
    }
    return found | ({"widened weights": FP32 * work.model.linear} if work.packed else {})


def engine(work: Work) -> Parts:
    """What sampling adds: the engine's weights, keys and values of all rows, logits of a step."""
    model, rows = work.model, -(-work.sampled // work.count)
    wide = FP32 if work.device == "cpu" else work.product
    copied = model.weights if model.tied else model.weights - model.head
    cache = rows * work.length * model.layers * 2 * model.keys * wide
    steps = max(4 * rows * model.vocabulary * FP32, reading(work, rows))
    if not model.known:  # its own weights serve
        copied = 0
    found: Parts = {"engine": work.product * copied, "cache": cache, "logits": steps}
    if work.shards == 1 or not model.known:
        return found
    return found | {"gathered weights": FP32 * (model.head + model.block)}


def reading(work: Work, prompts: int) -> float:
    """Bytes that a layer makes of the prompts that are read together: the stream before and after,
    what attention and the MLP read and give."""
    model = work.model
    tokens = min(prompts * work.prompt, max(PROMPT_TOKENS, work.prompt))
    numbers = 3 * model.hidden + 2 * model.queries + 2 * model.keys
    return tokens * (numbers * FP32 + 2 * model.inner * work.product)


def _learning(work: Work) -> Parts:
    graphs = [(graph(work, work.model), float(FP32 * work.learning))]
    if work.critic_shape is not None:
        critic = work.critic_shape
        graphs.append((graph(work, critic), FP32 * critic.trunk))
    kept, gradients = (_sums if work.several else _in_turn)(graphs)
    exchanged = sum(x for _, x in graphs) if work.count > work.shards == 1 else 0
    parts = {"gradients": gradients / work.shards, "activations": kept, "logits": logits(work)}
    others = {
        "exchange of gradients": float(exchanged),
        "gathered weights": gathered(work),
        "widened weights": widened(work),
    }
    return parts | {name: x for name, x in others.items() if x}


def _sums(graphs: list[tuple[float, float]]) -> tuple[float, float]:
    """Graphs and all gradients at once: gradients of earlier micro-batches are there."""
    return sum(x for x, _ in graphs), sum(x for _, x in graphs)


def _in_turn(graphs: list[tuple[float, float]]) -> tuple[float, float]:
    """The largest that is there at once where a single backward pass takes graphs, the last first,
    and leaves gradients."""
    kept = [0.0, *accumulate(x for x, _ in graphs)]
    left = [0.0, *accumulate(x for _, x in graphs)]
    return max(((k, left[-1] - done) for k, done in zip(kept, left)), key=sum)


def graph(work: Work, model: Shape) -> float:
    """Bytes that a forward of a micro-batch keeps for its backward pass, without the head."""
    tokens = work.rows * work.length
    inside = tokens * layer_bytes(work, model)
    if not model.known:
        inside *= _OWN_FORWARD
    if work.recompute:  # the stream before each layer, and one layer as it is computed again
        return tokens * model.layers * model.hidden * FP32 + inside
    return model.layers * inside


def gathered(work: Work) -> float:
    """Of weights that are shared out: two layers, as one is fetched while the other computes, and
    what lies outside of layers; a layer's gradients and those on their way; the outside's."""
    if work.shards == 1:
        return 0.0
    model = work.model
    outside = model.head * (1 if model.tied else 2)
    return FP32 * ((2 + 2) * model.block + (1 if work.rank else 2) * outside)


def widened(work: Work) -> float:
    """On a CPU, weights kept in bfloat16 or 4 bits are widened one by one between activations that
    stay; the heap cannot use again the room that these leave, so that in the end all have had their
    own."""
    low = work.rank and (work.kept == BF16 or work.packed) and work.product == FP32
    return FP32 * (work.model.trunk - work.model.head) if low and work.device == "cpu" else 0.0


def layer_bytes(work: Work, model: Shape) -> float:
    """Bytes that a layer keeps for each token."""
    b = work.product
    stream = 2 * model.hidden * FP32  # what its norms read
    if model.head_norms:
        stream += (model.queries + model.keys) * FP32
    inputs = (2 * model.hidden + model.queries) * b  # of attention, of the MLP, of `out`
    return stream + inputs + attention_bytes(work, model) + model.mlp_kept * model.inner * b


def attention_bytes(work: Work, model: Shape) -> float:
    """Bytes that attention keeps for each token: queries, keys, values, and with them either its
    weights or, where torch's fused kernel computes it, its output."""
    b, keys = work.product, work.length
    if work.device != "cpu" or keys > _PLAIN_UP_TO[b]:
        return 4 * model.queries * b + model.heads * FP32
    return (model.queries + 2 * model.keys) * b + model.heads * keys * b


def logits(work: Work) -> float:
    """Bytes of the head: probabilities that are kept, a chunk of logits on its way, its gradient
    before that of a tied embedding is added, and its weight in the precision of products."""
    model, b = work.model, work.product
    answered = work.rows * work.response
    few = answered * model.vocabulary <= KEPT and not work.recompute
    chunk = min(rows_at_once(work.device, model.vocabulary), answered) * model.vocabulary
    found = 3 * FP32 * chunk + (b * answered * model.vocabulary if few else 0)
    found += answered * model.hidden * (FP32 + b)
    found += 0 if work.rank else FP32 * model.head
    cast = b == BF16 or (work.rank and work.kept == BF16)
    return found + (b * model.head if cast else 0)


def _saved_copy(work: Work) -> float:
    """`final/` in another precision than what is kept, or an adapter's merged model."""
    whole = work.saved * work.model.weights
    if work.shards > 1:  # the main process gathers all of them on the host
        return FP32 * work.model.weights + whole if work.device == "cpu" else 0
    if work.rank and not work.packed:  # it is merged as it is kept, and brought to its precision
        return max(work.saved, work.kept) * work.model.weights
    return whole if work.rank or work.saved != FP32 else 0
