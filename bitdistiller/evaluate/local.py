"""Files that evaluation derives from the wheels once and then only reads.

What a file contains is decided by the pinned wheels and by the code that derives it, so both are hashed into the
name of its folder: new pins or changed code never meet an old file. Files appear under their name only when they are
complete, so that stages running at the same time may race for them.
"""

import hashlib
import json
import uuid
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from bitdistiller.assets import cache_dir, pins
from bitdistiller.data.overlap import held_out
from bitdistiller.data.text import TEXT_SETS, Document, load_text

_DECIDING = (
    "data/text.py",
    "data/overlap.py",
    "evaluate/local.py",
    "evaluate/benchmarks.py",
    "evaluate/continuation.py",
)
_PUBLISHED_SPLIT = "wikitext-2"


@cache
def _key() -> str:
    package = Path(__file__).parents[1]
    digest = hashlib.sha256("".join(sorted(asset.sha256 for asset in pins().values())).encode())
    for name in _DECIDING:
        digest.update((package / name).read_bytes())
    return digest.hexdigest()[:16]


def folder() -> Path:
    """Folder of the derived files of these wheels and this code."""
    return cache_dir() / "benchmarks" / _key()


def cached_file(name: str, build: Callable[[], bytes]) -> Path:
    """Path of the derived file ``name``, made by ``build`` if it is not there yet."""
    path = folder() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        data = build()
        staging = path.with_name(f".{name}.{uuid.uuid4().hex}")
        try:
            staging.write_bytes(data)
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)
    return path


def held_out_text(names: Sequence[str]) -> list[Document]:
    """Test documents of text sets, without those that share 13 words in a row with any training text.

    Training text is the train split of every built-in text set, whichever of them a model has read; if files of the
    user's are among ``names``, it is the train split of ``names``. Text with a published split (WikiText-2) is taken
    as published.
    """
    split_here = [name for name in names if name != _PUBLISHED_SPLIT]
    if not set(split_here) <= set(TEXT_SETS):
        leaked = _leaked(split_here)
        return [document for document in load_text(names, "test") if document.id not in leaked]
    built_in = json.loads(cached_file("held-out.json", _built_in).read_text()) if split_here else {}
    found: dict[str, Document] = {}
    for name in names:
        documents = load_text(name, "test") if name == _PUBLISHED_SPLIT else _documents(name, built_in[name])
        for document in documents:
            found.setdefault(document.id, document)
    return [found[key] for key in sorted(found)]


def _documents(source: str, texts: dict[str, str]) -> list[Document]:
    return [Document(identity, source, text) for identity, text in texts.items()]


def _built_in() -> bytes:
    """Held-out texts of every built-in set by id: reading the wheels anew takes seconds in every evaluation."""
    leaked = _leaked(list(TEXT_SETS))
    texts = {
        name: {document.id: document.text for document in load_text(name, "test") if document.id not in leaked}
        for name in TEXT_SETS
    }
    return json.dumps(texts).encode()


def _leaked(names: Sequence[str]) -> set[str]:
    documents = load_text(names, "test")
    kept = {document.id for document in held_out(documents, load_text(names, "train"))}
    return {document.id for document in documents} - kept
