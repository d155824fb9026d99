"""GSM8K and HumanEval: official items and prompts, what counts as right, likelihoods, and the command around them."""

import json
import math
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from bitdistiller.config import Gsm8kParams, HumanEvalParams, ReasoningParams, load_params
from bitdistiller.errors import UserError
from bitdistiller.evaluate import likelihood
from bitdistiller.evaluate.shared_context import SharedContextLM
from bitdistiller.evaluate.tasks import subset
from bitdistiller.models import load_model
from bitdistiller.reasoning import gsm8k, humaneval
from bitdistiller.reasoning.answers import share_score
from bitdistiller.reasoning.decoding import Written
from bitdistiller.reasoning.gold import bits_per_byte
from bitdistiller.reasoning.run import score_benchmarks, score_reasoning
from bitdistiller.reasoning.writing import Writer
from bitdistiller.sandbox import Outcome
from bitdistiller.sandbox.humaneval import problems
from tests.isolation import needs_isolation

TEMPLATE = (
    "{{ date_string }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<go>{% endif %}"
)


@pytest.fixture(scope="module")
def micro():
    return load_model("micro-1m")


class Scripted(Writer):
    """Says what it is told to by key instead of what the model would."""

    def say(self, script):
        object.__setattr__(self, "script", script)
        return self

    def write(self, prompts, sampling, description):
        object.__setattr__(self, "asked", list(prompts))
        return [Written(prompt.key, [], True) for prompt in prompts]

    def text(self, written, stop=()):
        text = self.script(written.key)
        return text[: min([text.find(word) for word in stop if word in text], default=len(text))]


def scripted(micro, tmp_path: Path, script) -> Scripted:
    return Scripted(micro.model, micro.tokenizer, 4096, tmp_path, "script").say(script)


@pytest.fixture
def no_likelihood(monkeypatch):
    """Gold solutions cost a forward pass each, which most tests here do not look at."""

    def nothing(judge, task, solutions, seed):
        rows = pd.DataFrame([(task, item, "bits_per_byte", 1.0, 1.0) for item in solutions])
        rows.columns = ["task", "item", "metric", "value", "weight"]
        return share_score(task, "bits_per_byte", dict.fromkeys(solutions, 1.0), 0), rows

    for module in (gsm8k, humaneval):
        monkeypatch.setattr(module, "bits_per_byte", nothing)


# --- GSM8K --------------------------------------------------------------------------------------------------------


def test_gsm8k_s_items_are_the_official_ones():
    rows = [json.loads(line) for line in gsm8k.gsm8k_jsonl().splitlines()]
    assert len(rows) == 1319
    for row in rows:
        final = row["answer"].rpartition("#### ")[2]
        solution = row["solution"].replace("- ", "-")  # of two negative answers
        assert final and solution.endswith(f"the answer is {final}.") and "<<" not in solution


def test_gsm8k_counts_by_both_extractions_and_means_over_samples(micro, tmp_path, no_likelihood):
    """The first item is answered in the asked form, the second only at the end, the third once in two samples."""
    gold = [json.loads(line)["answer"].rpartition("#### ")[2] for line in gsm8k.gsm8k_jsonl().splitlines()]
    params = Gsm8kParams(limit=4, samples=2, temperature=0.5, max_new_tokens=8)
    order = sorted(subset("gsm8k_cot", 1319, 4, seed=0))

    def script(key: str) -> str:
        place, sample = map(int, key.split("/"))
        right = gold[order[place]]
        said = [
            f" Thus. The answer is {right}.\n\nQ: another",
            f" That makes ${right}",
            f" The answer is {right if sample else '-1'}.",
        ]
        return said[place] if place < 3 else " The answer is unknown."

    writer = scripted(micro, tmp_path, script)
    scores, items, answers = gsm8k.score_gsm8k(writer, params, seed=0)
    found = items.pivot(index="item", columns="metric", values="value").loc[[str(index) for index in order]]
    assert found["exact_match_strict"].tolist() == [1, 0, 0.5, 0]
    assert found["exact_match_flexible"].tolist() == [1, 1, 0.5, 0]
    assert {score.metric: score.value for score in scores}["exact_match_flexible"] == pytest.approx(2.5 / 4)
    assert [answer.verdict for answer in answers].count("right") == 5 and len(answers) == 8
    assert "another" not in answers[0].text


