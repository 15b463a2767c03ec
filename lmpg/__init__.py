"""lmpg: fine-tune causal language models with policy gradients, in a plain process.

Shape letters, used as suffixes of tensor names throughout:

    B  rows of a rollout (responses, or environments)     T  steps (response tokens, env steps)
    P  distinct prompts                                    G  samples per prompt, B = P * G,
    L  prompt + response tokens                               prompt-major
    V  vocabulary                                          D  hidden size

A step is one response token or one environment step.
"""

__version__ = "0.1.0"
