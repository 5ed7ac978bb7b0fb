"""benchmarks/adjustment.py: what it solves, counts and refuses. How fast anything is stays untested here."""

import csv
import importlib.util
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from helpers.exact_adjustment import exact_adjustment
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "adjustment.py"
COLUMNS = "table,case,method,groups,group_size,seconds,repeats,optimal_value,ratio,ratio_to"


def write_run(folder, times):
    """A run that logged pairs (step_time, step_time/adjustment), one a step."""
    folder.mkdir(parents=True)
    (folder / "status.json").write_text('{"state": "finished", "seed": 1}')
    with (folder / "events.out.tfevents.1.host.1.0").open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(file_version="brain.Event:2").SerializeToString())
        for step, pair in enumerate(times):
            tags = zip(("step_time", "step_time/adjustment"), pair, strict=False)
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in tags]
            writer.write(Event(step=step, summary=Summary(value=values)).SerializeToString())


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder in which the whole script ran once, what it printed, and its table."""
    folder = tmp_path_factory.mktemp("benchmark")
    # Shares 0.001 and 0.004, 0.002: median 0.002, where the quotient of the median times is 0.004 and the mean 0.0023.
    write_run(folder / "study" / "arms" / "grpovi" / "seed_1", [(1.0, 0.001), (2.0, 0.008)])
    write_run(folder / "study" / "arms" / "grpovi" / "seed_2", [(4.0, 0.008)])
    write_run(folder / "study" / "arms" / "grpo" / "seed_1", [(1.0, 0.0)])
    command = [sys.executable, str(SCRIPT), "--quick", "--study", "study"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (table,) = folder.glob("runs/benchmarks/adjustment_*.csv")
    return folder, done.stdout, table


@pytest.fixture
def measurements(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.syspath_prepend(str(ROOT))  # tests/analysis must not stand in for the package
    import adjustment_measurements

    return adjustment_measurements


@pytest.fixture
def script(measurements, monkeypatch, tmp_path):
    """The script as a module, in an empty folder, with sizes that take no time."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("benchmark_of_the_adjustment", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tiny = measurements.Sizes(paper=(5,), batches=((2, 3),), loop=(2, 3), rounds=1, batch_rounds=1)
    monkeypatch.setattr(module, "QUICK", tiny)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def test_the_table_has_one_row_a_measurement(quick):
    _, _, table = quick
    assert table.read_text().splitlines()[0] == COLUMNS
    rows = read(table)
    paper = [(row["case"], row["method"]) for row in rows if row["table"] == "paper"]
    methods = ("enumeration", "one pass", "closed form")
    assert paper == [(f"n = {n}", method) for n in (10, 50, 100) for method in methods]
    assert [row["method"] for row in rows if row["table"] == "loop"] == ["loop of one pass", "closed form"]
    assert {row["method"] for row in rows if row["table"] == "batches"} == {"merge", "split"}
    assert all(float(row["seconds"]) > 0 and int(row["repeats"]) >= 1 for row in rows if row["table"] != "study")


def test_every_method_finds_the_optimal_value_of_exact_arithmetic(quick, measurements):
    rows = [row for row in read(quick[2]) if row["table"] == "paper" and row["group_size"] in ("10", "50")]
    assert len(rows) == 6
    for n in (10, 50):
        rewards, weights = (part[0].tolist() for part in measurements.instance(1, n, seed=0))
        p = [Fraction(weight) for weight in weights]
        best = exact_adjustment(rewards, weights, 0, 1)
        exact = float(sum(w * z * z for w, z in zip(p, best, strict=True)) / sum(p))
        found = [float(row["optimal_value"]) for row in rows if row["group_size"] == str(n)]
        assert found == pytest.approx([exact] * 3, abs=1e-12)


