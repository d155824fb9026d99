"""What the audit finds in the papers' own tables; its command, its refusals, and its stated error rates."""

import json
import shutil
from pathlib import Path

import pytest
from scipy import stats

from bitdistiller import cli
from bitdistiller.analysis.audit import audit, calibration
from bitdistiller.analysis.audit.calibrate import calibrate
from bitdistiller.analysis.audit.record import CHECKS, AuditReport, Calibration
from bitdistiller.errors import UserError

PUBLISHED = Path(__file__).parent.parent / "reports" / "published"
GOOD = "model,piqa,piqa_se\na,72.63,1.04\nb,66.21,1.10\n"


@pytest.fixture(scope="module")
def report() -> AuditReport:
    return audit([PUBLISHED])


def found(report: AuditReport, file: str, row: int | None, title: str):
    chosen = [f for f in report.findings if (f.file, f.row, f.title) == (file, row, title)]
    assert len(chosen) == 1, f"{file}, row {row}: {title}"
    return chosen[0]


def test_the_permuted_row_is_found_and_put_in_order(report):
    title = "scores with their standard errors stand in the wrong columns"
    finding = found(report, "followup_bits.csv", 12, title)
    assert finding.row_label == "Llama-2-7B, 3"
    assert finding.fits == {
        "piqa": "76.88 ± 0.98",
        "hellaswag": "55.16 ± 0.50",
        "winogrande": "67.88 ± 1.31",
        "arc_challenge": "39.76 ± 1.43",
        "arc_easy": "74.66 ± 0.89",
    }
    assert finding.chance < 1e-8


def test_the_permuted_row_is_confirmed_by_the_other_table_that_prints_it(report):
    finding = found(report, "followup_bits.csv", 12, "one run printed in two orders of columns")
    assert finding.fits["piqa"] == "76.88"
    assert "followup_repo_results.csv, row 2" in finding.explanation


def test_the_wrong_average_is_found_wherever_it_is_printed(report):
    finding = found(report, "followup_bits.csv", 8, "average is not the mean of its columns")
    assert (finding.printed, finding.fits) == ({"qa_avg": "47.57"}, {"qa_avg": "49.34"})
    assert [place.split(",")[0] for place in finding.also] == ["followup_repo_results.csv", "followup_teacher.csv"]


def test_the_constant_standard_errors_are_found(report):
    finding = found(report, "followup_teacher.csv", 1, "the same standard error throughout")
    assert set(finding.printed.values()) == {"1.00"}
    assert finding.fits["hellaswag_se"] == "0.47"


def test_the_labels_of_the_group_size_table_are_found(report):
    finding = found(report, "followup_group.csv", None, "row labels name other models than the rows' own")
    assert set(finding.printed.values()) == {"Llama-3 3B", "Llama-2 7B"}
    found(report, "followup_group.csv", None, "the default is missing from the table that varies it")


def test_the_sentence_on_perplexity_is_found(report):
    finding = found(report, "followup_kd_temperature.csv", 1, "the text says one direction, the table another")
    assert list(finding.printed.values()) == ["22.43", "23.76"]


def test_the_item_count_behind_gsm8k_is_found(report):
    finding = found(report, "bitdistiller_reasoning.csv", None, "scores fit n = 1,280, not 1,319")
    assert all(column.startswith("gsm8k") for column in finding.columns)
    assert finding.chance < 1e-9


def test_the_copied_standard_errors_are_found(report):
    finding = found(report, "followup_bits.csv", 6, "standard errors of another row")
    assert "followup_bits.csv, row 8 (Llama-3.2-3B, 2), whose scores they fit" in finding.explanation


def test_nothing_else_is_found_that_nobody_looked_at(report):
    """Every finding was checked by hand; a new one has to be looked at before it is added here."""
    files = {"bits": 8, "kd_temperature": 6, "group": 2, "teacher": 1}
    assert {name: sum(f.file == f"followup_{name}.csv" for f in report.findings) for name in files} == files
    files = {"llama2": 1, "reasoning": 4, "cost": 0}
    assert {name: sum(f.file == f"bitdistiller_{name}.csv" for f in report.findings) for name in files} == files
    assert len(report.findings) == 22


def test_every_check_had_something_to_test(report):
    assert {one.check for one in report.tested if one.count} == set(CHECKS)
    assert sum(one.count for one in report.tested if one.check == "standard error") == 125


def test_the_findings_are_plain_data_and_survive_a_round_trip(report, tmp_path):
    report.write(tmp_path / "audit.json")
    assert AuditReport.read(tmp_path / "audit.json") == report
    rows = report.table()
    assert len(rows) == len(report.findings)
    assert all(isinstance(text, str) and "\n" not in text for row in rows for text in row.values())
    assert all(row["title"] and row["explanation"].endswith(".") and len(row["title"]) <= 80 for row in rows)


