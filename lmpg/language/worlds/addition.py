"""The addition world: two-digit sums, a character model that half knows them, exact match."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmpg.language.data.prompts import EvalMetric, Prompt
from lmpg.language.data.rows import Row
from lmpg.language.models.settings import ModelSettings
from lmpg.language.worlds.cache import cached, read_facts
from lmpg.language.worlds.tasks import sums as task
from lmpg.language.worlds.world import OfflineWorld, World, WorldStage
from lmpg.runtime.seeding import generator
from lmpg.training.settings import OfflineSettings

if TYPE_CHECKING:
    from lmpg.language.models.policy import CausalLMPolicy

# What brings transformers along is imported where it is used: the settings need not wait for it.

VERSION = 2
"""Of the code that makes the world: a new number makes everything in the cache again."""
SEED = 11
HELD_OUT, CHECKED = 512, 512
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 16,
}
NEW_TOKENS = 4
SUPERVISED = OfflineSettings(
    learning_rate=3e-3,
    warmup_steps=10,
    adam_eps=1e-5,
    minibatch_size=64,
    microbatch_size=64,
    epochs=20,
)
ENOUGH = 0.4
"""The warm start ends when this share of sampled answers is right."""
CHECK_EVERY = 10
ANSWERS = 8
"""Sampled per problem, to be compared."""
TOGETHER = 512


def preset(algorithm: type) -> dict[str, Any]:
    """Settings that suit the world, for an algorithm's class."""
    # Without ratios a gradient is right for the policy that sampled alone: one large step for each
    # rollout. (ReMax in four small ones collapses: most of its advantages are below 0 here.)
    ratios = "ratios" in algorithm().needs  # type: ignore[attr-defined]
    return {
        "sampling": {"max_new_tokens": NEW_TOKENS},
        "update": {
            "rollout_size": 512,
            "minibatch_size": 128 if ratios else 512,
            "microbatch_size": 128,
            "epochs": 1,
            "learning_rate": 5e-4 if ratios else 1e-3,
            "schedule": "linear",
        },
        "evaluation": {"size": HELD_OUT, "every": 50},
        "run": {"total_steps": 300},
    }


def build(start: Path | None = None, rewards: bool = True) -> World:
    """The world, from the cache where it has been made before."""
    return World(
        model_path=start or _started(),
        train_rows=_problems()["train"],
        held_out_rows=_problems()["held out"],
        eval_metric=accuracy,
        reward_functions=("lmpg.language.worlds.tasks.sums:exact_match",),
        facts={} if start else {"warm_start": read_facts(_started())},
        teacher=_taught,
    )


def accuracy(prompts: list[Prompt], completions: list[str]) -> dict[str, float]:
    """Share of the completions that are the right answer."""
    answers = [prompt.columns["answer"] for prompt in prompts]
    right = task.exact_match(completions, answers)
    return {"accuracy": sum(right) / len(right)}


def _blank() -> Path:
    from lmpg.language.worlds.making import blank_model
    from lmpg.language.worlds.tokenizers import character_tokenizer

    def make(folder: Path) -> None:
        blank_model(folder, character_tokenizer(task.CHARACTERS), SHAPE, SEED)

    return cached("addition-blank", {"version": VERSION, "seed": SEED, "shape": SHAPE}, make)


def _started() -> Path:
    from lmpg.language.worlds.making import warm_start

    blank = _blank()

    def make(folder: Path) -> None:
        rows = _as_texts("train"), _as_texts("checked")
        warm_start(folder, blank, rows, SUPERVISED, SEED, "addition: warm start", _knows_enough)

    settings = {
        "from": blank.name,
        "held out": [HELD_OUT, CHECKED],
        "enough": [ENOUGH, CHECK_EVERY],
        "update": SUPERVISED.model_dump(),
    }
    return cached("addition-model", settings, make)


def _taught() -> Path:
    """The teacher: what the blank model becomes when its supervised training goes on."""
    from lmpg.language.worlds.making import warm_start

    blank = _blank()

    def make(folder: Path) -> None:
        rows = _as_texts("train"), _as_texts("checked")
        warm_start(folder, blank, rows, SUPERVISED, SEED, "addition: teacher")

    settings = {
        "from": blank.name,
        "held out": [HELD_OUT, CHECKED],
        "update": SUPERVISED.model_dump(),
    }
    return cached("addition-teacher", settings, make)


@cache
def _problems() -> dict[str, list[Row]]:
    """Three parts that share no problem: `train`, `checked` (the warm start ends by them), and
    `held out`."""
    held_out, checked, train = task.parts([HELD_OUT, CHECKED], random.Random(SEED))
    return {"held out": held_out, "checked": checked, "train": train}


def _as_texts(part: str) -> list[Row]:
    rows = _problems()[part]
    return [{"prompt": row["prompt"], "completion": row["answer"]} for row in rows]