def test_gsm8k_s_prompt_has_eight_examples(micro, tmp_path, no_likelihood):
    writer = scripted(micro, tmp_path, lambda key: "")
    gsm8k.score_gsm8k(writer, Gsm8kParams(limit=2, max_new_tokens=8), seed=0)
    for prompt in writer.asked:
        text = micro.tokenizer.decode(prompt.tokens)
        assert text.count("Q:") == 9 and text.count("The answer is") == 8 and text.rstrip().endswith("A:")
        assert prompt.stop[0] == "Q:"


def test_gsm8k_as_an_instruction_is_the_question_alone(micro, tmp_path, no_likelihood, monkeypatch):
    items = [json.loads(line) for line in gsm8k.gsm8k_jsonl().splitlines()]
    chosen = [items[index] for index in sorted(subset("gsm8k_cot", 1319, 3, seed=0))]
    answers = [item["answer"].rpartition("#### ")[2] for item in chosen]
    writer = scripted(micro, tmp_path, lambda key: f"Q: is no end here.\nThe answer is: {answers[int(key[0])]}")
    asked = Gsm8kParams(limit=3, max_new_tokens=8, style="instruction")
    with pytest.raises(UserError, match="this tokenizer has no chat template to ask in; choose another style"):
        gsm8k.score_gsm8k(writer, asked, seed=0)
    monkeypatch.setattr(micro.tokenizer, "chat_template", TEMPLATE)
    scores, _, _ = gsm8k.score_gsm8k(writer, asked, seed=0)
    assert {score.metric: score.value for score in scores}["exact_match_flexible"] == 1
    for prompt, item in zip(writer.asked[-3:], chosen, strict=True):
        text = micro.tokenizer.decode(prompt.tokens)
        expected = micro.tokenizer.decode(micro.tokenizer(f"26 Jul 2024<user>{item['question']}<go>")["input_ids"])
        assert text == expected and prompt.stop == ()


# --- HumanEval ----------------------------------------------------------------------------------------------------

COMPLETED = HumanEvalParams(limit=6, max_new_tokens=8, style="completion")


@needs_isolation
def test_humaneval_passes_reference_solutions_and_nothing_else(micro, tmp_path, no_likelihood):
    solutions = {problem.name: problem.solution for problem in problems()}
    wrong = sorted(solutions)[0]

    def script(key: str) -> str:
        name = key.rpartition("/")[0]
        return "\n    raise NotImplementedError" if name == wrong else solutions[name] + "\nprint(solution"

    whole = COMPLETED.model_copy(update={"limit": 164})
    scores, items, answers = humaneval.score_humaneval(scripted(micro, tmp_path, script), whole, seed=0)
    assert scores[0].metric == "pass_at_1" and scores[0].value == pytest.approx(163 / 164)
    assert items[items["metric"] == "pass_at_1"].set_index("item")["value"].idxmin() == wrong
    assert {answer.item: answer.verdict for answer in answers}[wrong] == "error"


@needs_isolation
def test_humaneval_estimates_pass_at_k_without_bias(micro, tmp_path, no_likelihood):
    """Two of four samples of every problem are right: 1 - C(2, k) / C(4, k)."""
    solutions = {problem.name: problem.solution for problem in problems()}

    def script(key: str) -> str:
        name, _, sample = key.rpartition("/")
        return solutions[name] if int(sample) < 2 else "    return None\n"

    params = HumanEvalParams(limit=3, max_new_tokens=8, style="completion", samples=4, temperature=0.8, k=[1, 2, 3])
    scores, _, answers = humaneval.score_humaneval(scripted(micro, tmp_path, script), params, seed=0)
    assert [score.value for score in scores[:3]] == pytest.approx([0.5, 1 - 1 / 6, 1.0])
    assert len(answers) == 12 and {answer.sample for answer in answers} == {0, 1, 2, 3}


