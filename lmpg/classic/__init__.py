"""The textbook's methods whose update is not minibatch SGD on a loss, each one short file."""

from lmpg.classic.trpo import TRPO
from lmpg.sections import Section

METHODS: dict[str, type[Section]] = {
    "trpo": TRPO,
}
