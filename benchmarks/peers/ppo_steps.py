"""TRL's last PPOTrainer, timed step by step by `lockstep`; needs trl 1.12.0 on PYTHONPATH.

It has no setting for a shared trunk, and its bf16 flag changes nothing: `--precision bf16` loads
the weights in bf16 instead. Its reward has to be a model; a count of tokens stands in for it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import trl.experimental.ppo.ppo_trainer as program
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer
from trl_side import parser, texts, train_told


def settings(given: argparse.Namespace) -> PPOConfig:
    """64 prompts, 4 epochs of one minibatch; logs every step, saves and shows nothing."""
    return PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=given.microbatch,
        gradient_accumulation_steps=64 // given.microbatch,
        num_mini_batches=1,
        num_ppo_epochs=4,
        local_rollout_forward_batch_size=given.microbatch,
        total_episodes=64 * given.steps,
        response_length=given.length,
        temperature=1.0,
        kl_coef=0.05,
        learning_rate=1e-6,  # as the other side: so small that no text of the model ends early
        lr_scheduler_type="constant",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=given.device == "cpu",
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        num_sample_generations=0,
    )


def count_as_reward(reward_model: torch.nn.Module) -> None:
    """Let the trainer score by counting multiples of 7, and value as it always does."""
    original = program.get_reward

    def scored(model, ids, pad_token_id: int, context_length: int):
        if model is not reward_model:
            return original(model, ids, pad_token_id, context_length)
        return None, (ids[:, context_length:] % 7 == 0).float().sum(1), None

    program.get_reward = scored


def main() -> None:
    """Parse the command line and train."""
    given = parser(__doc__).parse_args()
    torch.manual_seed(0)
    dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
    options = {"dtype": dtype, "attn_implementation": given.attention}
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(given.model, **options) for _ in range(2)
    )
    shape = AutoConfig.from_pretrained(given.model, num_labels=1)
    value, reward = (
        AutoModelForSequenceClassification.from_config(shape, **options) for _ in range(2)
    )
    count_as_reward(reward)
    tokenizer = AutoTokenizer.from_pretrained(given.model, padding_side="left")
    data = Dataset.from_dict({"input_ids": tokenizer(texts(given.prompts))["input_ids"]})
    trainer = PPOTrainer(
        args=settings(given),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data.select(range(4)),
    )
    # it always samples all it may
    train_told(trainer, lambda logs: float(given.length) if "objective/kl" in logs else None)


if __name__ == "__main__":
    main()
