"""Row labels that cannot be what the table is about.

A label column may name models in two ways. Either it says in its name which part they play (student, teacher, who
generated the data), or the models are what the rows are. In the second case a table that also says whose row it is,
in a ``model`` or ``student`` column, contradicts itself where the label names another model: a table of group sizes,
all of one student, whose rows are called by the names of three.

A label counts as a model's name if nothing is left of it once family, version and size are taken away, and if its
family is one that the audited tables name as a model. "7B teacher" is no name, and "Llama-3 3B" may be Llama-3.2-3B.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bitdistiller.analysis.audit.items import normal
from bitdistiller.analysis.audit.record import Finding, Tested
from bitdistiller.analysis.audit.table import Table

OWN = ("model", "student", "base_model", "model_name")
_ROLE = re.compile(r"teacher|generat|judge|draft|source|token|by$|from$|assistant|origin|baseline|data")
_FILLER = re.compile(r"\b(?:chat|instruct|base|hf|model|v\d+(?:\.\d+)*)\b")


@dataclass(frozen=True)
class ModelName:
    """What a model's name says: ``llama``, ``3.2``, ``3b``."""

    family: str
    version: str
    size: str

    def may_be(self, other: "ModelName") -> bool:
        """Whether the names allow the same model: a version may be left out or less exact."""
        versions = self.version.startswith(other.version) or other.version.startswith(self.version)
        return self.family == other.family and self.size == other.size and versions


def model_name(text: str) -> ModelName | None:
    """Family, version and size of a name such as ``Llama-3.2-3B``, or None if the text is something else."""
    words = re.sub(r"[\s_/-]+", " ", _FILLER.sub(" ", text.lower().replace("-", " "))).strip()
    match = re.fullmatch(r"([a-z]+)(?: ?v?(\d+(?:\.\d+)?))? (\d+(?:\.\d+)?[bm])", words)
    return ModelName(match[1], match[2] or "", match[3]) if match else None


def check_labels(table: Table, tables: Sequence[Table]) -> tuple[list[Finding], list[Tested]]:
    """Findings on the label columns of a table; ``tables`` say which families are models."""
    own = next((column for column in table.cells if normal(column) in OWN and column in table.keys), None)
    families = {name.family for other in tables for name in _models(other)}
    columns = [c for c in table.keys if c != own and normal(c) not in OWN and not _ROLE.search(normal(c))]
    if own is None or not columns:
        return [], []
    findings = [finding for column in columns if (finding := _contradiction(table, own, column, families))]
    return findings, [Tested(check="label", file=table.name, count=len(columns) * len(table.cells))]


def _models(table: Table) -> Iterator[ModelName]:
    for column in table.cells:
        if normal(column) in OWN:
            yield from filter(None, map(model_name, map(str, table.cells[column])))


def _contradiction(table: Table, own: str, column: str, families: set[str]) -> Finding | None:
    named = [(i, model_name(str(text))) for i, text in enumerate(table.cells[column])]
    named = [(i, name) for i, name in named if name and name.family in families]
    wrong = []
    for i, name in named:
        self = model_name(str(table.cells[own].iloc[i]))
        if self is not None and not self.may_be(name):
            wrong.append(i)
    if not wrong:
        return None
    owners = sorted({str(table.cells[own].iloc[i]) for i in wrong})
    names = ", ".join(str(table.cells[column].iloc[i]) for i in wrong)
    words = (
        f"{len(wrong)} of {len(table.cells)} rows are labelled {names}, yet their {own} is {', '.join(owners)}. The "
    )
    words += "labels cannot be what varies between these rows"
    others = [c for c in table.keys if c not in (own, column) and table.cells[c].nunique() > 1]
    words += "." if others else ", and no other column says what does."
    return Finding(
        check="label",
        title="row labels name other models than the rows' own",
        explanation=words,
        file=table.name,
        row=None,
        row_label="",
        columns=[column],
        printed={f"{column} in row {i + 1}": str(table.cells[column].iloc[i]) for i in wrong},
        fits={},
        certainty="arithmetic",
    )
