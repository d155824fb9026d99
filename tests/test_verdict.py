"""The rules that make verdicts of estimates: bounds, margins, Holm's correction within a claim and within a study."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from bitdistiller.analysis.stats import Estimate
from bitdistiller.analysis.study import judge, load_results, load_study, studies_dir, study_params
from bitdistiller.analysis.verdict import (
    JudgedClaim,
    above_bound,
    at_least,
    below_bound,
    conjunction,
    decisive,
    digits,
    directions,
    family_wise,
    finding,
    format_bound,
    format_effect,
    printed,
    undefined,
    unprinted,
    verdict,
    within_margin,
)
from bitdistiller.errors import UserError
from tests.synthetic import ROOT, bit_scaling_runs, make_params


def estimate(value, error=0.1):
    return Estimate(value, error, 1e6, 100, 1)


def test_outcomes_follow_the_interval():
    assert at_least(estimate(1.0), 0.5) == "supported"
    assert at_least(estimate(0.0), 0.5) == "contradicted"
    assert at_least(estimate(0.4), 0.5) == "undecided"


estimates = st.builds(
    Estimate, st.floats(-1, 1), st.floats(1e-3, 1), st.floats(2, 1000), st.just(100), st.integers(1, 3)
)
OPPOSITE = {"supported": "contradicted", "contradicted": "supported", "undecided": "undecided"}


def outcomes(estimate, bound, margin):
    return [
        above_bound("x", estimate, "share", bound).outcome,
        below_bound("x", estimate, "share", bound).outcome,
        within_margin("x", estimate, "share", margin).outcome,
    ]


@given(estimates, st.floats(-1, 1), st.floats(1e-3, 1))
def test_sides_are_symmetric(estimate, bound, margin):
    mirrored = Estimate(-estimate.value, estimate.standard_error, estimate.df, estimate.n, estimate.seeds)
    above, below, same = outcomes(estimate, bound, margin)
    assert below == OPPOSITE[above]
    assert outcomes(mirrored, -bound, margin) == [below, above, same]


@given(estimates, st.floats(1e-3, 1))
def test_equivalence_follows_two_intervals_and_its_p(estimate, margin):
    half = scipy_stats.t.ppf(0.95, estimate.df) * estimate.standard_error
    inside = -margin <= estimate.value - half and estimate.value + half <= margin
    beyond = estimate.low > margin or estimate.high < -margin
    assert not (inside and beyond)
    found = within_margin("x", estimate, "share", margin)
    assert found.outcome == ("supported" if inside else "contradicted" if beyond else "undecided")
    assert (found.p <= 0.05) == (found.outcome != "undecided")
    assert found.evidence.tails == (1 if abs(estimate.value) <= margin else 2)


@given(estimates, st.floats(-1, 1), st.floats(1e-3, 1), st.floats(1, 5))
def test_a_wider_interval_decides_nothing_new(estimate, bound, margin, factor):
    wider = Estimate(estimate.value, factor * estimate.standard_error, estimate.df, 100, 1)
    for narrow, wide in zip(outcomes(estimate, bound, margin), outcomes(wider, bound, margin), strict=True):
        assert wide in (narrow, "undecided")


def test_an_exact_p_and_the_interval_must_agree():
    clear = estimate(0.5)
    assert above_bound("x", clear, "points").outcome == "supported"
    assert above_bound("x", clear, "points", p=0.06).outcome == "undecided"
    assert above_bound("x", estimate(0.1), "points", p=0.01).outcome == "undecided"


def test_identical_perplexities_are_the_same_and_nothing_else():
    nothing = Estimate(0.0, 0.0, 10.0, 11, 1, "documents")
    assert outcomes(nothing, 0.0, 0.01) == ["undecided", "undecided", "supported"]


@pytest.mark.parametrize(("n", "outcome"), [(100, "undecided"), (200, "supported")])
def test_where_no_item_tells_two_apart_a_direction_is_undefined_and_a_margin_needs_items(n, outcome):
    nothing = Estimate(0.0, 0.0, n - 1.0, n, 1, alike=float(n))
    for direction in (above_bound, below_bound):
        found = direction("x", nothing, "points")
        assert (found.outcome, found.effect, found.p, found.evidence) == ("undecided", None, None, None)
        assert found.description == "x (no item tells them apart)" and found.needs == "items that tell them apart"
    assert finding("x", nothing, "points", None, 1.0).text == "not defined"
    for same in (within_margin("x", nothing, "points", 0.02), below_bound("x", nothing, "points", 0.02)):
        assert (same.outcome, same.effect, same.high) == (outcome, 0, pytest.approx(299.57 / n, rel=1e-4))
        assert same.p == pytest.approx(np.exp(-0.02 * n))
    assert above_bound("x", nothing, "points", 0.02).outcome == ("contradicted" if n == 200 else "undecided")


@given(st.floats(-5, 5), st.sampled_from(["points", "times", "percent", "share", "nats"]))
def test_units_convert_both_ways(value, unit):
    assert unprinted(printed(value, unit), unit) == pytest.approx(value, abs=1e-9)


def test_directions_need_holm_and_the_interval_to_agree():
    rows = [(str(z), estimate(z / 10), "points", estimate(z / 10).p_value()) for z in (5, -5, 2.1, 0)]
    assert [f.outcome for f in directions(rows)] == ["supported", "contradicted", "undecided", "undecided"]
    assert directions(rows[2:3])[0].outcome == "supported"


def test_conjunction_needs_every_part():
    parts = {o: finding("x", estimate(0.0), "share", o, None) for o in ("supported", "contradicted", "undecided")}
    assert conjunction([parts["supported"]] * 2) == "supported"
    assert conjunction([parts["supported"], parts["undecided"]]) == "undecided"
    assert conjunction([parts["undecided"], parts["contradicted"]]) == "contradicted"
    beside = finding("x", estimate(0.0), "share", None)
    assert conjunction([parts["supported"], beside]) == "supported"
    assert conjunction([beside]) == "undecided"


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
        (1.167, "times", "1.17×"),
        (1.0672, "times", "1.067×"),
        (0.9996, "times", "1.000×"),
        (0.30, "times", "0.30×"),
        (0.0072, "times", "0.0072×"),
        (0.0, "times", "0.00×"),
        (-0.004, "share", "0.00"),
        (0.5, "share", "0.50"),
        (5.54, "percent", "5.5 %"),
        (0.0123, "nats", "0.012 nats"),
        (-0.00034, "nats", "−0.0003 nats"),
    ],
)
def test_effects_are_written_for_people(value, unit, text):
    assert format_effect(value, unit) == text


def test_bounds_are_written_as_in_the_study():
    assert [format_bound(-2, "points"), format_bound(1.05, "times"), format_bound(0.5, "share")] == [
        "−2 points",
        "1.05×",
        "0.5",
    ]
    assert format_bound(1, "points") == "1 point"
    with pytest.raises(UserError, match="−1× is no ratio"):
        unprinted(-1, "times")


def test_digits_keep_a_true_minus():
    assert digits(-0.05, 2) == "−0.05"


def part(p, side="supported", name="x"):
    """A comparison whose two-sided p is ``p``."""
    t = float(scipy_stats.norm.isf(p / 2)) * (1 if side == "supported" else -1)
    return above_bound(name, Estimate(t, 1.0, 1e9, 100, 1), "share")


def claim(*parts, beside=()):
    """A judged claim of one comparison or several, not corrected yet."""
    rest = [*parts, *beside] if len(parts) > 1 else list(beside)
    judged = verdict(decisive(parts), conjunction(parts), "Said.", rest)
    return JudgedClaim(id="c", sentence="s", source="s", published=[], verdict=judged)


def slow_holm(p_values):
    """Holm's step-down procedure by the book: which hypotheses are rejected at 5 %."""
    rejected, left = set(), dict(enumerate(p_values))
    while left:
        index = min(left, key=left.get)
        if left[index] > 0.05 / len(left):
            break
        rejected.add(index)
        del left[index]
    return rejected


