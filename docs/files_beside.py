"""A hook of mkdocs for links from the pages to files outside docs/, as to ../lmpg/types.py.

The files that are linked to are copied to `files/` of the site, and the links are led there. A
folder has no page of its own, so that a link to one becomes plain text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#)([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds each file that a page links to and that lies beside docs/."""
    docs = Path(config.docs_dir)
    found: dict[Path, None] = {}
    pages = [docs / file.src_uri for file in files if file.src_uri.endswith(".md")]
    for page in pages:  # grows: a page beside docs/ may link to further files
        for _, target, _ in LINK.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            beside = path.is_file() and not path.is_relative_to(docs)
            if target and beside and path.is_relative_to(ROOT) and path not in found:
                found[path] = None
                pages += [path] if path.suffix == ".md" else []
    for path in found:
        uri = f"files/{path.relative_to(ROOT).as_posix()}"
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with links as they lie in the site."""
    uri = page.file.src_uri
    beside = uri.startswith("files/")
    source = ROOT / uri.removeprefix("files/") if beside else ROOT / "docs" / uri
    up = "../" * uri.count("/")

    def led(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = (source.parent / target).resolve()
        if not target or not path.is_relative_to(ROOT):
            return match[0]
        if path.is_dir():
            return text
        inside = path.is_relative_to(ROOT / "docs")
        place = path.relative_to(ROOT / "docs" if inside else ROOT).as_posix()
        return f"[{text}]({up}{'' if inside else 'files/'}{place}{anchor})"

    return LINK.sub(led, markdown)
