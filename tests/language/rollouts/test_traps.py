"""Traps that are found in more data than a test of `lmpg check` has."""

from __future__ import annotations

from types import SimpleNamespace

from lmpg.language.rollouts import traps
from tests.support.planted import catches


@catches("labels of one kind, where the other comes late")
def test_labels_are_of_one_kind_only_if_all_are():
    late = [SimpleNamespace(desirable=i < traps.MOST) for i in range(traps.MOST + 1)]
    assert list(traps.of_labels(late)) == []
    assert "all answers are desirable" in next(traps.of_labels(late[:-1]))
