"""table.tex compiles as it stands, with booktabs and graphicx, names from a study as hostile as may be."""

import itertools
import json
import math
import shutil
import subprocess

import numpy as np
import pytest
from studies import label_of, write_study

from pretune.analysis.report.tables import write_tables

DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
\input{table.tex}
\end{document}
"""
FACTORS = {
    "en_coder & co": ["[flip, crop]", "50% {x}", "a^b~c\\d", "#1 $y$", "* é ≥ α", "中 ✓"],
    "labels": ["all", "10%", "<1%>"],
}


def test_labels_that_latex_would_read_as_options_and_letters_beyond_ascii(tmp_path):
    levels = ["[flip, crop]", "* é ≥ α", "中"]
    write_study(tmp_path, {f"t={level}": [0.5, 0.6] for level in levels}, {"t": levels}, rows=["t"], columns=[])
    write_tables(tmp_path)
    text = (tmp_path / "table.tex").read_text()
    assert "\n{}[flip, crop] & " in text
    assert "\n{}* \\'e \\ensuremath{\\geq} \\ensuremath{\\alpha} & " in text
    assert "U+4E2D" in text
    assert text.isascii()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex: apt-get install texlive-latex-recommended")
def test_every_table_compiles_to_a_page_and_stays_in_its_line(tmp_path):
    generator = np.random.default_rng(0)
    every = [dict(zip(FACTORS, levels, strict=True)) for levels in itertools.product(*FACTORS.values())]
    scores = {label_of(levels): list(generator.normal(0.6, 0.02, 3)) for levels in every}
    scores[label_of(every[1])][1] = math.nan
    write_study(
        tmp_path,
        scores,
        FACTORS,
        cause="loss is NaN & 100% _lost_",
        baseline={"en_coder & co": "[flip, crop]"},
        margin=0.01,
    )
    header = json.loads((tmp_path / "study.json").read_text())
    header["published"] = {"values": [[*every[0].values(), 0.61]], "note": "Table 2 of P_2"}
    (tmp_path / "study.json").write_text(json.dumps(header))
    write_tables(tmp_path)
    (tmp_path / "page.tex").write_text(DOCUMENT)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "page.log").read_text(errors="replace")
    assert "Missing character" not in done.stdout + log
    assert "Overfull \\hbox" not in log  # in article's own narrow column
    assert (tmp_path / "page.pdf").stat().st_size > 10_000
