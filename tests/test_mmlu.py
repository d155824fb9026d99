"""MMLU: lm-eval's prompts over the data of the wheel, both averages, their errors, and prompts that do not fit."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from bitdistiller.config import MmluParams
from bitdistiller.errors import UserError
from bitdistiller.evaluate import likelihood, shared_context
from bitdistiller.evaluate.tasks import quiet, subset
from bitdistiller.models import load_model
from bitdistiller.reasoning.mmlu import (
    average,
    categories,
    item_rows,
    load_subjects,
    read_splits,
    score_mmlu,
)
from bitdistiller.results import ITEM_COLUMNS

FEW = ("anatomy", "marketing", "global_facts")  # short items, so that two examples fit a micro model


@pytest.fixture(scope="module")
def micro():
    found = load_model("micro-1m")
    return found.model, found.tokenizer


# --- the data and the prompts -------------------------------------------------------------------------------------


def test_all_subjects_and_items_are_there():
    splits = read_splits(tuple(categories()))
    assert len(splits) == 57 and sum(len(parts["test"]) for parts in splits.values()) == 14042  # as published
    assert {len(parts["dev"]) for parts in splits.values()} == {5}
    for subject, parts in splits.items():
        for part in parts.values():
            assert set(part["subject"]) == {subject} and set(part["answer"]) <= set(range(4))
            assert {len(choices) for choices in part["choices"]} == {4}


def test_categories_have_the_published_sizes():
    assert Counter(categories().values()) == {"stem": 19, "humanities": 13, "social_sciences": 12, "other": 13}
    assert categories()["anatomy"] == "stem" and categories()["professional_law"] == "humanities"


def written(doc: dict) -> str:
    lines = [
        doc["question"].strip(),
        *(f"{letter}. {text}" for letter, text in zip("ABCD", doc["choices"], strict=True)),
    ]
    return "\n".join([*lines, "Answer:"])


@pytest.mark.parametrize("subject, spelled", [("anatomy", "anatomy"), ("us_foreign_policy", "us foreign policy")])
def test_a_prompt_is_the_description_five_examples_and_the_question(subject, spelled):
    with quiet():
        task = load_subjects([subject])[subject]
    splits = read_splits([subject])[subject]
    doc = splits["test"][3]
    examples = "".join(f"{written(example)} {'ABCD'[example['answer']]}\n\n" for example in splits["dev"])
    description = f"The following are multiple choice questions (with answers) about {spelled}.\n\n"
    assert task.fewshot_context(doc, 5) == description + examples + written(doc)
    assert task.fewshot_context(doc, 0) == description + written(doc)
    assert task.doc_to_choice(doc) == ["A", "B", "C", "D"] and task.doc_to_target(doc) == doc["answer"]


# --- scores -------------------------------------------------------------------------------------------------------


def test_rows_say_what_lm_eval_finds_on_the_same_items(micro, monkeypatch):
    """The twin is lm-eval's own model over the whole task with a list of samples."""
    for module in (likelihood, shared_context):
        monkeypatch.setattr(module, "has_bf16", lambda: False)
    scores, items = score_mmlu(*micro, MmluParams(limit=6, shots=2), 2048, 3, FEW)
    assert list(items.columns) == ITEM_COLUMNS and set(items["task"]) == {"mmlu"} and len(items) == 3 * 6 * 3
    found = items.set_index(["metric", "item"])["value"]
    with quiet():
        tasks = load_subjects(FEW)
        for task in tasks.values():
            task.set_config(key="num_fewshot", value=2)
        samples = {f"mmlu_{s}": subset(f"mmlu_{s}", len(tasks[s].eval_docs), 6, 3) for s in FEW}
        judge = HFLM(pretrained=micro[0], tokenizer=micro[1], batch_size=8)
        twin = evaluate(judge, {"tasks": {f"mmlu_{s}": tasks[s] for s in FEW}}, samples=samples)
    for subject in FEW:
        for sample in twin["samples"][f"mmlu_{subject}"]:
            item = f"{categories()[subject]}/{subject}/{sample['doc_id']}"
            assert found["acc", item] == sample["acc"]
            assert found["choice", item] == np.argmax([value for value, _ in sample["filtered_resps"]])
    means = [twin["results"][f"mmlu_{subject}"]["acc,none"] for subject in FEW]
    sizes = [len(tasks[subject].eval_docs) for subject in FEW]
    assert scores[0].value == pytest.approx(np.mean(means)) and 0 < scores[0].value < 1
    assert scores[1].value == pytest.approx(np.average(means, weights=sizes))
    assert [score.metric for score in scores] == ["acc", "acc_by_size"] and {score.n for score in scores} == {18}


def test_scores_follow_from_the_item_rows_and_a_smaller_limit_is_part_of_a_larger_one(micro):
    scores, items = score_mmlu(*micro, MmluParams(limit=4, shots=0), 2048, 0, FEW)
    for score in scores:
        rows = items[items["metric"] == score.metric]
        assert score.value == pytest.approx(rows["value"].sum() / rows["weight"].sum())
        assert score.chance == 0.25 and rows["weight"].mean() == pytest.approx(1)
    assert set(items.loc[items["metric"] == "acc", "weight"]) == {1.0}
    _, fewer = score_mmlu(*micro, MmluParams(limit=2, shots=0), 2048, 0, FEW)
    _, other = score_mmlu(*micro, MmluParams(limit=2, shots=0), 2048, 1, FEW)
    assert set(fewer["item"]) < set(items["item"]) and set(other["item"]) != set(fewer["item"])


