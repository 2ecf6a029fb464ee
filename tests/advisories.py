"""Whether what constraints.txt installs has known vulnerabilities; part of `make check`.

    python -m tests.advisories [options of pip-audit]

Ends with 1 where there is one that nobody has looked at. Where the advisories cannot be asked for, it says so and ends
with 0: a developer without a network can still check the rest.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
# Advisories that do not concern this service: id -> why, and what would change that.
IGNORED: dict[str, str] = {}


def main(options: Sequence[str] = ()) -> int:
    ignored = [option for advisory in IGNORED for option in ("--ignore-vuln", advisory)]
    pinned = ["--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip"]  # exactly these, whatever is installed
    plain = ["--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    command = [sys.executable, "-m", "pip_audit", *pinned, *plain, *ignored, *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(ended.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        reason = (ended.stderr.strip() or "no answer").splitlines()[-1][:200]
        print(f"dependencies NOT audited: the advisories cannot be asked for ({reason})")
        return 0
    for each in found:
        for advisory in each.get("vulns", ()):
            fixed = ", ".join(advisory["fix_versions"]) or "no release yet"
            print(f"{each['name']} {each['version']}: {advisory['id']}, fixed in {fixed}")
    unknown, vulnerable = (sum(bool(each.get(key)) for each in found) for key in ("skip_reason", "vulns"))
    if unknown:
        print(f"{unknown} of {len(found)} dependencies NOT audited: the advisory service does not know them")
    print(f"{len(found) - unknown} dependencies audited, {vulnerable} vulnerable")
    return int(bool(vulnerable))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
