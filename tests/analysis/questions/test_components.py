"""Against hand-worked mean squares, statsmodels' MixedLM, and simulation."""

import itertools
import math

import numpy as np
import pandas
import pytest
from statsmodels.formula.api import mixedlm
from test_tables import JACCARD, make_header, make_row

from pretune.analysis.questions.components import components, crossed, nested
from pretune.analysis.text.csv import to_csv
from pretune.analysis.text.formats import to_markdown


def test_nested_by_hand():
    """Groups (0 2) and (4 6): MS within 2 (2 degrees of freedom), MS between 2 x 8 = 16; between (16 - 2) / 2 = 7."""
    found = nested([[0.0, 2.0], [4.0, 6.0]])
    assert (found.between, found.within, found.share) == pytest.approx((7, 2, 7 / 9))
    assert (found.groups, found.n) == (2, 4)
    # F = 8; F(0.975; 1, 2) = 38.506, F(0.025; 1, 2) = 0.0012516
    assert found.low == 0
    assert found.high == pytest.approx((8 / 0.0012516 - 1) / (8 / 0.0012516 + 1), rel=1e-5)


def test_a_negative_estimate_is_none():
    found = nested([[0.0, 2.0], [0.0, 2.0]])
    assert (found.between, found.share, found.low) == (0, 0, 0)


def test_equal_groups_agree_with_restricted_maximum_likelihood():
    """In balanced layouts the two are equal wherever the estimate is positive."""
    generator = np.random.default_rng(3)
    table = generator.normal(size=(6, 4)) + 2 * generator.normal(size=(6, 1))
    frame = pandas.DataFrame({"y": table.ravel(), "g": np.repeat(np.arange(6), 4)})
    fit = mixedlm("y ~ 1", frame, groups="g").fit(reml=True)
    found = nested(table)
    assert found.between == pytest.approx(fit.cov_re.iloc[0, 0], rel=1e-3)
    assert found.within == pytest.approx(fit.scale, rel=1e-3)


def test_unequal_groups_are_statsmodels():
    generator = np.random.default_rng(4)
    groups = [0.6 + 0.01 * generator.normal(size=n) + 0.03 * generator.normal() for n in (2, 3, 3, 1, 3)]
    frame = pandas.DataFrame({
        "y": 100 * np.concatenate(groups), "g": np.repeat(np.arange(5), [len(group) for group in groups]),
    })  # fmt: skip
    fit = mixedlm("y ~ 1", frame, groups="g").fit(reml=True)
    found = nested(groups)
    assert found.between == pytest.approx(fit.cov_re.iloc[0, 0] / 1e4, rel=1e-2)
    assert found.within == pytest.approx(fit.scale / 1e4, rel=1e-2)
    assert math.isnan(found.low)


@pytest.mark.parametrize("groups", [[[1.0, 2.0]], [[1.0], [2.0]]])
def test_what_cannot_be_told_apart_is_refused(groups):
    with pytest.raises(ValueError, match="two groups or more"):
        nested(groups)


def test_the_estimates_are_unbiased_and_the_interval_covers():
    """Variances 4 and 1, so a share of 0.8. Tolerances: four standard errors over 1500 layouts of 3 x 2."""
    generator, layouts = np.random.default_rng(5), 1500
    covered, squares = 0, []
    for _ in range(layouts):
        table = 2 * generator.normal(size=(3, 1)) + generator.normal(size=(3, 2))
        found = nested(table)
        covered += found.low <= 0.8 <= found.high
        means = table.mean(axis=1)
        squares.append((means.var(ddof=1) - table.var(axis=1, ddof=1).mean() / 2, found.within))
        assert found.between == pytest.approx(max(0, squares[-1][0]))
    assert covered / layouts == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / layouts))
    between, within = np.mean(squares, axis=0)
    errors = 4 * np.std(squares, axis=0) / math.sqrt(layouts)
    assert (abs(between - 4), abs(within - 1)) < tuple(errors)


def test_crossed_by_hand():
    """Rows 0 and 4 apart, columns 2 apart, no rest: row means 1 and 5 (variance 8), column means 2 and 4 (2)."""
    assert crossed([[0.0, 2.0], [4.0, 6.0]]) == pytest.approx((8, 2, 0))
    with pytest.raises(ValueError, match="two rows and two columns"):
        crossed([[1.0, 2.0]])


# ------------------------------------------------------------------------------------------------------- of a study


def nested_results(pretrainings=3, finetunings=2):
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 0.03, pretrainings)
    return pandas.DataFrame([
        make_row(
            cell, 2 * p + f, 0.6 + shared[p] + generator.normal(0, 0.005), seed_pretrain=p, seed_finetune=2 * p + f
        )
        for cell in ("encoder=unfrozen", "encoder=frozen")
        for p, f in itertools.product(range(pretrainings), range(finetunings))
    ])  # fmt: skip


def test_nested_seeds_are_told_apart_in_every_cell_and_over_all():
    results = nested_results()
    header = make_header({"encoder": ["unfrozen", "frozen"]}, {"pretrain": 3, "finetune": 2})
    found = components(results, header, JACCARD)
    assert [row.where for row in found.rows] == 2 * ["encoder=unfrozen"] + 2 * ["encoder=frozen"] + 2 * ["all cells"]
    first = results[results["cell"] == "encoder=unfrozen"]["value"].to_numpy().reshape(3, 2)
    by_hand = nested(first)
    assert found.rows[0].std == pytest.approx(math.sqrt(by_hand.between))
    assert found.rows[1].std == pytest.approx(math.sqrt(by_hand.within))
    unfrozen, frozen = found.rows[1].std ** 2, found.rows[3].std ** 2
    assert found.rows[5].std ** 2 == pytest.approx((unfrozen + frozen) / 2)
    assert found.rows[0].share + found.rows[1].share == pytest.approx(1)
    assert "pretraining seed (and split)" in to_markdown(found)
    assert to_csv(found).splitlines()[0] == "metric,where,source,std,share,low,high,n"


