"""n-gram overlap: against an obvious twin, at its edges, and on the real text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitdistiller.data.overlap import held_out, ngram_overlap, words
from bitdistiller.data.text import TEXT_SETS, Document, document_id, load_text, split_of
from bitdistiller.evaluate.benchmarks import BENCHMARKS, item_texts
from bitdistiller.evaluate.local import held_out_text

TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=6)


def slow_overlap(train: list[str], items: dict[str, str], n: int) -> list[str]:
    """The obvious twin: tuples of words in a Python set."""

    def grams(text, length):
        split = words(text)
        return {tuple(split[i : i + length]) for i in range(len(split) - length + 1)}

    found = []
    for name, text in items.items():
        length = min(n, len(words(text)))
        if length and any(grams(text, length) & grams(other, length) for other in train):
            found.append(name)
    return found


@given(train=TEXTS, texts=TEXTS, n=st.integers(1, 6))
def test_overlap_equals_its_obvious_twin(train, texts, n):
    items = {str(index): text for index, text in enumerate(texts)}
    assert ngram_overlap(train, items, n).items == slow_overlap(train, items, n)


def test_case_and_punctuation_do_not_hide_an_overlap():
    assert ngram_overlap(["It was -- the BEST of times!"], {"a": "was the best, of"}, 4).items == ["a"]


def test_no_ngram_crosses_the_border_of_two_texts():
    assert ngram_overlap(["one two", "three four"], {"a": "two three"}, 2).items == []


def test_an_item_without_words_overlaps_with_nothing():
    overlap = ngram_overlap(["...", "a b"], {"a": "?!", "b": "a b"}, 2)
    assert overlap.items == ["b"] and overlap.total == 2 and overlap.share == 0.5


def test_the_share_of_no_items_is_zero():
    assert ngram_overlap(["a b"], {}, 2).share == 0


def test_held_out_drops_exactly_the_documents_that_share_a_run():
    def document(text):
        return Document(document_id(text), "made up", text)

    run = "one two three four five six seven eight nine ten eleven twelve thirteen"
    train = [document(f"before {run} after")]
    clean, leaked = document(run.replace("thirteen", "fourteen")), document(f"quoted {run} here")
    assert held_out([leaked, clean], train) == [clean]


def test_held_out_text_of_a_user_file_is_cleaned_by_its_own_train_split(tmp_path):
    passages = [f"passage {i}" for i in range(40)]
    test = next(text for text in passages if split_of(document_id(text)) == "test")
    path = tmp_path / "text.txt"
    path.write_text("\n".join(passages))
    before = {document.text for document in held_out_text([str(path)])}
    assert test in before
    copy = next(text for text in (f"{test} {i}" for i in range(100)) if split_of(document_id(text)) == "train")
    path.write_text("\n".join([*passages, copy]))
    assert {document.text for document in held_out_text([str(path)])} == before - {test}


@pytest.mark.slow
def test_no_scored_item_stands_in_the_training_text():
    train = [document.text for document in load_text(list(TEXT_SETS), "train")]
    for name in BENCHMARKS:
        assert ngram_overlap(train, item_texts(name)).items == [], name


@pytest.mark.slow
def test_held_out_text_drops_the_test_documents_that_leak():
    names = list(TEXT_SETS)
    documents, train = load_text(names, "test"), load_text(names, "train")
    texts = {document.id: document.text for document in documents}
    leaked = set(ngram_overlap([document.text for document in train], texts).items)
    assert leaked and {document.id for document in held_out_text(names)} == set(texts) - leaked
