"""Attacks on whole runs: long, and only on request; `docs/reliability.md` says what they found."""
