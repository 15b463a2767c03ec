"""The textbook's methods whose update is not minibatch SGD on a loss, each one short file."""
