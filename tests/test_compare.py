"""Claims as data: every comparison driven to each outcome, and every measure against numbers computed by loops."""

from math import log

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from bitdistiller.analysis.compare import (
    above,
    above_chance,
    accuracy_difference,
    agreement_difference,
    all_of,
    below,
    beside,
    flip_difference,
    flip_share,
    higher_accuracy,
    kl_difference,
    lower_perplexity,
    no_higher_accuracy,
    no_lower_perplexity,
    perplexity_ratio,
    perplexity_ratio_at_least,
    retained,
    same_accuracy,
    same_perplexity,
    within,
)
from bitdistiller.analysis.stats import holm
from bitdistiller.analysis.study import judge
from bitdistiller.analysis.verdict import Claim, family_wise
from bitdistiller.errors import UserError
from tests.synthetic import PERPLEXITY, Likeness, Truth, likeness_items, make_items, make_results

CHANCE = {"continuation": 0.25}
FULL = Truth(0.60, 25.0)
QUIET, LOUD = 0.001, 0.05


def two(a=None, b=None, seeds=3, questions=800, chance=CHANCE):
    """Results of conditions ``a`` and ``b``, each several seeds, and of one full-precision run."""
    truths = {"a": a or Truth(0.5, 30.0, QUIET), "b": b or Truth(0.5, 30.0, QUIET), "full": FULL}
    gain = sum(chance.values()) / len(chance)
    tables = {
        name: [
            make_items(truth, 10 * place + seed, questions, chance, 60, gain)
            for seed in range(1 if name == "full" else seeds)
        ]
        for place, (name, truth) in enumerate(truths.items(), 1)
    }
    return make_results(tables, chance)


def alike(a, b, seeds=3):
    """The same, with what compares students to full precision, which flips nothing."""
    truths = {"a": a, "b": b, "full": Likeness(0.0, 0.0, 1.0, 0.0)}
    tables = {
        name: [
            pd.concat([make_items(FULL, 0, 50, CHANCE, 60, 0.25), likeness_items(truth, 10 * place + seed)])
            for seed in range(1 if name == "full" else seeds)
        ]
        for place, (name, truth) in enumerate(truths.items(), 1)
    }
    return make_results(tables, CHANCE)


def ppl(value, spread=QUIET):
    return Truth(0.5, value, spread)


def acc(value, spread=QUIET):
    return Truth(value, 30.0, spread)


