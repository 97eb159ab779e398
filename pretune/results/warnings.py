"""Warnings about the best model, to be read before it is used: facts beside its scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pretune.analysis.load.counts import Counts
from pretune.analysis.questions.facts import SIGNS, most_frequent_score, never_predicted
from pretune.outcomes import Outcomes
from pretune.search.replicates import ReplicatePlan
from pretune.search_spaces.resolve import Study


def warnings_of(
    study: Study, use: ReplicatePlan, uses: Sequence[ReplicatePlan], outcomes: Outcomes, counts: Counts | None
) -> list[str]:
    """Phrases about the fine-tuning of `use`; `counts`: its pixel counts of the test images, where it left them."""
    stage = use.stages["finetune"]
    metrics = outcomes[stage.fingerprint].metrics
    said = (
        []
        if counts is None
        else list(_of_counts(counts, {m: metrics[m] for m in study.header.report.metrics if m in metrics}))
    )
    before = (outcomes.get(parent.fingerprint) for parent in stage.ancestors())
    if any(outcome is not None and outcome.metrics.get(SIGNS, 0.0) > 0 for outcome in before):
        said.append("its pretraining showed signs of collapse")
    kin = [other for other in uses if (other.phase, other.cell.label) == ("confirm", use.cell.label) and not other.pair]
    ends = [outcomes[other.stages["finetune"].fingerprint].state for other in kin]
    if failed := sum(end != "finished" for end in ends):
        said.append(
            f"{failed} of {len(ends)} replicates of its cell failed; the cell's mean may be too good, because failed "
            "replicates are not in it"
        )
    return said


def _of_counts(counts: Counts, metrics: dict[str, float]) -> Iterator[str]:
    if never := never_predicted(counts):
        yield f"it never predicts {', '.join(never)} on the test images"
    true = counts.counts[..., 1].sum(axis=0)
    for metric, value in metrics.items():
        label, score = most_frequent_score(true, metric, counts.classes)
        if value <= score:
            yield f"its {metric} of {value:.4f} is not above {score:.4f}, the score of predicting {label} everywhere"
