"""The notebook of the docs: its cells run, and what it shows is what they give."""

import base64
import re
import runpy
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "analysis.ipynb"

sys.path.append(str(ROOT / "tests" / "analysis"))


@pytest.fixture(scope="module")
def cells():
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


def kinds(cell) -> list[set[str]]:
    return [set(output.get("data", {"stream": ""})) for output in cell.outputs]


def headings(cell) -> list[list[str]]:
    """Of every table that the cell shows."""
    texts = [output.get("data", {}).get("text/html", "") for output in cell.outputs]
    return [re.findall(r"<th>([^<]+)</th>", text.partition("</thead>")[0]) for text in texts]


def test_the_notebook_was_executed_from_its_first_cell_to_its_last_and_names_no_place_of_a_machine(cells):
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert len(outputs) == len(cells) - 1, "each but the imports shows something"
    assert {output.output_type for output in outputs} == {"execute_result"}
    pictures = [base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.data]
    assert len(pictures) == 3 and all(len(picture) < 100_000 for picture in pictures)
    texts = [text for output in outputs for kind, text in output.data.items() if kind.startswith("text/")]
    assert not any(re.search(r"/(home|tmp|root|Users|work)/|\b0x[0-9a-f]{6}", text) for text in texts)


@pytest.mark.slow
def test_the_cells_run_and_show_tables_with_the_headings_that_the_page_shows(cells, tmp_path):
    from synthetic_runs import INCREASE, line, ramp, run_folder, write_run

    study = tmp_path / "runs" / "quickstart"
    for arm, adjustment in (("grpo", "IdentityAdjustment"), ("grpovi", INCREASE)):
        for seed in (1, 2):
            more = {"eval/kl": line(0, 1)}
            write_run(run_folder(study, arm, seed), ramp(40 + 10 * seed), seed=seed, adjustment=adjustment, more=more)
    (tmp_path / "docs").mkdir()
    executed = runpy.run_path(str(ROOT / "docs" / "run_notebook.py"))["executed"](tmp_path / "docs")
    now = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [kinds(cell) for cell in now] == [kinds(cell) for cell in cells]
    assert [headings(cell) for cell in now] == [headings(cell) for cell in cells]