OUTCOMES = [
    (lower_perplexity("a", "b"), "supported", two, (ppl(30), ppl(33))),
    (lower_perplexity("a", "b"), "contradicted", two, (ppl(33), ppl(30))),
    (lower_perplexity("a", "b"), "undecided", two, (ppl(30, LOUD), ppl(31, LOUD))),
    (higher_accuracy("a", "b"), "supported", two, (acc(0.6), acc(0.5))),
    (higher_accuracy("a", "b"), "contradicted", two, (acc(0.5), acc(0.6))),
    (higher_accuracy("a", "b"), "undecided", two, (acc(0.5, LOUD), acc(0.5, LOUD))),
    (perplexity_ratio_at_least("a", "b", 10), "supported", two, (ppl(400), ppl(30))),
    (perplexity_ratio_at_least("a", "b", 10), "contradicted", two, (ppl(200), ppl(30))),
    (perplexity_ratio_at_least("a", "b", 10), "undecided", two, (ppl(300, LOUD), ppl(30, LOUD))),
    (same_perplexity("a", "b", 1.05), "supported", two, (ppl(30), ppl(30.2))),
    (same_perplexity("a", "b", 1.05), "contradicted", two, (ppl(30), ppl(34))),
    (same_perplexity("a", "b", 1.05), "contradicted", two, (ppl(34), ppl(30))),
    (same_perplexity("a", "b", 1.05), "undecided", two, (ppl(30, LOUD), ppl(30, LOUD))),
    (same_accuracy("a", "b", 3), "supported", two, (acc(0.5), acc(0.5))),
    (same_accuracy("a", "b", 3), "contradicted", two, (acc(0.5), acc(0.6))),
    (same_accuracy("a", "b", 3), "undecided", two, (acc(0.5, LOUD), acc(0.5, LOUD))),
    (no_lower_perplexity("a", "b", 1.05), "supported", two, (ppl(30), ppl(30))),
    (no_lower_perplexity("a", "b", 1.05), "supported", two, (ppl(40), ppl(30))),
    (no_lower_perplexity("a", "b", 1.05), "contradicted", two, (ppl(30), ppl(40))),
    (no_lower_perplexity("a", "b", 1.05), "undecided", two, (ppl(30, LOUD), ppl(31, LOUD))),
    (no_higher_accuracy("a", "b", 3), "supported", two, (acc(0.5), acc(0.5))),
    (no_higher_accuracy("a", "b", 3), "supported", two, (acc(0.4), acc(0.5))),
    (no_higher_accuracy("a", "b", 3), "contradicted", two, (acc(0.6), acc(0.5))),
    (no_higher_accuracy("a", "b", 3), "undecided", two, (acc(0.5, LOUD), acc(0.5, LOUD))),
    (above(above_chance("a"), 0), "supported", two, (acc(0.5),)),
    (above(above_chance("a"), 0), "contradicted", two, (acc(0.15),)),
    (above(above_chance("a"), 0), "undecided", two, (acc(0.25),)),
    (above(retained("a", "full"), 0.5), "supported", two, (acc(0.55),)),
    (above(retained("a", "full"), 0.5), "contradicted", two, (acc(0.3),)),
    (above(retained("a", "full"), 0.5), "undecided", two, (acc(0.42, LOUD),)),
    (below(flip_share("a", "full"), 0.2), "supported", alike, (Likeness(0.1, 0.1, 0.8), Likeness(0.2, 0.1, 0.8))),
    (below(flip_share("a", "full"), 0.2), "contradicted", alike, (Likeness(0.3, 0.1, 0.8), Likeness(0.2, 0.1, 0.8))),
    (below(flip_share("a", "full"), 0.2), "undecided", alike, (Likeness(0.2, 0.1, 0.8), Likeness(0.2, 0.1, 0.8))),
    (below(flip_difference("a", "b", "full"), 0), "supported", alike, (Likeness(0.1, 0, 0.8), Likeness(0.2, 0, 0.8))),
    (below(flip_difference("a", "b", "full"), 0), "contradicted", alike, (Likeness(0.3, 0, 1), Likeness(0.2, 0, 1))),
    (below(flip_difference("a", "b", "full"), 0), "undecided", alike, (Likeness(0.2, 0, 1), Likeness(0.2, 0, 1))),
    (below(kl_difference("a", "b"), 0), "supported", alike, (Likeness(0, 0.1, 1), Likeness(0, 0.2, 1))),
    (below(kl_difference("a", "b"), 0), "contradicted", alike, (Likeness(0, 0.2, 1), Likeness(0, 0.1, 1))),
    (below(kl_difference("a", "b"), 0), "undecided", alike, (Likeness(0, 0.1, 1), Likeness(0, 0.1, 1))),
    (above(agreement_difference("a", "b"), 1), "supported", alike, (Likeness(0, 0, 0.9), Likeness(0, 0, 0.8))),
    (above(agreement_difference("a", "b"), 1), "contradicted", alike, (Likeness(0, 0, 0.8), Likeness(0, 0, 0.8))),
    (above(agreement_difference("a", "b"), 1), "undecided", alike, (Likeness(0, 0, 0.81), Likeness(0, 0, 0.8))),
]


@pytest.mark.parametrize(("comparison", "outcome", "make", "truths"), OUTCOMES)
def test_every_comparison_reaches_every_outcome(comparison, outcome, make, truths):
    found = all_of(comparison)(make(*truths))
    assert found.outcome == outcome, found.explanation
    assert found.low <= found.effect <= found.high and found.seeds == 3
    assert (found.needs is None) == (outcome != "undecided")
    assert found.text in found.explanation and found.basis in found.explanation and found.parts == []


@pytest.mark.parametrize(
    ("comparison", "outcome", "truths"),
    [
        (lower_perplexity("a", "b"), "supported", (ppl(30), ppl(33))),
        (higher_accuracy("a", "b"), "contradicted", (acc(0.5), acc(0.6))),
        (same_accuracy("a", "b", 3), "supported", (acc(0.5), acc(0.5))),
    ],
)
def test_single_runs_are_judged_by_their_items(comparison, outcome, truths):
    found = all_of(comparison)(two(*truths, seeds=1, questions=2000))
    assert found.outcome == outcome and "one seed" in found.basis and found.evidence.seed_share == 0


def test_single_runs_have_an_exact_p():
    results = two(acc(0.52), acc(0.50), seeds=1, questions=300)
    a, b = (results.panel(name, "acc").values[0] for name in ("a", "b"))
    only_a = only_b = 0
    for first, second in zip(a, b, strict=True):
        only_a += first > second
        only_b += second > first
    expected = scipy_stats.binomtest(int(only_a), int(only_a + only_b)).pvalue
    assert higher_accuracy("a", "b")(results).p == pytest.approx(expected)
    t_test = scipy_stats.ttest_rel(a, b)
    assert above(accuracy_difference("a", "b"), 1)(results).p == pytest.approx(
        scipy_stats.ttest_1samp(a - b, 0.01).pvalue
    )
    assert t_test.pvalue != pytest.approx(expected)


