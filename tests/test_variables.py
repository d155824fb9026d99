"""Macros for prose: names of letters only, never two things under one name, the numbers of the tables."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitdistiller.analysis.record import StudyReport
from bitdistiller.analysis.study import run_study
from bitdistiller.config import load_params
from bitdistiller.errors import UserError
from bitdistiller.report.tables import number
from bitdistiller.report.variables import camel, variables
from tests.synthetic import ROOT, bit_scaling_runs, make_params

MACRO = re.compile(r"^\\newcommand\{\\([A-Za-z]+)\}\{(.*)\}$")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> StudyReport:
    folder = tmp_path_factory.mktemp("variables")
    return run_study("bit_scaling", make_params(bit_scaling_runs(folder, questions=80, seeds=2)), folder)


def macros(source: str) -> dict[str, str]:
    """Names and values; each line that is no comment is one definition, of a name of its own."""
    lines = [line for line in source.splitlines() if line and not line.startswith("%")]
    found = [MACRO.match(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    names = dict(match.groups() for match in found)
    assert len(names) == len(lines)
    return names


def renamed(report: StudyReport, **labels: str) -> StudyReport:
    """The same study with other labels for two of its conditions."""
    new = {"2 bits": labels.get("two", "2 bits"), "1 bit": labels.get("one", "1 bit")}
    rows = [row.model_copy(update={"condition": new.get(row.condition, row.condition)}) for row in report.rows]
    return report.model_copy(update={"rows": rows})


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("2 bits", "TwoBit"),
        ("1 bit", "OneBit"),
        ("ternary, 1.58 bits", "TernaryOnePointFiveEightBit"),
        ("CE + CAKLD, T = 20", "CEPlusCAKLDTTwoZero"),
        ("1 bit, groups of 128", "OneBitGroupsOfOneTwoEight"),
        ("the-grid-fails", "TheGridFails"),
        ("one_bit_collapse", "OneBitCollapse"),
        ("LLM-QAT's recipe, 3 bits", "LLMQATSRecipeThreeBit"),
        ("shift of -1", "ShiftOfMinusOne"),
        ("2-4", "TwoFour"),
        ("Kydlíček", "Kydlicek"),
        ("γ", "GreekSmallLetterGamma"),
        ("50 %", "FiveZeroPercent"),
    ],
)
def test_labels_become_names(label, name):
    assert camel(label) == name


def refusal(make, *arguments) -> str | None:
    """What a ``UserError`` says; None if there is none."""
    try:
        make(*arguments)
    except UserError as error:
        return str(error)
    return None


@given(st.text(max_size=30))
def test_names_are_letters_only_or_the_label_is_refused(label):
    refused = refusal(camel, label)
    if refused is None:
        assert re.fullmatch("[A-Z][A-Za-z]*", camel(label))
    else:
        assert repr(label) in refused and not re.search("[0-9A-Za-z]", label)


WORDS = st.lists(st.from_regex(r"[a-z]{1,6}|[0-9]{1,3}", fullmatch=True), min_size=1, max_size=4)


@given(WORDS, WORDS)
def test_labels_of_other_words_have_other_names(first, second):
    """Injective on words and numbers, but for `bits` after a number, and numbers with nothing between them."""
    one, other = (camel(" ".join(words)) for words in (first, second))
    if one == other:
        spelled = [re.sub(r"(?<=[0-9]) (?=[0-9])", "", " ".join(words)) for words in (first, second)]
        assert len({re.sub(r"(?<=[0-9]) bits\b", " bit", label) for label in spelled}) == 1


@given(two=st.text(max_size=12), one=st.text(max_size=12))
def test_two_labels_never_share_a_name_silently(report, two, one):
    studies = {"micro": [renamed(report, two=two, one=one)]}
    refused = refusal(variables, studies)
    if refused is None:
        names = macros(variables(studies))
        assert camel(two) != camel(one) and {f"BDPpl{camel(label)}" for label in (two, one)} <= set(names)
    else:
        assert "rename one of them" in refused or "no letter or digit" in refused


def test_numbers_are_those_of_the_tables(report):
    names = macros(variables({"micro": [report]}))
    row = next(row for row in report.rows if (row.kind, row.condition, row.metric) == ("mean", "2 bits", "perplexity"))
    for suffix, value in {"": row.value, "Low": row.low, "High": row.high, "Se": row.standard_error}.items():
        assert names[f"BDPplTwoBit{suffix}"] == number(value, "perplexity")
    assert float(names["BDAccTwoBit"]) == pytest.approx(41, abs=8)
    assert names["BDAccContinuationTwoBit"] == names["BDAccTwoBit"]  # the only task
    assert names["BDScale"] == "micro" and names["BDRuns"] == "9" and names["BDStudies"] == "1"
    assert "never trained" in names["BDOriginMicroThreeM"]


def test_verdicts_come_with_their_effects(report):
    names = macros(variables({"micro": [report]}))
    for claim in report.claims:
        name = f"BDVerdictBitScaling{camel(claim.id)}"
        assert names[name] == claim.verdict.outcome
        bare = names[f"{name}Effect"].replace(r"\ensuremath{-}", "−").replace(r"\ensuremath{\times}", "×")
        assert bare.replace(r"\%", "%") == claim.verdict.text
    outcomes = [claim.verdict.outcome for claim in report.claims]
    assert [int(names[f"BD{word}"]) for word in ("Supported", "Contradicted", "Undecided")] == [
        outcomes.count(word) for word in ("supported", "contradicted", "undecided")
    ]


def test_other_studies_and_other_scales_have_names_of_their_own(report):
    second = report.model_copy(update={"name": "clipping"})
    names = macros(variables({"micro": [report, second], "laptop": [report]}))
    assert names["BDClippingPplTwoBit"] == names["BDLaptopPplTwoBit"] == names["BDPplTwoBit"]
    assert names["BDLaptopScale"] == "laptop" and names["BDRuns"] == names["BDLaptopRuns"] == "9"


@pytest.mark.parametrize(
    ("two", "one", "clash"), [("slow", "slow low", "BDPplSlowLow"), ("a-b", "a b", "BDPplAB"), ("1", "One", "BDPplOne")]
)
def test_a_clash_names_both_sides(report, two, one, clash):
    with pytest.raises(UserError) as caught:
        variables({"micro": [renamed(report, two=two, one=one)]})
    assert all(part in str(caught.value) for part in (repr(two), repr(one), f"\\{clash} "))


def test_the_same_study_twice_is_refused(report):
    twice = report.model_copy(update={"name": "bit-scaling"})
    with pytest.raises(UserError, match="rename one of them"):
        variables({"micro": [report, report.model_copy(update={"name": "x"}), twice]})


def test_names_of_all_micro_studies_differ_and_the_file_says_its_rule():
    names = load_params(ROOT / "params.yaml").studies
    reports = [StudyReport.read(ROOT / "results" / "studies" / f"{name}.json") for name in names]
    source = variables({"micro": reports})
    assert source == variables({"micro": reports}) and source.startswith("% Numbers for prose")
    assert "+ Low, High, Se" in source.split("\n\n")[0]
    assert {"BDPplTwoBit", "BDVerdictOneBitCollapseTheGridFails", "BDHours"} <= set(macros(source))
