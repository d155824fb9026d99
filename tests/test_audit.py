"""The audit's checks against brute force, and on tables that are made right and then corrupted."""

from dataclasses import replace
from decimal import ROUND_HALF_DOWN, ROUND_HALF_UP, Decimal, localcontext
from math import isqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bitdistiller.analysis.audit import audit_tables
from bitdistiller.analysis.audit.averages import check_averages
from bitdistiller.analysis.audit.calibrate import findings
from bitdistiller.analysis.audit.counts import counts, likeliest
from bitdistiller.analysis.audit.items import find_benchmark, registry
from bitdistiller.analysis.audit.labels import model_name
from bitdistiller.analysis.audit.share import error_miss, share_fits
from bitdistiller.analysis.audit.synthetic import CORRUPTIONS, MAIN, Design, draw_design, make_corpus
from bitdistiller.analysis.audit.table import Table, parse, read_table

KNOWN = {bench.name: bench.items for bench in registry() if bench.counted}
ITEMS = st.one_of(st.integers(2, 2000), st.sampled_from(sorted(KNOWN.values())))
PLACES = st.integers(0, 3)


def designs(**fixed):
    """Designs of tables whose benchmarks are all known."""
    chosen = st.lists(st.sampled_from(sorted(KNOWN)), min_size=3, max_size=5, unique=True)
    fields = {
        "counts": chosen.map(lambda names: {name: KNOWN[name] for name in names}),
        "rows": st.integers(4, 12),
        "places": st.integers(1, 2),
        "percent": st.booleans(),
        "errors": st.booleans(),
        "divide_by_less": st.booleans(),
        "average_of_rounded": st.booleans(),
    }
    return st.builds(Design, **fields | {name: st.just(value) for name, value in fixed.items()})


