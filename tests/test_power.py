"""What a design detects and what an open comparison needs, against simulated experiments and textbook formulas."""

import re
from math import inf, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bitdistiller.analysis.power import (
    Detectable,
    detectable,
    detectable_accuracy,
    detectable_perplexity,
    margin_accuracy,
    margin_perplexity,
    needed,
    needed_for_error,
)
from bitdistiller.analysis.stats import Estimate
from bitdistiller.config import EvaluationParams, PerplexityParams, TaskParams
from bitdistiller.errors import UserError

EXPERIMENTS = 4000


def evaluation(limits=(600, 600), max_tokens=(40_000,)):
    return EvaluationParams(
        perplexity={
            f"p{i}": PerplexityParams(text=["web"], window=256, max_tokens=n) for i, n in enumerate(max_tokens)
        },
        tasks={f"t{i}": TaskParams(limit=n, shots=0) for i, n in enumerate(limits)},
        batch_tokens=4096,
        seed=0,
    )


@pytest.mark.parametrize(("n", "disagreement"), [(300, 0.3), (1200, 0.2), (2500, 0.05)])
def test_detectable_accuracy_is_found_in_80_percent_of_experiments(n, disagreement):
    """McNemar's exact test on simulated pairs; it is a little more careful than the normal approximation."""
    d = detectable_accuracy(n, disagreement)
    rng = np.random.default_rng(0)
    cells = rng.multinomial(n, [(disagreement + d) / 2, (disagreement - d) / 2, 1 - disagreement], size=EXPERIMENTS)
    p = 2 * stats.binom.cdf(cells[:, :2].min(axis=1), cells[:, :2].sum(axis=1), 0.5)
    assert 0.75 <= (p <= 0.05).mean() <= 0.83


@given(st.integers(10, 20_000), st.floats(0.01, 1))
def test_detectable_accuracy_inverts_the_published_sample_size(n, psi):
    """Connor 1987: n = (z sqrt(psi) + z' sqrt(psi - d^2))^2 / d^2."""
    d = detectable_accuracy(n, psi)
    if d is None:
        assert sqrt(n * psi) < 1.96 + 0.85
        return
    assert 0 < d <= psi
    assert (1.959964 * sqrt(psi) + 0.841621 * sqrt(psi - d * d)) ** 2 / d**2 == pytest.approx(n, rel=1e-4)
    assert d <= 2.80159 * sqrt(psi / n) * (1 + 1e-6)
    more = detectable_accuracy(4 * n, psi)
    assert more < d


def test_detectable_perplexity_is_found_in_80_percent_of_experiments():
    ratio = detectable_perplexity(200, 0.1)
    differences = np.random.default_rng(0).normal(log(ratio), 0.1, size=(EXPERIMENTS, 200))
    assert (stats.ttest_1samp(differences, 0, axis=1).pvalue <= 0.05).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("comparisons", [1, 12])
def test_the_smallest_margin_is_established_in_80_percent_of_experiments_without_a_difference(comparisons):
    level, rng = 0.05 / comparisons, np.random.default_rng(0)
    z = stats.norm.isf(level)
    n, disagreement = 1200, 0.2
    margin = margin_accuracy(n, disagreement, level)
    cells = rng.multinomial(n, [disagreement / 2, disagreement / 2, 1 - disagreement], size=EXPERIMENTS)
    means = (cells[:, 0] - cells[:, 1]) / n
    errors = np.sqrt(((cells[:, 0] + cells[:, 1]) / n - means**2) / n)
    assert (np.abs(means) + z * errors < margin).mean() == pytest.approx(0.8, abs=0.02)
    ratio = margin_perplexity(200, 0.1, level)
    differences = rng.normal(0, 0.1, size=(EXPERIMENTS, 200))
    errors = differences.std(axis=1, ddof=1) / sqrt(200)
    assert (np.abs(differences.mean(axis=1)) + z * errors < log(ratio)).mean() == pytest.approx(0.8, abs=0.02)
    assert margin > detectable_accuracy(n, disagreement, level) and ratio > detectable_perplexity(200, 0.1, level)


def test_margins_are_stated_where_they_are_asked_for_and_records_without_them_are_read():
    without, found = detectable(evaluation(), comparisons=12), detectable(evaluation(), comparisons=12, margins=True)
    assert found.margin_points == pytest.approx(100 * margin_accuracy(1200, 0.2, 0.05 / 12))
    assert found.margin_ratio == pytest.approx(margin_perplexity(285, 0.1, 0.05 / 12))
    margins = "; smallest margin within which no difference can be established: 5.1 points of accuracy and a perplexity"
    assert found.text.startswith(without.text + margins) and "margin" not in without.text
    assert "two one-sided tests at 0.0042" in found.assumptions and "one-sided" not in without.assumptions
    before = without.model_dump(exclude={"margin_points", "margin_ratio"})
    assert Detectable.model_validate(before) == without


