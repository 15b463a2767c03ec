"""`python -m lmpg` is the program `lmpg`."""

from lmpg.cli.command import entry

if __name__ == "__main__":
    entry()
