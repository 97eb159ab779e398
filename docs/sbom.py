"""Write sbom.json: the packages of this environment with versions, licences and sources, in CycloneDX 1.5.

python docs/sbom.py [sbom.json]        (or `make sbom`)
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def component(package: importlib.metadata.Distribution) -> dict[str, Any]:
    """A package as CycloneDX has it; its licence as the package itself says, or none."""
    about = package.metadata
    name = about["Name"].lower().replace("_", "-")
    licence = about.get("License-Expression") or (about.get("License") or "").strip().splitlines()[:1]
    found = {
        "type": "library",
        "name": about["Name"],
        "version": package.version,
        "purl": f"pkg:pypi/{name}@{package.version}",
        "bom-ref": f"{name}@{package.version}",
    }
    if isinstance(licence, str):
        return found | {"licenses": [{"expression": licence}]}
    return found | ({"licenses": [{"license": {"name": licence[0]}}]} if licence else {})


def bill() -> dict[str, Any]:
    """The bill of materials of this environment."""
    packages = {one.metadata["Name"].lower(): one for one in importlib.metadata.distributions() if one.metadata["Name"]}
    own = packages.pop("pretune", None)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": {"type": "application", "name": "pretune", "version": own.version if own else "unknown"},
        },
        "components": [component(packages[name]) for name in sorted(packages)],
    }


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "sbom.json")
    made = bill()
    target.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {target}: {len(made['components'])} packages")
