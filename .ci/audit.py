"""Asks the package index for known vulnerabilities of the pinned packages: audit.py PIP-AUDIT CONSTRAINTS ALLOWED.

Says in one line what came out. Exit status 1 only where a vulnerability is known that the list of allowed ones has not:
where the index does not answer, nothing is known, and that is said.
"""

import datetime
import json
import subprocess
import sys
from pathlib import Path

SECONDS = 120


def allowed(file: Path, today: datetime.date) -> set[str]:
    """Return the identifiers in lines such as `GHSA-xxxx 2026-12-31 why it does not matter`, until their day."""
    lines = (line.partition("#")[0].split(maxsplit=2) for line in file.read_text().splitlines())
    return {name for name, until, _ in filter(None, lines) if datetime.date.fromisoformat(until) >= today}


def verdict(answer: str, known: set[str]) -> tuple[int, str]:
    """Return the exit status and the line for what `pip-audit --format json` printed."""
    try:
        packages = json.loads(answer)["dependencies"]
    except (ValueError, KeyError):
        return 0, "audit: the index did not answer, so nothing was checked"
    checked = [package for package in packages if "vulns" in package]
    if not checked:
        return 0, f"audit: the index has no record of any of {len(packages)} packages, so nothing was checked"
    found = [
        f"{package['name']} {package['version']}: {vulnerability['id']}"
        for package in checked
        for vulnerability in package["vulns"]
        if not known & {vulnerability["id"], *vulnerability.get("aliases", ())}
    ]
    if found:
        return 1, f"audit: known vulnerabilities: {'; '.join(found)}; raise the version, or allow one for a while"
    return 0, f"audit: nothing known against {len(checked)} of {len(packages)} packages"


def main(command: str, constraints: str, allow_list: str) -> int:
    """Ask, and print the line."""
    asked = [command, "--timeout", "5", "--requirement", constraints, "--no-deps", "--disable-pip", "--format", "json"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    status, line = verdict(answer, allowed(Path(allow_list), datetime.date.today()))
    print(line)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
