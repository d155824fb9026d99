"""Perplexity, the choices that share a context, and scoring by name: the fast paths against slow obvious twins."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bitdistiller.config import EvaluationParams, Params
from bitdistiller.data.blocks import encode
from bitdistiller.data.text import Document, document_id
from bitdistiller.distill.clipping import apply_clipping, search_model
from bitdistiller.errors import UserError
from bitdistiller.evaluate import evaluate_model, likelihood, shared_context
from bitdistiller.evaluate.likelihood import by_length, inference
from bitdistiller.evaluate.perplexity import document_scores, scores_of_documents, windows, worst_share
from bitdistiller.evaluate.run import evaluate_run, load_student
from bitdistiller.evaluate.shared_context import SharedContextLM, pack, trunks
from bitdistiller.evaluate.tasks import quiet
from bitdistiller.models import load_model
from bitdistiller.quant import make_format, quantizable
from bitdistiller.results import ITEM_COLUMNS, RunScores, Score
from tests import tiny
from tests.tiny import make_model, make_params, sentences


@pytest.fixture(scope="module")
def loaded(tiny_model):
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    return model, PreTrainedTokenizerFast.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = make_model(tmp_path_factory.mktemp("other"), seed=1)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def fp32(monkeypatch):
    """Without autocast, so that twins can be compared tightly."""
    for module in (likelihood, shared_context):
        monkeypatch.setattr(module, "has_bf16", lambda: False)


def documents(count: int) -> list[Document]:
    return [Document(document_id(text), "made up", text) for text in sentences(count, seed=5)]


def perplexity(items: pd.DataFrame, task: str = "perplexity", seed: int = 0) -> Score:
    return next(score for score in scores_of_documents(items, task, seed) if score.metric == "perplexity")


def slow_nll(model, tokenizer, texts, window, max_tokens) -> dict[str, tuple[float, int]]:
    """The obvious twin: one window at a time, all logits, fp32."""
    found, left = {}, max_tokens
    for document in sorted(texts, key=lambda document: document.id):
        stream = [tokenizer.eos_token_id, *encode(tokenizer, [document.text])[0]][: left + 1]
        total = 0.0
        for start in range(0, len(stream) - 1, window):
            part = torch.tensor([stream[start : start + window + 1]])
            with torch.no_grad():
                logits = model(part[:, :-1]).logits
            total += torch.nn.functional.cross_entropy(logits[0], part[0, 1:], reduction="sum").item()
        if len(stream) > 1:
            found[document.id] = total, len(stream) - 1
        left -= len(stream) - 1
    return found


# --- perplexity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window, max_tokens, batch_tokens", [(32, 10**6, 256), (7, 301, 64), (128, 500, 1)])
def test_the_nll_of_documents_equals_one_window_at_a_time(loaded, fp32, window, max_tokens, batch_tokens):
    items = document_scores(*loaded, documents(12), window, max_tokens, batch_tokens, "heldout")
    expected = slow_nll(*loaded, documents(12), window, max_tokens)
    assert list(items.columns) == ITEM_COLUMNS and set(items["task"]) == {"heldout"}
    assert items["metric"].unique().tolist() == ["nll", "worst_share"]
    items = items[items["metric"] == "nll"]
    assert dict(zip(items["item"], items["weight"], strict=True)) == {key: n for key, (_, n) in expected.items()}
    np.testing.assert_allclose(items["value"], [nll for nll, _ in expected.values()], rtol=2e-6)


def test_bf16_changes_perplexity_by_less_than_its_own_noise(loaded, monkeypatch):
    scores = []
    for bf16 in (False, True):
        monkeypatch.setattr(likelihood, "has_bf16", lambda value=bf16: value)
        scores.append(perplexity(document_scores(*loaded, documents(30), 32, 10**6, 512)))
    assert scores[0].value != scores[1].value
    assert abs(scores[0].value - scores[1].value) < 0.1 * scores[0].standard_error


def test_logits_come_in_chunks(loaded, fp32, monkeypatch):
    model, tokenizer = loaded
    sizes = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, args, out: sizes.append(out.numel()))
    monkeypatch.setattr(likelihood, "_CHUNK_LOGITS", 10 * model.config.vocab_size)
    items = document_scores(model, tokenizer, documents(12), 32, 10**6, 512)
    hook.remove()
    assert max(sizes) == 10 * model.config.vocab_size
    tokens = items.loc[items["metric"] == "nll", "weight"].sum()
    assert sum(sizes) == tokens * model.config.vocab_size  # padding is never projected


def test_every_token_is_predicted_once(loaded):
    _, tokenizer = loaded
    texts = documents(5)
    for document in texts:
        targets = [t for part in windows(tokenizer, [document], 7, 10**6) for t in part.targets]
        assert targets == encode(tokenizer, [document.text])[0]


def test_exactly_max_tokens_are_predicted_in_the_order_of_ids(loaded):
    parts = windows(loaded[1], documents(12), 16, 100)
    assert sum(len(part.targets) for part in parts) == 100
    order = [part.item for part in parts]
    assert order == sorted(order) and order[0] == min(document.id for document in documents(12))


def test_the_windows_of_a_single_document_are_items(loaded, fp32):
    items = document_scores(*loaded, documents(1), 8, 10**6, 64)
    items = items[items["metric"] == "nll"]
    assert len(items) > 1 and items["item"].is_unique
    assert items["value"].sum() == pytest.approx(slow_nll(*loaded, documents(1), 8, 10**6)[documents(1)[0].id][0])


def test_scoring_leaves_the_mode_of_the_model_alone(loaded):
    model, _ = loaded
    for mode in (True, False):
        model.train(mode)
        with inference(model):
            assert not model.training
        assert model.training is mode


def test_a_model_that_caps_its_logits_is_refused(loaded, monkeypatch):
    monkeypatch.setattr(loaded[0].config, "final_logit_softcapping", 30.0, raising=False)
    with pytest.raises(UserError, match="final_logit_softcapping"):
        document_scores(*loaded, documents(3), 16, 100, 64)


def test_windows_longer_than_the_context_and_missing_text_are_refused(loaded):
    with pytest.raises(UserError, match="window 129 is longer than the model's context of 128"):
        document_scores(*loaded, documents(3), 129, 100, 64)
    with pytest.raises(UserError, match="no held-out text"):
        document_scores(*loaded, [], 16, 100, 64)


def nll_items(values, weights) -> pd.DataFrame:
    rows = [("heldout", str(i), "nll", v, w) for i, (v, w) in enumerate(zip(values, weights, strict=True))]
    return pd.DataFrame(rows, columns=ITEM_COLUMNS)


def test_perplexity_weighs_documents_by_their_tokens():
    score = perplexity(nll_items([10.0, 90.0], [10, 30]), "heldout")
    assert score.value == pytest.approx(math.exp(100 / 40)) and score.n == 2 and score.chance is None


def test_the_bootstrap_agrees_with_the_delta_method():
    generator = np.random.default_rng(0)
    weights = generator.integers(50, 200, 400)
    values = weights * generator.normal(3.0, 0.5, 400)
    score = perplexity(nll_items(values, weights), "heldout")
    residual = values - weights * values.sum() / weights.sum()
    expected = score.value * math.sqrt((residual**2).sum()) / weights.sum()
    assert score.standard_error == pytest.approx(expected, rel=0.1)
    assert score.value - score.low == pytest.approx(1.96 * expected, rel=0.2)
    assert score.high - score.value == pytest.approx(1.96 * expected, rel=0.2)


def test_the_bootstrap_is_decided_by_its_seed():
    items = nll_items(np.arange(1.0, 30), np.full(29, 10))
    assert perplexity(items, "heldout", 1) == perplexity(items, "heldout", 1)
    assert perplexity(items, "heldout", 1) != perplexity(items, "heldout", 2)


@pytest.mark.parametrize(
    "values, message", [([5.0], "no interval"), ([5.0, math.nan], "broken"), ([1e5, 1e5], "broken")]
)
def test_a_perplexity_that_says_nothing_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        perplexity(nll_items(values, [10] * len(values)), "heldout")


# --- the worst 1 % of tokens ------------------------------------------------------------------------------------

DOCUMENTS = st.lists(
    st.lists(st.floats(1e-6, 50, allow_subnormal=False), min_size=1, max_size=120).map(np.array), min_size=1, max_size=8
)


def slow_worst_share(nll: list[np.ndarray]) -> float:
    """The obvious twin: sort, take 1 %, and of the token on the border its part."""
    tokens = sorted(np.concatenate(nll), reverse=True)
    count = 0.01 * len(tokens)
    whole = int(count)
    rest = (count - whole) * tokens[whole] if whole < len(tokens) else 0.0
    return (sum(tokens[:whole]) + rest) / sum(tokens)


@given(nll=DOCUMENTS)
def test_the_worst_share_is_that_of_the_worst_percent(nll):
    found = worst_share(nll)
    assert found.shape == (len(nll), 2)
    share = found[:, 0].sum() / found[:, 1].sum()
    assert share == pytest.approx(slow_worst_share(nll), rel=1e-9)
    assert 0.01 * (1 - 1e-9) <= share <= 1 + 1e-9


def test_the_worst_share_at_its_ends():
    alike, alone = worst_share([np.full(150, 3.0), np.full(50, 3.0)]), worst_share([np.zeros(199), np.array([7.0])])
    assert alike[:, 0].sum() / alike[:, 1].sum() == pytest.approx(0.01)
    assert alone[0].tolist() == [0, 0] and alone[:, 0].sum() == pytest.approx(7)


def test_the_perplexity_of_the_other_tokens_follows_from_the_worst_share():
    nll = list(np.random.default_rng(0).exponential(2, (40, 50)))
    total, rest = np.concatenate(nll).mean(), np.sort(np.concatenate(nll))[:-20].mean()
    (part, whole) = worst_share(nll).sum(axis=0)
    assert math.exp(total) ** ((1 - part / whole) / 0.99) == pytest.approx(math.exp(rest))


def test_keeping_the_threshold_gives_the_error_of_finding_it_in_every_resample():
    generator = np.random.default_rng(0)
    nll = [generator.exponential(generator.gamma(4), size) for size in generator.integers(40, 160, 200)]
    rows = [("heldout", str(i), "worst_share", *pair) for i, pair in enumerate(worst_share(nll).tolist())]
    rows += [("heldout", str(i), "nll", part.sum(), float(len(part))) for i, part in enumerate(nll)]
    score = scores_of_documents(pd.DataFrame(rows, columns=ITEM_COLUMNS), "heldout")[1]
    drawn = [worst_share([nll[i] for i in generator.integers(0, 200, 200)]).sum(axis=0) for _ in range(400)]
    shares = [part / whole for part, whole in drawn]
    assert score.metric == "worst_share" and score.value == pytest.approx(slow_worst_share(nll))
    assert score.standard_error == pytest.approx(np.std(shares), rel=0.15)
    assert (score.low, score.high) == pytest.approx(np.percentile(shares, [2.5, 97.5]), rel=0.03)


def test_weights_in_16_bits_score_nearly_the_same(tiny_model, tiny_text, tmp_path):
    params = tiny.params(tiny_model, tiny_text)
    halved = params.model_copy(update={"evaluation": params.evaluation.model_copy(update={"weights": "bf16"})})
    exact, low = (evaluate_run("full", chosen, tmp_path)[0] for chosen in (params, halved))
    assert exact.model_sha256 != low.model_sha256 and low.parameters_used["evaluation"]["weights"] == "bf16"
    one, other = ({(s.task, s.metric): s.value for s in record.scores} for record in (exact, low))
    assert one.keys() == other.keys() and other == pytest.approx(one, rel=0.05, abs=0.02)


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 200))
def test_batches_hold_everything_once_and_keep_to_the_budget(lengths, budget):
    batches = list(by_length(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


# --- choices that share a context -----------------------------------------------------------------------------


def requests(contexts: int, seed: int, longest: int = 20) -> list:
    """Four choices a context, some of one token, one context twice, lengths mixed."""
    g = np.random.default_rng(seed)

    def tokens(n):
        return g.integers(2, 40, n).tolist()

    found = []
    for _ in range(contexts):
        context = tokens(g.integers(1, longest))
        found += [(None, context, tokens(g.integers(1, 9))) for _ in range(4)]
    return [*found, found[0]]


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_shared_contexts_score_as_lm_eval_does(loaded, fp32, batch_tokens):
    with quiet():
        judge = SharedContextLM(*loaded, batch_tokens)
        asked = requests(9, seed=3)
        fast = judge._loglikelihood_tokens(asked, disable_tqdm=True)
        slow = HFLM._loglikelihood_tokens(judge, asked, disable_tqdm=True)
    np.testing.assert_allclose([x for x, _ in fast], [x for x, _ in slow], rtol=1e-5, atol=1e-4)
    assert [x for _, x in fast] == [x for _, x in slow]


def few_shot(seed: int) -> list:
    """Requests of three kinds of prompt: each begins with examples of its own, and some contexts begin alone."""
    g = np.random.default_rng(seed)
    found = requests(3, seed)
    for examples in (70, 64, 90):
        trunk = g.integers(2, 40, examples).tolist()
        found += [(None, trunk + context, choice) for _, context, choice in requests(5, seed + examples)]
    return [found[i] for i in g.permutation(len(found))]


@pytest.mark.parametrize("batch_tokens", [1, 128, 300, 4096])
def test_shared_examples_score_as_lm_eval_does(loaded, fp32, batch_tokens):
    with quiet():
        judge = SharedContextLM(*loaded, batch_tokens)
        asked = few_shot(seed=6)
        fast = judge._loglikelihood_tokens(asked, disable_tqdm=True)
        slow = HFLM._loglikelihood_tokens(judge, asked, disable_tqdm=True)
    np.testing.assert_allclose([x for x, _ in fast], [x for x, _ in slow], rtol=1e-5, atol=1e-4)
    assert [x for _, x in fast] == [x for _, x in slow]
    contexts, sequences = len({tuple(context) for _, context, _ in asked}), judge._pack(asked)
    assert contexts == 18 and (len(sequences) < 12) == (batch_tokens >= 300)


TOKENS = st.lists(st.integers(2, 5), max_size=12)  # of few kinds, so that beginnings and whole contexts repeat


@given(
    examples=st.lists(st.lists(st.integers(2, 39), min_size=1, max_size=40), min_size=1, max_size=3),
    asked=st.lists(st.tuples(st.integers(0, 2), TOKENS, st.lists(st.integers(2, 39), min_size=1, max_size=5))),
    limits=st.tuples(st.integers(1, 20), st.integers(1, 200), st.integers(1, 5)),
)
def test_a_tree_of_segments_scores_each_choice_as_if_it_were_alone(loaded, examples, asked, limits):
    """The slow twin gives every choice a sequence of its own."""
    model, _ = loaded
    asked = [(None, examples[kind % len(examples)] + context, choice) for kind, context, choice in asked]
    with pytest.MonkeyPatch.context() as patch, quiet():
        for module in (likelihood, shared_context):
            patch.setattr(module, "has_bf16", lambda: False)
        patch.setattr(shared_context, "_LEAST_SAVING", limits[0])
        patch.setattr(shared_context, "_TRUNKS", limits[2])
        found = SharedContextLM(*loaded, limits[1])._loglikelihood_tokens(asked, disable_tqdm=True)
    for (_, context, choice), (value, greedy) in zip(asked, found, strict=True):
        with torch.no_grad():
            log_probs = model(torch.tensor([context + choice[:-1]])).logits[0, len(context) - 1 :].log_softmax(-1)
        chosen = log_probs.gather(1, torch.tensor(choice)[:, None])[:, 0]
        assert value == pytest.approx(chosen.sum().item(), rel=1e-5, abs=1e-4)
        if (log_probs.topk(2).values.diff().abs() > 1e-4).all():
            assert greedy == (log_probs.argmax(-1).tolist() == choice)


@given(
    examples=st.lists(st.integers(0, 150), min_size=1, max_size=4),
    contexts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, 10**6)), max_size=25),
    longest=st.integers(1, 800),
)
def test_contexts_that_share_a_trunk_begin_alike_and_save_enough(examples, contexts, longest):
    groups = {}
    for kind, length, seed in contexts:
        kind %= len(examples)
        tail = np.random.default_rng(seed).integers(0, 3, length + 1).tolist()
        groups.setdefault(tuple([kind] * examples[kind] + tail), {len(groups): [1] * (seed % 4 + 1)})
    found = trunks(groups, longest)
    assert sorted(context for _, members in found for context in members) == sorted(groups)
    firsts = [min(min(groups[context]) for context in members) for _, members in found]
    assert firsts == sorted(firsts)  # where nothing is shared, the order is that of the requests
    for trunk, members in found:
        length = len(pack({context: groups[context] for context in members}, trunk).tokens)
        apart = sum(len(context) + len(choice) - 1 for context in members for choice in groups[context].values())
        assert len({context[:trunk] for context in members}) == 1 and trunk <= min(map(len, members))
        assert apart - length == (len(members) - 1) * trunk >= 64 * (len(members) - 1)
        assert len(members) == 1 or length <= min(longest, 3 * trunk)


def test_prompts_without_long_common_beginnings_keep_their_sequences():
    groups = {tuple([9] * 63 + [index] * 5): {index: [1, 2]} for index in (5, 3, 8)}
    assert [(trunk, members) for trunk, members in trunks(groups, 4096)] == [(68, [context]) for context in groups]
    longer = {(9, *context): choices for context, choices in groups.items()}
    assert trunks(longer, 4096) == [(64, sorted(longer))]


def test_greedy_choices_are_recognised(loaded, fp32):
    model, tokenizer = loaded
    with quiet():
        judge = SharedContextLM(model, tokenizer, 256)
    context = [5, 9, 11]
    best = model(torch.tensor([context])).logits[0, -1].argmax().item()
    other = (best + 1) % model.config.vocab_size
    answers = judge._loglikelihood_tokens([(None, context, [best]), (None, context, [other])], disable_tqdm=True)
    assert [greedy for _, greedy in answers] == [True, False]


def test_contexts_that_do_not_fit_are_cut_as_lm_eval_cuts_them(loaded, fp32):
    with quiet():
        judge = SharedContextLM(*loaded, 512)
        asked = requests(4, seed=4, longest=180)
        asked[0] = (None, list(range(2, 40)) * 5, asked[0][2])
        fast = judge._loglikelihood_tokens(asked, disable_tqdm=True)
        slow = HFLM._loglikelihood_tokens(judge, asked, disable_tqdm=True)
    np.testing.assert_allclose([x for x, _ in fast], [x for x, _ in slow], rtol=1e-5, atol=1e-4)


@given(pairs=st.lists(st.tuples(st.text("ab the.\n", max_size=12), st.text("ab the.\n", min_size=1, max_size=12))))
def test_texts_are_tokenised_as_lm_eval_does(loaded, pairs):
    """The twin is lm-eval's own loop, which tokenises two texts a request."""
    tokenised = []
    with quiet():
        judge = SharedContextLM(*loaded, 512)
    judge._loglikelihood_tokens = lambda requests, disable_tqdm: tokenised.append(requests) or []
    beginning = judge.tokenizer.decode(judge.prefix_token_id)
    pairs = [*pairs, (f"{beginning}the king", " runs"), ("the king  ", "runs"), ("", "runs")]
    asked = [Instance("loglikelihood", {}, pair, 0, metadata=("t", 0, 1)) for pair in pairs]
    judge.loglikelihood(asked, disable_tqdm=True)
    judge._encoded = {}
    HFLM.loglikelihood(judge, asked, disable_tqdm=True)
    assert tokenised[0] == tokenised[1] and len(tokenised[0]) == len(pairs)


