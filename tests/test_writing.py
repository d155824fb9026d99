"""What a model writes: against the network run anew for every token, against ``generate``, and after a kill."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from bitdistiller.errors import UserError
from bitdistiller.evaluate import likelihood
from bitdistiller.models import LoadedModel, load_model
from bitdistiller.reasoning import prefix, writing
from bitdistiller.reasoning.decoding import Prompt, Sampling, choose, end_tokens
from bitdistiller.reasoning.writing import Writer, shared_length

GREEDY = Sampling(max_new_tokens=8)
EXAMPLES = "One of several examples that every prompt begins with, long enough to be worth sharing. " * 6


@pytest.fixture(scope="module")
def micro() -> LoadedModel:
    return load_model("micro-1m")


@pytest.fixture(autouse=True)
def in_fp32(monkeypatch):
    """Rounding to bf16 depends on the batch; what is compared here does not."""
    monkeypatch.setattr(likelihood, "has_bf16", lambda: False)


def writer(micro: LoadedModel, folder: Path, batch_tokens: int = 400, identity: str = "model") -> Writer:
    return Writer(micro.model, micro.tokenizer, batch_tokens, folder / "journals", identity)


def prompts(micro: LoadedModel, texts: list[str], stop: tuple[str, ...] = ()) -> list[Prompt]:
    return [Prompt(str(index), micro.tokenizer(text)["input_ids"], stop) for index, text in enumerate(texts)]


TEXTS = ["In the year", "The river runs through", "She", "A small town in the north of the country was"]


def one_by_one(micro: LoadedModel, prompt: list[int], steps: int) -> list[int]:
    """Greedy, without a cache and without a batch."""
    tokens, ends = list(prompt), end_tokens(micro.model, micro.tokenizer)
    for _ in range(steps):
        with torch.no_grad():
            tokens.append(int(micro.model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("beginning", ["", EXAMPLES])
def test_greedy_is_the_most_probable_token_each_time(micro, tmp_path, beginning):
    asked = prompts(micro, [beginning + text for text in TEXTS])
    assert (shared_length([prompt.tokens for prompt in asked]) > 64) == bool(beginning)
    written = writer(micro, tmp_path, batch_tokens=60).write(asked, GREEDY, "test")
    assert [answer.tokens for answer in written] == [one_by_one(micro, prompt.tokens, 8) for prompt in asked]


@pytest.mark.parametrize("beginning", ["", EXAMPLES])
def test_another_architecture_takes_the_usual_path(micro, tmp_path, monkeypatch, beginning):
    """Without a replaceable attention nothing is shared, and transformers' own cache is used."""
    asked = prompts(micro, [beginning + text for text in TEXTS])
    ours = writer(micro, tmp_path / "a").write(asked, GREEDY, "test")
    for module in (prefix, writing):
        monkeypatch.setattr(module, "supports_prefix", lambda model: False)
    assert writer(micro, tmp_path / "b").write(asked, GREEDY, "test") == ours


def test_greedy_is_what_transformers_writes(micro, tmp_path):
    asked = prompts(micro, TEXTS)
    for prompt, answer in zip(asked, writer(micro, tmp_path).write(asked, GREEDY, "test"), strict=True):
        ids = torch.tensor([prompt.tokens])
        theirs = micro.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        assert theirs[0, len(prompt.tokens) :].tolist() == answer.tokens


def test_a_sample_depends_on_its_key_and_seed_and_not_on_its_batch(micro, tmp_path):
    sampled = Sampling(max_new_tokens=6, temperature=1.0, top_p=0.9, seed=3)
    asked = [Prompt(f"{text}/{n}", micro.tokenizer(text)["input_ids"]) for text in TEXTS for n in range(3)]
    together = writer(micro, tmp_path / "a", 10_000).write(asked, sampled, "test")
    alone = writer(micro, tmp_path / "b", 1).write(asked, sampled, "test")
    assert together == alone
    assert len({tuple(answer.tokens) for answer in together}) > len(TEXTS)
    other = writer(micro, tmp_path / "a", 10_000).write(asked, Sampling(6, 1.0, 0.9, seed=4), "test")
    assert other != together


