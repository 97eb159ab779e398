"""Label savings, interactions and ranks of studies whose truth is known, and of studies in which nothing is."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from studies import JACCARD, label_of, write_study

from pretune.analysis import load, load_header
from pretune.analysis.questions.interactions import interactions
from pretune.analysis.questions.ranks import ranks
from pretune.analysis.questions.savings import savings

LABELS = {"start": ["random", "pretrained"], "labels": ["50", "100", "200", "400"]}
CROSSED = {"encoder": ["free", "frozen"], "skip": ["true", "false"]}
NAN = math.nan


def study(folder, factors, score, seeds=4, noise=0.0, generator=None, **report):
    generator = generator or np.random.default_rng(0)
    cells = [dict(zip(factors, levels, strict=True)) for levels in itertools.product(*factors.values())]
    shared = noise * generator.normal(size=seeds)
    scores = {label_of(c): list(score(c) + shared + noise * generator.normal(size=seeds)) for c in cells}
    write_study(folder, scores, factors, **report)
    return load(folder), load_header(folder)


def doubling(worth):
    """0.05 more for every doubling of labels; a pretraining is worth `worth` doublings."""
    return lambda c: 0.5 + 0.05 * (math.log2(int(c["labels"]) / 50) + worth * (c["start"] == "pretrained"))


def saved(folder, score, **more):
    (found,) = savings(*study(folder, LABELS, score, baseline={"start": "random"}, **more), "labels", JACCARD)
    return found


def test_a_pretraining_worth_two_doublings_saves_three_quarters_of_the_labels(tmp_path):
    found = saved(tmp_path, doubling(2), noise=1e-4)
    assert (found.setting, found.amount, found.n) == ("start=pretrained", 50, 4)
    assert found.equal == pytest.approx(200, rel=0.02)
    assert found.low < 200 < found.high
    assert found.sentence.startswith("start=pretrained with labels=50 scores what start=random does with about ")


@pytest.mark.parametrize(
    ("worth", "equal", "said"),
    [
        (4, math.inf, "better than start=random does with 400, the most tried (4 seeds)"),
        (-1, 0, "worse than start=random does with 50, the fewest tried (4 seeds)"),
    ],
)
def test_beyond_the_amounts_that_were_tried_nothing_is_guessed(tmp_path, worth, equal, said):
    found = saved(tmp_path, doubling(worth), noise=1e-4)
    assert found.equal == equal
    assert found.sentence == f"start=pretrained with labels=50 scores {said}"


def test_what_no_amount_is_shown_to_differ_from_says_so(tmp_path):
    found = saved(tmp_path, doubling(1), noise=0.05)
    assert (found.low, found.high) == (0.0, math.inf)
    said = "what start=random does with about 224 (95 %: fewer than 50 to more than 400; 4 seeds)"
    assert found.sentence == f"start=pretrained with labels=50 scores {said}"


def by_labels(folder, random, pretrained, levels=("50", "100", "200"), **report):
    """Savings of scores by the number of labels; a number is the mean of five seeds, a list is the seeds themselves."""
    spread = 0.003 * np.random.default_rng(1).normal(size=(2, len(levels), 5))
    scores = {
        f"start={start} labels={level}": list(value + noise) if np.isscalar(value) else value
        for start, values, noises in zip(("random", "pretrained"), (random, pretrained), spread, strict=True)
        for level, value, noise in zip(levels, values, noises, strict=True)
    }
    factors = {"start": ["random", "pretrained"], "labels": list(levels)}
    write_study(folder, scores, factors, baseline={"start": "random"}, **report)
    return savings(load(folder), load_header(folder), "labels", JACCARD)


@pytest.mark.parametrize("curve", [(0.4, 0.7, 0.5), (0.7, 0.4, 0.8), (0.7, 0.5, 0.4)])
def test_a_curve_that_crosses_the_score_twice_or_downwards_saves_nothing(tmp_path, curve):
    assert by_labels(tmp_path, curve, (0.6, 0.65, 0.71)) == ()


def test_equal_means_in_another_order_are_equal_amounts(tmp_path):
    """0.6222 summed in two orders differs in its last digit: reached at 200, and not beyond what was tried."""
    seeds = [0.6, 0.61, 0.62, 0.65, 0.631]
    (found,) = by_labels(tmp_path, [0.4, 0.5, seeds], [seeds[::-1], 0.65, 0.71])
    assert found.equal == 200


def test_an_amount_without_a_score_leaves_no_most_that_was_tried(tmp_path):
    nothing = [math.nan] * 5
    assert by_labels(tmp_path, [0.4, 0.5, 0.6, nothing], [0.65, 0.67, 0.71, 0.8], ("50", "100", "200", "400")) == ()


def test_failed_runs_stand_beside_a_saving(tmp_path):
    (found,) = by_labels(tmp_path, [0.4, 0.5, 0.6], [[0.55, 0.551, 0.552, math.nan, math.nan], 0.65, 0.71])
    assert found.sentence.endswith("; 3 seeds; runs failed, which might have scored worst)")
    (whole,) = by_labels(tmp_path / "whole", [0.4, 0.5, 0.6], [0.55, 0.65, 0.71])
    assert "failed" not in whole.sentence


def test_copies_of_one_run_have_no_interval(tmp_path):
    (found,) = by_labels(tmp_path, [[0.4] * 5, [0.6] * 5, [0.7] * 5], [[0.5] * 5, [0.65] * 5, [0.71] * 5])
    assert found.sentence.endswith("with about 75 (no interval, because nothing varies; 5 seeds)")


def test_shares_have_their_unit_and_no_other_digits_than_were_tried(tmp_path):
    (found,) = by_labels(tmp_path, [0.4, 0.5, 0.6], [0.65, 0.67, 0.71], ("12.5%", "22.5%", "62.5%"))
    assert found.sentence.startswith(
        "start=pretrained with labels=12.5% scores better than start=random does with 62.5%"
    )


def test_nested_fine_tunings_are_paired_before_they_are_averaged(tmp_path):
    """Every second label subset is 0.2 harder, and the setting lost these: by all means it would be 0.1 ahead."""
    hard = np.array([0.5, 0.3] * 3)
    lost = [0.5, math.nan, 0.501, math.nan, 0.502, math.nan]
    levels = ("50", "100", "200")
    scores = {f"start=random labels={n}": list(hard + d) for n, d in zip(levels, (-0.1, 0.0, 0.1), strict=True)}
    scores |= {f"start=pretrained labels={n}": lost if n == "50" else list(hard) for n in levels}
    write_study(
        tmp_path, scores, {"start": ["random", "pretrained"], "labels": list(levels)}, baseline={"start": "random"}
    )
    results, header = load(tmp_path), replace(load_header(tmp_path), replicates=6, pretrainings=3)
    results = results.assign(seed_pretrain=results["seed"] // 2, seed_finetune=results["seed"] % 2)
    (found,) = savings(results, header, "labels", JACCARD)
    assert found.equal == pytest.approx(100, rel=0.02)
    assert (found.n, found.counted) == (3, "pretrainings")


@pytest.mark.parametrize("metric", [JACCARD, "train/loss"])
@pytest.mark.parametrize("slope", [-0.05, 0.0, 0.05])
@pytest.mark.parametrize("lead", [-0.3, 0.3])
def test_better_is_what_the_metric_says_whichever_way_the_curve_of_the_baseline_runs(tmp_path, metric, slope, lead):
    """A setting far above or below all of the baseline's amounts."""

    def score(c):
        return 0.5 + slope * math.log2(int(c["labels"]) / 50) + lead * (c["start"] == "pretrained")

    asked = {"baseline": {"start": "random"}, "metrics": (metric,), "noise": 1e-4}
    (found,) = savings(*study(tmp_path, LABELS, score, **asked), "labels", metric)
    better = (lead > 0) == (metric == JACCARD)
    assert found.equal == (math.inf if better else 0)
    assert (" better than " if better else " worse than ") in found.sentence
    assert "inf" not in found.sentence