def test_a_choice_longer_than_the_context_is_refused(loaded):
    with quiet():
        judge = SharedContextLM(*loaded, 512)
    with pytest.raises(UserError, match="129 tokens exceeds the model's context of 128"):
        judge._loglikelihood_tokens([(None, [5], [6] * 129)], disable_tqdm=True)


def test_other_attention_takes_lm_evals_own_path(loaded, fp32, monkeypatch):
    with quiet():
        judge = SharedContextLM(*loaded, 512)
    monkeypatch.setattr(loaded[0].config, "_attn_implementation", "eager")
    monkeypatch.setattr(SharedContextLM, "_pack", lambda *_: pytest.fail("packed for attention that may not mask"))
    with quiet():
        assert len(judge._loglikelihood_tokens(requests(2, seed=5), disable_tqdm=True)) == 9


# --- both together --------------------------------------------------------------------------------------------


def parameters(text, **tasks) -> EvaluationParams:
    perplexity = {"heldout": {"text": [str(text)], "window": 32, "max_tokens": 500}}
    return EvaluationParams.model_validate({"perplexity": perplexity, "tasks": tasks, "batch_tokens": 512, "seed": 0})


def test_a_text_and_a_task_may_not_share_a_name(loaded, tiny_text):
    with pytest.raises(UserError, match="heldout names a text and a task"):
        evaluate_model(*loaded, parameters(tiny_text, heldout={"limit": 4, "shots": 0}))


