"""What each metric is, in which unit, and when to worry: for report.html and docs/metrics.md."""

from __future__ import annotations

import re

Meaning = tuple[str, str, str, str]
"""Title, unit, what it is, when to worry; "" where there is nothing to say."""

REWARD: dict[str, Meaning] = {
    "reward": ("Reward", "score", "Mean score of the responses, before any penalty.",
        "It does not move: read samples, look at the spread. It soars: samples may cheat it."),
    "reward_std": ("Reward spread", "score", "Standard deviation of the scores.",
        "0 teaches nothing: all responses score alike."),
    "rewards/NAME/mean": ("NAME", "score", "Mean of one reward, unweighted.",
        "One rises while another falls: the weights trade them against each other."),
    "rewards/NAME/std": ("Spread of NAME", "score", "Standard deviation of one reward.",
        "0: this reward tells no response from another."),
    "logged/NAME": ("NAME", "", "Mean of what a reward function logged by this name.", ""),
    "reward_errors": ("Without a score", "responses", "Responses that a reward gave no score.",
        "It grows: the log names the reward's error; such responses teach nothing."),
    "frac_reward_zero_std": ("Groups without spread", "share",
        "Groups of responses to one prompt that all score alike; they teach nothing.",
        "Near 1: prompts are too hard, too easy, or the temperature is too low."),
    "environment/turns": ("Turns", "turns of the policy", "Mean number in an episode.",
        "It stays at environment.max_turns: episodes do not end by themselves."),
    "environment/tokens": ("Tokens of an episode", "tokens",
        "Mean of all behind the first prompt: the policy's, and what it observes.", ""),
    "environment/truncated": ("Episodes cut off", "share",
        "Those that a limit ended, of the environment or of the settings.",
        "Near 1: raise environment.max_turns or environment.max_tokens."),
    "environment/errors": ("Episodes lost", "episodes", "Those whose environment failed.",
        "It grows: the log names the error; such episodes teach nothing."),
    "objective/scores": ("Raw score", "score", "Mean score before score processing.", ""),
    "objective/shaped_scores": ("Processed score", "score",
        "Mean score after penalties, clipping and normalising, as learned from.",
        "Far from the raw score: penalties decide what is learned."),
    "objective/greedy_scores": ("Greedy score", "score",
        "Mean score of the greedy responses that ReMax compares with.", ""),
    "objective/rlhf_reward": ("Return", "score", "Score less the KL penalty, or the return.",
        "It falls while the reward rises: the KL costs more than the score gains."),
    "objective/non_score_reward": ("KL penalty", "score", "What the KL penalty takes off.",
        "As large as the reward: lower algorithm.kl_coef or the learning rate."),
}  # fmt: skip

