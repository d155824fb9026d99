"""A student beside its original: KL and top-1 agreement against all logits at once, and their bounds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bitdistiller.data.blocks import encode
from bitdistiller.data.text import Document, document_id
from bitdistiller.errors import UserError
from bitdistiller.evaluate import likelihood
from bitdistiller.evaluate.perplexity import document_scores, scores_of_documents
from bitdistiller.evaluate.reference import compare_with_original
from bitdistiller.results import ITEM_COLUMNS
from tests.tiny import make_model, sentences


@pytest.fixture(scope="module")
def original(tiny_model):
    return LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def student(original):
    """The original with noise on every weight."""
    model, generator = LlamaForCausalLM(original.config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for own, weight in zip(model.parameters(), original.parameters(), strict=True):
            own.copy_(weight + 0.1 * weight.std() * torch.randn(weight.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return PreTrainedTokenizerFast.from_pretrained(tiny_model)


@pytest.fixture
def fp32(monkeypatch):
    """Without autocast, so that twins can be compared tightly."""
    monkeypatch.setattr(likelihood, "has_bf16", lambda: False)


def documents(count: int) -> list[Document]:
    return [Document(document_id(text), "made up", text) for text in sentences(count, seed=5)]


@torch.no_grad()
def slow_comparison(student, original, tokenizer, texts, window, max_tokens) -> dict[str, tuple[float, int, int]]:
    """The obvious twin: one window at a time, all logits, fp64; KL, agreements and tokens of each document."""
    found, left = {}, max_tokens
    for document in sorted(texts, key=lambda document: document.id):
        stream = [tokenizer.eos_token_id, *encode(tokenizer, [document.text])[0]][: left + 1]
        kl, agreement = 0.0, 0
        for start in range(0, len(stream) - 1, window):
            inputs = torch.tensor([stream[start : start + window + 1][:-1]])
            p, q = (model(inputs).logits[0].double().log_softmax(-1) for model in (original, student))
            kl += (p.exp() * (p - q)).sum().item()
            agreement += int((p.argmax(-1) == q.argmax(-1)).sum())
        if len(stream) > 1:
            found[document.id] = kl, agreement, len(stream) - 1
        left -= len(stream) - 1
    return found


@pytest.mark.parametrize("window, max_tokens, batch_tokens", [(32, 10**6, 256), (7, 301, 64), (128, 500, 1)])
def test_documents_are_compared_as_with_all_logits_at_once(
    student, original, tokenizer, fp32, monkeypatch, window, max_tokens, batch_tokens
):
    monkeypatch.setattr(likelihood, "_CHUNK_LOGITS", 10 * original.config.vocab_size)  # chunks and blocks are crossed
    monkeypatch.setattr(likelihood, "_BLOCK_LOGITS", 4 * original.config.vocab_size)
    arguments = (tokenizer, documents(12), window, max_tokens, batch_tokens, "heldout")
    items = document_scores(student, *arguments, original)
    expected = slow_comparison(student, original, tokenizer, documents(12), window, max_tokens)
    assert list(items.columns) == ITEM_COLUMNS and set(items["metric"]) == {"nll", "kl", "agreement", "worst_share"}
    for metric, place, tolerance in (("kl", 0, 1e-4), ("agreement", 1, 0)):
        rows = items[items["metric"] == metric].set_index("item")
        assert list(rows.index) == list(expected)
        assert rows["weight"].tolist() == [entry[2] for entry in expected.values()]
        assert rows["value"].tolist() == pytest.approx([entry[place] for entry in expected.values()], rel=tolerance)
    scores = {score.metric: score for score in scores_of_documents(items, "heldout")}
    tokens = sum(entry[2] for entry in expected.values())
    assert scores["kl"].value == pytest.approx(sum(entry[0] for entry in expected.values()) / tokens, rel=1e-5)
    assert scores["agreement"].value == sum(entry[1] for entry in expected.values()) / tokens
    assert 0 < scores["kl"].low < scores["kl"].high and 0 < scores["agreement"].low < scores["agreement"].high < 1


def test_the_original_beside_it_changes_no_likelihood(student, original, tokenizer):
    alone = document_scores(student, tokenizer, documents(12), 32, 10**6, 256)
    both = document_scores(student, tokenizer, documents(12), 32, 10**6, 256, original=original)
    assert both[both["metric"].isin(["nll", "worst_share"])].reset_index(drop=True).equals(alone)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_is_no_distance_from_itself(original, tokenizer, monkeypatch, bf16):
    monkeypatch.setattr(likelihood, "has_bf16", lambda: bf16)
    items = document_scores(original, tokenizer, documents(12), 32, 10**6, 256, original=original)
    assert (items.loc[items["metric"] == "kl", "value"] == 0).all()
    agreement = items[items["metric"] == "agreement"]
    assert (agreement["value"] == agreement["weight"]).all()


def test_rounding_to_bf16_is_a_small_distance(student, original, tokenizer, monkeypatch):
    found = []
    for bf16 in (False, True):
        monkeypatch.setattr(likelihood, "has_bf16", lambda value=bf16: value)
        items = document_scores(student, tokenizer, documents(12), 32, 10**6, 256, original=original)
        found.append(scores_of_documents(items, "perplexity")[2])
    assert found[0].metric == "kl" and found[0].value != found[1].value
    assert abs(found[0].value - found[1].value) < 0.1 * found[0].standard_error


def test_logits_of_both_models_come_in_chunks(student, original, tokenizer, fp32, monkeypatch):
    sizes = [[], []]
    hooks = [
        model.get_output_embeddings().register_forward_hook(lambda _, args, out, own=own: own.append(len(out)))
        for model, own in zip((student, original), sizes, strict=True)
    ]
    monkeypatch.setattr(likelihood, "_CHUNK_LOGITS", 10 * original.config.vocab_size)
    items = document_scores(student, tokenizer, documents(12), 32, 10**6, 512, original=original)
    for hook in hooks:
        hook.remove()
    tokens = items.loc[items["metric"] == "kl", "weight"].sum()
    assert all(max(rows) == 10 and sum(rows) == tokens for rows in sizes)  # padding is never projected


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 9), scale=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 100.0]))
def test_the_divergence_of_any_states_has_its_bounds(student, original, seed, count, scale):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(count, original.config.hidden_size, generator=generator)
    expected = states + scale * torch.randn(states.shape, generator=generator)
    targets = torch.randint(original.config.vocab_size, (count,), generator=generator)
    with torch.no_grad():
        log_probs, kl, agreement = compare_with_original(original, states, original, expected, targets)
        q, p = (original.lm_head(hidden).double().log_softmax(-1) for hidden in (states, expected))
    divergence = F.kl_div(q, p, reduction="none", log_target=True).sum(1)
    assert (kl >= 0).all() and kl.tolist() == pytest.approx(divergence.tolist(), rel=1e-3, abs=1e-5)
    assert log_probs.tolist() == pytest.approx(q.gather(1, targets[:, None]).squeeze(1).tolist(), rel=1e-5, abs=1e-5)
    assert agreement.tolist() == (q.argmax(1) == p.argmax(1)).tolist()
    if scale == 0:
        assert kl.tolist() == [0.0] * count and agreement.all()


def test_an_original_with_other_tokens_is_refused(student, tokenizer, tmp_path):
    other = LlamaForCausalLM.from_pretrained(make_model(tmp_path / "other", vocabulary=400), dtype=torch.float32)
    with pytest.raises(UserError, match="a model of 334 tokens cannot be compared with an original that has 400"):
        document_scores(student, tokenizer, documents(3), 16, 100, 64, original=other)
