"""Tables whose truth is known: models that answer items, printed as papers print them, and corrupted one way at a time.

A clean corpus is two tables. The main one has a row per model and bit width, scores on benchmarks of the registry and
perhaps on one nobody knows, a perplexity, an average, and perhaps standard errors; the second repeats some rows with
fewer columns beside rows of its own. How it is printed is drawn too: digits, percentages or shares, n or n - 1, the
average of rounded or unrounded scores. A claim states the direction that its first two rows have.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bitdistiller.analysis.audit.claims import Cells, ClaimFile, Comparison, PrintedClaim
from bitdistiller.analysis.audit.items import registry
from bitdistiller.analysis.audit.record import Check

MAIN, SECOND = "main.csv", "second.csv"
MODELS = ("Alpha-1.1B", "Alpha-3B", "Beta-2-7B", "Beta-2-13B")
WIDTHS = ("16", "4", "3", "2", "1")


@dataclass(frozen=True)
class Design:
    """What a corpus is made of and how it is printed; ``counts`` maps columns to the items really scored."""

    counts: dict[str, int]
    rows: int
    places: int
    percent: bool
    errors: bool
    divide_by_less: bool
    average_of_rounded: bool
    cut_off: bool = False


@dataclass(frozen=True)
class Corpus:
    """Printed tables as text, a claim about the main one, and (once corrupted) the wrong row, None for all rows."""

    design: Design
    tables: dict[str, pd.DataFrame]
    claims: ClaimFile
    wrong_row: int | None = None

    @property
    def scores(self) -> list[str]:
        return list(self.design.counts)

    def changed(self, frame: pd.DataFrame, row: int | None) -> "Corpus":
        """The corpus with another main table, wrong in ``row`` (an index)."""
        return replace(self, tables=self.tables | {MAIN: frame}, wrong_row=row)


def draw_design(rng: np.random.Generator) -> Design:
    """A design at random."""
    known = [bench for bench in registry() if bench.counted]
    chosen = rng.permutation(len(known))[: rng.integers(3, 6)]
    counts = {known[i].name: known[i].items for i in chosen}
    if rng.random() < 0.3:
        counts["new_task"] = int(rng.integers(150, 3000))
    return Design(
        counts=counts,
        rows=int(rng.integers(4, 13)),
        places=int(rng.choice([1, 2, 2, 2])),
        percent=bool(rng.random() < 0.85),
        errors=bool(rng.random() < 0.6),
        divide_by_less=bool(rng.random() < 0.5),
        average_of_rounded=bool(rng.random() < 0.5),
    )


def make_corpus(design: Design, rng: np.random.Generator) -> Corpus:
    """Print a clean corpus."""
    labels = [(model, bits) for model in MODELS for bits in WIDTHS]
    labels = [labels[i] for i in sorted(rng.permutation(len(labels))[: design.rows])]
    main = _print_rows(design, [{"model": model, "bits": bits} for model, bits in labels], rng)
    repeated = main.sample(int(rng.integers(1, 4)), random_state=int(rng.integers(2**31))).assign(teacher="self")
    own = [{"model": labels[0][0], "bits": labels[0][1], "teacher": teacher} for teacher in ("Beta-2-7B", "Gamma-70B")]
    second = pd.concat([repeated, _print_rows(design, own, rng)], ignore_index=True)
    left = [column for column in second if not column.endswith("_se") or rng.random() < 0.5]
    tables = {MAIN: main, SECOND: second[left].rename(columns={"model": "student"})}
    return Corpus(design, tables, _claims(main))


def _print_rows(design: Design, labels: list[dict[str, str]], rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for label in labels:
        ability = rng.uniform(0.15, 0.85)
        scores, errors = {}, {}
        for column, n in design.counts.items():
            scores[column] = rng.binomial(n, np.clip(ability + rng.normal(0, 0.12), 0.02, 0.98)) / n
            share = scores[column]
            errors[column] = np.sqrt(share * (1 - share) / (n - design.divide_by_less))
        rows.append(label | {"ppl": f"{np.exp(rng.uniform(1.6, 6)):.2f}"} | _print_scores(design, scores, errors))
    return pd.DataFrame(rows)


def _print_scores(design: Design, scores: dict[str, float], errors: dict[str, float]) -> dict[str, str]:
    scale, places = (100, design.places) if design.percent else (1, design.places + 2)
    texts = {column: _text(share * scale, places, design.cut_off) for column, share in scores.items()}
    averaged = [float(text) if design.average_of_rounded else scores[c] * scale for c, text in texts.items()]
    printed: dict[str, str] = {}
    for column, text in texts.items():
        printed[column] = text
        if design.errors:
            # An error with one decimal would say nothing about n.
            printed[f"{column}_se"] = f"{errors[column] * scale:.{max(places, 2)}f}"
    return printed | {"avg": f"{np.mean(averaged):.{places}f}"}


def _text(value: float, places: int, cut_off: bool) -> str:
    return f"{np.floor(value * 10**places + 1e-6) / 10**places if cut_off else value:.{places}f}"


def _claims(main: pd.DataFrame) -> ClaimFile:
    first, second = (dict(main.loc[i, ["model", "bits"]]) for i in (0, 1))
    expect = "not higher" if float(main["ppl"][0]) <= float(main["ppl"][1]) else "not lower"
    cells = [Cells(file=MAIN, columns=["ppl"], where=where) for where in (first, second)]
    test = Comparison(kind="comparison", left=cells[0], right=cells[1], expect=expect)
    return ClaimFile(claims=[PrintedClaim(id="order", sentence="One is lower.", source="made", test=test)])


@dataclass(frozen=True)
class Corruption:
    """A way to go wrong: what the design needs, what it does, and the checks whose findings count as detections."""

    checks: tuple[Check, ...]
    apply: Callable[[Corpus, np.random.Generator], Corpus]
    needs: Callable[[Design, np.random.Generator], Design] = lambda design, rng: design


def _two_columns(corpus: Corpus, rng: np.random.Generator) -> tuple[str, str]:
    first, second = rng.permutation(corpus.scores)[:2]
    return str(first), str(second)


def _exchange(corpus: Corpus, rng: np.random.Generator) -> Corpus:
    """Two scores of a row change places, with their standard errors where there are any."""
    frame, row = corpus.tables[MAIN].copy(), int(rng.integers(corpus.design.rows))
    a, b = _two_columns(corpus, rng)
    for suffix in ("", "_se") if corpus.design.errors else ("",):
        frame.loc[row, [a + suffix, b + suffix]] = frame.loc[row, [b + suffix, a + suffix]].to_numpy()
    return corpus.changed(frame, row)


def _permute(corpus: Corpus, rng: np.random.Generator) -> Corpus:
    """All scores of a row move one column on, with their standard errors."""
    frame, row = corpus.tables[MAIN].copy(), int(rng.integers(corpus.design.rows))
    for suffix in ("", "_se"):
        columns = [column + suffix for column in corpus.scores]
        frame.loc[row, columns] = np.roll(frame.loc[row, columns].to_numpy(), 1)
    return corpus.changed(frame, row)


def _constant_errors(corpus: Corpus, rng: np.random.Generator) -> Corpus:
    frame, row = corpus.tables[MAIN].copy(), int(rng.integers(corpus.design.rows))
    columns = [f"{column}_se" for column in corpus.scores]
    frame.loc[row, columns] = frame.loc[row, columns[0]]
    return corpus.changed(frame, row)


def _copied_errors(corpus: Corpus, rng: np.random.Generator) -> Corpus:
    frame = corpus.tables[MAIN].copy()
    row, other = (int(i) for i in rng.permutation(corpus.design.rows)[:2])
    columns = [f"{column}_se" for column in corpus.scores]
    frame.loc[row, columns] = frame.loc[other, columns].to_numpy()
    return corpus.changed(frame, row)


def _half_widths(corpus: Corpus, rng: np.random.Generator) -> Corpus:
    frame = corpus.tables[MAIN].copy()
    for column in (f"{column}_se" for column in corpus.scores):
        places = len(frame[column][0].split(".")[1])
        frame[column] = [f"{1.96 * float(text):.{places}f}" for text in frame[column]]
    return corpus.changed(frame, None)


def _misprint(corpus: Corpus, rng: np.random.Generator, column: str) -> Corpus:
    """One digit of a number becomes another."""
    frame, row = corpus.tables[MAIN].copy(), int(rng.integers(corpus.design.rows))
    text = frame.loc[row, column]
    places = [i for i, character in enumerate(text) if character.isdigit()]
    # The first digit of a share is 0 and seen at once when it is not.
    place = int(rng.choice(places[0 if corpus.design.percent else 1 :]))
    other = rng.choice([digit for digit in "0123456789" if digit != text[place]])
    frame.loc[row, column] = text[:place] + other + text[place + 1 :]
    return corpus.changed(frame, row)


def _wrong_score(corpus: Corpus, rng: np.random.Generator) -> Corpus:
    return _misprint(corpus, rng, str(rng.choice(corpus.scores)))


def _wrong_error(corpus: Corpus, rng: np.random.Generator) -> Corpus:
    return _misprint(corpus, rng, f"{rng.choice(corpus.scores)}_se")


def _wrong_average(corpus: Corpus, rng: np.random.Generator) -> Corpus:
    return _misprint(corpus, rng, "avg")


def _wrong_repeat(corpus: Corpus, rng: np.random.Generator) -> Corpus:
    """A repeated row has another perplexity in the main table."""
    student, bits = corpus.tables[SECOND].loc[0, ["student", "bits"]]
    frame = corpus.tables[MAIN].copy()
    row = int(frame.index[(frame["model"] == student) & (frame["bits"] == bits)][0])
    frame.loc[row, "ppl"] = f"{float(frame.loc[row, 'ppl']) * rng.uniform(1.01, 1.5):.2f}"
    # Either of the two rows may be the one that is reported.
    return corpus.changed(frame, None)


def _wrong_labels(corpus: Corpus, rng: np.random.Generator) -> Corpus:
    """A column that should say what varies is filled with the models of another table."""
    frame = corpus.tables[MAIN].assign(model=MODELS[0])
    frame.insert(2, "variant", [MODELS[i % len(MODELS)] for i in range(len(frame))])
    return replace(corpus.changed(frame, None), claims=ClaimFile())


def _wrong_order(corpus: Corpus, rng: np.random.Generator) -> Corpus:
    """The two rows that a sentence compares exchange their perplexities."""
    frame = corpus.tables[MAIN].copy()
    frame.loc[[0, 1], "ppl"] = frame.loc[[1, 0], "ppl"].to_numpy()
    return corpus.changed(frame, 0)


def _with_errors(design: Design, rng: np.random.Generator) -> Design:
    return replace(design, errors=True)


def _without_errors(design: Design, rng: np.random.Generator) -> Design:
    return replace(design, errors=False)


def _fewer_items(design: Design, rng: np.random.Generator) -> Design:
    """One benchmark is scored on a part of its items."""
    column = str(rng.choice([c for c, n in design.counts.items() if n < 5000 and c != "new_task"]))
    fewer = max(30, int(design.counts[column] * rng.uniform(0.5, 0.99)))
    return replace(design, counts=design.counts | {column: fewer})


def _cut(design: Design, rng: np.random.Generator) -> Design:
    return replace(design, cut_off=True)


def _nothing_more(corpus: Corpus, rng: np.random.Generator) -> Corpus:
    return corpus


CORRUPTIONS: dict[str, Corruption] = {
    "average: one digit": Corruption(("average",), _wrong_average),
    "two scores exchanged, with standard errors": Corruption(("standard error",), _exchange, _with_errors),
    "all scores moved one column on, with standard errors": Corruption(("standard error",), _permute, _with_errors),
    "two scores exchanged, no standard errors printed": Corruption(("item count",), _exchange, _without_errors),
    "standard errors of a row all the same": Corruption(("standard error",), _constant_errors, _with_errors),
    "standard errors of another row": Corruption(("standard error",), _copied_errors, _with_errors),
    "95 % half-widths for standard errors": Corruption(("standard error",), _half_widths, _with_errors),
    "standard error: one digit": Corruption(("standard error",), _wrong_error, _with_errors),
    "score: one digit": Corruption(("average", "standard error", "item count"), _wrong_score, _with_errors),
    "a benchmark scored on half to all of its items": Corruption(("item count",), _nothing_more, _fewer_items),
    "scores cut off instead of rounded": Corruption(("item count",), _nothing_more, _cut),
    "a repeated row with another perplexity": Corruption(("repeat",), _wrong_repeat),
    "rows labelled with other models": Corruption(("label",), _wrong_labels),
    "a sentence against its table": Corruption(("claim",), _wrong_order),
}