def test_a_design_is_described_by_its_parameters_alone():
    found = detectable(evaluation(), disagreement=0.2, spread=0.1, tokens_per_document=140)
    assert found.accuracy_points == pytest.approx(100 * detectable_accuracy(1200, 0.2))
    assert found.perplexity_ratio == pytest.approx(detectable_perplexity(285, 0.1))
    assert found.text == "3.6 points of accuracy and a perplexity ratio of 1.02"
    for piece in ("1,200", "20%", "285 documents", "0.1 nats", "power 80%", "seeds not counted"):
        assert piece in found.assumptions
    ten = detectable(evaluation(), comparisons=10)
    assert ten.accuracy_points > found.accuracy_points and ten.perplexity_ratio > found.perplexity_ratio
    assert "0.005" in ten.assumptions


def test_tasks_of_different_sizes_weigh_equally():
    """The variance of a mean over tasks is that of so many items of one task."""
    found = detectable(evaluation((100, 400, 1000)), disagreement=0.2).accuracy_points / 100
    rng, psi = np.random.default_rng(0), 0.2
    chances = [(psi + found) / 2, (psi - found) / 2, 1 - psi]
    means = []
    for n in (100, 400, 1000):
        cells = rng.multinomial(n, chances, size=EXPERIMENTS)
        means.append((cells[:, 0] - cells[:, 1]) / n)
    mean = np.mean(means, axis=0)
    assert (mean > 1.96 * mean.std()).mean() == pytest.approx(0.8, abs=0.03)


def test_what_is_not_scored_or_too_few_is_not_detectable():
    assert detectable(evaluation(limits=())).accuracy_points is None
    assert detectable(evaluation(limits=(), max_tokens=())).text == "no effect of any size"
    assert detectable(evaluation(limits=(20,), max_tokens=())).text == "no effect of any size"
    with pytest.raises(UserError, match="has p0, p1; name the one"):
        detectable(evaluation(max_tokens=(1000, 2000)))
    assert "71 documents" in detectable(evaluation(max_tokens=(1000, 10_000)), perplexity="p1").assumptions
    with pytest.raises(UserError, match="no entry 'web'"):
        detectable(evaluation(), perplexity="web")


def number(text, what):
    return int(re.search(rf"([\d,]+) {what}", text)[1].replace(",", ""))


def test_so_many_items_decide_in_80_percent_of_experiments():
    today = Estimate(0.02, 0.5 / sqrt(400), 399, 400, 1)
    n = number(needed(today), "items")
    assert n == pytest.approx(400 * (2.8 / today.t()) ** 2, rel=0.03)
    differences = np.random.default_rng(0).normal(0.02, 0.5, size=(400, n))
    assert (stats.ttest_1samp(differences, 0, axis=1).pvalue <= 0.05).mean() == pytest.approx(0.8, abs=0.05)


def test_so_many_seeds_decide_in_80_percent_of_experiments():
    sd = 0.02
    today = Estimate(0.02, sd / sqrt(3), 2, 1200, 3, seed_share=1.0)
    assert today.p_value() > 0.05
    text = needed(today)
    assert "items" not in text
    seeds = number(text, "seeds")
    runs = np.random.default_rng(0).normal(0.02, sd, size=(EXPERIMENTS, seeds))
    assert (stats.ttest_1samp(runs, 0, axis=1).pvalue <= 0.05).mean() == pytest.approx(0.82, abs=0.05)


def test_so_many_items_show_equivalence():
    rng, margin = np.random.default_rng(0), 0.03
    for value, power in ((0.015, 0.8), (0.0, 0.6)):
        today = Estimate(value, 0.5 / sqrt(400), 399, 400, 1)
        n = number(needed(today, margin, tails=1), "items")
        means = rng.normal(value, 0.5 / sqrt(n), size=EXPERIMENTS)
        inside = np.abs(means) + 1.645 * 0.5 / sqrt(n) < margin
        assert inside.mean() == pytest.approx(power, abs=0.04)


@pytest.mark.parametrize(
    ("share", "names"),
    [(0.0, ["items"]), (0.1, ["items"]), (0.5, ["items", "seeds"]), (0.95, ["seeds"])],
)
def test_what_limits_is_what_is_named(share, names):
    text = needed(Estimate(0.02, 0.012, 30, 1200, 3, seed_share=share))
    assert [name for name in ("items", "seeds") if name in text] == names
    for name in names:
        assert number(text, name) > {"items": 1200, "seeds": 3}[name]


def test_documents_are_called_documents_and_the_unreachable_is_not_promised():
    assert needed(Estimate(0.02, 0.012, 30, 289, 1, "documents")).endswith("documents")
    assert needed(Estimate(0.0001, 0.012, 30, 289, 1, "documents")) == "over 100 times as many documents"
    assert needed(Estimate(0.0, 0.0, 30, 289, 3, seed_share=0.5)) == "over 100 times as many items and seeds"


def test_a_smaller_level_needs_more():
    estimate = Estimate(0.02, 0.012, 300, 1200, 1)
    assert number(needed(estimate, level=0.005), "items") > 1.5 * number(needed(estimate), "items")


def test_a_standard_error_to_reach():
    assert needed_for_error(Estimate(0.1, 0.02, 99, 100, 1), 0.01) == "about 400 items"
    assert needed_for_error(Estimate(0.1, 0.02, inf, 100, 2, seed_share=1.0), 0.01) == "about 8 seeds"