p_lists = st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=9)


@given(p_lists, st.randoms(use_true_random=False))
@settings(max_examples=8)  # statsmodels collects garbage at every Holm correction
def test_a_study_is_corrected_as_one_family(p_values, random):
    """However its comparisons are spread over claims, each is decided as the textbook procedure decides it."""
    assume(all(abs(k * p - 0.05) > 1e-6 for p in p_values for k in range(1, 10)))  # a tie is decided by rounding
    parts = [part(p, random.choice(["supported", "contradicted"]), str(i)) for i, p in enumerate(p_values)]
    claims, rest = [], list(parts)
    while rest:
        size = random.randint(1, len(rest))
        claims.append(claim(*rest[:size]))
        rest = rest[size:]
    after = family_wise(claims)
    found = [one for judged in after for one in (judged.verdict.parts or [judged.verdict])]
    rejected = slow_holm(p_values)
    for index, (before, one) in enumerate(zip(parts, found, strict=True)):
        assert one.outcome == (before.outcome if index in rejected else "undecided")
        assert one.evidence.p == pytest.approx(p_values[index])
        assert (one.needs is None) == (index in rejected)
    for judged in after:
        own = judged.verdict
        assert own.outcome == conjunction(own.parts or [own])
        assert not own.parts or any(
            (p.description, p.outcome, p.p) == (own.description, own.outcome, own.p) for p in own.parts
        )
    assert family_wise(after) == after


def test_the_effect_shown_is_the_one_that_the_outcome_hangs_on():
    """A claim holds by its weakest part and falls by its clearest contradiction; rules without p count as weak."""
    weak, strong = part(0.04, name="weak"), part(1e-6, name="strong")
    assert decisive([strong, weak]).description == "weak"
    worst, bad = part(1e-6, "contradicted", "worst"), part(0.04, "contradicted", "bad")
    assert decisive([bad, worst, weak]).description == "worst"
    rule = finding("rule", estimate(0.0), "share", "supported")
    assert decisive([weak, rule, strong]).description == "rule"


