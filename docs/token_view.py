"""A picture of a run's token view: python docs/token_view.py RUN OUT.png (needs chromium)."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lmpg.runs.report.history import History
from lmpg.runs.report.sample_rows import samples_block
from lmpg.runs.report.style import STYLE

WIDTH, HEIGHT = 960, 408
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def main(run: Path, picture: Path) -> None:
    """Writes the samples of the first, the middle and the last step as a PNG."""
    browser = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"none of {', '.join(PROGRAMS)} is installed, expected one of them")
    history = History(run)
    history.read()
    head = f'<meta charset="utf-8"><style>{STYLE}main {{ padding: 16px 20px }}</style>'
    page = f"<!doctype html>{head}<main>{samples_block(history.samples())}</main>"
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as file:
        file.write(page)
        file.flush()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        size = f"--window-size={WIDTH},{HEIGHT}"
        shot = f"--screenshot={picture.absolute()}"
        subprocess.run([browser, *flags, size, shot, f"file://{file.name}"], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
