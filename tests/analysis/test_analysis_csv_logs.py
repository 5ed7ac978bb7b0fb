"""Runs of `CSVLogger`: read like those of TensorBoard, attempts after a resume settled, damage named."""

import csv
import math
from pathlib import Path

import pytest
from synthetic_runs import GOLD, line, write_events, write_run, write_status

from analysis import load_runs, load_status, write_report
from analysis.run_log import read_scalars


def write_csv(run: Path, rows, *, version="version_0", name="lightning_logs") -> Path:
    """A file as `CSVLogger` writes it: sorted names, rows in the order of logging, CRLF."""
    path = run / name / version / "metrics.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    return path


def values(run: Path):
    """metric -> step -> value of what counts."""
    found = read_scalars(run)
    assert found.damage is None, found.damage
    curves: dict[str, dict[int, float]] = {}
    for scalar in found.scalars:
        assert math.isnan(scalar.wall_time)
        curves.setdefault(scalar.metric, {})[scalar.step] = scalar.value
    return curves


def attempt(first, last, mark):
    """Rows of the training steps, the evaluation after each, and the first one of the initial policy."""
    rows = [{"step": 0, GOLD: mark}] if first == 0 else []
    for step in range(first, last):
        rows += [{"step": step, "reward": mark}, {"step": step + 1, GOLD: mark}]
    return rows


def test_cells_that_are_filled_are_the_values(tmp_path):
    write_csv(
        tmp_path, [{"step": 0, "reward": 0.1}, {"step": 0, GOLD: 0.30000000000000004}, {"step": 1, "reward": "nan"}]
    )
    found = values(tmp_path)
    assert found[GOLD] == {0: 0.30000000000000004}
    assert found["reward"] == pytest.approx({0: 0.1, 1: math.nan}, nan_ok=True)


def test_a_later_attempt_supersedes_what_came_after_its_checkpoint(tmp_path):
    """The checkpoint was written after six of ten steps, whose last evaluation was made before it."""
    for number, (first, last) in enumerate([(0, 10), (6, 8), (7, 9)]):
        write_csv(tmp_path, attempt(first, last, float(number)), version=f"version_{number}")
    found = values(tmp_path)
    assert found["reward"] == {0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 1, 7: 2, 8: 2}
    assert found[GOLD] == {0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 0, 7: 1, 8: 2, 9: 2}


def test_attempts_are_ordered_by_number_not_by_name(tmp_path):
    for number in range(12):
        write_csv(tmp_path, attempt(number, number + 1, float(number)), version=f"version_{number}")
    assert values(tmp_path)["reward"] == {step: step for step in range(12)}


def test_a_row_that_was_cut_off_is_left_out_and_named_where_the_run_says_it_finished(tmp_path):
    path = write_csv(tmp_path, attempt(0, 3, 0.125))
    path.write_bytes(path.read_bytes()[:-4])  # what stays of the last row would be another number
    write_status(tmp_path)
    assert values(tmp_path)[GOLD] == {0: 0.125, 1: 0.125, 2: 0.125}
    assert load_status(tmp_path)["problem"].tolist() == [
        "log file metrics.csv ends inside a record, so its last values are missing"
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("step,reward\r\n0,0.5\r\n1,high\r\n", "row 3: expected numbers (could not convert string to float: 'high')"),
        ("step,reward\r\n0,0.5,1\r\n", "row 2 has 3 cells, expected 2"),
        ("step,reward\r\n,0.5\r\n", "row 2: expected numbers (invalid literal for int() with base 10: '')"),
        ("reward\r\n0.5\r\n", "expected a heading with one column 'step' and no name twice, got ['reward']"),
        ("step,reward\r\n5,0.5\r\n", "begins at step 5: the rows of an earlier attempt are gone"),
        ("step,\udcff\r\n5,0.5\r\n", "'utf-8' codec can't decode byte 0xff in position 5: invalid start byte"),
    ],
)
def test_a_file_that_is_no_log_is_one_line(tmp_path, content, said):
    path = write_csv(tmp_path, [{"step": 0}])
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    write_status(tmp_path)
    assert load_status(tmp_path)["problem"].tolist() == [f"damaged log file metrics.csv: {said}"]
    assert load_runs(tmp_path).empty


def test_logs_in_places_whose_order_cannot_be_told_are_not_mixed(tmp_path):
    write_csv(tmp_path, attempt(0, 2, 0.0))
    write_csv(tmp_path, attempt(1, 2, 1.0), name="mine")
    assert read_scalars(tmp_path).damage == (
        "metrics.csv: in several places, whose order cannot be told: lightning_logs/version_0, mine/version_0; "
        "keep the one that counts"
    )


def test_a_run_that_went_on_with_another_logger_is_set_aside(tmp_path):
    write_events(tmp_path, {GOLD: line(0, 1)})
    write_csv(tmp_path, attempt(5, 9, 1.0), version="version_0")
    write_status(tmp_path, loggers=["CSVLogger"])
    assert load_status(tmp_path)["problem"].tolist() == [
        "its last attempt logged as CSV and an earlier one for TensorBoard, so neither has all values"
    ]
    write_status(tmp_path, loggers=["TensorBoardLogger", "CSVLogger"])
    assert load_status(tmp_path)["problem"].tolist() == [None]


def test_a_report_of_csv_runs_says_what_one_of_tensorboard_says(tmp_path):
    for kind in ("events", "csv"):
        for arm, end in (("grpo", 1.0), ("grpovi", 1.5)):
            for seed in (1, 2):
                run = write_run(
                    *(tmp_path / kind / arm / f"seed_{seed}", line(0, end + seed / 8)),
                    seed=seed,
                    adjustment="VarianceIncrease" if arm == "grpovi" else "IdentityAdjustment",
                )
                if kind == "csv":
                    rows = [{"step": each.step, each.metric: each.value} for each in read_scalars(run).scalars]
                    next(run.glob("events*")).unlink()
                    write_csv(run, rows)
        write_report(tmp_path / kind)
    tables = [(tmp_path / kind / "report" / "efficiency.csv").read_text() for kind in ("events", "csv")]
    assert tables[0] == tables[1]
    assert "grpovi,grpo" in tables[0]
