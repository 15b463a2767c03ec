"""One thread per test process: small networks on several fight for cores and crawl. Several
processes begin with slow tests and end with quick ones, so that none waits for the last."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported


def pytest_collection_modifyitems(config, items):
    """Each half of the tests begins with whole files that have slow ones: two processes begin with
    a half each, and towards the end share out what is left."""
    if not hasattr(config, "workerinput"):  # a single process
        return
    files = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    slow = {path for path, tests in files.items() if any(map(_is_slow, tests))}
    first, second = (
        [test for path in [x for x in files if x in slow][start::2] for test in files[path]]
        for start in (0, 1)
    )
    quick = [item for item in items if item.path not in slow]
    half = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *quick[:half], *second, *quick[half:]]


def _is_slow(item):
    return item.get_closest_marker("slow") is not None
