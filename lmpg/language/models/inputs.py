"""Padding, attention masks and position ids: the one place that makes them, from lengths; and
rows that move within a batch.

Policy, reference and reward model all read left-padded rows whose masks come from lengths and
never from `ids != pad`, so that a pad token that is also the EOS hides nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def language_inputs(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_token_id: int
) -> dict[str, Tensor]:
    """The `inputs` of a rollout (int64): prompts [B, P] padded left, responses [B, T] right."""
    return {
        "prompt_ids": pad_left(prompts, pad_token_id),
        "prompt_lengths": torch.tensor([len(ids) for ids in prompts]),
        "response_ids": pad_right(responses, pad_token_id),
        "response_lengths": torch.tensor([len(ids) for ids in responses]),
    }


def chosen_steps(inputs: dict[str, Tensor]) -> Tensor:
    """Which steps of responses the policy chose, bool [B, T]: all, but where `response_turns` says
    which of its turns each belongs to (1, 2, …), those that belong to one (0: to none)."""
    step_T = torch.arange(inputs["response_ids"].shape[1], device=inputs["response_ids"].device)
    inside_BT = step_T < inputs["response_lengths"][:, None]
    turns_BT = inputs.get("response_turns")
    return inside_BT if turns_BT is None else inside_BT & (turns_BT > 0)


def steps_in_turn(turns_BT: Tensor) -> Tensor:
    """How many steps of its turn lie before each step, [B, T]."""
    step_T = torch.arange(turns_BT.shape[1], device=turns_BT.device)
    begins_BT = turns_BT != F.pad(turns_BT, (1, 0), value=-1)[:, :-1]
    return step_T - torch.where(begins_BT, step_T, 0).cummax(1).values


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> Tensor:
    """Rows of token ids as one int64 tensor, the last token of each in the last column."""
    width = max(map(len, rows), default=0)
    return torch.tensor([[pad_token_id] * (width - len(r)) + list(r) for r in rows]).long()


def pad_right(rows: Sequence[Sequence[int]], pad_token_id: int) -> Tensor:
    """Rows of token ids as one int64 tensor, the first token of each in the first column."""
    width = max(map(len, rows), default=0)
    return torch.tensor([list(r) + [pad_token_id] * (width - len(r)) for r in rows]).long()


def of_equal_length(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of the rows of each length, the shortest first: batches without padding."""
    found: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(len(row), []).append(i)
    return [found[length] for length in sorted(found)]


PROMPT_TOKENS = 2**13
"""Tokens of prompts, with their padding, that are read together, but one prompt at least: more are
computed no faster, and what a layer makes of them would take more memory than anything else does
while sampling."""


def read_together(ids_PL: Tensor) -> list[slice]:
    """The parts of prompts that are read one after the other."""
    num_prompts, width = ids_PL.shape
    size = max(1, PROMPT_TOKENS // max(1, width))
    return [slice(start, start + size) for start in range(0, num_prompts, size)]


def rows_of_parts(ids_PL: Tensor, prompt_R: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """By where each part of prompts begins: the rows of its prompts, and which of them each has."""
    parts, found = read_together(ids_PL), {}
    if len(parts) == 1:  # asks the device for nothing
        return {0: (torch.arange(len(prompt_R), device=prompt_R.device), prompt_R)}
    for part in parts:
        rows = ((prompt_R >= part.start) & (prompt_R < part.stop)).nonzero()[:, 0]
        found[part.start] = rows, prompt_R.index_select(0, rows) - part.start
    return found


def mask_and_positions(start_B: Tensor, end_B: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Attention mask and position ids [B, width] of rows whose tokens lie in [start, end).

    The first real token has position 0 wherever it lies; columns of padding repeat the position of
    the nearest real token, so that none is beyond the model's context.
    """
    column_BL = torch.arange(width, device=start_B.device).expand(len(start_B), width)
    start_B1, last_B1 = start_B[:, None], end_B[:, None] - 1
    mask_BL = (column_BL >= start_B1) & (column_BL <= last_B1)
    positions_BL = torch.minimum((column_BL - start_B1).clamp(min=0), last_B1 - start_B1)
    return mask_BL.long(), positions_BL.clamp(min=0)


def trimmed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the columns of padding that no row needs."""
    prompt = max(int(inputs["prompt_lengths"].max()), 1)
    response = max(int(inputs["response_lengths"].max()), 1)
    of_steps = ("response_ids", "response_turns")
    cut = {name: inputs[name][:, :response] for name in of_steps if name in inputs}
    return {**inputs, **cut, "prompt_ids": inputs["prompt_ids"][:, -prompt:]}


def forward_arguments(inputs: dict[str, Tensor], left: bool = True) -> dict[str, Tensor]:
    """input_ids, attention_mask, position_ids of prompt and response; the last token, which
    predicts nothing, is left out. left: prompts are padded before, else all padding lies behind.
    """
    prompt_BP, response_BT = inputs["prompt_ids"], inputs["response_ids"]
    ids_BL = torch.cat([prompt_BP, response_BT[:, :-1]], 1)
    width = prompt_BP.shape[1]
    start_B = width - inputs["prompt_lengths"]
    end_B = width + inputs["response_lengths"] - 1
    if not left:
        ids_BL = _from_first_column(ids_BL, start_B)
        start_B, end_B = torch.zeros_like(start_B), end_B - start_B
    mask_BL, positions_BL = mask_and_positions(start_B, end_B, ids_BL.shape[1])
    return {"input_ids": ids_BL, "attention_mask": mask_BL, "position_ids": positions_BL}


def _from_first_column(ids_BL: Tensor, start_B: Tensor) -> Tensor:
    """Rows whose texts begin in columns start_B, moved to begin in the first."""
    column_BL = start_B[:, None] + torch.arange(ids_BL.shape[1], device=ids_BL.device)
    return ids_BL.gather(1, column_BL.clamp(max=ids_BL.shape[1] - 1))


def accepted(module: nn.Module, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """`arguments` less the position ids where the model (ALiBi, recurrent) takes none, and less the
    mask for RWKV, which has no use for it and says so."""
    left_out = {"attention_mask"} if takes(module, "state") else set()
    if not takes(module, "position_ids"):
        left_out.add("position_ids")
    return {name: value for name, value in arguments.items() if name not in left_out}


def takes(module: nn.Module, name: str) -> bool:
    """Whether its forward has a parameter of that name."""
    return name in _parameters(getattr(module.forward, "__func__", module.forward))


@lru_cache(maxsize=64)
def _parameters(forward: Callable) -> frozenset[str]:
    """Names of what a forward takes; decoding asks for every token."""
    return frozenset(inspect.signature(forward).parameters)


def moved(x_R: Tensor, holes: Tensor, tail: Tensor, num_rows: int) -> Tensor:
    """The first num_rows of x, with the rows `tail` in the places `holes`."""
    if not len(holes):
        return x_R[:num_rows]
    return x_R[:num_rows].index_copy(0, holes, x_R.index_select(0, tail))


def uploaded(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device. The host waits until it is there, but for CUDA, which sees to it that what
    is read stays; mps reads memory that is something else by then (pytorch issue 189690)."""
    return x.to(device, non_blocking=device.type == "cuda")


def unpadded_rows(inputs: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """(prompt ids, response ids) of each row, without padding."""
    lengths = zip(inputs["prompt_lengths"].tolist(), inputs["response_lengths"].tolist())
    for b, (prompt, response) in enumerate(lengths):
        width = inputs["prompt_ids"].shape[1]
        yield inputs["prompt_ids"][b, width - prompt :], inputs["response_ids"][b, :response]