def test_evaluation_without_tasks_needs_no_wheel(loaded, tiny_text, monkeypatch):
    monkeypatch.setattr("bitdistiller.assets.fetch", lambda asset: pytest.fail(f"fetched {asset.name}"))
    scores, items = evaluate_model(*loaded, parameters(tiny_text))
    assert [(score.task, score.metric) for score in scores] == [("heldout", "perplexity"), ("heldout", "worst_share")]
    items = items[items["metric"] == "nll"]
    assert scores[0].value == pytest.approx(math.exp(items["value"].sum() / items["weight"].sum()))


def test_scores_follow_from_the_item_rows(loaded, other, tiny_text):
    tasks = {"continuation": {"limit": 12, "shots": 0}, "winogrande": {"limit": 8, "shots": 0}}
    scores, items = evaluate_model(*loaded, parameters(tiny_text, **tasks), other)
    assert list(items.columns) == ITEM_COLUMNS and not items.duplicated(["task", "item", "metric"]).any()
    found = {(score.task, score.metric): score for score in scores}
    assert list(found) == [
        ("heldout", "perplexity"),
        ("heldout", "worst_share"),
        ("heldout", "kl"),
        ("heldout", "agreement"),
        ("continuation", "acc"),
        ("continuation", "acc_norm"),
        ("winogrande", "acc"),
    ]
    for (task, metric), score in found.items():
        rows = items[(items["task"] == task) & (items["metric"] == {"perplexity": "nll"}.get(metric, metric))]
        value = rows["value"].sum() / rows["weight"].sum()
        assert score.value == pytest.approx(math.exp(value) if metric == "perplexity" else value)
        assert score.n == len(rows) and score.low < score.value < score.high


