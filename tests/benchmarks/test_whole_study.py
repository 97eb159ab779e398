"""What the whole-study benchmark reckons from a few trials, by hand."""

from __future__ import annotations

import pytest

from benchmarks.rivals import Cell
from benchmarks.whole_study import cells_of, compare, reckoned, small_study, work_of


def trials(cells: list[Cell], pretrain: float, per_label: float, launch: float) -> list[dict[str, float]]:
    rows = []
    for cell in cells:
        finetune = 1.0 + per_label * cell.labels
        times = {"pretrain": pretrain, "finetune": finetune, "trial": launch + pretrain + finetune}
        rows += [vars(cell) | times | {"seed": seed} for seed in range(3)]
    return rows


def test_a_study_is_reckoned_from_two_of_its_cells() -> None:
    """launch 20 + pretraining 10 + fine-tuning 1 + n / 10, for n = 360, 40, 4; two at once, 5 s to start Ray."""
    cells = [Cell(False, True, labels) for labels in (360, 40, 4)]
    every = trials(cells, 10.0, 0.1, 20.0)
    some = trials([cells[0], cells[2]], 10.0, 0.1, 20.0)
    measured = 5.0 + sum(row["trial"] for row in some) / 2
    assert reckoned(some, measured, cells, 2) == pytest.approx(5.0 + sum(row["trial"] for row in every) / 2)


def test_accuracies_are_compared_over_the_replicates_that_both_have() -> None:
    """Differences of seed means 0.02, 0 and -0.02; the other side has one cell of two."""
    cells = [Cell(False, True, 360), Cell(False, True, 4)]
    ours = [vars(cell) | {"seed": s, "jaccard": 0.4 + 0.02 * (1 - s)} for cell in cells for s in range(3)]
    theirs = [vars(cells[0]) | {"seed": s, "jaccard": 0.4} for s in range(3)]
    found = compare(ours, theirs)
    assert (found["replicates"], found["difference"], found["equal within noise"]) == (3, 0.0, True)
    assert found["high"] == pytest.approx(4.303 * 0.02 / 3**0.5, abs=1e-4)  # t of 2 degrees of freedom
    apart = compare([row | {"jaccard": row["jaccard"] + 0.2} for row in ours], theirs)
    assert not apart["equal within noise"]


def test_the_rivals_get_the_numbers_of_the_study() -> None:
    cells, work = cells_of(small_study()), work_of(small_study())
    assert len(set(cells)) == 12
    assert {cell.labels for cell in cells} == {360, 40, 4}
    assert (work.epochs, work.batch, work.tune_epochs, work.tune_batch, work.tune_lr) == (10, 64, 4, 8, 0.003)
