"""The attacks as tests, where LMPG_ATTACKS says how many kills there are to be (200: an hour)."""

from __future__ import annotations

import os

import pytest

from tests.attacks import damage, kills, rewards

NUMBER = int(os.environ.get("LMPG_ATTACKS", "0"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.skipif(not NUMBER, reason="on request: LMPG_ATTACKS=200"),
]


def test_runs_killed_at_any_instant_end_as_if_nothing_had_happened(tmp_path):
    for counts in kills.attacked(tmp_path, NUMBER).values():
        assert set(counts) <= set(kills.COLUMNS), counts
        assert counts["equal"] == counts["runs"] > 0


def test_damaged_runs_go_on_exactly_or_are_refused_by_name(tmp_path):
    found = damage.attacked(tmp_path, damage.KINDS, files=max(1, NUMBER // 20))
    for counts in found.values():
        assert set(counts) <= set(damage.COLUMNS), counts


def test_hostile_rewards_cost_their_samples_at_most(tmp_path):
    found = rewards.attacked(tmp_path)
    assert {name: said for name, said in found.items() if "FAULT" in said} == {}
