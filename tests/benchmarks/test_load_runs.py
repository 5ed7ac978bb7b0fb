"""benchmarks/load_runs.py: the event files that it writes, and what it measures."""

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module")
def script(scripts):
    return scripts("load_runs")


def test_the_event_files_are_those_that_tensorboard_reads(script, tmp_path):
    names = script.metric_names(30)
    assert len(set(names)) == 30
    size = script.write_events(tmp_path / "events.out.tfevents.1", names, 5, (0, 1))
    assert size == (tmp_path / "events.out.tfevents.1").stat().st_size
    found = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    found.Reload()
    assert sorted(found.Tags()["scalars"]) == sorted(names)
    assert all([event.step for event in found.Scalars(name)] == [0, 1, 2, 3, 4] for name in names)
    assert [event.value for event in found.Scalars("num_tokens")] == [0.0, 10.0, 20.0, 30.0, 40.0]


def test_each_phase_is_timed_in_a_process_of_its_own(script, tmp_path):
    folder = tmp_path / "large"
    script.write_study(folder, 12, 2, 20)
    rows = pd.DataFrame(script.phases(folder))
    assert rows["phase"].tolist() == ["first load", "cached load", "report"]
    assert rows["result"].tolist()[:2] == [12 * 2 * 20] * 2
    assert (rows["processor_seconds"] > 0).all() and rows["peak_rss_mb"].between(50, 2000).all()
    assert (folder / "report" / "index.html").stat().st_size == rows["result"].iloc[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--runs", "0"], "--runs: got 0, expected at least 1"),
        (["--steps", "1"], "--steps: got 1, expected at least 2"),
        (["--scalars", "19"], "--scalars: got 19, expected at least 20"),
    ],
)
def test_wrong_sizes_are_one_line(mistake, arguments, said):
    assert mistake("load_runs", *arguments) == said