# --- scoring by name ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model, tiny_text):
    """Parameters with a model of every kind, clipping bounds, and a student whose weights moved a little."""
    sections = make_params(tiny_model, tiny_text)
    quantizer = sections["quantizers"]["int2"]
    sections["quantizers"]["int1"] = {**quantizer, "bits": 1, "clip": "none"}
    sections["ptq"] = {"rounded": {"quantizer": "int2"}, "rounded-1": {"quantizer": "int1"}}
    sections["baselines"]["random"] = {"model": str(tiny_model), "weights": "random", "seed": 0}
    params, artifacts = Params.model_validate(sections), tmp_path_factory.mktemp("artifacts")
    for name, section in params.quantizers.items():
        search_model(section, artifacts / "clip" / f"{name}.safetensors")
    student = load_model(str(tiny_model))
    with torch.no_grad():
        for layer in quantizable(student.model).values():
            layer.weight += 0.01 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    student.model.save_pretrained(artifacts / "students" / "student")
    student.tokenizer.save_pretrained(artifacts / "students" / "student")
    return params, artifacts


SCORED_TEXT = ["perplexity", "worst_share", "kl", "agreement"]


@pytest.mark.parametrize(
    "name, metrics, bits, origin",
    [
        ("student", SCORED_TEXT, 2, "trained from"),
        ("rounded", SCORED_TEXT, 2, "rounded from"),
        ("rounded-1", SCORED_TEXT, 1, "rounded from"),
        ("random", SCORED_TEXT, 16, "random weights"),
        ("full", SCORED_TEXT[:2], 16, "read in fp32 from"),
    ],
)
def test_every_kind_of_model_has_scores(world, name, metrics, bits, origin, tmp_path):
    params, artifacts = world
    record, items = evaluate_run(name, params, artifacts)
    assert [score.metric for score in record.scores] == metrics and record.bits == bits and origin in record.origin
    assert record.model == str(next(iter(params.baselines.values())).model) and record.run == name
    assert (record.weights is None) == (bits == 16) == (record.quantized_parameters == 0)
    assert set(items["metric"]) == {"nll", "worst_share", "kl", "agreement"} & {"nll", *metrics}
    record.write(tmp_path / "scores.json")
    assert RunScores.read(tmp_path / "scores.json") == record
    values = record.metrics()
    assert list(values["heldout"]) == metrics
    assert values.get("weights", {}).keys() == ({"zeros", "entropy", "error"} if bits < 16 else set())


