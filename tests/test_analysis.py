"""Statistics against textbook answers, slow twins and simulations with known truth."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import ttost_paired

from bitdistiller.analysis.published import chance_of, read_published
from bitdistiller.analysis.stats import (
    accuracy,
    changed,
    difference_p,
    flips,
    holm,
    log_perplexity,
    mcnemar,
    own_weights,
    panel,
    per_token,
    retention,
    wilson,
)
from bitdistiller.analysis.verdict import equivalent
from bitdistiller.errors import UserError
from tests.synthetic import paired_tables

bits = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=60)


def single(values, **names):
    return panel(paired_tables([values], **names), names.get("metric", "acc"))


def nll_panel(values, weights, metric="nll"):
    tables = [
        pd.DataFrame(
            {
                "task": "text",
                "item": [f"d{i}" for i in range(len(row))],
                "metric": metric,
                "value": row,
                "weight": weights,
            }
        )
        for row in values
    ]
    return panel(tables, metric)


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


def test_agreement_is_a_share_of_tokens_whose_error_resamples_documents():
    rng = np.random.default_rng(8)
    weights = rng.integers(50, 500, 100)
    a, b = (rng.binomial(weights, rng.beta(8 * share, 8 * (1 - share), 100)) for share in (0.9, 0.7))
    pair = [nll_panel([counts], weights, "agreement") for counts in (a, b)]
    alone, difference = per_token(pair[:1], [1]), per_token(pair, [1, -1])
    slow = []
    for _ in range(2000):
        chosen = [int(rng.integers(100)) for _ in range(100)]
        tokens = sum(int(weights[i]) for i in chosen)
        slow.append((sum(int(a[i]) for i in chosen) / tokens, sum(int(b[i]) for i in chosen) / tokens))
    slow = np.array(slow)
    assert alone.value == pytest.approx(a.sum() / weights.sum())
    assert alone.standard_error == pytest.approx(slow[:, 0].std(ddof=1), rel=0.08)
    assert difference.value == pytest.approx((a.sum() - b.sum()) / weights.sum())
    assert difference.standard_error == pytest.approx((slow[:, 0] - slow[:, 1]).std(ddof=1), rel=0.08)
    assert (difference.n, difference.sample) == (100, "documents")


@given(st.integers(1, 4), st.integers(2, 12), st.randoms(use_true_random=False))
def test_flips_by_loops(seeds, items, random):
    full = [random.randrange(4) for _ in range(items)]
    student = [[random.randrange(4) for _ in range(items)] for _ in range(seeds)]
    found = flips(choices(*student), choices(full))
    count = 0
    for run in student:
        for mine, original in zip(run, full, strict=True):
            count += mine != original
    assert found.value == pytest.approx(count / (seeds * items))
    assert (found.n, found.seeds) == (items, seeds)
    if seeds == 1:
        p = found.value
        assert found.standard_error == pytest.approx(np.sqrt(p * (1 - p) / (items - 1)))


@given(st.integers(1, 3), st.integers(2, 8), st.randoms(use_true_random=False))
def test_shares_of_a_total_of_their_own_by_loops(seeds, documents, random):
    """The part that the worst tokens make of each run's own nats; seeds count alike, whatever their totals."""
    totals = [[random.randint(50, 500) for _ in range(documents)] for _ in range(seeds)]
    parts = [[total * random.random() for total in run] for run in totals]
    runs = [nll_panel([part], total, "worst_share") for part, total in zip(parts, totals, strict=True)]
    found, mean = own_weights(runs), 0.0
    for part, total in zip(parts, totals, strict=True):
        mean += sum(part) / sum(total) / seeds
    assert found.value == pytest.approx(mean)
    assert (found.n, found.seeds, found.sample) == (documents, seeds, "documents")
    if seeds == 1:
        assert found.value == pytest.approx(per_token(runs, [1]).value)


def test_the_error_of_a_share_is_that_of_resampled_documents():
    rng = np.random.default_rng(12)
    total = rng.integers(100, 900, 150).astype(float)
    run = nll_panel([total * rng.beta(2, 40, 150)], total, "worst_share")
    assert own_weights([run]).standard_error == pytest.approx(per_token([run], [1]).standard_error, rel=0.08)
    with pytest.raises(UserError, match="item d149 of task text"):
        own_weights([run, nll_panel([total[:149]], total[:149], "worst_share")])


def choices(*rows):
    return panel(paired_tables(rows, metric="choice"), "choice")


