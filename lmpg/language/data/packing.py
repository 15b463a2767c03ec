"""Packing: which texts share a row, so that rows hold little padding."""

from __future__ import annotations

from bisect import bisect_left, insort


def rows_of(lengths: list[int], capacity: int) -> list[list[int]]:
    """Indices of the texts in each row of at most `capacity` tokens: the longest text first, each
    where it leaves the least room (best fit, decreasing), at most 11/9 of the fewest rows."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens that still fit, row), sorted
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(room, (lengths[i], -1))
        if place == len(room):
            room.append((capacity, len(rows)))
            rows.append([])
            place = len(room) - 1
        left, row = room.pop(place)
        rows[row].append(i)
        insort(room, (left - lengths[i], row))
    return rows
