"""benchmarks/against_trl.py with stand-ins for TRL: what it compares and refuses.

Completions are replayed from a record of this project's own training, written as `trl_step.py` writes TRL's.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import save_file

from grpovi_lightning import metric_keys as keys

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = {"vocab": 16, "hidden": 16, "layers": 2, "prompt": 8, "completion": 6, "prompts_per_step": 2, "group_size": 4}
STEPS = 3

STAND_IN_FOR_TRLS_PYTHON = f"""#!{sys.executable}
# A stand-in: it says that it has TRL, and runs no TRL but whatever script it is given.
import runpy, sys
if sys.argv[1] == "-c":
    print("trl 0.0 (stand-in)")
else:
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0])
"""

STAND_IN_FOR_A_STEP_SCRIPT = """
# A stand-in: it trains nothing, and prints made-up figures that depend on the seed.
import json, sys
seed = int(next(argument for argument in sys.argv if argument.startswith("--seed=")).removeprefix("--seed="))
figures = {"system": "SYSTEM", "median_step_seconds": SECONDS, "completion_tokens_per_second": 10.0, "peak_rss_mb": 100,
           "kl_last": [0.1, 0.3, 0.2][seed] + KL, "reward_last": 0.5}
print("a line before the last")
print(json.dumps(figures))
"""


@pytest.fixture(scope="module")
def script(scripts):
    return scripts("against_trl")


def made_up(system, seconds, peaks, kls=(0.1, 0.1, 0.1)):
    """A run a round; seeds are rounds less one."""
    columns = ["workload", "round", "system", "seed", "steps", "threads", "median_step_seconds"]
    columns += ["completion_tokens_per_second", "peak_rss_mb", "kl_last", "reward_last"]
    rows = enumerate(zip(seconds, peaks, kls, strict=True), start=1)
    found = (("even", i, system, i - 1, 12, 2, each, 100.0 * i, peak, kl, 0.5) for i, (each, peak, kl) in rows)
    return [dict(zip(columns, row, strict=True)) for row in found]


def printed(function, *arguments):
    from rich.console import Console

    console = Console(width=100, markup=False, highlight=False)
    with console.capture() as captured:
        function(console, *arguments)
    return captured.get()


def test_a_comparison_is_the_ratio_of_the_medians_and_the_range_of_the_rounds(script):
    runs = made_up("trl", (2.0, 3.0, 4.0), (800, 900, 850))
    runs += made_up("grpovi-lightning", (1.0, 2.0, 1.2), (425, 400, 500))
    (found,) = script.compare(pd.DataFrame(runs)).to_dict("records")
    # Medians 3.0 and 1.2; rounds 2 / 1, 3 / 2, 4 / 1.2. The median of the three ratios would be 2.0.
    assert (found["lowest", ""], found["highest", ""]) == pytest.approx((1.5, 4.0 / 1.2))
    assert (found["peak_rss_mb", "trl"], found["peak_rss_mb", "grpovi-lightning"]) == (850, 425)
    text = printed(script.print_comparison, pd.DataFrame(runs))
    cells = "even 3.00 s 1.20 s 2.50 (1.50 to 3.33) 200 200 850 425 2.00"
    assert cells in [" ".join(line.split()) for line in text.splitlines()]
    assert "3 round(s)" in text


def test_a_round_that_only_one_of_them_ran_is_not_compared(script):
    runs = made_up("trl", (2.0, 3.0, 4.0), (1, 1, 1)) + made_up("grpovi-lightning", (1.0,), (1,), (0.1,))
    with pytest.raises(AssertionError, match="every round has a run of both systems"):
        script.compare(pd.DataFrame(runs))


def test_learning_lies_within_above_or_below_the_range_of_trls_seeds(script):
    same = ((1.0, 1.0, 1.0), (1, 1, 1))
    runs = made_up("trl", *same, kls=(0.1, 0.3, 0.2)) + made_up("grpovi-lightning", *same, kls=(0.1, 0.31, 0.05))
    text = printed(script.print_learning, pd.DataFrame(runs))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "TRL, lowest to highest 0.10000 to 0.30000 0.50000 to 0.50000" in lines
    assert "ours, seed 0 0.10000 within 0.50000 within" in lines
    assert "ours, seed 1 0.31000 above 0.50000 within" in lines
    assert "ours, seed 2 0.05000 below 0.50000 within" in lines
    assert "ours within TRL's range 1 of 3 3 of 3" in lines
    # Of four values in a random order one given value is first or last in half of all orders.
    assert "2 / 4: about 1.5 of 3" in " ".join(lines)


@pytest.fixture
def trl_python(tmp_path):
    path = tmp_path / "stand_in_python"
    path.write_text(STAND_IN_FOR_TRLS_PYTHON)
    path.chmod(0o755)
    return path


@pytest.fixture
def stand_ins(scripts, script, monkeypatch, tmp_path, trl_python):
    """against_trl.py in an empty folder, with stand-ins for the scripts of both systems and tiny workloads."""
    for name, system, seconds, kl in (("trl_step", "trl", 0.6, 0.0), ("training_step", "grpovi-lightning", 0.3, 0.05)):
        text = STAND_IN_FOR_A_STEP_SCRIPT.replace("SYSTEM", system).replace("SECONDS", str(seconds))
        (tmp_path / f"{name}.py").write_text(text.replace("KL", str(kl)))
    tiny = scripts("write_workload").Sizes(**TINY)
    monkeypatch.setattr(script, "HERE", tmp_path)
    monkeypatch.setattr(script, "NAMED", {"short": tiny, "even": tiny})
    monkeypatch.chdir(tmp_path)
    return lambda *options: script.main(["--trl-python", str(trl_python), *options])


def test_the_two_run_in_turn_and_every_run_is_a_row(stand_ins, capsys):
    assert stand_ins("--workloads", "short", "even", "--rounds=2", "--steps=3", "--threads=1") == 0
    out = capsys.readouterr().out
    assert "TRL's Python: trl 0.0 (stand-in)" in out and "2.00 (2.00 to 2.00)" in out
    (table,) = Path("runs/benchmarks").glob("against_trl_*.csv")
    assert out.splitlines()[-1] == f"written: {table}"
    rows = pd.read_csv(table)
    order = list(rows[["round", "workload", "system"]].itertuples(index=False, name=None))
    assert order == [(r, w, s) for r in (1, 2) for w in ("short", "even") for s in ("trl", "grpovi-lightning")]
    assert set(rows[["seed", "steps", "threads"]].itertuples(index=False, name=None)) == {(0, 3, 1)}
    assert json.loads(Path("runs/benchmarks/workloads/even/workload.json").read_text()).items() >= TINY.items()


def test_learning_runs_every_seed_of_both_on_the_short_workload(stand_ins, capsys):
    assert stand_ins("--learning=3") == 0
    (table,) = Path("runs/benchmarks").glob("against_trl_*.csv")
    found = pd.read_csv(table)
    first = found[["system", "seed"]].head(3).itertuples(index=False, name=None)
    assert list(first) == [("trl", 0), ("grpovi-lightning", 0), ("trl", 1)]
    assert len(found) == 6 and set(found["workload"]) == {"short"}
    # TRL's stand-in has 0.1, 0.3, 0.2, this project's 0.05 more.
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert (
        "ours, seed 0 0.15000 within 0.50000 within" in lines and "ours, seed 1 0.35000 above 0.50000 within" in lines
    )


def test_a_run_that_fails_is_one_line_and_exit_status_1(stand_ins, capsys):
    Path("training_step.py").write_text("raise RuntimeError('out of memory')")
    assert stand_ins("--workloads", "short") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("against_trl.py: error: grpovi-lightning: exit status 1: RuntimeError: out of memory")
    assert not list(Path("runs/benchmarks").glob("*.csv"))


def test_the_result_of_the_wrong_script_is_refused(stand_ins, capsys):
    Path("training_step.py").write_text(Path("trl_step.py").read_text())
    assert stand_ins("--workloads", "short") == 1
    assert "grpovi-lightning: got the last line" in capsys.readouterr().err.splitlines()[-1]


# Replayed completions.


@pytest.fixture(scope="module")
def workload(scripts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workloads") / "tiny"
    module = scripts("write_workload")
    module.write_workload(folder, module.Sizes(**TINY))
    return folder


@pytest.fixture(scope="module")
def record(scripts, script, workload, tmp_path_factory):
    """What a training of this project sampled, and its weights."""
    tensors = {}

    class Recording(scripts("training_step").StepTimes):
        def on_fit_start(self, trainer, pl_module):
            tensors["start/weights"] = script.flat_weights(pl_module.policy)
            generate = pl_module.engine.generate

            def noted(*arguments):
                rollout = generate(*arguments)
                for name in ("prompt_ids", "prompt_mask"):
                    rows = getattr(rollout, name).long().repeat_interleave(rollout.group_size, dim=0)
                    tensors[f"{rollout.step}/{name}"] = rows
                for name in ("completion_ids", "completion_mask"):
                    tensors[f"{rollout.step}/{name}"] = getattr(rollout, name).long().clone()
                return rollout

            pl_module.engine.generate = noted

        def on_train_batch_end(self, trainer, pl_module, *_):
            super().on_train_batch_end(trainer)
            tensors[f"{len(self.ends) - 1}/weights"] = script.flat_weights(pl_module.policy)

    times = Recording([keys.KL, keys.REWARD])
    scripts("training_step").train(scripts("workload").read_workload(workload), STEPS, 5, times)
    logged = [{"kl": row[keys.KL], "reward": row[keys.REWARD]} for row in times.scalars]
    path = tmp_path_factory.mktemp("record") / "record.safetensors"
    save_file(tensors, path, {"logged": json.dumps(logged)})
    return script.Record(path)


def test_a_record_is_trained_on_again_with_the_same_weights_kl_and_rewards(scripts, script, workload, record):
    rows = script.replayed(scripts("workload").read_workload(workload), record)
    assert len(rows) == STEPS and rows["update: ours from TRL's"].max() < 1e-2
    assert rows["KL, ours"].tolist() == pytest.approx(rows["KL, TRL"].tolist(), rel=1e-3, abs=1e-7)
    assert rows["reward, ours"].tolist() == rows["reward, TRL"].tolist()
    assert rows["KL, TRL"].iloc[-1] > 1e-4 and rows["reward, TRL"].nunique() > 1


def test_a_training_that_differs_is_seen(scripts, script, workload, record):
    work = scripts("workload").read_workload(workload)
    rows = script.replayed(replace(work, beta=1.0), record)
    assert rows["update: ours from TRL's"].iloc[-1] > 0.03


@pytest.mark.slow
def test_this_projects_own_script_runs_in_a_process_of_its_own(script, workload, monkeypatch):
    monkeypatch.setattr(script, "WORKLOADS", workload.parent)
    ours = script.System(script.OURS, sys.executable, "training_step.py", ("--decoder=group",))
    run = ours.measure("tiny", number=1, seed=0, steps=2, threads=1)
    assert (run["workload"], run["system"], run["steps"]) == ("tiny", "grpovi-lightning", 2)
    assert 200 < run["peak_rss_mb"] < 4000  # MiB of a process that imports torch and Lightning


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rounds=0"], "--rounds: got 0, expected at least 1"),
        (["--learning=1"], "--learning: got 1, expected at least 2"),
        (["--replay=0"], "--replay: got 0, expected at least 1"),
        (["--trl-python=nowhere/python"], "--trl-python: got nowhere/python, which does not run: No such file"),
        (["--trl-python=without"], "--trl-python: got without, where TRL is not installed"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_one_line(stand_ins, mistake, trl_python, arguments, complaint):
    Path("without").write_text("#!/bin/sh\nexit 1\n")
    Path("without").chmod(0o755)
    assert complaint in mistake("against_trl", "--trl-python", trl_python, *arguments)
    assert not Path("runs/benchmarks/workloads").exists()
