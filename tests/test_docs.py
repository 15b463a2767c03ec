"""The page on policy gradients: its links lead somewhere, its scripts show what it says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lmpg.algorithms import ALGORITHMS
from lmpg.gym.classic import METHODS
from tests.support.planted import catches
from tests.support.programs import ROOT, module_at

PAGE = ROOT / "docs" / "policy_gradients.md"
LINKS = re.findall(r"\]\(([^)#]+)", PAGE.read_text(encoding="utf-8"))


def script(name: str) -> ModuleType:
    """docs/NAME.py, as a module."""
    return module_at(ROOT / "docs" / f"{name}.py")


def test_every_link_of_the_page_leads_to_a_file():
    assert [link for link in LINKS if not (PAGE.parent / link).exists()] == []


@pytest.mark.parametrize("methods", [ALGORITHMS, METHODS], ids=["algorithms", "classic"])
def test_every_method_is_on_the_page(methods):
    linked = {(PAGE.parent / link).resolve() for link in LINKS}
    files = {Path(inspect.getfile(method)).resolve() for method in methods.values()}
    assert sorted(files - linked) == []


@pytest.mark.slow
def test_a_batch_that_is_used_again_and_again_ruins_reinforce_but_not_ppo():
    reuse = script("reuse")
    etas = {name: reuse.corridor_etas(loss, seed=0) for name, (loss, _) in reuse.LOSSES.items()}
    for name in ("REINFORCE", "ratios, not clipped"):
        assert max(etas[name]) > -12  # past the best policy …
        assert etas[name][-1] < 1.5 * etas[name][0]  # … and far beyond it
    for name in ("PPO, KL penalty (β = 3)", "PPO, clip 0.2"):
        assert min(etas[name]) == etas[name][0]
    shares = [
        reuse.share_of_the_gain(reuse.LOSSES["PPO, clip 0.2"][0], 0, 4, epochs) for epochs in (1, 4)
    ]
    assert 2 * shares[0] < shares[1] < 1  # what reuse is for


@catches("the Fisher matrix of other parameters")
def test_one_natural_step_leads_to_one_policy_and_three_plain_ones_to_three():
    names = script("parametrisations")
    ends = {
        kind: np.array([names.path(kind, M, 1, 0.05)[-1] for M, _ in names.NAMES.values()])
        for kind in (names.natural, names.plain)
    }
    assert np.ptp(ends[names.natural], axis=0).max() < 1e-9
    assert np.ptp(ends[names.plain], axis=0).max() > 0.1


def test_the_table_of_memory_is_what_the_runs_would_say():
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    assert script("memory_table").table() in page


def test_the_table_of_bounds_is_made_of_no_violations():
    bounds = script("bounds")
    error, *gaps = np.array([bounds.gaps(seed) for seed in range(20)]).T
    assert error.max() < 1e-10
    assert min(gap.min() for gap in gaps) >= -1e-12
    assert max(bounds.ends(0)[:4]) < 1e-7