def totals(results, condition, metric):
    """Sums of value and weight of each run, by loops over its table."""
    sums = []
    for run in results.of(condition):
        value = weight = 0.0
        for row in run.items[run.items["metric"] == metric].itertuples():
            value += row.value
            weight += row.weight
        sums.append(value / weight)
    return np.array(sums)


def test_measures_by_loops():
    results = two(Truth(0.5, 35.0), Truth(0.4, 30.0))
    ratio = np.exp(totals(results, "a", "nll").mean() - totals(results, "b", "nll").mean())
    assert perplexity_ratio("a", "b")(results).estimate.value == pytest.approx(log(ratio))
    assert beside(perplexity_ratio("a", "b"))(results).effect == pytest.approx(ratio)
    a, b, full = (totals(results, name, "acc").mean() for name in ("a", "b", "full"))
    assert beside(accuracy_difference("a", "b"))(results).effect == pytest.approx(100 * (a - b))
    assert beside(above_chance("a"))(results).effect == pytest.approx(100 * (a - 0.25))
    assert beside(retained("a", "full"))(results).effect == pytest.approx((a - 0.25) / (full - 0.25))
    results = alike(Likeness(0.1, 0.2, 0.8), Likeness(0.2, 0.3, 0.7))
    nats = totals(results, "a", "kl").mean() - totals(results, "b", "kl").mean()
    assert beside(kl_difference("a", "b"))(results).effect == pytest.approx(nats)
    agreed = totals(results, "a", "agreement").mean() - totals(results, "b", "agreement").mean()
    assert beside(agreement_difference("a", "b"))(results).effect == pytest.approx(100 * agreed)
    a, b = (totals(results, name, "choice").mean() for name in ("a", "b"))  # full precision answers 0
    assert beside(flip_share("a", "full"))(results).effect == pytest.approx(a)
    assert beside(flip_difference("a", "b", "full"))(results).effect == pytest.approx(100 * (a - b))


def test_a_claim_of_several_comparisons_is_corrected_and_shows_the_weakest():
    results = two(Truth(0.52, 30.0, 0.002), Truth(0.5, 36.0, 0.002))
    parts = [lower_perplexity("a", "b"), higher_accuracy("a", "b")]
    unadjusted = [part(results).p for part in parts]
    found = all_of(*parts, beside(above_chance("a")))(results)
    assert [part.p for part in found.parts[:2]] == pytest.approx(holm(unadjusted))
    assert [part.evidence.p for part in found.parts[:2]] == unadjusted
    assert found.outcome == "supported" and found.parts[2].outcome is None
    assert found.description == "accuracy of a minus b (claimed above 0 points)"
    assert found.explanation == (
        "2 of 2 comparisons go the claimed way and 0 the other way after Holm's correction; the weakest: "
        f"{found.description} is {found.text} over items and 3 seeds."
    )


def test_a_contradicted_part_contradicts_the_claim():
    found = all_of(lower_perplexity("a", "b"), higher_accuracy("a", "b"))(two(Truth(0.6, 33.0), Truth(0.5, 30.0)))
    assert found.outcome == "contradicted" and found.description.startswith("perplexity of a over b")
    assert "1 of 2 comparisons go the claimed way and 1 the other way" in found.explanation
    assert "clearest against the claim: perplexity" in found.explanation


def test_many_weak_comparisons_need_more_than_each_alone():
    results = two(acc(0.515), acc(0.5), seeds=1, questions=500)
    alone = all_of(higher_accuracy("a", "b"))(results)
    many = all_of(higher_accuracy("a", "b"), *[lower_perplexity("b", "b")] * 30)(results)
    assert alone.outcome == "supported"
    assert many.parts[0].outcome == "undecided" and many.parts[0].p > alone.p


def test_guessing_is_called_guessing():
    results = two(acc(0.25), acc(0.5))
    assert higher_accuracy("b", "a")(results).description.startswith("accuracy of b minus a (at chance) (claimed")
    assert accuracy_difference("a", "a")(results).description == "accuracy of a (at chance) minus a (at chance)"


def test_worse_than_guessing_is_called_so():
    results = two(acc(0.15), acc(0.5))
    assert accuracy_difference("b", "a")(results).description == "accuracy of b minus a (below chance)"


