import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from grpovi_lightning.study.process import Run
from grpovi_lightning.study.progress import (
    LINE_SECONDS,
    LineDisplay,
    LiveDisplay,
    RunProgress,
    duration,
    make_display,
    overall,
    remaining_seconds,
)


def progress(owner="a", seed=1, seconds=None, **state):
    made = RunProgress(Run(owner, Path("x"), (), (), Path("lock"), seed=seed), **state)
    if seconds is not None:
        made.began = time.monotonic() - seconds
        made.ended = made.began + seconds
    return made


def terminal(height=30):
    return Console(file=io.StringIO(), force_terminal=True, width=120, height=height, _environ={"TERM": "xterm"})


def text_of(renderable):
    console = Console(file=io.StringIO(), width=120)
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations_are_short_words(seconds, words):
    assert duration(seconds) == words


def test_while_runs_are_queued_elsewhere_the_time_left_is_at_the_pace_of_those_that_have_a_machine():
    done = progress(state="finished", step=10, max_steps=10, seconds=60)
    running = progress(state="running", step=0, max_steps=10)
    queued = [progress(state="queued") for _ in range(3)]
    said = overall([done, running, *queued], jobs=5)
    assert said == "1 of 5 runs finished, 1 running, 3 queued, about 4 min 0 s left"


def test_time_left_is_the_work_left_at_the_pace_so_far_shared_by_the_jobs():
    done = progress(state="finished", step=10, max_steps=10, seconds=20)
    half = progress(state="running", step=5, max_steps=10, seconds=10)
    waiting = [progress() for _ in range(3)]
    assert remaining_seconds([done, half, *waiting], 2) == pytest.approx(20 * 3.5 / 2)
    assert remaining_seconds([done, half, *waiting], 1) == pytest.approx(20 * 3.5)


def test_more_jobs_than_runs_do_not_make_the_longest_run_shorter():
    half = progress(state="running", step=5, max_steps=10, seconds=10)
    assert remaining_seconds([half], 8) == pytest.approx(10)


def test_steps_of_an_earlier_attempt_do_not_make_a_run_look_fast():
    continued = progress(state="running", step=75, max_steps=100, began_at_step=50, seconds=10)
    assert remaining_seconds([continued], 1) == pytest.approx(10)


def test_time_left_is_unknown_before_the_first_step_and_stages_tell_nothing():
    stage = progress(seed=None, state="finished", step=10, max_steps=10, seconds=20)
    assert remaining_seconds([stage, progress(), progress(state="running", max_steps=10, seconds=3)], 1) is None
    assert "left" not in overall([stage, progress()], 1)


def test_one_line_says_how_many_runs_are_where():
    runs = [progress(state="finished"), progress(state="failed"), progress(state="running"), progress()]
    assert overall(runs, 1) == "1 of 4 runs finished, 1 running, 1 waiting, 1 failed"


def test_lines_come_for_changes_and_for_everything_now_and_then(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("grpovi_lightning.study.progress.time.monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), width=40)
    runs = [progress(owner="[b]x[/b]", state="running", step=5, max_steps=10)]
    display = LineDisplay(runs, 1, console)
    display.refresh()
    assert console.file.getvalue() == ""
    clock[0] += LINE_SECONDS + 1
    display.refresh()
    display.refresh()
    (line,) = console.file.getvalue().splitlines()
    assert line.endswith(" 0 of 1 runs finished, 1 running: arm [b]x[/b] seed 1 5/10")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"state": "running", "began_at_step": 40}, "continues; last recorded at step 40"),
        ({"state": "finished"}, "finished earlier"),
        ({"state": "finished", "seconds": 90}, "finished in 1 min 30 s"),
        ({"state": "failed", "step": 3, "max_steps": 9, "error": "no"}, "failed at step 3/9: no"),
        ({"state": "interrupted"}, "interrupted"),
    ],
)
def test_a_line_says_what_happened_to_a_run(state, said):
    console = Console(file=io.StringIO())
    LineDisplay([], 1, console).changed(progress(**state))
    assert console.file.getvalue().strip().endswith(f"arm a seed 1: {said}")


def test_the_table_shows_each_run_with_state_steps_and_error():
    runs = [
        progress(owner="plain", state="finished", step=10, max_steps=10, seconds=61),
        progress(owner="other", state="failed", step=4, max_steps=10, error="loss [is] nan", seconds=5),
        progress(owner="third", state="running", step=5, max_steps=10, seconds=7),
    ]
    lines = text_of(LiveDisplay(runs, 2, terminal()).render()).splitlines()
    assert lines[0].startswith("1 of 3 runs finished, 1 running, 1 failed, about ")
    rows = [line.split() for line in lines[2:]]
    assert [row[1] for row in rows] == ["third", "other", "plain"]
    assert "running" in lines[2]
    assert "5/10" in lines[2]
    assert "loss [is] nan" in lines[3]
    assert "1 min 1 s" in lines[4]


def test_more_runs_than_lines_are_counted_and_the_running_ones_stay_in_sight():
    runs = [progress(seed=seed) for seed in range(20)] + [progress(owner="now", state="running")]
    text = text_of(LiveDisplay(runs, 1, terminal(height=10)).render())
    assert "arm now seed 1" in text
    assert "and 16 more" in text
    assert len(text.splitlines()) <= 10


def test_a_terminal_gets_the_table_and_gives_the_cursor_back():
    console = terminal()
    runs = [progress(owner="plain")]
    with make_display(runs, 1, console) as display:
        display.note("something [odd] happened")
        runs[0].state = "finished"
        display.changed(runs[0])
        display.refresh()
    shown = console.file.getvalue()
    assert "something [odd] happened" in shown
    assert "1 of 1 runs finished" in shown
    assert shown.rstrip().endswith("\x1b[?25h")


def test_a_terminal_that_cannot_move_its_cursor_gets_lines():
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(make_display([], 1, dumb), LineDisplay)
