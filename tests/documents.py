"""The documents that people read, cut into what they would type: fenced blocks, commands, files to write."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md"))]
_FENCE = re.compile(r"^```(\w*)(.*)$")
_TITLE = re.compile(r'title="([^"]+)"')
_REASON = re.compile(r"^<!-- not run: (.+) -->$")
_SNIPPET = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block; ``title`` is the file that it stands for, ``reason`` why it is not run, and both may be empty."""

    document: str
    line: int
    language: str
    title: str
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(document: str) -> Iterator[Block]:
    """Fenced blocks of a Markdown file of the repository, files that they include put in.

    A block is not run if the line before it says so and why: ``<!-- not run: REASON -->``.

    Raises:
        ValueError: a fence that is never closed.
    """
    lines = (ROOT / document).read_text().splitlines()
    rest = iter(range(len(lines)))
    for start in rest:
        fence = _FENCE.match(lines[start])
        if not fence:
            continue
        end = next((number for number in rest if lines[number] == "```"), None)
        if end is None:
            raise ValueError(f"{document}:{start + 1}: a fence that is never closed")
        text = _SNIPPET.sub(lambda found: (ROOT / found[1]).read_text(), "\n".join(lines[start + 1 : end]) + "\n")
        reason, title = _REASON.match(lines[start - 1] if start else ""), _TITLE.search(fence[2])
        yield Block(document, start + 1, fence[1], title[1] if title else "", reason[1] if reason else "", text)


def commands(document: str) -> Iterator[list[str]]:
    """Each command of a document's bash blocks as words, without comment and leading assignments."""
    for block in blocks(document):
        if block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.match(r"\w+=", words[0]):
                    words.pop(0)
                if words:
                    yield words


def insert(addition: str, text: str) -> str:
    """A YAML file after somebody has added entries by hand: each below its key, which is there already.

    Raises:
        ValueError: a key that is not there.
    """
    for key, entries in re.findall(r"^(\w+):\n((?: +.*\n)+)", addition, re.MULTILINE):
        text, count = re.subn(
            rf"^{key}:(?: {{}})?\n", lambda _, new=f"{key}:\n{entries}": new, text, flags=re.MULTILINE
        )
        if count != 1:
            raise ValueError(f"the file has no key {key} to add to")
    return text
