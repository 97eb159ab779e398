"""Print what Pretune depends on, a requirement a line; `boto3` for `ray up` on AWS."""

from __future__ import annotations

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
print("\n".join([*project["dependencies"], "boto3"]))