@needs_isolation
def test_instructions_are_asked_in_the_chat_template(micro, tmp_path, no_likelihood, monkeypatch):
    solutions = {problem.name: problem.prompt + problem.solution for problem in problems()}
    asked = COMPLETED.model_copy(update={"style": "instruction"})
    writer = scripted(micro, tmp_path, lambda key: f"Sure:\n```python\n{solutions[key.rpartition('/')[0]]}\n```\nDone.")
    with pytest.raises(UserError, match="this tokenizer has no chat template to ask in; choose another style"):
        humaneval.score_humaneval(writer, asked, seed=0)
    monkeypatch.setattr(micro.tokenizer, "chat_template", TEMPLATE)
    scores, _, _ = humaneval.score_humaneval(writer, asked, seed=0)
    assert scores[0].value == 1
    text = micro.tokenizer.decode(writer.asked[0].tokens)
    assert (
        text.startswith("26 Jul 2024<user>") and text.endswith("<go>") and "def " in text and writer.asked[0].stop == ()
    )


def test_completions_begin_where_tokens_can(micro, tmp_path, no_likelihood, monkeypatch):
    """The prompt's last line break is left to the model, whose tokens join it to the indentation."""
    failed = Outcome(verdict="failed", detail="", seconds=0.0, peak_bytes=0, output="")
    monkeypatch.setattr(humaneval, "run_many", lambda programs, **_: [failed] * len(programs))
    writer = scripted(micro, tmp_path, lambda key: "")
    humaneval.score_humaneval(writer, COMPLETED, seed=0, without_isolation=True)
    assert all(
        micro.tokenizer.decode(prompt.tokens) == micro.tokenizer.decode(prompt.tokens).rstrip()
        for prompt in writer.asked
    )


# --- likelihood and scores ----------------------------------------------------------------------------------------


def test_bits_per_byte_against_the_network_one_text_at_a_time(micro, monkeypatch):
    monkeypatch.setattr(likelihood, "has_bf16", lambda: False)
    pairs = {
        "a": ("In the year", " 1900 the king"),
        "b": ("She said\n", "    nothing more – at all."),
        "c": ("A", " n"),
    }
    judge = SharedContextLM(micro.model, micro.tokenizer, 512)
    score, items = bits_per_byte(judge, "t", pairs, seed=0)
    rows = items.set_index("item")
    for item, (prompt, solution) in pairs.items():
        context, whole = (micro.tokenizer(text)["input_ids"] for text in (prompt.rstrip(), prompt + solution))
        with torch.no_grad():
            log_probs = micro.model(torch.tensor([whole])).logits[0].log_softmax(-1)
        nats = -sum(float(log_probs[place - 1, whole[place]]) for place in range(len(context), len(whole)))
        assert rows.loc[item, "value"] == pytest.approx(nats / math.log(2), rel=1e-4)
        assert rows.loc[item, "weight"] == len((prompt + solution).encode()) - len(prompt.rstrip().encode())
    assert (
        score.value == pytest.approx(rows["value"].sum() / rows["weight"].sum())
        and score.low < score.value < score.high
    )


def test_a_model_that_solves_nothing_is_not_certainly_hopeless():
    none = share_score("t", "pass_at_1", {str(i): 0.0 for i in range(20)}, seed=0)
    assert (none.value, none.low) == (0, 0) and 0.1 < none.high < 0.2
    half = share_score("t", "pass_at_1", {str(i): 0.5 + (i % 2) / 4 for i in range(20)}, seed=0)
    assert half.low < half.value == 0.625 < half.high


# --- the command --------------------------------------------------------------------------------------------------


def test_prompts_that_do_not_fit_are_refused(micro, tmp_path):
    writer = Writer(micro.model, micro.tokenizer, 4096, tmp_path, "m")
    with pytest.raises(UserError, match="do not fit the model's context of 512; lower max_new_tokens"):
        score_benchmarks(
            writer, ReasoningParams(gsm8k=Gsm8kParams(limit=2, max_new_tokens=8), batch_tokens=4096, seed=0)
        )


