"""Checks the built site: every internal link, anchor and picture is there.

python docs/check_links.py docs/_build/html
"""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page can be asked for, by `ids`, and what it asks for."""

    def __init__(self, file: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.wanted: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := found.get(name))}
        target = found.get("href") if tag in ("a", "link") else found.get("src")
        if target:
            self.wanted.add(target)


def dead_links(site: Path) -> Iterator[str]:
    """Yields `page: target` for every target inside the site that does not exist."""
    files = sorted(file for file in site.rglob("*.html") if "_static" not in file.parts)
    pages = {file.resolve(): Page(file) for file in files}
    for file, page in pages.items():
        for target in sorted(page.wanted):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            missing = not there.exists()
            if there in pages and parts.fragment:
                missing = unquote(parts.fragment) not in pages[there].ids
            if missing:
                yield f"{file.relative_to(site.resolve())}: {target}"


def main() -> None:
    site = Path(sys.argv[1])
    dead = list(dead_links(site))
    print("\n".join(dead) or f"{len(list(site.rglob('*.html')))} pages, no dead link")
    sys.exit(bool(dead))


if __name__ == "__main__":
    main()
