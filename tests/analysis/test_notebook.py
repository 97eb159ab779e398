"""The example of docs/analysis.md runs as it is written."""

import itertools
import re
from pathlib import Path

import numpy as np
from studies import label_of, write_study

FACTORS = {"encoder": ["unfrozen", "frozen"], "skip": ["true", "false"]}
GUIDE = Path(__file__).parents[2] / "docs" / "analysis.md"


def test_the_guides_example_runs(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    cells = [label_of(dict(zip(FACTORS, levels, strict=True))) for levels in itertools.product(*FACTORS.values())]
    scores = {cell: list(generator.normal(0.6, 0.02, 3)) for cell in cells}
    write_study(tmp_path / "runs" / "x", scores, FACTORS, baseline={"encoder": "unfrozen"})
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(code, str(GUIDE), "exec"), {})
    assert "| encoder | skip=true | skip=false |" in capsys.readouterr().out