def test_the_readme_lists_every_file():
    lines = (PUBLISHED / "README.md").read_text().splitlines()
    listed = {line.split("|")[1].strip() for line in lines if line.startswith("|")}
    assert {path.name for path in PUBLISHED.iterdir()} - {"README.md"} <= listed


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `bitdistiller audit` in this process: exit status, stdout and stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["bitdistiller", "audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capsys.readouterr()

    return run


def test_the_command_prints_findings_writes_json_and_is_strict_on_request(command, tmp_path, monkeypatch):
    monkeypatch.chdir(PUBLISHED.parent.parent)
    status, out, err = command("--json", tmp_path / "a.json", "--strict")
    assert (status, err) == (1, "")
    assert "scores fit n = 1,280, not 1,319" in out
    assert "False alarms: " in out
    assert len(json.loads((tmp_path / "a.json").read_text())["findings"]) == 22


def test_findings_leave_the_status_at_0_unless_it_is_strict(command, tmp_path):
    (tmp_path / "good.csv").write_text(GOOD)
    (tmp_path / "bad.csv").write_text(GOOD.replace("1.04", "3.04"))
    assert command("--strict", tmp_path / "good.csv")[0] == 0
    assert command(tmp_path / "bad.csv")[0] == 0
    assert command("--strict", tmp_path / "bad.csv")[0] == 1


def test_the_command_refuses_bad_input_in_one_sentence(command, tmp_path):
    status, out, err = command(tmp_path / "none.csv")
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and len(err.splitlines()) == 1


def test_the_command_measures_its_error_rates(command, tmp_path):
    status, out, _ = command("--calibrate", 1, "--json", tmp_path / "c.json")
    assert status == 0
    assert "a sentence against its table" in out
    assert Calibration.read(tmp_path / "c.json").any_false_alarm.tables == 1


def refused(words: str, *arguments, **keywords):
    with pytest.raises(UserError, match=words) as caught:
        audit(*arguments, **keywords)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "words"), [
    (b"", "t.csv cannot be read as CSV"),
    (b"model,piqa\n", "t.csv has a header and no rows"),
    (b"model,method\na,b\n", "t.csv has no column of measured numbers"),
    (b"model,bits\na,2\n", "t.csv has no column of measured numbers"),
    (b"a,b\n1.5,2.5,3.5,4\n", "t.csv cannot be read as CSV"),
    (b"a,piqa,piqa\nx,1.5,2.5\n", "t.csv has two columns named 'piqa'"),
    (b"\xff\xfe\x00\x01", "t.csv cannot be read as CSV"),
])  # fmt: skip
def test_odd_files_are_refused(tmp_path, content, words):
    (tmp_path / "t.csv").write_bytes(content)
    refused(words, [tmp_path / "t.csv"])


def test_odd_paths_are_refused(tmp_path):
    refused("none.csv does not exist; name a CSV file or a folder", [tmp_path / "none.csv"])
    refused("has no CSV files to audit", [tmp_path])
    (tmp_path / "words.csv").write_text("a,b\nx,y\n")
    refused("no table under .* has a column of measured numbers", [tmp_path])
    (tmp_path / "sub").mkdir()
    shutil.copy(tmp_path / "words.csv", tmp_path / "sub")
    refused("two of the files are called words.csv", [tmp_path, tmp_path / "sub"])


@pytest.mark.parametrize(("content", "words"), [
    ("claims: [", "is not YAML"),
    ("claim: []", "malformed at claim: Extra inputs"),
    ("claims: [{id: a, sentence: b, source: c, test: {kind: hunch}}]", "malformed at claims.0.test"),
    ("- a", "malformed at the whole file"),
    ("claims: [{id: x, sentence: s, source: q, test: {kind: trend, rows: {file: t.csv, columns: [ppl]}, along: model, "
     "order: [a, b], expect: rises}}]", "claim x: t.csv has no numbers under 'ppl'"),
    ("claims: [{id: x, sentence: s, source: q, test: {kind: trend, rows: {file: t.csv, columns: [piqa], "
     "where: {method: a}}, along: model, order: [a, b], expect: rises}}]", "claim x: t.csv has no column 'method'"),
    ("claims: [{id: x, sentence: s, source: q, test: {kind: trend, rows: {file: t.csv, columns: [piqa], "
     "where: {model: z}}, along: model, order: [a, b], expect: rises}}]", "claim x: no row of t.csv that is chosen"),
    ("claims: [{id: x, sentence: s, source: q, test: {kind: trend, rows: {file: t.csv, columns: [piqa]}, "
     "along: model, order: [y, z], expect: rises}}]", "claim x: no two chosen rows have model among"),
    ("averages: [{file: t.csv, column: mean, of: [piqa, none]}]", "t.csv has no numbers under 'mean'"),
])  # fmt: skip
def test_odd_claim_files_are_refused(tmp_path, content, words):
    (tmp_path / "t.csv").write_text(GOOD)
    (tmp_path / "claims.yaml").write_text(content)
    refused(words, [tmp_path / "t.csv"])