def _knows_enough(policy: CausalLMPolicy, tokenizer: Any, step: int) -> bool:
    """Whether the share of right sampled answers to the checked problems is enough."""
    if step % CHECK_EVERY:
        return False
    rows = _problems()["checked"]
    uniforms = torch.rand((len(rows), NEW_TOKENS), generator=generator(SEED, "check", step))
    texts = _answers(policy, tokenizer, rows, uniforms)
    right = task.exact_match(texts, [row["answer"] for row in rows])
    return sum(right) / len(right) >= ENOUGH


def _answers(
    policy: CausalLMPolicy, tokenizer: Any, rows: list[Row], uniforms_BT: torch.Tensor
) -> list[str]:
    """Sampled answers to every problem; `uniforms_BT` says how many for each."""
    from lmpg.language.sampling.sampler import Sampler

    each = len(uniforms_BT) // len(rows)
    texts: list[str] = []
    for start in range(0, len(rows), TOGETHER):
        part = rows[start : start + TOGETHER]
        prompts = [tokenizer(row["prompt"])["input_ids"] for row in part]
        uniforms = uniforms_BT[start * each : (start + len(part)) * each]
        samples = Sampler(policy, NEW_TOKENS).sample(prompts, each, uniforms)
        lengths = samples.inputs["response_lengths"].tolist()
        ids = [r[:n] for r, n in zip(samples.inputs["response_ids"].tolist(), lengths)]
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def supervised(start: Path | None = None) -> OfflineWorld:
    """What the warm start is trained from: a blank model and solved problems."""
    return OfflineWorld(start or _blank(), _as_texts("train"), _as_texts("checked"), *_evaluation())


def preference_pairs(start: Path | None = None) -> OfflineWorld:
    """The warm start, and pairs of its own answers: a right and a wrong one to the same problem."""
    return OfflineWorld(start or _started(), _pairs("train"), _pairs("checked"), *_evaluation())


def labelled_completions(start: Path | None = None) -> OfflineWorld:
    """The warm start, and its own answers, labelled right or wrong."""
    return OfflineWorld(
        start or _started(), _labelled("train"), _labelled("checked"), *_evaluation()
    )


def _evaluation() -> tuple[list[Row], EvalMetric]:
    return _problems()["held out"], accuracy


def _pairs(part: str) -> list[Row]:
    """Columns `prompt`, `chosen`, `rejected`: each wrong answer beside a right one to the same
    problem, where there is one."""
    rows = _labelled(part)
    right = {row["prompt"]: row["completion"] for row in rows if row["label"]}
    return [
        {"prompt": row["prompt"], "chosen": right[row["prompt"]], "rejected": row["completion"]}
        for row in rows
        if not row["label"] and row["prompt"] in right
    ]


def _labelled(part: str) -> list[Row]:
    """Columns `prompt`, `completion`, `label`: answers of the warm start, right or wrong."""
    lines = (_sampled_labelled() / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["completion"]]


def _sampled_labelled() -> Path:
    """A folder with sampled answers of the warm start to the problems of training and checking."""
    start = _started()

    def make(folder: Path) -> None:
        for part in ("train", "checked"):
            rows = _problems()[part]
            asked = [row for row in rows for _ in range(ANSWERS)]
            texts = sampled_answers(start, rows, ANSWERS, part)
            right = task.exact_match(texts, [row["answer"] for row in asked])
            lines = [
                json.dumps({"prompt": row["prompt"], "completion": text, "label": bool(score)})
                for row, text, score in zip(asked, texts, right)
            ]
            (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return cached("addition-answers", {"from": start.name, "answers": ANSWERS}, make)


def sampled_answers(model: Path, rows: list[Row], each: int, key: str) -> list[str]:
    """`each` sampled answers to every problem, in their order."""
    from lmpg.language.models.loading import load_policy, load_tokenizer

    tokenizer = load_tokenizer(str(model))
    settings = ModelSettings(path=str(model), precision="fp32")
    policy = load_policy(settings, tokenizer, critic=False, temperature=1.0)
    uniforms = torch.rand((len(rows) * each, NEW_TOKENS), generator=generator(SEED, key))
    return _answers(policy, tokenizer, rows, uniforms)


SAMPLED = {"size": HELD_OUT, "max_new_tokens": NEW_TOKENS}
DIRECT = OfflineSettings(
    learning_rate=1e-3,
    schedule="linear",
    adam_eps=1e-5,
    minibatch_size=128,
    microbatch_size=128,
)
DPO: dict[str, Any] = {
    "algorithm": {"beta": 1.0},
    "update": {**DIRECT.model_dump(), "epochs": 2},
    "evaluation": SAMPLED,
}
KTO: dict[str, Any] = {
    "algorithm": {"beta": 2.0, "desirable_weight": 2.0},
    "update": {**DIRECT.model_dump(), "learning_rate": 6e-4, "warmup_steps": 20},
    "evaluation": SAMPLED,
}
STAGES = {
    "sft": WorldStage({"update": SUPERVISED.model_dump(), "evaluation": SAMPLED}, supervised),
    "dpo": WorldStage(DPO, preference_pairs),
    "kto": WorldStage(KTO, labelled_completions),
}
