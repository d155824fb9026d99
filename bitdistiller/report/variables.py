"""Numbers for prose: a LaTeX file of macros, so that no number of a paper is typed by hand.

    At 2 bits perplexity is \\BDPplTwoBit{} (95 \\% interval \\BDPplTwoBitLow{} to \\BDPplTwoBitHigh).

The rule for names, which also stands at the head of the file:

    \\BD + metric [+ task] + condition             a number of the first study
    \\BD + study + metric [+ task] + condition     of any other study
    ... + Low, High, Se                           its 95 % interval and standard error, where it has them
    \\BDVerdict + study + claim [+ Effect]         outcome of a claim; its effect with interval
    \\BDScale, \\BDRuns, \\BDHours, ...              of the whole; \\BDOrigin + model: what its weights are

Words are joined with a capital each, digits are spelled one by one, and signs are dropped, save a point between digits
(``Point``), a minus before one (``Minus``) and those in ``_SIGNS``: ``CE + CAKLD, T = 20`` is ``CEPlusCAKLDTTwoZero``.
``bits`` after a number is ``Bit``. The task is left out where it is the mean over tasks or the metric's only one. Of
several scales, the first is as above; names of the others begin with ``\\BD`` + scale.

Dropping signs can give two labels one name. That is an error and never a silent choice: a macro that changed its
meaning because a condition was added would put a wrong number into finished prose.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from bitdistiller.analysis.record import Row, StudyReport
from bitdistiller.analysis.rows import MEAN
from bitdistiller.errors import UserError
from bitdistiller.report.cells import number
from bitdistiller.report.latex import escape
from bitdistiller.report.scales import originals
from bitdistiller.report.tables import commit

PREFIX = "BD"
METRICS = {"perplexity": "Ppl"}  # others go by their own name
_HEAD = r"""% Numbers for prose, made by `bitdistiller report` from results/studies/*.json. Do not edit: run it again.
%   \BD + metric [+ task] + condition             a number of the first study
%   \BD + study + metric [+ task] + condition     of any other study
%   ... + Low, High, Se                           its 95 % interval and standard error, where it has them
%   \BDVerdict + study + claim [+ Effect]         outcome of a claim; its effect with interval
%   \BDOrigin + model                             what its weights are
% Of several scales, names of all but the first begin with \BD + scale. Digits are spelled one by one, signs dropped.
% Accuracies, agreement, flips, zeros and the worst tokens' share are percentages.
% A macro swallows the space after it: write \BDRuns{} or \BDRuns\ before a word. \input this file once."""
_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
_SIGNS = {"+": "Plus", "%": "Percent", "&": "And", "<": "Below", ">": "Above", "×": "Times"}
_SPELLED = ((r"(?<=[0-9]) bits\b", " bit"), (r"(?<=[0-9])\.(?=[0-9])", "Point"), (r"(?<!\w)[-−](?=[0-9])", "Minus"))

Macro = tuple[str, str, str]  # name without backslash, LaTeX value, what it is


def variables(studies: Mapping[str, Sequence[StudyReport]]) -> str:
    """The LaTeX file of all numbers, deterministic.

    Args:
        studies: computed studies by the name of their scale; the first study of the first scale has the short names.

    Raises:
        UserError: two things would have the same name, or a label has nothing that a name can be made of.
    """
    lines, owners = [_HEAD], {}
    for index, (scale, reports) in enumerate(studies.items()):
        for title, macros in _sections(PREFIX + (camel(scale) if index else ""), scale, reports):
            lines += ["", f"% {title}"]
            for name, value, meaning in macros:
                _claim_name(owners, name, meaning)
                lines.append(f"\\newcommand{{\\{name}}}{{{value}}}")
    return "\n".join(lines) + "\n"


def camel(text: str) -> str:
    """A label as part of a macro's name: ASCII letters only (see the module's docstring).

    Raises:
        UserError: nothing is left of the label.
    """
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    for pattern, word in _SPELLED:
        plain = re.sub(pattern, word, plain)
    name = "".join(_word(token) for token in re.findall("[A-Za-z]+|.", plain, re.DOTALL))
    if not name:
        raise UserError(f"the label {text!r} has no letter or digit, so no LaTeX macro can be named after it")
    return name


def _word(token: str) -> str:
    if token.isascii():
        if token.isdigit():
            return _DIGITS[int(token)]
        return token[0].upper() + token[1:] if token.isalpha() else _SIGNS.get(token, "")
    if token in _SIGNS or unicodedata.category(token)[0] in "PZMC":  # punctuation, spaces, marks, controls
        return _SIGNS.get(token, "")
    return "".join(word.capitalize() for word in re.findall("[A-Za-z]+", unicodedata.name(token, "")))


def _claim_name(owners: dict[str, str], name: str, meaning: str) -> None:
    if name in owners:
        raise UserError(f"{owners[name]} and {meaning} would both be \\{name} in variables.tex; rename one of them")
    owners[name] = meaning


def _sections(prefix: str, scale: str, reports: Sequence[StudyReport]) -> Iterator[tuple[str, list[Macro]]]:
    """Macros of one scale under their titles."""
    yield f"{scale}: the whole", list(_whole(prefix, scale, reports))
    for index, report in enumerate(reports):
        study = f"{prefix}{camel(report.name) if index else ''}"
        yield f"{scale}, {report.name}", [*_numbers(study, scale, report), *_verdicts(prefix, scale, report)]


def _whole(prefix: str, scale: str, reports: Sequence[StudyReport]) -> Iterator[Macro]:
    runs = {summary.run: summary for report in reports for summary in report.runs}.values()
    seconds = sum(run.scoring.seconds + (run.training.cost.seconds if run.training else 0.0) for run in runs)
    outcomes = [claim.verdict.outcome for report in reports for claim in report.claims]
    whole = {
        "Scale": scale,
        "Studies": str(len(reports)),
        "Runs": str(len(runs)),
        "Hours": f"{seconds / 3600:.1f}" if seconds >= 3600 else f"{seconds / 3600:.2g}",
        "Commit": ", ".join(dict.fromkeys(commit(run.environment) for run in runs)),
        "Claims": str(len(outcomes)),
        **{name.capitalize(): str(outcomes.count(name)) for name in ("supported", "contradicted", "undecided")},
    }
    for name, value in whole.items():
        yield prefix + name, escape(value), f"{scale}: {name.lower()}"
    for model, origin in originals(reports).items():
        yield f"{prefix}Origin{camel(model)}", escape(origin), f"{scale}: origin of {model}"


def _numbers(prefix: str, scale: str, report: StudyReport) -> Iterator[Macro]:
    """Means of all conditions of a study."""
    rows = [row for row in report.rows if row.kind == "mean"]
    tasks: dict[str, set[str]] = {}
    for row in rows:
        tasks.setdefault(row.metric, set()).add(row.task)
    for row in rows:
        short = row.task == MEAN or len(tasks[row.metric]) == 1
        words = [METRICS.get(row.metric) or camel(row.metric), "" if short else camel(row.task), camel(row.condition)]
        meaning = f"{scale}, study {report.name}: {row.metric} on {row.task} of {row.condition!r}"
        yield from _with_interval(prefix + "".join(words), row, meaning)


def _with_interval(name: str, row: Row, meaning: str) -> Iterator[Macro]:
    parts = {"": row.value, "Low": row.low, "High": row.high, "Se": row.standard_error}
    for suffix, value in parts.items():
        if value is not None:
            yield name + suffix, escape(number(value, row.metric)), f"{meaning} {suffix}".rstrip()


def _verdicts(prefix: str, scale: str, report: StudyReport) -> Iterator[Macro]:
    for claim in report.claims:
        name = f"{prefix}Verdict{camel(report.name)}{camel(claim.id)}"
        meaning = f"{scale}: verdict of {report.name}/{claim.id}"
        yield name, escape(claim.verdict.outcome), meaning
        yield f"{name}Effect", escape(claim.verdict.text), f"{meaning}, effect"
