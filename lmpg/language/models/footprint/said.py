"""What a run says of its memory, and the micro-batch that fits."""

from __future__ import annotations

import math
from dataclasses import replace

from lmpg.language.models.footprint.needs import (
    BF16,
    Parts,
    Work,
    largest_rows,
    peak,
    phases,
    total,
)

_SHOWN = 0.02
"""Share of the whole from which on a part is named."""
RANK = 8
"""Of the adapters that a warning suggests."""


def lines(work: Work, memory: tuple[float, float]) -> list[str]:
    """What the run will need, by part, and what there is; with a warning where it does not fit.

    memory: all of the machine's, and what is free of it.
    """
    name, parts = peak(work)
    sampling = phases(work)["sampling"]
    said = f"memory: about {_gb(total(work))} at most, while {name} ({_named(parts)})"
    if name != "sampling" and work.sampled:
        said += f"; while sampling {_gb(sum(sampling.values()))} ({_named(sampling)})"
    whole, free = memory
    each = " for each process" if work.count > 1 else ""
    said += f"; there are {_gb(whole)}{each}, {_gb(free)} of them free"
    return [said, *_warning(work, whole, free)]


def _warning(work: Work, whole: float, free: float) -> list[str]:
    needed = total(work)
    if needed <= free:
        return []
    where = "free" if needed <= whole else "there"
    flag, least = min(remedies(work).items(), key=lambda found: found[1], default=("", needed))
    fix = f"{flag} helps most (about {_gb(least)})" if least < needed else "take a smaller model"
    held = free if where == "free" else whole
    return [f"warning: the run will need more memory than is {where} ({_gb(held)}): {fix}"]


def remedies(work: Work) -> dict[str, float]:
    """By setting that is not taken yet: the bytes that the run would need with it."""
    frozen = {k: v for k, v in work.frozen.items() if k != "reference"}
    found = {}
    if not work.rank:
        found[f"--model.lora.rank {RANK}"] = total(replace(work, rank=RANK, frozen=frozen))
    elif not work.packed:
        found["--model.quantisation nf4"] = total(replace(work, packed=True))
    if not work.recompute:
        found["--model.gradient-checkpointing True"] = total(replace(work, recompute=True))
    if work.count > work.shards == 1 and not work.packed and work.optimizer == "adamw":
        found["--run.sharding full"] = total(replace(work, shards=work.count))
    if work.rows > 1:
        found["--update.microbatch-size 1"] = total(replace(work, rows=1, several=True))
    if work.critic_shape is not None:
        found["--model.critic shared"] = total(replace(work, critic_shape=None))
    if work.product != BF16:
        found["--model.precision bf16"] = total(replace(work, product=BF16))
    return found


def fitting_tokens(work: Work, share: float, whole: float) -> tuple[int, str]:
    """`update.microbatch_tokens` that `share` of all memory holds, 0 where the rows of
    `update.microbatch_size` do anyway; and a line that says so."""
    rows = largest_rows(work, share * whole)
    held = f"{share:.0%} of {_gb(whole)} (update.memory_share)"
    if rows == work.rows:
        return 0, f"micro-batches: {rows} rows of {work.length} tokens fit into {held}"
    tokens = rows * work.length
    return tokens, f"micro-batches: {tokens} tokens at most, as many as fit into {held}"


def _named(parts: Parts) -> str:
    """Parts that count, in GB, the largest first."""
    least = _SHOWN * sum(parts.values())
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {x / 1e9:.2g}" for name, x in ordered if x >= least)


def _gb(number: float) -> str:
    digits = 2 if number < 1e9 else 1
    return f"{math.ceil(number / 1e9 * 10**digits) / 10**digits:.{digits}f} GB"