def test_the_interval_covers_the_saving_and_claims_none_where_there_is_none(tmp_path):
    covered, claimed = [], []
    for seed in range(25):
        generator = np.random.default_rng(seed)
        found = saved(tmp_path, doubling(1.5), noise=0.01, generator=generator, seeds=3)
        covered.append(found.low <= 50 * 2**1.5 <= found.high)
        found = saved(tmp_path, doubling(0), noise=0.01, generator=generator, seeds=3)
        claimed.append(found.low > 50 * 1.02)
    assert np.mean(covered) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 25)
    assert np.mean(claimed) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 25)


def test_without_a_baseline_or_a_second_seed_there_is_no_saving(tmp_path):
    assert savings(*study(tmp_path, LABELS, doubling(2)), "labels", JACCARD) == ()
    assert savings(*study(tmp_path, LABELS, doubling(2), 1, baseline={"start": "random"}), "labels", JACCARD) == ()


# ------------------------------------------------------------------------------------------------------ interactions


def test_a_contrast_is_the_paired_difference_of_differences(tmp_path):
    results, header = study(
        tmp_path, CROSSED, lambda c: 0.6 + 0.08 * (c["encoder"] == "free" and c["skip"] == "true"), 5, 0.01
    )
    (found,) = interactions(results, header, JACCARD)
    (facet,) = found.facets
    value = {label: results[results["cell"] == label]["value"].to_numpy() for label in set(results["cell"])}
    by_hand = (value["encoder=frozen skip=false"] - value["encoder=frozen skip=true"]) - (
        value["encoder=free skip=false"] - value["encoder=free skip=true"]
    )
    half = stats.t.ppf(0.975, 4) * by_hand.std(ddof=1) / math.sqrt(5)
    assert facet.contrast == pytest.approx((by_hand.mean(), by_hand.mean() - half, by_hand.mean() + half))
    assert (facet.n, found.axis) == (5, ("true", "false"))


