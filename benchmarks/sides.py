"""The two sides of a race: the program `lmpg` on a user's own parts, and TRL's trainers."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brought import questions, save_endless, shape_of
from lockstep import Contestant
from models import SIZES, prompts, save

HERE = Path(__file__).resolve().parent
REWARD = """
def multiples(completion_ids, **_):
    return [float(sum(i % 7 == 0 for i in ids)) for ids in completion_ids]
"""


@dataclass
class Place:
    """A folder with a model, prompts and a reward, where programs of `steps` steps are started.

    size: one of `SIZES`, or a model's folder or Hub id.
    options: what is set on both sides, in the peer's words: prompt, length, microbatch.
    """

    folder: Path
    size: str
    steps: int
    threads: int
    options: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.size in SIZES:
            save(self.size, self.folder / "model")
            texts = prompts(self.size, 256, self.options.get("prompt", 16))
        else:
            save_endless(self.size, self.folder / "model")
            texts = questions(256)
        self.shape = shape_of(self.folder / "model")
        lines = [json.dumps({"prompt": text}) + "\n" for text in texts]
        (self.folder / "prompts.jsonl").write_text("".join(lines))
        (self.folder / "reward.py").write_text(REWARD)

    def lmpg(self, case: str, dtype: str, checkout: Path = HERE.parent) -> Contestant:
        """`lmpg train` of a checkout: case is grpo, ppo_shared or ppo_separate."""
        algorithm, _, critic = case.partition("_")
        side = "lmpg" if checkout == HERE.parent else "other"
        flags: dict[str, Any] = {
            "model.path": self.folder / "model",
            "model.precision": dtype,
            "data.path": self.folder / "prompts.jsonl",
            "data.num-eval": 8,
            "rewards.functions": f"{self.folder / 'reward.py'}:multiples",
            "sampling.max-new-tokens": self.options.get("length", 64),
            "update.rollout-size": 64,
            "update.minibatch-size": 64,
            "update.microbatch-size": 64,
            "update.epochs": 4 if critic else 1,
            "algorithm.kl-coef": 0.05 if critic else 0.04,
            "update.learning-rate": 1e-6,
            "evaluation.size": 8,
            "run.total-steps": self.steps,
            "run.torch-threads": self.threads,
            "run.output-dir": self.folder / "runs" / f"{side}-{case}-{dtype}",
        }
        if critic:
            flags["model.critic"] = critic
        if "microbatch" in self.options:
            flags["update.microbatch-size"] = self.options["microbatch"]
        given = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
        program = str(checkout / "benchmarks" / "lmpg_steps.py")
        command = [sys.executable, program, "train", algorithm, *given]
        path = os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])
        return self._started(f"{side} {dtype}", case, command, {"PYTHONPATH": path})

    def peer(
        self, case: str, setting: str, python: str, ppo_path: str = "", device: str = "cpu"
    ) -> Contestant:
        """TRL's trainer for the case, in the environment of `python`.

        setting: a precision, then how attention is computed where that is not transformers'
        default, as in "bf16 eager".
        """
        trainer = case.partition("_")[0]
        dtype, _, attention = setting.partition(" ")
        command = [python, str(HERE / "peers" / f"{trainer}_steps.py")]
        command += [str(self.folder / "model"), str(self.folder / "prompts.jsonl")]
        command += ["--steps", str(self.steps)]
        command += ["--precision", dtype, "--device", device, "--attention", attention or "sdpa"]
        own = {name: value for name, value in self.options.items() if name != "prompt"}
        for name, value in own.items():
            command += [f"--{name}", str(value)]
        environment = {"PYTHONPATH": ppo_path if trainer == "ppo" else ""}
        return self._started(f"peer {setting}", case, command, environment)

    def _started(
        self, name: str, case: str, command: list[str], environment: dict[str, str]
    ) -> Contestant:
        quiet = {
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": str(self.threads),
        }
        log = self.folder / f"{case} {name}.log"
        return Contestant(name, command, {**quiet, **environment}, log)