def test_three_weak_claims_do_not_hold_together():
    alone = claim(part(0.03))
    assert alone.verdict.outcome == "supported" and alone.verdict.needs is None
    first, *_ = family_wise([alone, claim(part(0.04)), claim(part(0.02, "contradicted"))])
    assert first.verdict.outcome == "undecided" and first.verdict.p == pytest.approx(0.06)
    assert first.verdict.explanation == (
        "Said. Holm's correction over all 3 comparisons of the study leaves undecided: x."
    )
    needs = float(first.verdict.needs.split()[1].replace(",", ""))
    z, wanted = scipy_stats.norm.isf([0.03 / 2, 0.05 / 3 / 2])
    assert needs == pytest.approx(100 * ((wanted + 0.8416) / z) ** 2, rel=0.05)


def test_strong_claims_stay_as_they_are():
    claims = [claim(part(1e-6)), claim(part(0.2)), claim(part(1e-5, "contradicted"))]
    after = family_wise(claims)
    assert [judged.verdict.outcome for judged in after] == ["supported", "undecided", "contradicted"]
    assert [judged.verdict.explanation for judged in after] == ["Said."] * 3
    assert after[1].verdict.needs and not after[0].verdict.needs


def test_a_conjunction_loses_its_weakest_part_only():
    before = claim(
        part(1e-6, name="strong"), part(0.01, name="weak"), beside=[finding("b", estimate(0), "share", None)]
    )
    assert (before.verdict.outcome, before.verdict.description) == ("supported", "weak")
    after = family_wise([before, *[claim(part(p)) for p in (0.3, 0.4, 0.5, 0.6)]])[0].verdict
    assert [p.outcome for p in after.parts] == ["supported", "undecided", None]
    assert (after.outcome, after.description) == ("undecided", "weak")
    assert after.explanation == (
        f"1 of 2 comparisons go the claimed way and 0 the other way after Holm's correction; the weakest: weak is "
        f"{after.text} over items only (one seed). Holm's correction over all 6 comparisons of the study leaves "
        "undecided: weak."
    )


def test_a_contradiction_that_does_not_survive_leaves_the_claim_open():
    before = claim(part(1e-6, name="for"), part(0.01, "contradicted", name="against"))
    assert (before.verdict.outcome, before.verdict.description) == ("contradicted", "against")
    after = family_wise([before, *[claim(part(0.5))] * 5])[0].verdict
    assert (after.outcome, after.description) == ("undecided", "against")
    assert "and 0 the other way" in after.explanation and "the weakest: against" in after.explanation


def test_comparisons_beside_a_claim_and_rules_without_p_are_no_part_of_the_family():
    rule = finding("rule", estimate(0.0), "share", "supported")
    claims = [claim(part(0.03)), claim(rule), claim(undefined("u", "share", 10, 1))]
    claims.append(claim(part(1e-6), beside=[finding("b", estimate(0.1), "share", None, 0.9)] * 20))
    after = family_wise(claims)
    assert [judged.verdict.outcome for judged in after] == ["supported", "supported", "undecided", "supported"]
    assert after[0].verdict.p == pytest.approx(0.03)
    assert after[1] == claims[1] and after[2] == claims[2]
    assert [beside.p for beside in after[3].verdict.parts] == [0.9] * 20
    assert family_wise([]) == []


def test_equivalence_is_corrected_too():
    same = within_margin("same", Estimate(0.0, 1.0, 1e9, 100, 1), "share", 1.9)
    assert same.outcome == "supported" and same.p == pytest.approx(scipy_stats.norm.sf(1.9))
    after = family_wise([claim(same), claim(part(0.2))])[0].verdict
    assert after.outcome == "undecided" and after.p == pytest.approx(2 * same.p)
    assert after.needs.endswith("items")


def test_records_survive_the_file(tmp_path):
    judged = family_wise([claim(part(0.03), part(0.2)), claim(part(1e-5))])[0]
    judged.write(tmp_path / "claim.json")
    assert JudgedClaim.read(tmp_path / "claim.json") == judged


@pytest.mark.parametrize("questions", [40, 1000])
def test_a_sentence_about_standard_errors_is_not_undone(tmp_path, questions):
    """ "Within two standard errors of chance" rejects nothing, so there is nothing to correct."""
    params = make_params(bit_scaling_runs(tmp_path, questions=questions))
    study = load_study("bit_scaling", studies_dir(params))
    results = load_results(study_params(study, params), tmp_path, ROOT / "reports" / "published")
    judged = [judge(one, results) for one in study.claims]
    after = family_wise(judged)
    for before, now in zip(judged, after, strict=True):
        assert now.verdict.outcome in (before.verdict.outcome, "undecided")
    chance = next(one.verdict for one in after if one.id == "one-bit-chance")
    assert chance.outcome == ("supported" if questions == 1000 else "undecided")
    assert (chance.needs is None) == (questions == 1000)
