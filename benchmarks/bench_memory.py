"""Peak memory: log-probs of many tokens over a large vocabulary, and a whole PPO iteration at M.

logprobs: forward and backward of log p over 8,192 tokens and 151,936 words (hidden size 256, in a
process of its own) against the memory of the logits alone in float32. Counted is how far the peak
rises above what the process holds before the forward (code, hidden states, weight, ids), less the
two gradients that it returns: chunks of logits, products, and the weight's copy in bfloat16.

ppo: peak resident memory of the program `lmpg` training PPO, as `bench_end_to_end` runs it, beside
that of TRL's PPOTrainer where its environment is given.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch

from lmpg.language.models.head import token_logprobs_of

TOKENS, WORDS, HIDDEN = 8192, 151_936, 256
FULL = TOKENS * WORDS * 4


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--parts", nargs="+", choices=("logprobs", "ppo"), default=["logprobs", "ppo"]
    )
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", help="python with trl")
    parser.add_argument("--peer-ppo-path", help="folder that holds trl 1.12.0")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def growth(dtype: str, hidden_size: int) -> int:
    """Bytes by which log-probs and their backward pass raise the peak of this process."""
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, hidden_size, requires_grad=True)
    weight = torch.randn(WORDS, hidden_size).mul_(0.05).requires_grad_()
    ids = torch.randint(WORDS, (TOKENS,))
    torch.mm(torch.ones(256, 256), torch.ones(256, 256))  # libraries are loaded before
    before = max(psutil.Process().memory_info().rss, peak())
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        logprobs, _ = token_logprobs_of(hidden, weight, ids)
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return peak() - before - sum(x.grad.numel() * 4 for x in (hidden, weight))


def peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def logprob_rows(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Each precision in a process of its own."""
    rows = []
    for dtype in ("fp32", "bf16"):
        words = ["--child", dtype, "--hidden", str(given.hidden), "--threads", str(given.threads)]
        command = [sys.executable, __file__, *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        grown = int(done.stdout)
        rows.append({"dtype": dtype, "gb": grown / 1e9, "share_of_full_logits": grown / FULL})
        print(f"log-probs {dtype}: {grown / 1e9:.3f} GB, {grown / FULL:.1%} of full logits")
    return rows


def ppo_rows(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The peak of whole programs at size M after two iterations."""
    from sides import Place

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), "M", 2, given.threads)
        sides = [(c, d) for c in ("ppo_shared", "ppo_separate") for d in ("fp32", "bf16")]
        runs = [(f"lmpg {c} {d}", place.lmpg, (c, d)) for c, d in sides]
        if given.peer_python:
            peer = ("ppo_separate", "fp32", given.peer_python, given.peer_ppo_path)
            runs.append(("TRL fp32", place.peer, peer))  # type: ignore[arg-type]
        for name, start, words in runs:
            program = start(*words)
            program.start()
            program.hear()
            program.go()
            found = program.hear()["peak_gb"]
            program.finish()
            rows.append({"program": name, "peak_gb": found})
            print(f"{name}: {found:.2f} GB", flush=True)
    return rows


def main() -> None:
    """Measure the parts and print each figure as it is known."""
    given = arguments()
    torch.set_num_threads(given.threads)
    if given.child:
        print(growth(given.child, given.hidden))
        return
    found: dict[str, Any] = {}
    if "logprobs" in given.parts:
        found["logprobs"] = logprob_rows(given)
    if "ppo" in given.parts:
        found["ppo"] = ppo_rows(given)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