def test_writing_ends_at_a_stop_word_and_text_before_it(micro, tmp_path):
    full = writer(micro, tmp_path).write(prompts(micro, TEXTS), GREEDY, "test")
    text = micro.tokenizer.decode(full[0].tokens)
    word = text.split()[2]
    asked = prompts(micro, TEXTS[:1], (word,))
    found = writer(micro, tmp_path)
    stopped = found.write(asked, GREEDY, "test")[0]
    assert stopped.ended and len(stopped.tokens) < len(full[0].tokens)
    assert found.text(stopped, (word,)) == text[: text.index(word)]
    assert found.text(stopped, ("nowhere to be found",)) == micro.tokenizer.decode(stopped.tokens)


def test_each_prompt_may_have_a_limit_of_its_own(micro, tmp_path):
    full = writer(micro, tmp_path).write(prompts(micro, TEXTS), GREEDY, "test")
    asked = [replace(prompt, most=most) for prompt, most in zip(prompts(micro, TEXTS), (1, 3, 8, 99), strict=True)]
    short = writer(micro, tmp_path).write(asked, GREEDY, "test")
    assert [answer.tokens for answer in short] == [
        full[0].tokens[:1],
        full[1].tokens[:3],
        *(a.tokens for a in full[2:]),
    ]
    long = Prompt("long", list(range(500)), most=12)
    assert len(writer(micro, tmp_path).write([long], Sampling(400), "test")[0].tokens) == 12


def test_writing_ends_with_the_end_token(micro, tmp_path, monkeypatch):
    full = writer(micro, tmp_path).write(prompts(micro, TEXTS), GREEDY, "test")
    monkeypatch.setattr(micro.model.generation_config, "eos_token_id", [full[0].tokens[3], full[1].tokens[1]])
    for before, after in zip(
        full, writer(micro, tmp_path / "b").write(prompts(micro, TEXTS), GREEDY, "t"), strict=True
    ):
        ends = [place for place, token in enumerate(before.tokens) if token in (full[0].tokens[3], full[1].tokens[1])]
        assert after.tokens == before.tokens[: ends[0] + 1 if ends else None]
        assert after.ended == bool(ends)


# --- going on after a kill ----------------------------------------------------------------------------------------


def test_an_interrupted_call_goes_on_and_ends_the_same(micro, tmp_path, monkeypatch):
    asked, size = prompts(micro, TEXTS), 30
    undisturbed = writer(micro, tmp_path / "a", size).write(asked, GREEDY, "test")
    calls, decode = [], writing.decode

    def dies_in_the_second(*arguments):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(arguments[2])
        return decode(*arguments)

    monkeypatch.setattr(writing, "decode", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        writer(micro, tmp_path / "b", size).write(asked, GREEDY, "test")
    journal = next((tmp_path / "b" / "journals").iterdir())
    journal.write_text(journal.read_text() + '{"key": "3", "tok')  # what a kill within a write leaves
    done = {prompt.key for prompt in calls[0]}
    again = []
    monkeypatch.setattr(writing, "decode", lambda *a: again.extend(p.key for p in a[2]) or decode(*a))
    found = writer(micro, tmp_path / "b", size)
    assert found.write(asked, GREEDY, "test") == undisturbed
    assert done and again and not done & set(again)
    again.clear()
    assert found.write(asked, GREEDY, "test") == undisturbed and not again


@pytest.mark.parametrize(
    "change",
    [
        {"identity": "another model"},
        {"batch_tokens": 90},
    ],
)
def test_a_journal_of_something_else_is_not_continued(micro, tmp_path, change):
    asked = prompts(micro, TEXTS)
    writer(micro, tmp_path).write(asked, GREEDY, "test")
    journal = next((tmp_path / "journals").iterdir())
    lines = [json.loads(line) | {"tokens": [0]} for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert writer(micro, tmp_path).write(asked, GREEDY, "test")[0].tokens == [0]  # the journal is what is believed
    assert writer(micro, tmp_path, **change).write(asked, GREEDY, "test")[0].tokens != [0]
    assert writer(micro, tmp_path).write(asked, Sampling(7), "test")[0].tokens != [0]
    assert writer(micro, tmp_path).write(prompts(micro, ["Other", *TEXTS]), GREEDY, "test")[1].tokens != [0]


def test_what_cannot_be_written_is_refused(micro, tmp_path):
    with pytest.raises(UserError, match="two prompts share a key"):
        writer(micro, tmp_path).write(prompts(micro, TEXTS)[:1] * 2, GREEDY, "test")
    with pytest.raises(UserError, match="a prompt of 11 tokens and 510 to write do not fit the model's context of 512"):
        writer(micro, tmp_path).write([Prompt("a", list(range(11)))], Sampling(510), "test")


# --- pieces -------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=90), min_size=1, max_size=5), st.integers(0, 80))
def test_the_shared_beginning_is_common_and_leaves_a_token(rows, common):
    rows = [[7] * common + row for row in rows]
    found = shared_length(rows)
    longest = 0
    while all(len(row) > longest + 1 for row in rows) and len({row[longest] for row in rows}) == 1:
        longest += 1
    assert found == (longest if longest >= 64 else 0)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 9), st.integers(0, 2**31))