@pytest.fixture
def folder(tmp_path):
    """A folder whose parameters ask for a few short problems of one pretrained model."""
    params = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    params["reasoning"] = {
        "1m-full": {
            "humaneval": {"limit": 5, "max_new_tokens": 12, "style": "completion"},
            "mmlu": {"limit": 2, "shots": 0},
            "batch_tokens": 2048,
            "seed": 0,
        }
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return tmp_path


def reason(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bitdistiller", "reason", *arguments], cwd=folder, capture_output=True, text=True)


@needs_isolation
def test_the_command_leaves_scores_items_and_answers(folder):
    done = reason(folder, "1m-full")
    assert done.returncode == 0, done.stderr
    results = folder / "results" / "runs" / "1m-full" / "reasoning"
    scores = json.loads((results / "scores.json").read_text())
    found = {(score["task"], score["metric"]): score for score in scores["scores"]}
    assert found["humaneval", "pass_at_1"]["n"] == 5 and found["humaneval", "bits_per_byte"]["value"] > 0
    assert found["mmlu", "acc"]["n"] == 2 * 57 and found["mmlu", "acc"]["chance"] == 0.25
    assert len(scores["model_sha256"]) == 64 and scores["parameters_used"]["reasoning"]["mmlu"]["limit"] == 2
    items = pd.read_csv(results / "items.csv")
    assert set(items["metric"]) == {"pass_at_1", "bits_per_byte", "acc", "acc_by_size", "choice"}
    answers = [
        json.loads(line) for line in (folder / "artifacts" / "answers" / "1m-full.jsonl").read_text().splitlines()
    ]
    assert len(answers) == 5 and all(answer["verdict"] for answer in answers)
    assert not (folder / "artifacts" / "answers" / "1m-full.unfinished").exists()
    assert "1m-full: mmlu acc " in done.stdout


@needs_isolation
def test_a_killed_command_goes_on_and_ends_with_the_same_answers(folder):
    """SIGKILL in the middle of writing, one batch a problem; the second call writes only what is missing."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    asked = params["reasoning"]["1m-full"]
    del asked["mmlu"]
    asked["batch_tokens"] = 1
    asked["humaneval"] |= {"max_new_tokens": 100, "temperature": 0.6, "samples": 3}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    assert reason(folder, "1m-full").returncode == 0
    answers = folder / "artifacts" / "answers" / "1m-full.jsonl"
    undisturbed = answers.read_text()
    answers.unlink()
    with subprocess.Popen(["bitdistiller", "reason", "1m-full"], cwd=folder, stderr=subprocess.DEVNULL) as process:
        unfinished = folder / "artifacts" / "answers" / "1m-full.unfinished"
        while not any("\n" in path.read_text() for path in unfinished.glob("*.jsonl")):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    before = next(unfinished.glob("*.jsonl")).read_text().splitlines()
    assert 0 < len(before) < 15 and not answers.exists()
    done = reason(folder, "1m-full")
    assert done.returncode == 0 and answers.read_text() == undisturbed
    assert len({json.loads(line)["text"] for line in undisturbed.splitlines()}) > 5


def test_no_program_is_written_where_none_can_be_isolated(micro, tmp_path, monkeypatch):
    """The refusal comes before the hour of writing."""

    def refused():
        raise UserError("this machine does not let a program be isolated (unshare: EPERM), so nothing was run")

    monkeypatch.setattr(humaneval, "require_isolation", refused)
    writer = scripted(micro, tmp_path, lambda key: "")
    with pytest.raises(UserError, match="does not let a program be isolated"):
        humaneval.score_humaneval(writer, COMPLETED, seed=0)
    assert not hasattr(writer, "asked")


def test_names_that_are_not_asked_for_are_refused(folder):
    with pytest.raises(UserError, match=r"^reasoning has no entry '1m-int2'; it has 1m-full$"):
        score_reasoning("1m-int2", load_params(folder / "params.yaml"), folder / "artifacts")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["reasoning"]["nobody"] = params["reasoning"]["1m-full"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    done = reason(folder, "nobody")
    assert done.returncode == 2 and "reasoning.nobody names 'nobody', which is not under runs" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": 2}, "samples = 2 at temperature 0 are the same answer"),
        ({"k": [1, 10]}, "pass@10 needs as many samples, not 1"),
        ({"style": "chat"}, "completion"),
        ({"limit": 1}, "greater than or equal to 2"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(folder, change, said):
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["reasoning"]["1m-full"]["humaneval"].update(change)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(UserError) as error:
        load_params(folder / "params.yaml")
    assert said in str(error.value) and "reasoning.1m-full.humaneval" in str(error.value)