def test_the_examples_of_a_subject_are_run_once(micro, monkeypatch):
    sizes = []
    states = shared_context.hidden_states
    monkeypatch.setattr(
        shared_context,
        "hidden_states",
        lambda model, ids, **rest: sizes.append(ids.numel()) or states(model, ids, **rest),
    )
    score_mmlu(*micro, MmluParams(limit=5, shots=3), 2048, 0, ("marketing",))
    shared = sum(sizes)
    sizes.clear()
    monkeypatch.setattr(shared_context, "_LEAST_SAVING", math.inf)
    score_mmlu(*micro, MmluParams(limit=5, shots=3), 2048, 0, ("marketing",))
    assert 2 * shared < sum(sizes)


ANSWERS = st.dictionaries(
    st.sampled_from(["anatomy", "virology", "sociology", "prehistory"]),
    st.tuples(st.lists(st.booleans(), min_size=2, max_size=9), st.integers(0, 500)),
    min_size=1,
)


@given(ANSWERS)
def test_both_averages_are_those_of_stratified_samples(answers):
    """The slow twin averages subject by subject, in plain arithmetic."""
    sizes = {subject: len(right) + rest for subject, (right, rest) in answers.items()}
    rows = [(s, index, float(r), index % 4) for s, (right, _) in answers.items() for index, r in enumerate(right)]
    items = item_rows(pd.DataFrame(rows, columns=["subject", "index", "correct", "choice"]), sizes)
    shares = {
        "acc": {subject: 1 / len(answers) for subject in answers},
        "acc_by_size": {subject: size / sum(sizes.values()) for subject, size in sizes.items()},
    }
    for metric, share in shares.items():
        value = variance = 0.0
        for subject, (right, _) in answers.items():
            p = sum(right) / len(right)
            value += share[subject] * p
            variance += share[subject] ** 2 * p * (1 - p) / (len(right) - 1)
        score = average(items, metric)
        assert score.value == pytest.approx(value) and score.standard_error == pytest.approx(math.sqrt(variance))
        assert score.low == pytest.approx(max(0, value - 1.959964 * math.sqrt(variance)), abs=1e-6)
        assert score.high == pytest.approx(min(1, value + 1.959964 * math.sqrt(variance)), abs=1e-6)
        assert score.n == len(rows)
        weights = items.loc[items["metric"] == metric, "weight"]
        assert weights.mean() == pytest.approx(1)


def test_the_standard_error_is_that_of_drawing_items_anew_within_subjects():
    generator = np.random.default_rng(0)
    truth, sizes = (
        {"anatomy": 0.2, "virology": 0.9, "sociology": 0.5},
        {"anatomy": 400, "virology": 100, "sociology": 40},
    )
    drawn = []
    for _ in range(100):
        rows = [(s, i, float(generator.random() < p), 0) for s, p in truth.items() for i in range(12)]
        items = item_rows(pd.DataFrame(rows, columns=["subject", "index", "correct", "choice"]), sizes)
        drawn.append(
            [(score.value, score.standard_error) for score in (average(items, m) for m in ("acc", "acc_by_size"))]
        )
    for values, errors in np.array(drawn).transpose(1, 2, 0):
        assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.2)


# --- prompts that do not fit --------------------------------------------------------------------------------------


def test_examples_that_do_not_fit_are_refused_before_the_model_runs(micro, monkeypatch):
    monkeypatch.setattr(shared_context, "hidden_states", lambda *_, **__: pytest.fail("ran"))
    with pytest.raises(
        UserError, match=r"mmlu: with 5 shots 4 of 4 prompts .* context of 512 .* lower `shots`"
    ) as caught:
        score_mmlu(*micro, MmluParams(limit=2, shots=5), 2048, 0, ("high_school_us_history", "professional_law"))
    with quiet():
        tasks = load_subjects(("high_school_us_history", "professional_law"))
    prompts = [
        task.fewshot_context(task.eval_docs[index], 5)
        for task in tasks.values()
        for index in subset(task.task_name, len(task.eval_docs), 2, 0)
    ]
    longest = max(len(micro[1].encode(prompt, add_special_tokens=False)) for prompt in prompts)
    assert f"(the longest has {longest})" in str(caught.value)


def test_questions_that_do_not_fit_keep_their_end_and_are_counted(micro, capsys, monkeypatch):
    model, tokenizer = micro
    monkeypatch.setattr(model.config, "max_position_embeddings", 88)
    _, items = score_mmlu(model, tokenizer, MmluParams(limit=6, shots=0), 2048, 0, ("anatomy",))
    with quiet():
        docs = load_subjects(("anatomy",))["anatomy"].eval_docs
    found = items[items["metric"] == "choice"].set_index("item")["value"]
    letters = torch.tensor([tokenizer.encode(f"Answer: {letter}", add_special_tokens=False)[-1] for letter in "ABCD"])
    cut = 0
    for item in found.index:
        text = "The following are multiple choice questions (with answers) about anatomy.\n\n"
        ids = tokenizer.encode(text + written(docs[int(item.split("/")[2])]), add_special_tokens=False)
        cut += len(ids) > 88
        with torch.no_grad():
            logits = model(torch.tensor([ids[-88:]])).logits[0, -1, letters]
        if logits.topk(2).values.diff().abs() > 0.05:
            assert logits.argmax() == found[item]
    assert 0 < cut < 6 and f"mmlu: {cut} of 6 prompts exceed the model's context of 88" in capsys.readouterr().err
