"""TRL's GRPOTrainer, timed step by step by `lockstep`; runs in an environment with trl 1.16."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl_side import parser, texts, train_told


def reward(completion_ids: list[list[int]], **_) -> list[float]:
    """How many of a response's ids are multiples of 7."""
    return [float(sum(i % 7 == 0 for i in ids)) for ids in completion_ids]


def settings(given: argparse.Namespace) -> GRPOConfig:
    """64 responses in groups of 8, one optimizer step; logs every step, saves nothing."""
    return GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=given.microbatch,
        gradient_accumulation_steps=64 // given.microbatch,
        num_generations=8,
        max_completion_length=given.length,
        beta=0.04,
        max_steps=given.steps,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        bf16=given.precision == "bf16",
        gradient_checkpointing=False,
        use_cpu=given.device == "cpu",
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )


def main() -> None:
    """Parse the command line and train."""
    given = parser(__doc__).parse_args()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        given.model, dtype=torch.float32, attn_implementation=given.attention
    )
    trainer = GRPOTrainer(
        model=model,
        args=settings(given),
        processing_class=AutoTokenizer.from_pretrained(given.model),
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": texts(given.prompts)}),
    )
    train_told(trainer, lambda logs: logs.get("completions/mean_length"))


if __name__ == "__main__":
    main()