DRIFT: dict[str, Meaning] = {
    "objective/kl": ("KL to the reference", "nats per response",
        "How far the policy has drifted from where it started: mean Σ (log π − log π_ref).",
        "More than about a nat per token: the language is lost. Raise algorithm.kl_coef."),
    "objective/kl_coef": ("KL coefficient", "", "The weight that holds the KL at its target.",
        "It runs away: the target cannot be held at this learning rate."),
    "objective/penalty_coef": ("Penalty coefficient", "", "The steered weight of the penalty.",
        "It runs away: the target cannot be held at this learning rate."),
    "objective/entropy": ("Entropy of responses", "nats per response", "Mean −Σ log π.", ""),
    "policy/entropy": ("Entropy", "nats per step",
        "How undecided the policy is; it falls as the policy commits itself.",
        "Near 0 before the reward is good: collapsed. Add entropy_coef, lower the rate."),
    "policy/approx_kl": ("Size of an update", "nats per step",
        "KL of the old policy to the new one (k3) within one iteration; not the drift.",
        "Above about 0.05: steps are too large. Lower the learning rate or epochs."),
    "policy/last_kl": ("KL of the last minibatch", "nats per step",
        "The same on an iteration's last minibatch; update.target_kl ends it by this.", ""),
    "policy/early_stop": ("Minibatches left out", "minibatches",
        "1 where an update ended early (update.target_kl, update.target_clip_fraction).",
        "Always 1: each rollout is hardly learned from. Lower the learning rate."),
    "policy/clip_fraction": ("Clip fraction", "share",
        "Steps with an advantage whose gradient was clipped away.",
        "Above 0.3: steps are too large. Always 0 with several epochs: too small."),
    "policy/last_clip_fraction": ("Clip fraction, last minibatch", "share",
        "The same on an iteration's last minibatch.", ""),
    "policy/ratio_mean": ("Mean ratio", "", "Mean π/π_old; 1 in expectation.",
        "Far from 1: rollouts are older than the algorithm can correct."),
    "policy/ratio_max": ("Largest ratio", "", "π/π_old of the step that moved most.",
        "Hundreds: a few steps rule the update."),
    "sampler/kl": ("Sampler against trainer", "nats per step",
        "KL of the engine that sampled to the training forward of the same weights (k3).",
        "Above 0.01: set update.sampler_correction. It grows: weights do not arrive."),
    "sampler/ratio_max": ("Largest ratio to the sampler", "",
        "π_old/μ of the step on which the two disagree most.", "Hundreds: mask such steps."),
    "sampler/weight_mean": ("Mean sampler weight", "",
        "What update.sampler_correction multiplies the policy's loss by, on average.",
        "Far from 1: the sampler is another policy."),
    "sampler/left_out": ("Masked steps", "share", "Steps whose sampler weight is 0.",
        "More than a few percent: the sampler is another policy."),
    "policy/advantage_abs_mean": ("Size of advantages", "", "Mean |A|.",
        "0: nothing is learned."),
    "policy/step_scale": ("Step scale", "share",
        "What the line search left of TRPO's step.", "0: no step kept to the constraint."),
}  # fmt: skip

