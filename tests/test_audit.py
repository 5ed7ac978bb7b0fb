"""What the gate makes of the index's answer about vulnerabilities."""

import datetime
import json
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "audit.py"
AUDIT = runpy.run_path(str(SCRIPT))
CHECKED = {"name": "numpy", "version": "2.0", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found"}
BAD = {
    "name": "yaml",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1", "GHSA-1"], "fix_versions": []}],
}


@pytest.mark.parametrize(
    ("packages", "allowed", "status", "line"),
    [
        ([CHECKED, SKIPPED], set(), 0, "audit: nothing known against 1 of 2 packages"),
        ([SKIPPED], set(), 0, "audit: the index has no record of any of 1 packages, so nothing was checked"),
        (
            [CHECKED, BAD],
            set(),
            1,
            "audit: known vulnerabilities: yaml 1.0: PYSEC-1; raise the version, or allow one for",
        ),
        ([CHECKED, BAD], {"GHSA-1"}, 0, "audit: nothing known against 2 of 2 packages"),
        ([CHECKED, BAD], {"GHSA-2"}, 1, "audit: known vulnerabilities: yaml 1.0: PYSEC-1"),
    ],
)
def test_only_what_is_known_and_not_allowed_stops_the_gate(packages, allowed, status, line):
    found, said = AUDIT["verdict"](json.dumps({"dependencies": packages}), allowed)
    assert found == status and said.startswith(line)


def test_no_answer_is_said_and_stops_nothing():
    assert AUDIT["verdict"]("", set()) == (0, "audit: the index did not answer, so nothing was checked")


def test_what_is_allowed_ends_with_its_day(tmp_path):
    (tmp_path / "list").write_text("# why\nCVE-1 2026-01-31 not reached: it is about uploads\nCVE-2 2026-03-01 tests\n")
    assert AUDIT["allowed"](tmp_path / "list", datetime.date(2026, 2, 1)) == {"CVE-2"}


def test_without_the_program_it_says_so_within_seconds():
    began = time.monotonic()
    arguments = [
        sys.executable,
        str(SCRIPT),
        "no-such-program",
        "constraints.txt",
        str(SCRIPT.with_name("audit-allowed.txt")),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "audit: the index did not answer, so nothing was checked\n")
    assert time.monotonic() - began < 20