SEEDS = st.integers(0, 2**32 - 1)
# A whole audit an example; pytest has chosen the profile before it imports this file.
fewer = settings(max_examples=settings().max_examples // 4)


def table(**columns) -> Table:
    return Table("t.csv", pd.DataFrame(columns, dtype=object).map(str), registry())


def printed(value: Decimal, places: int) -> set[str]:
    """How a number may be rounded: ties go either way."""
    unit = Decimal(1).scaleb(-places)
    return {f"{value.quantize(unit, rounding):f}" for rounding in (ROUND_HALF_UP, ROUND_HALF_DOWN)}


@given(ITEMS, PLACES, st.data())
def test_a_printed_share_fits_exactly_the_counts_that_can_print_it(n, places, data):
    reachable = set().union(*(printed(Decimal(100 * k) / n, places) for k in range(n + 1)))
    text = data.draw(st.one_of(st.sampled_from(sorted(reachable)), st.decimals(0, 100, places=places).map(str)))
    number = parse(text)
    assert share_fits(number, n, 100.0) == (f"{Decimal(text):.{places}f}" in reachable)


@given(ITEMS, PLACES)
def test_a_share_that_is_cut_off_fits_as_such(n, places):
    k = n // 3
    text = str(Decimal(100 * 10**places * k // n).scaleb(-places))
    assert share_fits(parse(text), n, 100.0, cut=True)


@given(ITEMS, st.integers(1, 3), st.sampled_from([0, 1]), st.data())
def test_a_printed_standard_error_of_any_possible_score_fits(n, places, less, data):
    """Square roots to 40 digits, by integers."""
    assume(n - less > 0)
    k = data.draw(st.integers(0, n))
    with localcontext() as context:
        context.prec = 60
        variance = Decimal(k) / n * (1 - Decimal(k) / n) / (n - less)
        error = Decimal(isqrt(int(variance * 10**80))) / Decimal(10**40) * 100
        score = Decimal(100 * k) / n
        for score_text in printed(score, 2):
            for text in printed(error, places):
                assert error_miss(parse(score_text), parse(text), (n - 1, n), 100.0) == 0


@given(st.sampled_from(sorted(KNOWN.values())), st.data())
def test_a_standard_error_further_off_than_every_possible_one_does_not_fit(n, data):
    k = data.draw(st.integers(n // 20, n - n // 20))
    score = f"{100 * k / n:.2f}"
    possible = [
        100 * (j / n * (1 - j / n) / (n - less)) ** 0.5 for less in (0, 1) for j in (k - 1, k, k + 1) if 0 <= j <= n
    ]
    shift = data.draw(st.sampled_from([-0.02, 0.02, 0.1]))
    text = f"{(min(possible) if shift < 0 else max(possible)) + shift:.2f}"
    assert error_miss(parse(score), parse(text), (n - 1, n), 100.0) > 0


@fewer
@given(designs(), SEEDS)
def test_a_clean_table_of_known_benchmarks_has_no_finding(design, seed):
    assert findings(make_corpus(design, np.random.default_rng(seed))) == []


@fewer
@given(designs(errors=True, places=2, percent=True), SEEDS)
def test_a_permuted_row_is_put_back_in_order(design, seed):
    corpus = make_corpus(design, np.random.default_rng(seed))
    wrong = CORRUPTIONS["all scores moved one column on, with standard errors"].apply(
        corpus, np.random.default_rng(seed)
    )
    row = wrong.wrong_row
    right, after = (c.tables[MAIN].loc[row] for c in (corpus, wrong))
    # Columns of nearly the same count (GSM8K, WinoGrande) are exchangeable up to luck, and then no order is proposed.
    assume(max(design.counts.values()) > 1.5 * min(design.counts.values()))
    assume(all(20 <= float(right[column]) <= 80 for column in corpus.scores))
    found = [f for f in findings(wrong) if f.check == "standard error" and f.row == row + 1 and f.file == MAIN]
    assert len(found) == 1
    assert found[0].title == "scores with their standard errors stand in the wrong columns"
    assert found[0].chance < 1e-3
    for column, text in found[0].fits.items():
        assert text == f"{right[column]} ± {right[f'{column}_se']}"
    for column, text in found[0].printed.items():
        assert text == f"{after[column]} ± {after[f'{column}_se']}"


def test_scores_that_moved_without_their_errors_are_told_from_those_that_moved_with_them():
    """Where p (1 - p) hardly changes only the digits tell, so an order may be lucky: rarely, says its chance."""
    right = wrong = 0
    for i in range(40):
        rng = np.random.default_rng((3, i))
        design = replace(draw_design(rng), errors=True, places=2, percent=True)
        corpus = make_corpus(design, rng)
        frame = corpus.tables[MAIN].copy()
        before = frame.loc[0].copy()
        frame.loc[0, corpus.scores] = np.roll(frame.loc[0, corpus.scores].to_numpy(), 1)
        found = [f for f in findings(corpus.changed(frame, 0)) if f.row == 1 and f.file == MAIN]
        for swap in (f for f in found if f.title.endswith("stand in the wrong columns")):
            true = all(text == f"{before[c]} ± {before[f'{c}_se']}" for c, text in swap.fits.items())
            right, wrong = right + true, wrong + (not true)
    assert right >= 20
    assert wrong <= 2


@given(designs(places=2, percent=True), SEEDS, st.integers(-2000, 2000))
def test_an_average_is_found_wrong_exactly_when_it_is_beyond_rounding(design, seed, shift):
    """In hundredths: a printed mean of K printed numbers may be off by half of one, and their mean by another half."""
    corpus = make_corpus(design, np.random.default_rng(seed))
    frame = corpus.tables[MAIN].copy()
    scores = [round(100 * float(frame.loc[0, column])) for column in corpus.scores]
    average = round(100 * float(frame.loc[0, "avg"])) + shift
    frame.loc[0, "avg"] = f"{average / 100:.2f}"
    off = abs(average * len(scores) - sum(scores)) / len(scores)
    found = check_averages(Table(MAIN, frame, registry()))[0]
    assert [(f.row, f.certainty) for f in found] == (
        [] if off <= 1 else [(1, "last digit")] if off <= 2 else [(1, "arithmetic")]
    )


@fewer
@given(designs(errors=True, places=2, percent=True), SEEDS)
def test_a_constant_row_of_standard_errors_is_named_as_one(design, seed):
    corpus = make_corpus(design, np.random.default_rng(seed))
    frame = corpus.tables[MAIN].copy()
    frame.loc[1, [f"{column}_se" for column in corpus.scores]] = "9.00"
    found = [f for f in findings(corpus.changed(frame, 1)) if f.file == MAIN and f.check == "standard error"]
    assert [(f.title, f.row, f.certainty) for f in found] == [("the same standard error throughout", 2, "arithmetic")]


@pytest.mark.parametrize("columns", [["arc_challenge", "arc_easy", "winogrande"], ["avg"], ["piqa_se"]])
def test_columns_without_a_role_change_nothing(columns):
    """An average needs no name of ours, and ``piqa_se`` no ``piqa``."""
    wide = table(**{c: ["12.34", "56.78"] for c in columns})
    assert check_averages(wide)[0] == []


def test_the_average_of_a_subset_is_found_among_other_columns():
    rng = np.random.default_rng(0)
    values = np.round(rng.uniform(20, 80, (6, 5)), 2)
    columns = {f"task_{i}": [f"{v:.2f}" for v in values[:, i]] for i in range(5)}
    average = [f"{v:.2f}" for v in values[:, [0, 2, 3]].mean(axis=1)]
    average[4] = f"{float(average[4]) + 1:.2f}"
    found, tested = check_averages(table(**columns, mean=average))
    assert [(f.row, f.columns) for f in found] == [(5, ["mean"])]
    assert tested[0].note == "mean = mean of task_0, task_2, task_3"


def test_an_average_of_nothing_in_the_table_is_left_alone():
    rng = np.random.default_rng(1)
    columns = {f"task_{i}": [f"{v:.2f}" for v in rng.uniform(20, 80, 6)] for i in range(5)}
    found, tested = check_averages(table(**columns, avg=[f"{v:.2f}" for v in rng.uniform(20, 80, 6)]))
    assert found == []
    assert (tested[0].count, tested[0].note) == (0, "avg: of which columns?")


@pytest.mark.parametrize("n", [900, 1000, 1280])
def test_the_count_behind_scores_is_found(n):
    """Of 200 columns of ten scores each, and with 1,319 as the known count."""
    rng = np.random.default_rng(n)
    found = []
    for _ in range(200):
        numbers = [parse(f"{100 * k / n:.2f}") for k in rng.binomial(n, rng.uniform(0.1, 0.9, 10))]
        found.append(likeliest(numbers, 100.0, 1319).n)
    # All scores may be multiples of 1/450 by accident; then 450 is the better explanation.
    assert found.count(n) >= 180


def test_unrelated_numbers_have_no_believable_count():
    rng = np.random.default_rng(0)
    chances = []
    for _ in range(300):
        numbers = [parse(f"{v:.2f}") for v in rng.uniform(5, 95, 10)]
        chances.append(likeliest(numbers, 100.0).chance)
    assert np.mean([chance < 0.001 for chance in chances]) <= 0.01


def test_an_unknown_benchmark_gets_its_count_from_its_standard_errors():
    n, shares = 731, [0.2, 0.35, 0.5, 0.8]
    errors = [f"{100 * (p * (1 - p) / n) ** 0.5:.2f}" for p in shares]
    count = counts(table(my_task=[f"{100 * p:.2f}" for p in shares], my_task_se=errors))["my_task"]
    assert count.low <= n <= count.high
    assert count.high - count.low < 0.02 * n


@pytest.mark.parametrize(("column", "name"), [
    ("PIQA", "piqa"), ("ARC-c", "arc_challenge"), ("arc_easy_acc", "arc_easy"), ("gsm8k_metamath_3b", "gsm8k"),
    ("WinoGrande (5-shot)", "winogrande"), ("mmlu_5shot", "mmlu"), ("lambada", None), ("graphs", None),
])  # fmt: skip
def test_benchmarks_are_known_by_whole_words(column, name):
    found = find_benchmark(column, registry())
    assert (found and found.name) == name


@pytest.mark.parametrize(("text", "family", "version", "size"), [
    ("Llama-3.2-3B", "llama", "3.2", "3b"), ("TinyLlama 1.1B", "tinyllama", "", "1.1b"),
    ("Llama-2 7B chat", "llama", "2", "7b"), ("Qwen2.5-0.5B-Instruct", "qwen", "2.5", "0.5b"),
])  # fmt: skip
def test_model_names_are_taken_apart(text, family, version, size):
    name = model_name(text)
    assert (name.family, name.version, name.size) == (family, version, size)


@pytest.mark.parametrize("text", ["128", "7B teacher", "CE+CAKLD", "3x data", "int", "", "self", "group 64"])
def test_other_labels_are_no_model_names(text):
    assert model_name(text) is None


def test_a_vague_name_may_be_a_precise_one():
    assert model_name("Llama-3 3B").may_be(model_name("Llama-3.2-3B"))
    assert not model_name("Llama-2 7B").may_be(model_name("Llama-3.2-3B"))


def test_teachers_are_other_models_and_rightly_so():
    names = ["Beta-2-7B", "Beta-2-13B"]
    for column, expected in (("teacher", []), ("data_generated_by", []), ("setting", [["setting"]])):
        frame = pd.DataFrame({"model": "Alpha-1B", column: names, "ppl": ["1.5", "2.5"]})
        others = Table("b.csv", pd.DataFrame({"model": names, "ppl": ["1.1", "1.2"]}), registry())
        found = audit_tables([Table("a.csv", frame, registry()), others])[0]
        assert [f.columns for f in found] == expected


@pytest.mark.parametrize(("text", "value", "half"), [
    ("46.40", 46.4, 0.005), ("4", 4.0, 0.5), ("12.5%", 12.5, 0.05), ("1,319", 1319.0, 0.5), ("2e5", 2e5, 5e4),
])  # fmt: skip
def test_digits_are_read_as_printed(text, value, half):
    number = parse(text)
    assert (number.value, number.half) == (value, pytest.approx(half))


@pytest.mark.parametrize("text", ["", "-", "OOM", "nan", "inf", "random", "1.2.3"])
def test_words_are_no_numbers(text):
    assert parse(text) is None


def test_half_widths_and_another_count_are_named():
    rng = np.random.default_rng(0)
    shares = {c: rng.binomial(KNOWN[c], rng.uniform(0.3, 0.8, 6)) / KNOWN[c] for c in ("piqa", "winogrande")}
    scores = {c: [f"{100 * p:.2f}" for p in v] for c, v in shares.items()}
    for factor, n, title in (
        (1.96, KNOWN, "95 % half-widths instead of standard errors"),
        (1.0, {"piqa": 500, "winogrande": 1267}, "standard errors of another item count"),
    ):
        errors = {f"{c}_se": [f"{factor * 100 * (p * (1 - p) / n[c]) ** 0.5:.2f}" for p in shares[c]] for c in shares}
        corpus = table(model=list("abcdef"), **scores, **errors)
        found = [f for f in audit_tables([corpus])[0] if f.check == "standard error"]
        assert [f.title for f in found] == [title]
        if factor == 1.0:
            assert "n from" in found[0].explanation and "piqa_se" in found[0].columns


def test_score_and_error_in_one_cell_are_read_as_two_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("model,piqa\na,72.63 ± 1.04\nb,66.21±1.10\nc,-\n", encoding="utf-8")
    read = read_table(path, registry())
    assert read.errors == {"piqa": "piqa_se"}
    assert [n and n.text for n in read.numbers["piqa_se"]] == ["1.04", "1.10", None]
