"""The tasks of the micro scale: how does this text go on, and how did it begin? Chance is 25 % in both.

Models of a few million parameters answer no question of a published benchmark better than chance, but they know
how text goes on. An item is the first 40 words of a held-out document, its next 16 words, and the same two spans of
three other documents of the same text set. Items are cut from words, so every tokenizer meets the same ones, one a
document, so that they are independent. Distractors, the position of the right answer and the order of items follow
from SHA-256 alone: no seed, no dependence on the order of documents.

``continuation`` asks which of the four continuations follows the context. Its answer depends mostly on how likely each
continuation is by itself, which a weak model cannot weigh against the context. ``beginning`` turns the question
round, as lm-eval's WinoGrande does: after which of the four contexts is the true continuation most likely? The
continuation's own likelihood is then the same for all choices and cancels, which leaves far more signal in the
same items; the price is that no two choices share a context that could be computed once.

With 48 words of context the test split would give 572 items instead of 744: many book passages end before.
Distractors from another text set would test little but the style of a source.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice

from bitdistiller.data.overlap import words
from bitdistiller.data.text import TEXT_SETS, Document
from bitdistiller.evaluate.local import held_out_text

CONTEXT_WORDS, CONTINUATION_WORDS, CHOICES = 40, 16, 4
Spans = tuple[str, str]


def continuation_items(documents: Sequence[Document]) -> list[dict]:
    """Items with ``id``, ``source``, ``contexts``, ``continuations`` (four each) and ``gold``, the true pair's index.

    ``context`` and ``continuation`` repeat the true pair. Documents shorter than 56 words, and text sets without
    three usable distractors, give none. The order spreads every text set evenly, so that the first items are a fair
    sample of all.
    """
    sets: dict[str, dict[str, Spans]] = defaultdict(dict)
    for document in documents:
        split = document.text.split()[: CONTEXT_WORDS + CONTINUATION_WORDS]
        if len(split) == CONTEXT_WORDS + CONTINUATION_WORDS:
            sets[document.source][document.id] = " ".join(split[:CONTEXT_WORDS]), " ".join(split[CONTEXT_WORDS:])
    placed = []
    for source, spans in sets.items():
        items = [item for identity in spans if (item := _item(identity, source, spans)) is not None]
        items.sort(key=lambda item: _rank("order", item["id"]))
        placed += [((index + 0.5) / len(items), source, item) for index, item in enumerate(items)]
    return [item for _, _, item in sorted(placed, key=lambda entry: entry[:2])]


def _item(identity: str, source: str, spans: Mapping[str, Spans]) -> dict | None:
    context, continuation = spans[identity]
    ranked = sorted((other for other in spans if other != identity), key=lambda other: _rank(identity, other))
    others = list(islice((spans[other] for other in ranked if _differ(spans[other], spans[identity])), CHOICES - 1))
    if len(others) < CHOICES - 1:
        return None
    gold = _rank("gold", identity) % CHOICES
    contexts, continuations = zip(*others[:gold], spans[identity], *others[gold:], strict=True)
    return {
        "id": identity,
        "source": source,
        "context": context,
        "continuation": continuation,
        "contexts": list(contexts),
        "continuations": list(continuations),
        "gold": gold,
    }


def _differ(first: Spans, second: Spans) -> bool:
    """Near-duplicate passages exist; the same words again are no wrong answer."""
    pairs = [(set(words(a)), set(words(b))) for a, b in zip(first, second, strict=True)]
    return all(len(a & b) * 2 < len(a | b) for a, b in pairs)


def _rank(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256(":".join(parts).encode()).digest()[:8], "big")


def continuation_jsonl() -> bytes:
    """All items from the held-out documents of the five built-in text sets, one JSON object a line."""
    items = continuation_items(held_out_text(list(TEXT_SETS)))
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items).encode()