def test_a_claim_file_or_item_file_that_is_named_has_to_exist(tmp_path):
    (tmp_path / "t.csv").write_text(GOOD)
    refused("the claim file .* does not exist", [tmp_path / "t.csv"], claims=tmp_path / "c.yaml")
    refused("the item counts file .* does not exist", [tmp_path / "t.csv"], items=tmp_path / "i.yaml")


@pytest.mark.parametrize(("content", "words"), [
    ("a: [", "is not YAML"),
    ("- a", "has to map names to numbers of items"),
    ("a: many", "'a' needs a whole number of items"),
    ("a: 1", "'a' needs a whole number of items"),
    ("a: {count: 5}", "'a' needs a whole number of items"),
])  # fmt: skip
def test_odd_item_files_are_refused(tmp_path, content, words):
    (tmp_path / "t.csv").write_text(GOOD)
    (tmp_path / "i.yaml").write_text(content)
    refused(words, [tmp_path / "t.csv"], items=tmp_path / "i.yaml")


def test_item_counts_of_the_user_come_before_ours(tmp_path):
    (tmp_path / "t.csv").write_text(GOOD)
    (tmp_path / "i.yaml").write_text("piqa: 500\n")
    assert audit([tmp_path / "t.csv"]).findings == []
    titles = {finding.title for finding in audit([tmp_path / "t.csv"], items=tmp_path / "i.yaml").findings}
    assert "standard error does not fit its score" in titles


@pytest.mark.parametrize(("expect", "alarm"), [
    ("higher", False), ("not lower", False), ("lower", True), ("not higher", True), ("no difference", True),
])  # fmt: skip
def test_a_claim_is_held_against_direction_and_standard_errors(tmp_path, expect, alarm):
    """a has 72.63 and b 66.21, 4.2 standard errors apart."""
    (tmp_path / "t.csv").write_text(GOOD)
    side = "{{file: t.csv, columns: [piqa], where: {{model: {}}}}}".format
    test = f"{{kind: comparison, left: {side('a')}, right: {side('b')}, expect: {expect}}}"
    (tmp_path / "claims.yaml").write_text(f"claims: [{{id: x, sentence: s, source: q, test: {test}}}]")
    assert bool(audit([tmp_path / "t.csv"]).findings) == alarm


@pytest.mark.parametrize(("expect", "alarm"), [("falls", False), ("rises", True)])
def test_a_trend_is_held_against_its_order(tmp_path, expect, alarm):
    (tmp_path / "t.csv").write_text(GOOD)
    test = f"{{kind: trend, rows: {{file: t.csv, columns: [piqa]}}, along: model, order: [a, b], expect: {expect}}}"
    (tmp_path / "claims.yaml").write_text(f"claims: [{{id: x, sentence: s, source: q, test: {test}}}]")
    assert bool(audit([tmp_path / "t.csv"]).findings) == alarm


def test_a_claim_about_a_table_that_is_not_audited_is_left_out_and_says_so(tmp_path):
    shutil.copy(PUBLISHED / "claims.yaml", tmp_path)
    shutil.copy(PUBLISHED / "followup_bits.csv", tmp_path)
    tested = audit([tmp_path]).tested
    notes = [one.note for one in tested if one.check == "claim" and not one.count]
    assert any("followup_kd_temperature.csv is not audited" in note for note in notes)


def test_a_declared_average_needs_no_search(tmp_path):
    (tmp_path / "t.csv").write_text("model,x,y,score\na,10.00,20.00,15.50\n")
    (tmp_path / "claims.yaml").write_text("averages: [{file: t.csv, column: score, of: [x, y]}]")
    findings = audit([tmp_path]).findings
    assert [(f.check, f.fits) for f in findings] == [("average", {"score": "15.00"})]


@pytest.mark.slow
def test_the_stated_error_rates_are_those_of_this_code():
    """A few generated corpora again: as many are detected as the committed calibration says, up to luck."""
    stated, fresh = calibration(), calibrate(12, seed=2)
    assert isinstance(stated, Calibration)
    assert stated.any_false_alarm.tables >= 1000
    assert stated.any_false_alarm.high < 0.01
    assert [(r.check, r.corruption) for r in stated.detections] == [(r.check, r.corruption) for r in fresh.detections]
    rates = [stated.any_false_alarm, *stated.false_alarms, *stated.detections]
    again = [fresh.any_false_alarm, *fresh.false_alarms, *fresh.detections]
    for old, new in zip(rates, again, strict=True):
        both = [[old.hits, old.tables - old.hits], [new.hits, new.tables - new.hits]]
        assert stats.fisher_exact(both).pvalue > 1e-4, (old, new)
