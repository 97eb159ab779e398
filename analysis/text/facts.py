"""Facts beside scores in words, the same in tables, answer and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pretune.analysis.digits import few, in_unit
from pretune.analysis.questions.facts import CountedRuns, Facts, MostFrequent

_DIGITS = 3
MOST_LABELS = 12


def fact_sentences(facts: Facts) -> tuple[str, ...]:
    """Notes without a full stop: the most frequent class, what is not above it, classes never predicted, collapse."""
    alone = len(facts.most_frequent) == 1
    said = [_most_frequent(one, facts, alone) for one in facts.most_frequent]
    together: dict[str, list[str]] = {}
    for label, rows in facts.never.items():
        together.setdefault(_runs(rows), []).append(label)
    said += [
        f"{few(labels, MOST_LABELS)}: never predicted on the test images by {runs}" for runs, labels in together.items()
    ]
    if facts.collapsed:
        said.append(f"pretrainings of these cells showed signs of collapse: {_runs(facts.collapsed)}")
    return tuple(said)


def processor_sentences(kinds: Mapping[str, int]) -> tuple[str, ...]:
    """A note where stage runs of one table ran on several kinds of processor: digits are equal within a kind alone."""
    if len(kinds) < 2:
        return ()
    shown = few([f"{kind}: {count} stage run{'s' * (count != 1)}" for kind, count in kinds.items()])
    return (
        f"the replicates ran on {len(kinds)} kinds of processor, which round differently, so a "
        f"result may differ as much as by another seed ({shown})",
    )


def _most_frequent(one: MostFrequent, facts: Facts, alone: bool) -> str:
    value = in_unit(one.score, _DIGITS, facts.percent)
    where = "" if alone else f" ({few(one.cells, 4)})"
    said = f"a model that predicts only the most frequent class of the test images ({one.label}) scores {value}{where}"
    if not one.not_above:
        return said
    every = len(one.not_above) == len(one.cells) > 1
    return f"{said}; {'no cell scores higher' if every and alone else f'these score no higher: {few(one.not_above)}'}"


def _runs(rows: Sequence[CountedRuns]) -> str:
    return few([f"{row.cell} ({row.runs} of {row.of})" for row in rows])
