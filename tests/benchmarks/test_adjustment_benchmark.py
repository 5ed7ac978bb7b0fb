"""benchmarks/adjustment.py: what it solves, counts and refuses. How fast anything is stays untested here."""

from fractions import Fraction
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.exact_adjustment import exact_adjustment
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


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


@pytest.fixture(scope="module")
def quick(tmp_path_factory, run_in):
    """The folder in which the whole script ran once, what it printed, and its table."""
    folder = tmp_path_factory.mktemp("benchmark")
    # Shares 0.001 and 0.004, 0.002: median 0.002, where the quotient of the median times is 0.004 and the mean 0.0023.
    write_run(folder / "study" / "arms" / "grpovi" / "seed_1", [(1.0, 0.001), (2.0, 0.008)])
    write_run(folder / "study" / "arms" / "grpovi" / "seed_2", [(4.0, 0.008)])
    write_run(folder / "study" / "arms" / "grpo" / "seed_1", [(1.0, 0.0)])
    printed = run_in("adjustment", folder, "--quick", "--study", "study")
    (table,) = folder.glob("runs/benchmarks/adjustment_*.csv")
    return printed, pd.read_csv(table), table.relative_to(folder)


@pytest.fixture
def script(scripts, monkeypatch, tmp_path):
    """The script as a module, in an empty folder, with sizes that take no time."""
    monkeypatch.chdir(tmp_path)
    module = scripts("adjustment")
    tiny = module.Sizes(paper=(5,), batches=((2, 3),), loop=(2, 3), rounds=1, batch_rounds=1)
    monkeypatch.setattr(module, "QUICK", tiny)
    return module


def test_the_table_has_one_row_a_measurement(quick):
    _, rows, _ = quick
    paper = rows[rows["table"] == "paper"]
    methods = ("enumeration", "one pass", "closed form")
    found = list(zip(paper["case"], paper["method"], strict=True))
    assert found == [(f"n = {n}", method) for n in (10, 50, 100) for method in methods]
    assert rows.loc[rows["table"] == "loop", "method"].tolist() == ["loop of one pass", "closed form"]
    assert set(rows.loc[rows["table"] == "batches", "method"]) == {"merge", "split"}
    measured = rows[rows["table"] != "study"]
    assert (measured["seconds"] > 0).all() and (measured["repeats"] >= 1).all()


def test_every_method_finds_the_optimal_value_of_exact_arithmetic(quick, script):
    rows = quick[1][quick[1]["table"] == "paper"]
    for n in (10, 50):
        rewards, weights = (part[0].tolist() for part in script.instance(1, n, seed=0))
        p = [Fraction(weight) for weight in weights]
        best = exact_adjustment(rewards, weights, 0, 1)
        exact = float(sum(w * z * z for w, z in zip(p, best, strict=True)) / sum(p))
        found = rows.loc[rows["group_size"] == n, "optimal_value"].tolist()
        assert found == pytest.approx([exact] * 3, abs=1e-12)


def test_a_ratio_is_the_time_over_that_of_the_closed_form(quick):
    rows = quick[1][quick[1]["table"].isin(["paper", "loop"])]
    closed = rows[rows["method"] == "closed form"].set_index("case")["seconds"]
    assert rows["ratio"].tolist() == pytest.approx((rows["seconds"] / rows["case"].map(closed)).tolist())
    assert set(rows["ratio_to"]) == {"closed form"}


def test_the_share_of_an_arm_is_the_median_over_the_steps_of_all_its_seeds(quick):
    shares = quick[1][quick[1]["table"] == "study"].set_index("case")
    assert shares["ratio"].to_dict() == pytest.approx({"grpovi": 0.002, "grpo": 0.0})
    assert shares["repeats"].to_dict() == {"grpovi": 3, "grpo": 1}
    assert "0.2000%" in quick[0]


def test_the_machine_and_the_place_of_the_table_are_printed(quick):
    printed, _, table = quick
    assert printed.startswith("processor: ") and "threads: 1" in printed and f"torch {torch.__version__}" in printed
    assert printed.splitlines()[-1] == f"written: {table}"


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
def test_a_wrong_solution_is_one_line_and_exit_status_1(script, mistake, monkeypatch, wrong, complaint):
    monkeypatch.setattr(script, "increase_variance", lambda rewards, *_, **__: wrong(rewards))
    line = mistake("adjustment", "--quick", status=1)
    assert line.startswith("paper, n = 5: ") and complaint in line
    assert not list(Path().rglob("*.csv"))


def test_methods_are_timed_in_turn_and_a_long_one_only_once(script):
    calls = []
    methods = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = script.measure(methods, rounds=2)
    assert calls == list("ababab") and [repeats for _, _, repeats in timings.values()] == [2, 2]
    calls.clear()
    timings = script.measure(methods, rounds=2, once_above=0.0)
    assert calls == list("ab") and [repeats for _, _, repeats in timings.values()] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--threads", "0"], "--threads: got 0, expected at least 1"),
        (["--study", "nowhere"], "nowhere: no such folder"),
        (["--study", "untimed"], "untimed: got no step with step_time/adjustment and step_time"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_measured(script, mistake, arguments, complaint):
    write_run(Path("untimed"), [(1.0,)])
    assert complaint in mistake("adjustment", "--quick", *arguments)