def test_a_rounded_model_is_the_clipped_original_in_its_format(world, fp32, tiny_text):
    """The twin builds it by hand: clip, quantize and dequantize every matrix, and score that."""
    params, artifacts = world
    section = params.quantizers["int2"]
    twin, original = load_model(section.model), load_model(section.model)
    apply_clipping(twin.model, artifacts / "clip" / "int2.safetensors", section)
    fmt = make_format("int-asym", bits=2, group_size=20)
    with torch.no_grad():
        for layer in quantizable(twin.model).values():
            layer.weight.copy_(fmt.quantize(layer.weight).dequantize())
    scores, _ = evaluate_model(twin.model, twin.tokenizer, params.evaluation, original.model)
    assert evaluate_run("rounded", params, artifacts)[0].scores == scores
    assert evaluate_run("full", params, artifacts)[0].scores[0].value < scores[0].value


def test_the_student_is_scored_with_low_bit_weights(world, fp32):
    params, artifacts = world
    student = load_student("student", params, artifacts)
    latent, _ = evaluate_model(
        load_model(str(artifacts / "students" / "student")).model, student.tokenizer, params.evaluation
    )
    found = evaluate_run("student", params, artifacts)[0].scores[0].value
    assert found != latent[0].value
    scores, _ = evaluate_model(student.model, student.tokenizer, params.evaluation)  # quantized at every pass
    assert found == pytest.approx(scores[0].value)


def test_an_unknown_name_is_refused(world):
    with pytest.raises(UserError, match=r"runs, ptq, peers or baselines in params\.yaml has no entry 'nobody'"):
        evaluate_run("nobody", *world)
