"""The tables of docs/metrics.md: python docs/metrics_table.py"""

from lmpg.runs.report.meanings import DRIFT, HELD_OUT, LEARNING, MACHINE, REWARD, Meaning

PARTS = {
    "Rewards and scores": REWARD,
    "Drift and updates": DRIFT,
    "Losses, critics, preferences, optimizer": LEARNING,
    "Responses, episodes, time and memory": MACHINE,
}


def table(part: dict[str, Meaning]) -> str:
    """One part's metrics as Markdown."""
    lines = ["| metric | unit | what it is | when to worry |", "|---|---|---|---|"]
    for name, (title, unit, what, worry) in part.items():
        said = f"{title.replace('NAME', '…')}. {what}".removesuffix(". ")
        lines.append("| " + " | ".join([f"`{name}`", unit, cell(said), cell(worry)]) + " |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text within a cell."""
    return text.replace("|", "\\|")


def held_out() -> str:
    """What evaluations measure."""
    lines = ["| figure | what it is |", "|---|---|"]
    return "\n".join([*lines, *(f"| `eval/{name}` | {what} |" for name, what in HELD_OUT.items())])


def tables() -> str:
    """All of them with their headings."""
    parts = [f"## {heading}\n\n{table(part)}" for heading, part in PARTS.items()]
    return "\n\n".join([*parts, f"## Held-out evaluations\n\n{held_out()}"])


if __name__ == "__main__":
    print(tables())