def test_amounts_stand_on_the_axis_and_other_factors_are_facets(tmp_path):
    factors = {"labels": ["10", "50"], "encoder": ["free", "frozen"], "skip": ["true", "false"]}
    found = interactions(*study(tmp_path, factors, lambda c: 0.5), JACCARD)
    assert [(one.line_factor, one.axis_factor) for one in found] == [
        ("encoder", "skip"), ("encoder", "labels"), ("skip", "labels"),
    ]  # fmt: skip
    assert [facet.setting for facet in found[0].facets] == ["labels=10", "labels=50"]


def test_a_seed_that_a_cell_lost_is_in_no_contrast(tmp_path):
    scores = {
        label_of({"encoder": e, "skip": s}): [0.5, 0.6, 0.7] for e in ("free", "frozen") for s in ("true", "false")
    }
    scores["encoder=free skip=true"][1] = NAN
    write_study(tmp_path, scores, CROSSED)
    (found,) = interactions(load(tmp_path), load_header(tmp_path), JACCARD)
    assert found.facets[0].n == 2
    assert np.isnan(found.facets[0].lines[0][1][1, 0])


# ------------------------------------------------------------------------------------------------------------- ranks


def test_ranks_add_up_and_the_better_cell_is_first_always(tmp_path):
    write_study(
        tmp_path, {"a=x": [0.5, 0.6, 0.7], "a=y": [0.6, 0.7, 0.8], "a=z": [0.1, NAN, 0.1]}, {"a": ["x", "y", "z"]}
    )
    found = ranks(load(tmp_path), load_header(tmp_path), JACCARD)
    assert found.cells == ("a=y", "a=x")
    assert found.share.tolist() == [[1, 0], [0, 1]]
    assert found.excluded == ("a=z",)


def test_a_cell_wins_the_share_of_pairs_of_seeds_in_which_it_is_better(tmp_path):
    """Differences of +2, -1 and +0.5: means of two draws of three seeds are above zero unless -1 is drawn twice, or
    with +0.5: 1 - 1/9 - 2/9 = 2/3."""
    write_study(tmp_path, {"a=x": [0.2, -0.1, 0.05], "a=y": [0.0, 0.0, 0.0]}, {"a": ["x", "y"]})
    found = ranks(load(tmp_path), load_header(tmp_path), JACCARD)
    assert found.cells[0] == "a=x"
    assert found.share[0, 0] == pytest.approx(2 / 3, abs=0.05)
    assert found.share.sum(axis=0) == pytest.approx([1, 1])


def test_equal_cells_share_their_ranks(tmp_path):
    write_study(tmp_path, {f"a={i}": [0.5] * 3 for i in "xyz"}, {"a": ["x", "y", "z"]})
    assert ranks(load(tmp_path), load_header(tmp_path), JACCARD).share == pytest.approx(
        np.full((3, 3), 1 / 3), abs=0.05
    )


@pytest.mark.parametrize("scores", [{"a=x": [0.5, 0.6], "a=y": [0.5, 0.6]}, {"a=x": [0.5] * 3}])
def test_below_three_seeds_or_two_cells_there_are_no_ranks(tmp_path, scores):
    write_study(tmp_path, scores, {"a": [label[2:] for label in scores]})
    assert ranks(load(tmp_path), load_header(tmp_path), JACCARD) is None
