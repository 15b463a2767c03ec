"""The look that is taken at every policy before it is used: whether its numbers can be trusted."""

from __future__ import annotations

from lmpg.language.models.head import refuse_unknown_head
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.settings.section import UserError


def refuse_unsound(policy: CausalLMPolicy, precision: str) -> None:
    """UserError unless the policy's model is one that lmpg can learn with. precision: what the
    settings ask for; where they leave it to auto, a model that fails in bf16 alone, as DBRX does,
    computes in fp32."""
    try:
        refuse_unknown_head(policy)
    except UserError:
        if precision != "auto" or not policy.bf16:
            raise
        policy.bf16 = False
        refuse_unknown_head(policy)