def test_flips_need_one_original_and_the_same_items():
    """An item is flipped whether it was right before, is right now, or neither."""
    assert changed(choices([0, 1, 2, 3]), choices([0, 2, 1, 3])).values.tolist() == [[0, 1, 1, 0]]
    assert flips(choices([0, 1, 2]), choices([0, 1, 2])).value == 0
    with pytest.raises(UserError, match="one full-precision run; this condition has 2"):
        flips(choices([0, 1]), choices([0, 1], [0, 1]))
    with pytest.raises(UserError, match="item q2 of task t"):
        flips(choices([0, 1]), choices([0, 1, 1]))


def test_seed_share_is_what_items_cannot_remove():
    same = np.random.default_rng(2).random(50)
    assert accuracy([panel(paired_tables([same] * 3), "acc")], [1]).seed_share == 0
    assert accuracy([single(same)], [1]).seed_share == 0
    constant = np.array([[0.2] * 40, [0.3] * 40, [0.7] * 40])
    assert accuracy([panel(paired_tables(constant), "acc")], [1]).seed_share == 1
    rng, keys = np.random.default_rng(4), panel(paired_tables([[0.0] * 80]), "acc")
    shares = []
    for _ in range(300):
        sample = type(keys)(keys.keys, simulated(rng, 5, 80, 0.5, 0.05), keys.weights)
        shares.append(accuracy([sample], [1]).seed_share)
    seeds, items, noise = 0.05**2 / 5, 0.3**2 / 80, 0.2**2 / 400
    assert np.mean(shares) == pytest.approx(seeds / (seeds + items + noise), abs=0.05)


@pytest.mark.parametrize("margin", [0.02, 0.1, 0.3])
def test_equivalence_is_the_paired_tost(margin):
    rng = np.random.default_rng(9)
    for shift in (0.0, 0.05, -0.2):
        a = rng.normal(0.5, 0.4, 40)
        b = a + rng.normal(shift, 0.3, 40)
        found = accuracy([single(a), single(b)], [1, -1])
        assert found.equivalence_p(margin) == pytest.approx(ttost_paired(a, b, -margin, margin)[0])
        interval = scipy_stats.ttest_rel(a, b).confidence_interval(0.90)
        inside = -margin < interval.low and interval.high < margin
        assert (equivalent(found, margin) == "supported") == inside


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


def test_where_no_item_differs_the_interval_is_that_of_the_rule_of_three():
    same = single([0] * 164)
    found = accuracy([same, same], [1, -1])
    assert (found.value, found.standard_error, found.alike) == (0, 0, 164)
    assert (found.low, found.high) == pytest.approx((-2.9957 / 164, 2.9957 / 164), rel=1e-4)
    assert found.p_value() == 1 and found.p_value(0.03) == pytest.approx(np.exp(-0.03 * 164))
    assert found.equivalence_p(0.03) == found.p_value(0.03) == found.p_value(-0.03)
    assert (equivalent(found, 0.018), equivalent(found, 0.019)) == ("undecided", "supported")
    one_differs = accuracy([single([0] * 163 + [1]), same], [1, -1])
    assert one_differs.alike == 0 and one_differs.standard_error > 0
    assert accuracy([same], [1]).alike == 0 and retention(single([1] * 9), single([1] * 9), 0.2).alike == 0


@pytest.mark.parametrize(
    ("sizes", "shares"), [((50, 50), (0.04, 0.04)), ((20, 200), (0.08, 0)), ((20, 200), (0, 0.08))]
)
def test_the_p_of_items_that_never_differ_is_an_upper_bound(sizes, shares):
    """However the items that differ are spread over tasks, so few of them stay unseen at most as often as p says."""
    tables = [pd.concat([paired_tables([[0] * n], task=f"t{n}{i}")[0] for i, n in enumerate(sizes)])] * 2
    found = accuracy([panel(tables[:1], "acc"), panel(tables[1:], "acc")], [1, -1])
    difference = float(np.mean(shares))
    unseen = float(np.prod([(1 - share) ** n for n, share in zip(sizes, shares, strict=True)]))
    assert found.alike == 2 * min(sizes) and unseen <= found.p_value(difference) < 1


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
    for odd in ([v / 2 for v in a], [3 * v for v in a]):  # means over samples, items of unequal weight
        assert difference_p(single(odd), single(b)) == accuracy([single(odd), single(b)], [1, -1]).p_value()
    assert difference_p(single(a), seeds) == accuracy([single(a), seeds], [1, -1]).p_value()


def test_published_tables_list_what_there_is(tmp_path):
    (tmp_path / "one.csv").write_text("model,bits\nx,16\n")
    assert read_published(tmp_path, "one.csv")["bits"].tolist() == ["16"]
    with pytest.raises(UserError, match=r"has one\.csv"):
        read_published(tmp_path, "two.csv")
    assert chance_of(["piqa", "arc_easy"]) == 0.375