LEARNING: dict[str, Meaning] = {
    "value/explained_variance": ("Explained variance", "share",
        "How much of the returns the critic foresees; 1 is all, 0 as good as a constant.",
        "Below 0 for long: the critic misleads. Raise its rate, or update.critic_warmup."),
    "value/clip_fraction": ("Value clip fraction", "share",
        "Steps whose value gradient was clipped away.", "Above 0.5: the critic is held back."),
    "value/td_error": ("TD error", "reward", "Mean |δ| of the critic.", "It grows: diverging."),
    "value/average_reward": ("Average reward", "reward", "The estimate per step.", ""),
    "loss/total": ("Loss", "", "What the optimizer minimises; in policy gradients its level says "
        "little, as the data change with the policy.", ""),
    "loss/policy": ("Policy loss", "", "The surrogate of the policy gradient.", ""),
    "loss/value": ("Value loss", "return²", "How far the critic is off, times its weight.",
        "It grows without end: the critic diverges."),
    "loss/entropy": ("Entropy term", "", "The entropy bonus, times its weight.", ""),
    "loss/kl": ("KL term", "", "The KL penalty inside the loss, times its weight.", ""),
    "loss/penalty": ("Penalty term", "", "The KL of old to new policy, times its weight.", ""),
    "loss/distillation": ("Distillation loss", "nats", "Divergence from the teacher.", ""),
    "loss/compatible_critic": ("Compatible critic's loss", "", "What its features leave.", ""),
    "loss": ("Loss", "nats", "Mean loss of the minibatch: per pair, answer or token.",
        "It rises on held-out data while it falls here: overfitting. Fewer epochs."),
    "loss/NAME": ("Part NAME of the loss", "", "One of several losses that are added up.", ""),
    "nll": ("Negative log-likelihood", "nats per token", "−log π of the data's tokens.", ""),
    "entropy": ("Entropy", "nats per token", "How undecided the predictions are.",
        "Near 0 while the held-out loss rises: the texts are known by heart. Fewer epochs."),
    "rewards/margin": ("Margin", "nats × β",
        "By how much the implicit reward β (log π − log π_ref) of chosen answers is higher.",
        "It soars while held-out accuracy stays: overfitting. Fewer epochs, larger β."),
    "rewards/accuracy": ("Accuracy", "share", "Pairs whose chosen answer has the higher reward.",
        "At 0.5: nothing is learned. Near 1 here but not on held-out pairs: overfitting."),
    "rewards/chosen": ("Reward of chosen", "nats × β", "Implicit reward of chosen answers.",
        "Far below 0: chosen answers get unlikely too. Lower the rate, or take an SFT term."),
    "rewards/rejected": ("Reward of rejected", "nats × β", "The same of rejected ones.", ""),
    "rewards/mean": ("Mean reward", "nats × β", "What BCO's losses compare with.", ""),
    "logps/chosen": ("log π of chosen", "nats", "Log-prob of chosen answers.",
        "It sinks for long: the model unlearns them too."),
    "logps/rejected": ("log π of rejected", "nats", "The same of rejected ones.", ""),
    "drift": ("KL baseline", "nats", "KTO's estimate of the KL, which gains are measured from.",
        "It soars: the policy runs away from the reference."),
    "pair_accuracy": ("Pair accuracy", "share", "Pairs ranked rightly; ties count half.",
        "0.5 is guessing. Far higher in training than held out: overfitting."),
    "margin": ("Margin", "score", "By how much chosen texts score higher, on average.",
        "It grows while held-out accuracy stays: the scores only get louder."),
    "score/chosen": ("Score of chosen", "score", "Mean score of chosen texts.",
        "Both scores drift off together: algorithm.centring holds them near 0."),
    "score/rejected": ("Score of rejected", "score", "Mean score of rejected texts.", ""),
    "grad_norm": ("Gradient norm", "", "Before clipping, the mean over optimizer steps.",
        "Spikes: lower the learning rate; far above update.max_grad_norm: always clipped."),
    "skipped_updates": ("Skipped steps", "optimizer steps", "Gradients that were inf or NaN.",
        "Above 0 again and again: lower the learning rate, or use fp32."),
    "learning_rate": ("Learning rate", "", "Of what is trained.",
        "At 0 while the loss still falls: train longer, or begin higher."),
    "epoch": ("Epoch", "epochs", "How often the data have been seen.", ""),
}  # fmt: skip

MACHINE: dict[str, Meaning] = {
    "completions/mean_length": ("Response length", "tokens", "Mean, with EOS.",
        "It runs to the limit, or to nothing: the reward may pay for length."),
    "completions/min_length": ("Shortest response", "tokens", "", ""),
    "completions/max_length": ("Longest response", "tokens", "", ""),
    "completions/clipped_ratio": ("Cut off", "share",
        "Responses, or turns, that reached sampling.max_new_tokens without ending.",
        "Near 1: nothing ends. Raise the limit, look for the EOS token and the template."),
    "episode/return_mean": ("Episode return", "reward",
        "Mean return of the last 100 episodes that ended.",
        "It falls back and stays: steps are too large, or the entropy has collapsed."),
    "episode/length_mean": ("Episode length", "steps", "Mean length of those episodes.",
        "It moves while the return does not: what ends episodes is not what pays."),
    "sampling/refills": ("Refills", "rounds", "Further rounds that filled the rollout.",
        "Always sampling.max_refills: prompts whose groups have a spread are rare."),
    "sampling/dropped_groups": ("Dropped groups", "groups", "Sampled, and not learned from.", ""),
    "num_tokens": ("Tokens", "tokens", "Learned from so far.", ""),
    "num_steps": ("Steps", "environment steps", "Learned from so far.", ""),
    "perf/tokens_per_second": ("Speed", "tokens per second", "Of the whole iteration.", ""),
    "perf/steps_per_second": ("Speed", "steps per second", "Of the whole iteration.", ""),
    "perf/peak_memory_gb": ("Peak memory", "GB", "On the GPU if there is one, else resident.", ""),
    "time/sample": ("Sampling", "seconds", "", ""),
    "time/score": ("Waiting for rewards", "seconds", "", ""),
    "time/reference": ("Log-probs and values before the update", "seconds", "", ""),
    "time/update": ("Learning", "seconds", "", ""),
    "time/checkpoint": ("Saving", "seconds", "The checkpoint before this iteration.", ""),
    "time/report": ("Writing report.html", "seconds", "The report before this iteration.", ""),
}  # fmt: skip

