"""Proof that what is scored was not trained on: shared word n-grams between two bodies of text.

Two texts overlap when they share a run of ``n`` words (13, the usual length in contamination studies), compared in
lower case without punctuation. Each word becomes 64 bits of BLAKE2b and an n-gram the sum of its words' bits times the
powers of an odd constant, modulo 2^64; that is one vectorised pass over millions of words, the same in every
process. A collision can only report an overlap that is not there, about once in 10^7 comparisons of corpora of
this size; it never hides one. What was left out: paraphrases and translations, which no n-gram sees.

Passages of one article, and quotations, do put the same words into documents that the split separates, so held-out
text means test documents minus those that overlap with training documents.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bitdistiller.data.text import Document

NGRAM = 13
_WORD = re.compile(r"[^\W_]+")
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that no word's bits are lost


@dataclass(frozen=True)
class Overlap:
    """Which of ``total`` items share an n-gram with the training text."""

    items: list[str]
    total: int

    @property
    def share(self) -> float:
        """Overlapping items over all items; 0 when there are none."""
        return len(self.items) / self.total if self.total else 0.0


def words(text: str) -> list[str]:
    """Lower-cased alphanumeric words of a text."""
    return _WORD.findall(text.lower())


def ngram_overlap(train_texts: Iterable[str], items: Mapping[str, str], n: int = NGRAM) -> Overlap:
    """Items that share a run of ``n`` words with any training text; an item shorter than ``n`` counts whole.

    Args:
        train_texts: the text that was trained on. No n-gram crosses the border between two texts.
        items: id -> text. An item without a single word overlaps with nothing.
    """
    table: dict[str, int] = {}
    train = _Hashes(train_texts, table)
    found, scored = set(), _Hashes(items.values(), table)
    names = list(items)
    for length in sorted({min(n, size) for size in scored.sizes.tolist() if size}):
        grams, owner = scored.ngrams(length)
        sizes = scored.sizes[owner]
        eligible = (sizes == length) if length < n else (sizes >= n)
        grams, owner = grams[eligible], owner[eligible]
        found.update(owner[_members(grams, train.ngrams(length)[0])].tolist())
    return Overlap([names[index] for index in sorted(found)], len(names))


def held_out(documents: Sequence[Document], train_documents: Sequence[Document], n: int = NGRAM) -> list[Document]:
    """The documents that share no run of ``n`` words with any training document, in the given order."""
    texts = {document.id: document.text for document in documents}
    seen = set(ngram_overlap([document.text for document in train_documents], texts, n).items)
    return [document for document in documents if document.id not in seen]


def _members(few: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Which of ``few`` occur in ``many``: ``np.isin``, but only the few are sorted."""
    distinct, inverse = np.unique(few, return_inverse=True)
    places = np.minimum(np.searchsorted(distinct, many), len(distinct) - 1)
    present = np.zeros(len(distinct), dtype=bool)
    present[places[distinct[places] == many]] = True
    return present[inverse]


class _Hashes:
    """Texts as one array of word hashes, with the text each word belongs to."""

    def __init__(self, texts: Iterable[str], table: dict[str, int]):
        lists = [words(text) for text in texts]
        self.sizes = np.array([len(entry) for entry in lists], dtype=np.int64)
        self._owner = np.repeat(np.arange(len(lists)), self.sizes)
        flat = [word for entry in lists for word in entry]
        for word in set(flat).difference(table):
            table[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        self._words = np.fromiter((table[word] for word in flat), dtype=np.uint64, count=len(flat))

    def ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Hash of every run of ``n`` words inside one text, and the index of that text."""
        count = max(0, len(self._words) - n + 1)
        sums = np.zeros(count, dtype=np.uint64)
        for offset in range(n):
            power = np.uint64(pow(_FACTOR, offset + 1, 2**64))
            sums += self._words[offset : offset + count] * power
        inside = self._owner[:count] == self._owner[n - 1 : n - 1 + count]
        return sums[inside], self._owner[:count][inside]
