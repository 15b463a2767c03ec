"""lmpg: fine-tune causal language models with policy gradients, in a plain process.

From Python: `lmpg.train`, `lmpg.load` and the others in `__all__`; docs/python.md explains them.
Gymnasium agents: `lmpg.gym`.

Shape letters, used as suffixes of tensor names throughout:

    B  rows of a rollout (responses, or environments)     T  steps (response tokens, env steps)
    P  distinct prompts                                    G  samples per prompt, B = P * G,
    L  prompt + response tokens                               prompt-major
    V  vocabulary                                          D  hidden size

A step is one response token or one environment step.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmpg.language.api.asking_calls import evaluate, generate
    from lmpg.language.api.finished import Run, compare, load
    from lmpg.language.api.training_call import train
    from lmpg.settings.section import UserError

__version__ = "0.1.0"
__all__ = ["Run", "UserError", "compare", "evaluate", "generate", "load", "train"]
_PLACES = {
    "Run": "lmpg.language.api.finished",
    "compare": "lmpg.language.api.finished",
    "evaluate": "lmpg.language.api.asking_calls",
    "generate": "lmpg.language.api.asking_calls",
    "load": "lmpg.language.api.finished",
    "train": "lmpg.language.api.training_call",
    "UserError": "lmpg.settings.section",
}


def __getattr__(name: str) -> Any:
    """What `__all__` lists, imported when it is first asked for: `import lmpg` stays cheap."""
    if name not in _PLACES:
        raise AttributeError(f"module 'lmpg' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
