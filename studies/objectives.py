"""Which objective distils best: CAKLD against its two ends, JSD, TSLD and plain cross-entropy.

All students start from the same clipped 2-bit weights, see the same text in the same order, and take the same number of
steps at the same learning rate; only the loss differs. CAKLD's gamma is measured on the text (the teacher's mean
probability of the next token), so forward and reverse KL are the same family with gamma fixed at 0 and at 1.

*ends-better* is BitDistiller's claim at the end of the budget: a lower perplexity than each of the five, corrected
together. *converges-faster* is about the way there: the validation perplexity, its geometric mean over the points that
are regularly measured while training, from the first after the start to the end. It is lower for a student that is
sooner where others end, and for one that ends lower; the curves tell which. *ends-closer* asks the same of KL
divergence to the teacher on held-out text, KL(teacher || student): how near a student has come with equal steps. It is
what forward KL minimises on its own text, so it favours that one.
"""

import numpy as np
import pandas as pd

from bitdistiller.analysis.compare import Measure, Quantity, all_of, below, kl_difference, lower_perplexity
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import BITDISTILLER
from bitdistiller.analysis.stats import Panel, log_perplexity
from bitdistiller.analysis.study import ComparedRuns, Results
from bitdistiller.analysis.verdict import Claim, Finding, undefined
from bitdistiller.results import TrainingRecord

QUESTION = "Does CAKLD converge faster and end better than other objectives?"
SOURCE = f"{BITDISTILLER}, section 3.3 and its comparison of objectives"

CAKLD = "CAKLD"
OTHERS = ("forward KL", "reverse KL", "JSD", "TSLD", "cross-entropy")


class Params(ComparedRuns):
    """One condition an objective."""

    required = (CAKLD, *OTHERS)


def perplexity_along_training(condition: str, over: str) -> Measure:
    """Validation perplexity of a condition over that of another, geometric mean over the training after its start."""

    def measure(results: Results) -> Quantity | Finding:
        name = f"validation perplexity of {condition} over {over}, along training"
        pair = [_along_training(results, label) for label in (condition, over)]
        if None in pair:
            return undefined(name, "times", 0, 1).model_copy(update={"needs": "runs that log every sequence"})
        ratio = log_perplexity(pair, [1, -1])
        return Quantity(name, ratio, "times", ratio.p_value())

    return measure


def _along_training(results: Results, condition: str) -> Panel | None:
    """Negative log-likelihood of every validation sequence, mean over the training; None where it was not logged."""
    curves = [_regular(run.training) for run in results.of(condition)]
    if not all(curve.size for curve in curves):
        return None
    values = np.stack([curve.mean(axis=0) for curve in curves])
    sequences = pd.MultiIndex.from_product([["validation"], range(values.shape[1])], names=["task", "item"])
    return Panel(sequences, values, np.ones(len(sequences)))


def _regular(record: TrainingRecord) -> np.ndarray:
    """(points, sequences) of the validations after the start."""
    return np.array([point.validation_nll for point in record.validations if point.step and point.validation_nll])


DESIGN = Design(disagreement=0.1, spread=0.05)
CLAIMS = (
    Claim(
        id="ends-better",
        sentence="At the same budget CAKLD ends with a lower perplexity than every other objective.",
        source=SOURCE,
        test=all_of(*(lower_perplexity(CAKLD, other) for other in OTHERS)),
    ),
    Claim(
        id="converges-faster",
        sentence="Along training CAKLD's student has a lower perplexity than every other objective's.",
        source=SOURCE,
        test=all_of(*(below(perplexity_along_training(CAKLD, other), 1) for other in OTHERS)),
    ),
    Claim(
        id="ends-closer",
        sentence="At the same budget CAKLD's student ends closer to its teacher than every other objective's.",
        source=SOURCE,
        test=all_of(*(below(kl_difference(CAKLD, other), 0) for other in OTHERS)),
    ),
)
