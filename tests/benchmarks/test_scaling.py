"""benchmarks/scaling_arithmetic.py and sharded_memory.py: the tables of docs/scaling.md, and a small measurement."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_tables_that_the_script_prints(scripts):
    script, page = scripts("scaling_arithmetic"), (ROOT / "docs" / "scaling.md").read_text()
    for rows in (script.memory_rows(), script.time_rows()):
        assert len(rows) >= 9
        assert "\n".join(f"| {' | '.join(row)} |" for row in rows) in page


def test_memory_is_what_the_page_says_by_its_formulas(scripts):
    script = scripts("scaling_arithmetic")
    eight = script.SHAPES[1]
    # Weights, gradients, two moments and a reference of 4 bytes each; or 2 bytes below adapters.
    assert script.state(eight, 8, adapters=False) == pytest.approx(20 * 8.03e9 / 8)
    assert script.state(eight, 1, adapters=True) == pytest.approx(2 * 8.03e9)
    # 32 layers x 8 heads x 128 numbers x keys and values x 2 bytes, 8 prompts of 512 with 8 completions of 1,024.
    assert script.cache(eight, script.Work()) == 32 * 8 * 128 * 2 * 2 * 8 * (512 + 8 * 1024)


@pytest.mark.slow
def test_two_processes_keep_about_half_each(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "sharded_memory.py"), "--quick"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # others compute beside it
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "runs" / "benchmarks").glob("sharded_memory_*.csv")
    one, two = pd.read_csv(file).to_dict("records")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["expected"] == pytest.approx(one["expected"] / 2)
    assert two["at rest"] < one["at rest"]