def test_a_ratio_is_the_time_over_that_of_the_closed_form(quick):
    rows = [row for row in read(quick[2]) if row["table"] in ("paper", "loop")]
    closed = {row["case"]: float(row["seconds"]) for row in rows if row["method"] == "closed form"}
    for row in rows:
        assert float(row["ratio"]) == pytest.approx(float(row["seconds"]) / closed[row["case"]])
        assert row["ratio_to"] == "closed form"


def test_the_share_of_an_arm_is_the_median_over_the_steps_of_all_its_seeds(quick):
    shares = {row["case"]: row for row in read(quick[2]) if row["table"] == "study"}
    assert float(shares["grpovi"]["ratio"]) == pytest.approx(0.002)
    assert int(shares["grpovi"]["repeats"]) == 3
    assert float(shares["grpo"]["ratio"]) == 0.0
    assert "0.2000%" in quick[1]


def test_the_machine_and_the_place_of_the_table_are_printed(quick):
    folder, printed, table = quick
    assert printed.startswith("processor: ") and "threads: 1" in printed and f"torch {torch.__version__}" in printed
    assert printed.splitlines()[-1] == f"written: {table.relative_to(folder)}"


def test_without_a_study_the_script_says_how_to_get_the_share(script, capsys):
    assert script.main(["--quick"]) == 0
    printed = capsys.readouterr().out
    assert "make study" in printed and "--study runs/quickstart" in printed


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (lambda rewards: rewards.clone(), "the optimal values differ by"),
        (lambda rewards: torch.ones_like(rewards), "closed form moves the weighted mean by"),
        (lambda rewards: torch.full_like(rewards, torch.nan), "closed form moves the weighted mean by nan"),
    ],
    ids=["not the optimum", "another mean", "not a number"],
)
def test_a_wrong_solution_is_one_line_and_exit_status_1(script, measurements, monkeypatch, capsys, wrong, complaint):
    monkeypatch.setattr(measurements, "increase_variance", lambda rewards, *_, **__: wrong(rewards))
    assert script.main(["--quick", "--output", "out.csv"]) == 1
    *progress, line = capsys.readouterr().err.splitlines()
    assert line.startswith("adjustment.py: error: paper, n = 5: ") and complaint in line
    assert not any("error" in earlier for earlier in progress)
    assert not Path("out.csv").exists()


def test_methods_are_timed_in_turn_and_a_long_one_only_once(measurements):
    calls = []
    methods = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = measurements.measure(methods, rounds=2)
    assert calls == list("ababab") and [timing.repeats for timing in timings.values()] == [2, 2]
    calls.clear()
    timings = measurements.measure(methods, rounds=2, once_above=0.0)
    assert calls == list("ab") and [timing.repeats for timing in timings.values()] == [1, 1]


def test_a_rerun_replaces_its_own_table_and_says_so(script, capsys):
    arguments = ["--quick", "--output", "new/out.csv"]
    assert script.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "written: new/out.csv"
    assert script.main([*arguments, "--seed", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "replaced: new/out.csv"
    assert len(read(Path("new/out.csv"))) == 3 + 4 + 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--output", "other.csv"], "--output: got other.csv, which is there and no table of this benchmark"),
        (["--output", "other.txt"], "--output: got other.txt, expected a name that ends in .csv"),
        (["--output", "other.csv/out.csv"], "other.csv"),
        (["--threads", "0"], "--threads: got 0, expected at least 1"),
        (["--study", "nowhere"], "nowhere: no such folder"),
        (["--study", "untimed"], "untimed: got no step with step_time/adjustment and step_time"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_measured(script, capsys, arguments, complaint):
    Path("other.csv").write_text("group,reward\na,1\n")
    write_run(Path("untimed"), [(1.0,)])
    assert script.main(["--quick", *arguments]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("adjustment.py: error: ") and complaint in line
    assert printed.out == ""
    assert Path("other.csv").read_text() == "group,reward\na,1\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.999e-4, "1.00 ms"), (2.5e-4, "250 µs"), (0.0431, "43.1 ms"), (1659.4376, "1,660 s")]
)
def test_durations_have_three_digits(script, seconds, text):
    assert script.duration(seconds) == text