def test_that_two_models_guess_equally_well_is_no_finding():
    guessing, one, worse = (two(acc(a), acc(b)) for a, b in ((0.25, 0.25), (0.25, 0.4), (0.1, 0.25)))
    found = same_accuracy("a", "b", 10)(guessing)
    assert (found.outcome, found.p, found.needs) == ("undecided", None, "models that do better than guessing")
    assert -10 < found.low < found.effect < found.high < 10
    assert all_of(same_accuracy("a", "b", 10), same_perplexity("a", "b", 1.5))(guessing).outcome == "undecided"
    assert same_accuracy("a", "b", 30)(one).outcome == "supported"
    assert same_accuracy("a", "b", 5)(worse).outcome == "contradicted"
    assert no_higher_accuracy("a", "b", 10)(guessing).outcome == "supported"


def test_models_that_solve_the_same_items_are_no_finding_and_alike_only_by_enough_items():
    """None of 800 items differs: the rule of three bounds the difference by 0.37 points, Holm's method by more."""
    results = two(acc(0.5), acc(0.5), seeds=1)
    results = make_results({name: [results.of("a")[0].items] for name in ("a", "b")}, CHANCE)
    ahead = all_of(higher_accuracy("a", "b"))(results)
    assert (ahead.outcome, ahead.text, ahead.needs) == ("undecided", "not defined", "items that tell them apart")
    assert "(no item tells them apart) is not defined" in ahead.explanation
    assert beside(accuracy_difference("a", "b"))(results).text == "not defined"
    for comparison in (same_accuracy, no_higher_accuracy):
        assert comparison("a", "b", 0.38)(results).outcome == "supported"
        assert comparison("a", "b", 0.37)(results).outcome == "undecided"
    assert same_accuracy("a", "b", 0.38)(results).text == "0.0 points [−0.4, 0.4]"


def test_what_decides_is_counted_before_there_are_results():
    ordinary = all_of(lower_perplexity("a", "b"), higher_accuracy("a", "b"), beside(flip_share("a", "full")))
    assert (ordinary.deciding, ordinary.margin) == (2, False)
    for claimed in (same_perplexity, same_accuracy, no_lower_perplexity, no_higher_accuracy):
        assert all_of(lower_perplexity("a", "b"), claimed("a", "b", 2)).margin


def test_tasks_can_be_chosen_and_chance_follows():
    results = two(acc(0.5), acc(0.5), chance={"piqa": 0.5, "arc_easy": 0.25})
    both, one = (above_chance("a", tasks)(results).estimate.value for tasks in (None, ["piqa"]))
    scores = results.panel("a", "acc", ["piqa"]).values.mean()
    assert one == pytest.approx(scores - 0.5) and one != pytest.approx(both)
    assert perplexity_ratio("a", "b", PERPLEXITY)(results) == perplexity_ratio("a", "b")(results)
    with pytest.raises(UserError, match="must name one of held-out, not wikitext"):
        lower_perplexity("a", "b", "wikitext")(results)


def test_what_full_precision_does_not_have_cannot_be_kept():
    results = make_results(
        {name: [make_items(acc(0.25), seed, 200, CHANCE, 60, 0.25)] for seed, name in enumerate(("a", "full"))}, CHANCE
    )
    found = all_of(above(retained("a", "full"), 0.5))(results)
    assert (found.outcome, found.effect, found.needs) == ("undecided", None, None)
    assert "not defined" in found.explanation
    assert beside(retained("a", "full"))(results).outcome is None


def test_senseless_margins_and_claims_are_refused():
    results = two()
    with pytest.raises(UserError, match="must be above 1×"):
        same_perplexity("a", "b", 0.05)(results)
    with pytest.raises(UserError, match="must be above 0 points"):
        same_accuracy("a", "b", 0)(results)
    with pytest.raises(UserError, match="0× is no ratio"):
        below(perplexity_ratio("a", "b"), 0)(results)
    with pytest.raises(UserError, match="needs a comparison that decides"):
        all_of(beside(above_chance("a")))(results)
    with pytest.raises(UserError, match="no entry 'c'"):
        lower_perplexity("a", "c")(results)


def test_claims_are_a_few_lines():
    """What a study file writes, judged and corrected as the stage does it."""
    claims = [
        Claim(
            id="better",
            sentence="a is better than b.",
            source="nowhere",
            published=lambda folder: [],
            test=all_of(lower_perplexity("a", "b"), higher_accuracy("a", "b")),
        ),
        Claim(
            id="same",
            sentence="a is b.",
            source="nowhere",
            published=lambda folder: [],
            test=all_of(within(accuracy_difference("a", "b"), 2)),
        ),
    ]
    judged = family_wise([judge(claim, two(Truth(0.55, 30.0, QUIET), Truth(0.5, 33.0, QUIET))) for claim in claims])
    assert [claim.verdict.outcome for claim in judged] == ["supported", "contradicted"]
    assert all(claim.verdict.p >= claim.verdict.evidence.p for claim in judged)
