"""What lmpg makes of a GPU: decoding against the memory's bandwidth, a GRPO step against TRL's, and
how exact its samples are there.

Decoding: a random Qwen2 of 0.5B shape, 64 responses of 512 tokens to prompts of 128, bf16. Every
token reads all weights once and its row's keys and values; the floor is the time that these bytes
take at the bandwidth measured here by copying. Exactness is that of small models in both
precisions (`exactness.py`); the self-test says that of the large one. The GRPO step (needs
--peer-python) is that of bench_end_to_end, with these lengths. Without CUDA there is nothing to
measure, and the exit status is 2; `--size tiny --device cpu` tries the script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from exactness import exactness
from lockstep import race
from models import SIZES, prompt_ids
from sides import Place
from torch import Tensor

from lmpg.language.models.loading import load_policy, load_tokenizer
from lmpg.language.models.settings import ModelSettings
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.preflight import self_test
from lmpg.language.sampling.sampler import Sampler
from lmpg.runtime.processes import SingleProcess

BYTES = 2  # of a number in bf16


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("Q", "tiny"), default="Q")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--responses", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=128, help="tokens per prompt")
    parser.add_argument("--length", type=int, default=512, help="tokens per response")
    parser.add_argument("--microbatch", type=int, default=16, help="rows per forward, both sides")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-python", help="python with trl 1.16 and CUDA, for the GRPO step")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args(argv)


def waited(device: str) -> float:
    """The time, once the device has done all it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def bandwidth(device: str) -> float:
    """Bytes per second that the memory reads and writes, from copying a large array."""
    array = torch.zeros((64 if device == "cpu" else 1024) * 2**20, dtype=torch.uint8, device=device)
    times = []
    for _ in range(7):
        start = waited(device)
        array.clone()
        times.append(waited(device) - start)
    return 2 * len(array) / min(times)


def decode_bytes(size: str, given: argparse.Namespace, parameters: int) -> float:
    """Bytes that one decode step reads: weights, and the cache at its mean length."""
    shape = SIZES[size]
    head = shape["hidden_size"] // shape["num_attention_heads"]
    per_token = 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * head
    tokens = given.responses * (given.prompt + given.length / 2)
    return BYTES * (parameters + tokens * per_token)


def decoding(place: Place, given: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of the native sampler, as a fraction of the floor's."""
    path = str(place.folder / "model")
    tokenizer = load_tokenizer(path)
    policy = load_policy(
        ModelSettings(path=path, precision="bf16"),
        tokenizer,
        critic=False,
        temperature=1.0,
        device=given.device,
    )
    sampler = Sampler(policy, given.length)
    prompts = prompt_ids(given.size, given.responses, given.prompt).tolist()
    uniforms_BT = torch.rand(given.responses, given.length)
    generator = Generator(policy, sampler, tokenizer, 0, SingleProcess(), given.responses)
    print(self_test(generator, policy.reference(), prompts).line(), flush=True)
    seconds = sampling_seconds(sampler, prompts, uniforms_BT, given)
    step_bytes = decode_bytes(given.size, given, sum(p.numel() for p in policy.parameters()))
    floor = given.length * step_bytes / bandwidth(given.device)
    return {
        "seconds": seconds,
        "tokens_per_second": given.responses * given.length / seconds,
        "floor_seconds": floor,
        "fraction": floor / seconds,
        "size": given.size,
        "way": sampler.backend,
        "peak_gb": torch.cuda.max_memory_allocated() / 2**30 if given.device == "cuda" else None,
    }


def sampling_seconds(
    sampler: Sampler, prompts: list[list[int]], uniforms_BT: Tensor, given: argparse.Namespace
) -> float:
    """Median seconds of one whole sampling, prompts included; the first two, which compile and
    capture, are left out."""
    times = []
    for _ in range(given.repeats + 2):
        start = waited(given.device)
        samples = sampler.sample(prompts, 1, uniforms_BT)
        times.append(waited(given.device) - start)
    assert int(samples.mask_BT.sum()) == uniforms_BT.numel(), "every response has full length"
    return statistics.median(times[2:])


def grpo_step(place: Place, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a whole step of both programs, which take turns."""
    both = [
        place.lmpg("grpo", "bf16"),
        place.peer("grpo", "bf16", given.peer_python, device=given.device),
    ]
    told = race(both, warm=2, counted=given.repeats)
    mine, its = (statistics.median(x["seconds"] for x in rows) for rows in told.values())
    lengths = [statistics.mean(x["length"] for x in rows) for rows in told.values()]
    return {"seconds": mine, "peer_seconds": its, "ratio": its / mine, "lengths": lengths}


def shown(figure: tuple[str, Any]) -> str:
    """A figure with its name: small numbers as powers of ten, others with three digits."""
    name, value = figure
    if not isinstance(value, float):
        return f"{name} {value}"
    return f"{name} {value:.1e}" if 0 < value < 0.001 else f"{name} {value:,.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what there is to measure, and print it."""
    given = arguments(argv)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing measured (--size tiny --device cpu tries the script)")
        sys.exit(2)
    options = {"prompt": given.prompt, "length": given.length, "microbatch": given.microbatch}
    found: dict[str, Any] = {}
    for size in ("tiny", "S"):
        for dtype in ("fp32", "bf16"):
            found[f"exact {size} {dtype}"] = exactness(size, dtype == "bf16", given.device)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), given.size, 2 + given.repeats, 2, options)
        found["decode"] = decoding(place, given)
        if given.peer_python:
            found["grpo"] = grpo_step(place, given)
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    for what, figures in found.items():
        print(f"{name} {what}: {', '.join(map(shown, figures.items()))}", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"device": name, "size": given.size, **found}, indent=1))


if __name__ == "__main__":
    main()
