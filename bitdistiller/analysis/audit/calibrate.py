"""How often the checks err: false alarms on clean tables, detections on corrupted ones, with 95 % Wilson intervals.

Table ``i`` is made with the generator ``(seed, i)``, so a count is repeated exactly by whoever repeats it. A detection
is a finding by the check in question in the row that was corrupted, or about its whole column or table; nothing is left
out because it could not have been found (exchanged columns with equal numbers of items, a misprint that is another
possible score), so rates below 1 are mostly what the printed digits allow. The checks were written looking at tables of
seed 0; the rates are those of another seed.
"""

from typing import Literal

import numpy as np
from tqdm import tqdm

from bitdistiller.analysis.audit import audit_tables
from bitdistiller.analysis.audit.items import registry
from bitdistiller.analysis.audit.record import CHECKS, Calibration, Check, Finding, Rate
from bitdistiller.analysis.audit.synthetic import CORRUPTIONS, MAIN, Corpus, Design, draw_design, make_corpus
from bitdistiller.analysis.audit.table import Table
from bitdistiller.analysis.stats import wilson


def calibrate(tables: int, seed: int = 1) -> Calibration:
    """Audit ``tables`` clean corpora, and a quarter as many of each corruption."""
    alarms = dict.fromkeys(CHECKS, 0)
    any_alarm = 0
    for i in tqdm(range(tables), desc="clean", leave=False):
        found = {finding.check for finding in findings(clean(seed, i))}
        any_alarm += bool(found)
        for check in found:
            alarms[check] += 1
    detections = [
        rate
        for name in tqdm(CORRUPTIONS, desc="corrupted", leave=False)
        for rate in _detections(name, max(1, tables // 4), seed)
    ]
    return Calibration(
        seed=seed,
        any_false_alarm=_rate("any", "", any_alarm, tables),
        false_alarms=[_rate(check, "", hits, tables) for check, hits in alarms.items()],
        detections=detections,
    )


def clean(seed: int, i: int) -> Corpus:
    """Clean corpus ``i``."""
    rng = np.random.default_rng((seed, i))
    return make_corpus(draw_design(rng), rng)


def corrupted(name: str, seed: int, i: int) -> Corpus:
    """Corpus ``i`` with one corruption of ``CORRUPTIONS``."""
    rng = np.random.default_rng((seed, i))
    corruption = CORRUPTIONS[name]
    design: Design = corruption.needs(draw_design(rng), rng)
    corpus = make_corpus(design, rng)
    return corruption.apply(corpus, rng)


def findings(corpus: Corpus) -> list[Finding]:
    """Audit a corpus."""
    tables = [Table(name, frame, registry()) for name, frame in corpus.tables.items()]
    return audit_tables(tables, corpus.claims)[0]


def detected(corpus: Corpus, check: Check, found: list[Finding]) -> bool:
    """Whether a finding of ``check`` points at what was corrupted."""
    for finding in found:
        somewhere = corpus.wrong_row is None or finding.row is None or finding.row == corpus.wrong_row + 1
        # A repeat that disagrees is reported at either of its two places.
        if finding.check == check and somewhere and (finding.file == MAIN or check == "repeat"):
            return True
    return False


def _detections(name: str, tables: int, seed: int) -> list[Rate]:
    checks = CORRUPTIONS[name].checks
    hits = dict.fromkeys(checks, 0)
    for i in range(tables):
        corpus = corrupted(name, seed, i)
        found = findings(corpus)
        for check in checks:
            hits[check] += detected(corpus, check, found)
    return [_rate(check, name, count, tables) for check, count in hits.items()]


def _rate(check: Check | Literal["any"], corruption: str, hits: int, tables: int) -> Rate:
    low, high = wilson(hits, tables)
    return Rate(check=check, corruption=corruption, hits=hits, tables=tables, low=low, high=high)