def test_a_study_in_percent_has_its_spread_in_percentage_points():
    results = nested_results()
    header = make_header({"encoder": ["unfrozen", "frozen"]}, {"pretrain": 3, "finetune": 2}, percent=True)
    found = components(results, header, JACCARD)
    line = next(line for line in to_markdown(found).splitlines() if "encoder=unfrozen | pretraining" in line)
    assert "| std, percentage points |" in to_markdown(found)
    assert float(line.split(" | ")[2]) == pytest.approx(100 * found.rows[0].std, abs=0.06)


def test_a_lost_run_leaves_estimates_without_an_interval():
    header = make_header({"encoder": ["unfrozen", "frozen"]}, {"pretrain": 3, "finetune": 2})
    found = components(nested_results().iloc[1:], header, JACCARD)
    assert math.isnan(found.rows[0].low)
    assert not math.isnan(found.rows[2].low)
    assert [row.where for row in found.rows].count("all cells") == 0


def test_one_lost_run_costs_only_its_own_cell_its_place_in_the_pooled_line():
    results = pandas.concat([nested_results(), nested_results().assign(cell=lambda rows: rows["cell"] + " again")])
    levels = ["unfrozen", "frozen", "unfrozen again", "frozen again"]
    header = make_header({"encoder": levels}, {"pretrain": 3, "finetune": 2})
    found = components(results.iloc[1:], header, JACCARD)
    pooled = [row for row in found.rows if row.where == "3 of 4 cells"]
    whole = [row.std**2 for row in found.rows if row.source == pooled[1].source and not math.isnan(row.low)][:3]
    assert pooled[1].std ** 2 == pytest.approx(np.mean(whole))
    assert found.notes[-1].startswith("3 of 4 cells: mean of the cells' variances")
    assert found.notes[-1].endswith("cells with failed runs are not included")


@pytest.mark.parametrize("lost", [0, 1])
def test_copies_of_one_fine_tuning_have_no_share(lost):
    results = nested_results()
    results["value"] = results["cell"].map(len) / 100 + results["seed_pretrain"] / 3
    header = make_header({"encoder": ["unfrozen", "frozen"]}, {"pretrain": 3, "finetune": 2})
    found = components(results.iloc[lost:], header, JACCARD)
    assert all(math.isnan(row.share) and math.isnan(row.low) for row in found.rows)
    assert found.rows[0].std == pytest.approx(1 / 3)
    assert any(
        note.startswith("no share, because the fine-tunings of one pretraining do not vary") for note in found.notes
    )


def test_one_pretraining_has_the_spread_of_its_fine_tunings_and_no_more():
    results = nested_results(pretrainings=1, finetunings=3)
    header = make_header({"encoder": ["unfrozen", "frozen"]}, {"pretrain": 1, "finetune": 3})
    found = components(results, header, JACCARD)
    assert [(row.source, row.n) for row in found.rows] == 2 * [("fine-tuning seed (and label subset)", 3)]
    assert found.rows[0].std == pytest.approx(results["value"][:3].std())
    assert "| – | – | 3 |" in to_markdown(found)
    assert found.notes == (
        "one pretraining: the spread of its fine-tunings only, which does not show how another pretraining would score",
    )


def test_seeds_that_are_not_nested_have_no_components():
    header = make_header({"encoder": ["unfrozen", "frozen"]}, 6)
    assert components(nested_results(), header, JACCARD).rows == ()


def test_rungs_are_no_part_of_a_search_s_components():
    """What a configuration scored on its way says nothing of its spread at the end; what was stopped has no end."""
    whole = [
        make_row("encoder=frozen", seed, base + 0.1 * seed, phase="search", metric="val/jaccard", chosen=chosen)
        for chosen, base in (('{"lr": 0.1}', 0.5), ('{"lr": 0.2}', 0.7))
        for seed in (0, 1)
    ]
    rungs = [{**row, "value": row["value"] / 4, "until": "finetune 1"} for row in whole]
    stopped = [{**row, "chosen": '{"lr": 0.9}'} for row in rungs]
    header = make_header({"encoder": ["unfrozen", "frozen"]}, 1)
    of_whole = components(pandas.DataFrame([{**row, "until": None} for row in whole]), header, JACCARD)
    of_all = components(
        pandas.DataFrame([*({**row, "until": None} for row in whole), *rungs, *stopped]), header, JACCARD
    )
    assert of_all.rows == of_whole.rows
    assert [row.std for row in of_all.rows] == pytest.approx([math.sqrt(0.02), math.sqrt(0.005), 0], abs=1e-9)


def test_a_search_on_two_seeds_tells_tuned_values_from_seeds():
    """Values 0.5 and 0.7 at seeds that differ by 0.1, without rest: std of values 0.1414, of seeds 0.0707."""
    rows = [
        make_row("encoder=frozen", seed, base + 0.1 * seed, phase="search", metric="val/jaccard", chosen=chosen)
        for chosen, base in (('{"lr": 0.1}', 0.5), ('{"lr": 0.2}', 0.7))
        for seed in (0, 1)
    ]
    header = make_header({"encoder": ["unfrozen", "frozen"]}, 1)
    found = components(pandas.DataFrame(rows), header, JACCARD)
    assert [row.source for row in found.rows] == ["tuned values", "seed", "tuned values × seed"]
    assert [row.std for row in found.rows] == pytest.approx([math.sqrt(0.02), math.sqrt(0.005), 0], abs=1e-9)
    assert "denser where scores are good" in found.notes[0]