@settings(deadline=None)
def test_attention_is_that_of_all_keys_together(heads, groups, own, shared, seed):
    """With the shared keys before the own ones in one sequence, PyTorch's attention gives the same."""
    generator = torch.Generator().manual_seed(seed)
    batch, size, queries = 3, 4, 1 + seed % own

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    query, key, value = drawn(batch, heads * groups, queries, size), *(drawn(batch, groups, own, size) for _ in "kv")
    states = [(drawn(groups, shared, size), drawn(groups, shared, size))]
    real = torch.rand(batch, own, generator=generator) < 0.7
    real = real.cummax(dim=1).values  # padding stands to the left
    mask = prefix.visible(real, queries)
    module = torch.nn.Module()
    module.layer_idx = 0
    found, _ = prefix.attend(module, query, key, value, mask, scaling=0.3, prefix=states if shared else None)
    keys, values = (
        torch.cat([part[None].expand(batch, -1, -1, -1), rest], dim=2).repeat_interleave(heads, dim=1)
        for part, rest in zip(states[0], (key, value), strict=True)
    )
    seen = torch.cat([torch.ones(batch, 1, queries, shared, dtype=torch.bool), mask], dim=3)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, seen, scale=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


@given(
    st.lists(st.floats(-6, 6), min_size=1, max_size=9),
    st.floats(0.2, 3.0),
    st.floats(0.05, 1.0),
    st.floats(0, 1, exclude_max=True),
)
def test_sampling_is_a_walk_along_the_distribution(logits, temperature, top_p, chance):
    """The slow way: sort if top-p cuts, keep until it is reached, and walk until the random number is passed."""
    weights = np.exp(np.array(logits) / temperature - max(logits) / temperature)
    weights /= weights.sum()
    order = list(np.argsort(-weights, kind="stable")) if top_p < 1 else list(range(len(weights)))
    kept, total = [], 0.0
    for index in order:
        if top_p == 1 or total < top_p:
            kept.append(index)
            total += weights[index]
    walked, bounds = 0.0, []
    for index in kept:
        walked += weights[index]
        bounds.append(walked / total)
    found = choose(torch.tensor([logits]), Sampling(1, temperature, top_p), torch.tensor([chance], dtype=torch.double))
    assert int(found) in kept
    place = kept.index(int(found))
    assert bounds[place] >= chance - 1e-5 and (place == 0 or bounds[place - 1] <= chance + 1e-5)


def test_samples_are_distributed_as_the_model_says():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    chances = torch.from_numpy(np.random.default_rng(0).random(4000))
    drawn = choose(logits.expand(4000, 4), Sampling(1, temperature=0.8), chances)
    expected = (logits.double() / 0.8).softmax(0).numpy() * 4000
    assert chisquare(np.bincount(drawn.numpy(), minlength=4), expected).pvalue > 0.001
    assert choose(logits[None], Sampling(1), chances[:1]).item() == 3