METRICS = {**REWARD, **DRIFT, **LEARNING, **MACHINE}

HELD_OUT = {
    "reward": "mean score of held-out samples",
    "reward_std": "standard deviation of the scores",
    "reward_errors": "responses without a score",
    **{
        f"pass_at_{2**i}": f"chance that one of {2**i} responses passes (evaluation.pass_score)"
        for i in range(5)
    },
    "greedy_reward": "mean score of greedy responses",
    "kl": "nats per response to the reference: how far the policy has drifted",
    "distinct": "share of distinct responses",
    "length": "tokens per response",
    "accuracy": "share of right answers",
    "turns": "turns of the policy in an episode",
    "guesses": "guesses until the number is found",
    "guesses_over_best": "the same, as a multiple of binary search's",
    "tool_used": "share of the sums for which the tool was asked",
    "accuracy_alone": "share of right answers where it was not",
    "right": "share of the moves that go right; .586 is best",
    "pair_accuracy": "share of pairs ranked rightly",
    "margin": "mean reward, or score, of chosen less rejected",
    "gold": "share that is both positive and grammatical; never shown to training",
    "gold_positive": "share the gold scorer calls positive; never shown to training",
    "gold_grammatical": "share the grammar accepts; never shown to training",
    "return_mean": "mean return of evaluation episodes",
    "return_std": "standard deviation of the returns",
    "length_mean": "mean length of those episodes",
    "loss": "mean loss on held-out data",
    "perplexity": "exp of the loss per token",
}
"""What evaluations measure; metrics.jsonl calls them eval/NAME."""

HELD_OUT_WORRY = {
    "distinct": "It falls towards 0: all responses become one. Raise kl_coef or entropy_coef.",
    "perplexity": "It rises while the training loss falls: overfitting. Fewer epochs.",
}
"""When to worry about those that no training metric stands beside."""

HEADLINES = (
    *("reward", "gold_positive", "accuracy", "tool_used", "guesses", "right"),
    *("pair_accuracy", "margin"),
    *("return_mean", "kl", "loss"),
)
"""The held-out figures that matter first, in their order."""


def meaning(name: str) -> Meaning | None:
    """What is known of a metric, `eval/…` and `rewards/NAME/…` too; None of one that is not."""
    if name in METRICS:
        return METRICS[name]
    if reward := re.fullmatch(r"rewards/(.+)/(mean|std)", name):
        title, *rest = METRICS[f"rewards/NAME/{reward[2]}"]
        return (title.replace("NAME", reward[1]), *rest)  # type: ignore[return-value]
    for start in ("loss/", "logged/"):
        if name.startswith(start):
            title, *rest = METRICS[f"{start}NAME"]
            return (title.replace("NAME", name.removeprefix(start)), *rest)  # type: ignore[return-value]
    figure = name.removeprefix("eval/")
    if name != figure and figure in HELD_OUT:
        return (f"{figure}, held out", "", HELD_OUT[figure], HELD_OUT_WORRY.get(figure, ""))
    if name != figure and (known := meaning(figure)):
        return (f"{known[0]}, held out", known[1], known[2], "")
    return None


def held_out_note(figure: str) -> str:
    """What an evaluation's figure is, as a note beside it; nothing of one that is not known."""
    said = words(f"eval/{figure}")[0]
    return said[:1].lower() + said[1:].removesuffix(".")


def chart_title(name: str) -> str:
    """What a chart of a metric is called."""
    known = meaning(name)
    return known[0] if known else name


def words(name: str) -> tuple[str, str, str]:
    """What a metric is, when to worry, and its unit; nothing of one that is not known."""
    known = meaning(name)
    return (known[2], known[3], known[1]) if known else ("", "", "")
