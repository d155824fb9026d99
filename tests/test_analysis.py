"""Statistics against textbook answers, slow twins and simulations with known truth."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from bitdistiller.analysis.published import chance_of, read_published
from bitdistiller.analysis.stats import (
    Estimate,
    accuracy,
    difference_p,
    holm,
    log_perplexity,
    mcnemar,
    panel,
    retention,
    wilson,
)
from bitdistiller.analysis.verdict import at_least, conjunction, digits, directions, finding, format_effect
from bitdistiller.errors import UserError
from tests.synthetic import paired_tables

bits = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=60)


def single(values, **names):
    return panel(paired_tables([values], **names), names.get("metric", "acc"))


def nll_panel(values, weights, rng=None):
    tables = [
        pd.DataFrame(
            {
                "task": "text",
                "item": [f"d{i}" for i in range(len(row))],
                "metric": "nll",
                "value": row,
                "weight": weights,
            }
        )
        for row in values
    ]
    return panel(tables, "nll")


@given(bits)
def test_mcnemar_is_the_binomial_test_of_discordant_items(pairs):
    first, second = zip(*pairs, strict=True)
    found = mcnemar(single(first), single(second))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    assert (found.only_first, found.only_second, found.n) == (only_first, only_second, len(pairs))
    expected = scipy_stats.binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    assert found.p == pytest.approx(expected)


@given(bits, st.randoms(use_true_random=False))
def test_order_of_items_does_not_matter(pairs, random):
    first, second = (paired_tables([column])[0] for column in zip(*pairs, strict=True))
    shuffled = second.sample(frac=1, random_state=random.randrange(2**32))
    straight = accuracy([panel([first], "acc"), panel([second], "acc")], [1, -1])
    assert accuracy([panel([first], "acc"), panel([shuffled], "acc")], [1, -1]) == straight


def test_single_runs_give_the_paired_t_interval():
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 50)) < [[0.7], [0.5]]
    found = accuracy([single(a), single(b)], [1, -1])
    expected = scipy_stats.ttest_rel(a.astype(float), b.astype(float))
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value() == pytest.approx(expected.pvalue)
    assert (found.seeds, found.basis) == (1, "items only (one seed)")


def test_seeds_that_differ_on_all_items_give_the_t_interval_over_seeds():
    values = np.array([[0.2] * 40, [0.3] * 40, [0.7] * 40])
    found = accuracy([panel(paired_tables(values), "acc")], [1])
    expected = scipy_stats.t.interval(0.95, 2, loc=0.4, scale=scipy_stats.sem([0.2, 0.3, 0.7]))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.basis == "items and 3 seeds"


def test_tasks_weigh_equally_whatever_their_size():
    small, large = paired_tables([[1] * 10], task="a")[0], paired_tables([[0] * 90], task="b")[0]
    assert accuracy([panel([pd.concat([small, large])], "acc")], [1]).value == 0.5


def simulated(rng, seeds, items, effect, seed_sd):
    """Accuracies with item difficulty, a seed effect and noise; the true mean is ``effect``."""
    difficulty, shift = rng.normal(size=items), rng.normal(scale=seed_sd, size=(seeds, 1))
    return effect + 0.3 * difficulty + shift + rng.normal(scale=0.2, size=(seeds, items))


@pytest.mark.parametrize(("seeds", "seed_sd"), [(3, 0.05), (3, 0.0), (5, 0.02), (1, 0.0)])
def test_interval_covers_the_truth_in_95_percent_of_experiments(seeds, seed_sd):
    rng = np.random.default_rng(7)
    keys = panel(paired_tables([[0.0] * 80]), "acc")
    covered = 0
    for _ in range(200):
        sample = type(keys)(keys.keys, simulated(rng, seeds, 80, 0.5, seed_sd), keys.weights)
        found = accuracy([sample], [1])
        covered += found.low <= 0.5 <= found.high
    assert 0.90 <= covered / 200 <= 0.995


def test_ignoring_seeds_would_be_too_sure():
    """The mistake that the module guards against: three seeds on the same items are not three times the items."""
    rng = np.random.default_rng(3)
    keys = panel(paired_tables([[0.0] * 200]), "acc")
    misses = 0
    for _ in range(200):
        values = simulated(rng, 3, 200, 0.5, 0.05)
        assert accuracy([type(keys)(keys.keys, values, keys.weights)], [1]).standard_error > 0
        low, high = scipy_stats.t.interval(0.95, 599, loc=values.mean(), scale=scipy_stats.sem(values.ravel()))
        misses += not low <= 0.5 <= high
    assert misses / 200 > 0.2


def test_log_perplexity_is_total_nats_over_total_tokens():
    found = log_perplexity([nll_panel([[300.0, 100.0]], [100, 50])], [1])
    assert found.value == pytest.approx(400 / 150)
    assert found.sample == "documents"


def test_bootstrap_agrees_with_the_slow_twin_and_is_seeded():
    rng = np.random.default_rng(5)
    weights = rng.integers(50, 500, 120)
    a = weights * rng.normal(3.5, 0.3, 120)
    b = a + weights * rng.normal(0.4, 0.1, 120)
    pair = [nll_panel([b], weights), nll_panel([a], weights)]
    found = log_perplexity(pair, [1, -1])
    slow = []
    for _ in range(2000):
        chosen = rng.integers(0, 120, 120)
        slow.append((b[chosen].sum() - a[chosen].sum()) / weights[chosen].sum())
    assert found.value == pytest.approx((b.sum() - a.sum()) / weights.sum())
    assert found.standard_error == pytest.approx(np.std(slow, ddof=1), rel=0.08)
    assert log_perplexity(pair, [1, -1]) == found
    assert log_perplexity(pair, [1, -1], seed=1).standard_error != found.standard_error


def test_pairing_documents_shortens_the_interval():
    rng = np.random.default_rng(6)
    weights = np.full(80, 100)
    a = weights * rng.normal(3.5, 0.5, 80)
    pair = [nll_panel([a + 30 + rng.normal(scale=2, size=80)], weights), nll_panel([a], weights)]
    alone = [log_perplexity([one], [1]).standard_error for one in pair]
    assert log_perplexity(pair, [1, -1]).standard_error < 0.1 * np.hypot(*alone)


def test_retention_subtracts_chance_and_refuses_a_full_precision_at_chance():
    full, student = single([1] * 60 + [0] * 40), single([1] * 50 + [0] * 50)
    assert retention(student, full, 0.0).value == pytest.approx(5 / 6)
    assert retention(student, full, 0.5).value == pytest.approx(0.0)
    assert retention(student, full, 0.4).value == pytest.approx(0.5)
    assert retention(full, full, 0.4).standard_error == pytest.approx(0.0, abs=1e-12)
    assert retention(student, full, 0.55) is None


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_retention_interval_covers_the_truth(share):
    rng, covered = np.random.default_rng(11), 0
    for _ in range(150):
        draw = rng.random(400)
        noise = rng.random(400)
        full, student = (draw + 0.2 * noise) % 1 < 0.6, (draw + 0.2 * noise[::-1]) % 1 < 0.25 + share * 0.35
        found = retention(single(student), single(full), 0.25)
        covered += found.low <= share <= found.high
    assert 0.90 <= covered / 150 <= 0.995


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=15)
def test_holm_never_lowers_a_p_value(p_values):
    assert all(adjusted >= p - 1e-12 for p, adjusted in zip(p_values, holm(p_values), strict=True))


@given(st.integers(1, 500), st.data())
@settings(max_examples=50)
def test_wilson_stays_inside_and_around(n, data):
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert -1e-12 <= low <= k / n + 1e-12 and k / n - 1e-12 <= high <= 1 + 1e-12


def test_tables_that_cannot_be_paired_are_refused():
    a, b = paired_tables([[1, 0, 1], [1, 0, 1]])
    with pytest.raises(UserError, match="item q2 of task t was not scored in every run"):
        panel([a, b[:2]], "acc")
    with pytest.raises(UserError, match="appears twice"):
        panel([pd.concat([a, a])], "acc")
    with pytest.raises(UserError, match="not a finite number"):
        panel([a.assign(value=[1.0, np.nan, 0.0])], "acc")
    with pytest.raises(UserError, match="the table has acc"):
        panel([a], "acc_norm")
    with pytest.raises(UserError, match="for the task piqa"):
        panel([a], "acc", ["t", "piqa"])
    with pytest.raises(UserError, match="numbers of tokens"):
        log_perplexity([nll_panel([[1.0, 2.0]], [3, 4]), nll_panel([[1.0, 2.0]], [3, 5])], [1, -1])
    with pytest.raises(UserError, match="two single runs"):
        mcnemar(panel([a, b], "acc"), panel([a], "acc"))
    with pytest.raises(UserError, match="fewer than two items"):
        accuracy([single([1])], [1])


def test_p_of_a_difference_is_exact_for_single_runs_only():
    a, b = [1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]
    assert difference_p(single(a), single(b)) == mcnemar(single(a), single(b)).p
    seeds = panel(paired_tables([b, b[::-1]]), "acc")
    assert difference_p(single(a), seeds) == accuracy([single(a), seeds], [1, -1]).p_value()


def estimate(value, error=0.1):
    return Estimate(value, error, 1e6, 100, 1)


def test_outcomes_follow_the_interval():
    assert at_least(estimate(1.0), 0.5) == "supported"
    assert at_least(estimate(0.0), 0.5) == "contradicted"
    assert at_least(estimate(0.4), 0.5) == "undecided"


def test_directions_need_holm_and_the_interval_to_agree():
    rows = [(str(z), estimate(z / 10), "points", estimate(z / 10).p_value()) for z in (5, -5, 2.1, 0)]
    assert [f.outcome for f in directions(rows)] == ["supported", "contradicted", "undecided", "undecided"]
    assert directions(rows[2:3])[0].outcome == "supported"


def test_conjunction_needs_every_part():
    parts = {o: finding("x", estimate(0.0), "share", o, None) for o in ("supported", "contradicted", "undecided")}
    assert conjunction([parts["supported"]] * 2) == "supported"
    assert conjunction([parts["supported"], parts["undecided"]]) == "undecided"
    assert conjunction([parts["undecided"], parts["contradicted"]]) == "contradicted"


def test_effects_are_stored_in_their_unit():
    assert finding("x", estimate(0.02), "points", None).effect == pytest.approx(2)
    ratio = finding("x", estimate(np.log(12), 0.01), "times", None)
    assert ratio.effect == pytest.approx(12) and ratio.low < 12 < ratio.high
    assert ratio.text == "12.0× [11.8, 12.2]"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (-1.234, "points", "−1.2 points"),
        (-0.01, "points", "0.0 points"),
        (1234.5, "times", "1,234×"),
        (96.68, "times", "96.7×"),
        (1.067, "times", "1.07×"),
        (-0.004, "share", "0.00"),
        (0.5, "share", "0.50"),
    ],
)
def test_effects_are_written_for_people(value, unit, text):
    assert format_effect(value, unit) == text


def test_digits_keep_a_true_minus():
    assert digits(-0.05, 2) == "−0.05"


def test_published_tables_list_what_there_is(tmp_path):
    (tmp_path / "one.csv").write_text("model,bits\nx,16\n")
    assert read_published(tmp_path, "one.csv")["bits"].tolist() == ["16"]
    with pytest.raises(UserError, match=r"has one\.csv"):
        read_published(tmp_path, "two.csv")
    assert chance_of(["piqa", "arc_easy"]) == 0.375
