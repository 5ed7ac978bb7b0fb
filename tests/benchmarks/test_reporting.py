"""benchmarks/reporting.py: what all scripts print and write alike."""

import io

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.999e-4, "1.00 ms"), (2.5e-4, "250 µs"), (0.0431, "43.1 ms"), (1659.4376, "1,660 s")]
)
def test_durations_have_three_digits(scripts, seconds, text):
    assert scripts("reporting").duration(seconds) == text


def test_a_table_has_a_line_a_row_a_rule_for_none_and_the_note_below(scripts):
    console = Console(width=60, file=io.StringIO())
    scripts("reporting").print_table(console, "Title", ("", "n"), [["a", "1"], None, ["b", "2"]], "A note.")
    printed = console.file.getvalue()
    lines = [" ".join(line.split()) for line in printed.splitlines() if line.strip()]
    assert len(printed.split("a   1")[1].split("b   2")[0].splitlines()) == 3  # the rule is an empty line
    assert lines[0] == "Title" and lines[-1] == "A note." and lines.index("b 2") == lines.index("a 1") + 1


def test_table_and_picture_go_beside_each_other_and_say_where(scripts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reporting = scripts("reporting")
    path = reporting.output_path("name")
    frame = pd.DataFrame({"a": [1, 2], "b": [0.1, 1e-17]})
    assert reporting.write_table(frame, path) == f"written: {path}.csv"
    assert path.parent.as_posix() == "runs/benchmarks" and path.name.startswith("name_")
    pd.testing.assert_frame_equal(pd.read_csv(f"{path}.csv"), frame)
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([1, 2])
    assert reporting.save_picture(figure, path) == f"written: {path}.png"
    assert Image.open(f"{path}.png").size == (260, 130)
