"""The benchmarks of training steps: what they train, count, compare and refuse. How fast anything is stays untested."""

import ast
import csv
import importlib
import json
import logging
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.models.passes import compiled_passes

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
MODULES = (
    "against_trl",
    "against_trl_runs",
    "against_trl_tables",
    "profile_step",
    "reporting",
    "step_result",
    "training_step",
    "workload",
    "write_workload",
)
KEYS = [
    "system",
    "median_step_seconds",
    "completion_tokens_per_second",
    "peak_rss_mb",
    "kl_last",
    "reward_last",
]
PROMPTS, GROUP, COMPLETION = 2, 4, 6
TINY = {"vocab": 16, "hidden": 16, "layers": 2, "prompt": 8, "completion": COMPLETION}
TINY |= {"prompts_per_step": PROMPTS, "group_size": GROUP}

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
def scripts():
    """The benchmark's modules by name; what importing and running them changes is put back."""
    threads, logger = torch.get_num_threads(), logging.getLogger("lightning.pytorch")
    level = logger.level
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.syspath_prepend(str(ROOT))  # tests/analysis must not stand in for the package
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    torch.set_num_threads(threads)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def workload(scripts, tmp_path_factory):
    """A workload that trains in a moment; nobody writes to it."""
    folder = tmp_path_factory.mktemp("workloads") / "tiny"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    assert scripts.write_workload.main([str(folder), *options]) == 0
    return folder


@pytest.fixture
def noting_workload(workload, tmp_path):
    """The same workload, whose reward function notes in `notes` each step's token count, prompts and completions."""
    folder = tmp_path / "noting"
    folder.mkdir()
    for part in ("model", "prompts.jsonl", "workload.json"):
        (folder / part).symlink_to(workload / part)
    noting = (
        "\nimport json\ndef ends_in_seven(prompts, completions, completion_ids, **columns):\n"
        "    note = json.dumps([sum(map(len, completion_ids)), sorted(prompts), sorted(completions)])\n"
        f"    open({str(tmp_path / 'notes')!r}, 'a').write(note + '\\n')\n"
        "    return [len(text) / 100 for text in completions]\n"
    )
    (folder / "reward.py").write_text((workload / "reward.py").read_text() + noting)
    return folder


def notes(tmp_path):
    return [json.loads(line) for line in (tmp_path / "notes").open()]


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def timed(scripts, folder, capsys, *options):
    assert scripts.training_step.main([str(folder), "--threads=1", "--decoder=group", *options]) == 0
    return last_line(capsys)


# The workloads.


def test_a_workload_has_the_sizes_it_was_asked_for(workload):
    sizes = json.loads((workload / "workload.json").read_text())
    assert sizes.items() >= TINY.items()
    config = json.loads((workload / "model" / "config.json").read_text())
    assert [config[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")] == [16, 16, 2]
    prompts = [json.loads(line)["prompt"].split() for line in (workload / "prompts.jsonl").open()]
    assert {len(words) for words in prompts} == {4, 5, 6, 7, 8}
    assert {word for words in prompts for word in words} == {f"w{i}" for i in range(13)}


def test_the_tokenizer_has_one_token_a_word_and_the_model_ends_with_the_tokenizers_end(workload):
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(workload / "model")
    assert tokenizer("w0 w12 w3")["input_ids"] == [3, 15, 6]
    config = AutoConfig.from_pretrained(workload / "model")
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_the_reward_is_the_share_of_words_that_end_in_seven(scripts, workload):
    reward = scripts.workload.read_workload(workload).reward
    assert reward(completions=["w7 w17 w1 w70", "", "w7"], prompts=["w7"] * 3) == [0.5, 0.0, 1.0]


def test_the_same_sizes_give_the_same_files_also_in_the_place_of_an_older_workload(scripts, workload, tmp_path, capsys):
    write, sizes = scripts.write_workload.write_workload, scripts.write_workload.Sizes
    state = torch.get_rng_state()
    assert write(tmp_path / "w", sizes(**TINY | {"layers": 1})).startswith("written: ")
    assert write(tmp_path / "w", sizes(**TINY)).startswith("replaced: ")
    files = {path.relative_to(workload): path.read_bytes() for path in workload.rglob("*") if path.is_file()}
    again = {path.relative_to(tmp_path / "w"): path.read_bytes() for path in tmp_path.rglob("w/**/*") if path.is_file()}
    assert len(files) >= 6 and again == files
    assert torch.equal(torch.get_rng_state(), state)


def test_the_named_workloads_are_those_that_are_compared(scripts):
    named = scripts.write_workload.NAMED
    lengths = {name: (sizes.prompt, sizes.completion, sizes.vocab) for name, sizes in named.items()}
    assert lengths == {"short": (16, 48, 512), "even": (96, 48, 512), "long": (256, 64, 512), "ragged": (96, 96, 64)}
    assert {(s.hidden, s.layers, s.prompts_per_step, s.group_size) for s in named.values()} == {(128, 4, 8, 8)}


# One run.


def test_the_line_has_the_keys_and_the_rate_is_that_of_the_tokens_of_the_last_step(
    scripts, noting_workload, tmp_path, capsys, monkeypatch
):
    # What is to be compiled is captured and run as it is: the code that is made of it is tested elsewhere.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(compiled_passes, "reproducible_inductor", "eager")
    found = timed(scripts, noting_workload, capsys, "--steps=3", "--decoder=compiled")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3  # decoding, the reference and the update
    assert list(found) == KEYS and found["system"] == "grpovi-lightning"
    tokens = [count for count, *_ in notes(tmp_path)]
    assert len(tokens) == 3 and PROMPTS * GROUP <= tokens[-1] <= PROMPTS * GROUP * COMPLETION
    # The seconds are printed with four digits after the point.
    low, high = (tokens[-1] / (found["median_step_seconds"] + half) for half in (5.1e-5, -5.1e-5))
    assert low - 0.1 <= found["completion_tokens_per_second"] <= high + 0.1


def test_a_result_is_the_median_from_end_to_end(scripts, workload):
    work = scripts.workload.read_workload(workload)
    # Steps of 10, 2, 1 and 4 seconds; 5 tokens for each of 2 x 4 completions in 3 seconds.
    found = json.loads(
        scripts.step_result.step_result("any", work, [100.0, 110.0, 112.0, 113.0, 117.0], 5.0, None, 0.5)
    )
    assert (found["median_step_seconds"], found["completion_tokens_per_second"]) == (3.0, 13.3)
    assert (found["kl_last"], found["reward_last"]) == (None, 0.5)


def test_the_seed_decides_what_is_learned(scripts, workload, capsys):
    runs = [timed(scripts, workload, capsys, "--steps=2", f"--seed={seed}") for seed in (3, 3, 4)]
    learned = [(run["kl_last"], run["reward_last"]) for run in runs]
    assert learned[0] == learned[1] != learned[2]
    assert all(kl > 0.0 and 0.0 <= reward <= 1.0 for kl, reward in learned)


def test_the_seed_decides_the_order_of_the_prompts_and_the_completions(scripts, noting_workload, tmp_path, capsys):
    for seed in (3, 4):
        timed(scripts, noting_workload, capsys, "--steps=2", f"--seed={seed}")
    prompts = [of_step for _, of_step, _ in notes(tmp_path)]
    assert prompts[:2] != prompts[2:]
    # Where a step has both prompts that there are, their order makes no difference.
    (noting_workload / "prompts.jsonl").unlink()
    (noting_workload / "prompts.jsonl").write_text('{"prompt": "w1 w2"}\n{"prompt": "w3 w4"}\n')
    for seed in (3, 4):
        timed(scripts, noting_workload, capsys, "--steps=2", f"--seed={seed}")
    first, _, other, _ = notes(tmp_path)[4:]
    assert first[1] == other[1] and first[2] != other[2]


def test_trls_script_needs_nothing_of_this_project(scripts):
    def imported(name):
        for node in ast.walk(ast.parse((BENCHMARKS / f"{name}.py").read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module.split(".")[0]

    beside = {"step_result", "workload"}
    others = {name: set(imported(name)) - sys.stdlib_module_names for name in (*beside, "trl_step")}
    assert others.pop("trl_step") - beside == {"datasets", "torch", "transformers", "trl"}
    assert all(names <= beside for names in others.values())


# Against TRL.


def made_up(scripts, system, seconds, peaks, kls=(0.1, 0.1, 0.1)):
    """A run a round; seeds are rounds less one."""
    return [
        scripts.against_trl_runs.Run("even", i, system, i - 1, 12, 2, each, 100.0 * i, peak, kl, 0.5)
        for i, (each, peak, kl) in enumerate(zip(seconds, peaks, kls, strict=True), start=1)
    ]


def printed(function, *arguments):
    from rich.console import Console

    console = Console(width=100, markup=False, highlight=False)
    with console.capture() as captured:
        function(console, *arguments)
    return captured.get()


def test_a_comparison_is_the_ratio_of_the_medians_and_the_range_of_the_rounds(scripts):
    tables = scripts.against_trl_tables
    runs = made_up(scripts, "trl", (2.0, 3.0, 4.0), (800, 900, 850))
    runs += made_up(scripts, "grpovi-lightning", (1.0, 2.0, 1.2), (425, 400, 500))
    (found,) = tables.compare(runs)
    # Medians 3.0 and 1.2; rounds 2 / 1, 3 / 2, 4 / 1.2. The median of the three ratios would be 2.0.
    assert found.workload == "even" and found.seconds.ratio == pytest.approx(2.5)
    assert (found.lowest, found.highest) == pytest.approx((1.5, 4.0 / 1.2))
    assert found.peak_mb == (850, 425) and found.peak_mb.ratio == 2.0
    assert found.tokens_per_second == (200.0, 200.0)
    text = printed(tables.print_comparisons, [found], 3, 12)
    cells = "even 3.00 s 1.20 s 2.50 (1.50 to 3.33) 200 200 850 425 2.00"
    assert cells in [" ".join(line.split()) for line in text.splitlines()]
    assert "3 round(s)" in text and "11 step(s)" in text


def test_a_round_that_only_one_of_them_ran_is_not_compared(scripts):
    runs = made_up(scripts, "trl", (2.0, 3.0, 4.0), (1, 1, 1))
    with pytest.raises(AssertionError, match="even: rounds"):
        scripts.against_trl_tables.compare([*runs, *made_up(scripts, "grpovi-lightning", (1.0,), (1,), (0.1,))])


def test_learning_lies_within_above_or_below_the_range_of_trls_seeds(scripts):
    tables = scripts.against_trl_tables
    same = ((1.0, 1.0, 1.0), (1, 1, 1))
    runs = made_up(scripts, "trl", *same, kls=(0.1, 0.3, 0.2))
    runs += made_up(scripts, "grpovi-lightning", *same, kls=(0.1, 0.31, 0.05))
    kl, reward = tables.learning_lines(runs)
    assert (kl.quantity, kl.lowest, kl.highest) == ("kl_last", 0.1, 0.3)
    assert [kl.verdict(seed) for seed in (0, 1, 2)] == ["within", "above", "below"]
    assert [reward.verdict(seed) for seed in (0, 1, 2)] == ["within"] * 3
    text = printed(tables.print_learning, [kl, reward], 12)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "ours, seed 1 0.31000 above 0.50000 within" in lines
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
def stand_ins(scripts, monkeypatch, tmp_path, trl_python):
    """against_trl.py in an empty folder, with stand-ins for the scripts of both systems and tiny workloads."""
    for name, system, seconds, kl in (("trl_step", "trl", 0.6, 0.0), ("training_step", "grpovi-lightning", 0.3, 0.05)):
        script = STAND_IN_FOR_A_STEP_SCRIPT.replace("SYSTEM", system).replace("SECONDS", str(seconds))
        (tmp_path / f"{name}.py").write_text(script.replace("KL", str(kl)))
    tiny = scripts.write_workload.Sizes(**TINY)
    monkeypatch.setattr(scripts.against_trl, "HERE", tmp_path)
    monkeypatch.setattr(scripts.against_trl, "NAMED", {"short": tiny, "even": tiny})
    monkeypatch.chdir(tmp_path)
    return lambda *options: scripts.against_trl.main(["--trl-python", str(trl_python), *options])


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_two_run_in_turn_and_every_run_is_a_row(stand_ins, capsys):
    assert stand_ins("--workloads", "short", "even", "--rounds=2", "--steps=3", "--threads=1") == 0
    out = capsys.readouterr().out
    assert "TRL's Python: trl 0.0 (stand-in)" in out and "2.00 (2.00 to 2.00)" in out
    (table,) = Path("runs/benchmarks").glob("against_trl_*.csv")
    assert out.splitlines()[-1] == f"written: {table}"
    order = [(row["round"], row["workload"], row["system"]) for row in rows(table)]
    assert order == [(r, w, s) for r in "12" for w in ("short", "even") for s in ("trl", "grpovi-lightning")]
    assert {(row["seed"], row["steps"], row["threads"]) for row in rows(table)} == {("0", "3", "1")}
    assert json.loads(Path("runs/benchmarks/workloads/even/workload.json").read_text()).items() >= TINY.items()


def test_learning_runs_every_seed_of_both_on_the_short_workload(stand_ins, capsys):
    assert stand_ins("--learning=3", "--output=learned.csv") == 0
    found = rows(Path("learned.csv"))
    assert [(row["system"], row["seed"]) for row in found[:3]] == [
        ("trl", "0"),
        ("grpovi-lightning", "0"),
        ("trl", "1"),
    ]
    assert len(found) == 6 and {row["workload"] for row in found} == {"short"}
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


@pytest.mark.slow
def test_this_projects_own_script_runs_in_a_process_of_its_own(scripts, workload):
    runs = scripts.against_trl_runs
    ours = runs.System(runs.OURS, sys.executable, str(BENCHMARKS / "training_step.py"), ("--decoder=group",))
    run = runs.run_once(ours, workload, number=1, seed=0, steps=2, threads=1)
    assert (run.workload, run.system, run.steps) == ("tiny", "grpovi-lightning", 2)
    assert 200 < run.peak_rss_mb < 4000  # MiB of a process that imports torch and Lightning


# Where the time goes.


def test_a_profile_has_the_medians_of_the_phases_and_what_they_leave(scripts):
    def step(step_time, decode, backward):
        phases = dict.fromkeys(keys.STEP_PHASES, 0.0)
        return phases | {
            keys.STEP_TIME: step_time,
            keys.STEP_TIME_DECODE: decode,
            keys.STEP_TIME_BACKWARD: backward,
        }

    scalars = [step(90.0, 80.0, 9.0), step(10.0, 5.0, 3.0), step(12.0, 6.0, 2.0), step(20.0, 11.0, 4.0)]
    parts = scripts.profile_step.profile(scalars, ends=[100.0, 114.0, 127.0, 150.0])
    assert (parts[keys.STEP_TIME_DECODE], parts[keys.STEP_TIME_BACKWARD]) == (6.0, 3.0)
    # The median step takes 12, and 14 pass from end to end.
    assert parts["rest"] == 3.0 and parts["between steps"] == 2.0
    assert set(parts) == {*keys.STEP_PHASES, "rest", "between steps"}


def test_the_parts_of_a_profile_add_up_to_the_step(scripts, workload, tmp_path, capsys):
    picture = tmp_path / "new" / "profile.svg"
    arguments = [str(workload), "--steps=3", "--threads=1", "--output", str(picture)]
    assert scripts.profile_step.main(arguments) == 0
    out = capsys.readouterr().out
    cells = [line.rsplit(maxsplit=2) for line in out.splitlines()]
    ms = {row[0].strip(): float(row[1].replace(",", "")) for row in cells if row and row[-1].endswith("%")}
    names = [phase.removeprefix("step_time/") for phase in keys.STEP_PHASES]
    assert list(ms) == [*names, "rest", "between steps", "end to end"]
    total = ms.pop("end to end")
    assert sum(ms.values()) == pytest.approx(total, abs=0.06)
    assert min(ms[name] for name in ("decode", "reference", "forward", "backward", "optimizer")) > 0.0
    assert out.splitlines()[-1] == f"written: {picture}"
    drawn = picture.read_text()
    assert all(name in drawn for name in (*names, "rest", "between steps", "tiny"))


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_picture_of_the_profile_is_replaced_and_anothers_is_not(scripts, tmp_path, suffix):
    script, path = scripts.profile_step, tmp_path / f"picture{suffix}"
    parts = dict.fromkeys((*keys.STEP_PHASES, "rest", "between steps"), 0.1)
    checked, save = scripts.reporting.checked_output, scripts.reporting.save_picture
    assert save(script.profile_figure({"one": parts}), path, script.MARK) == f"written: {path}"
    assert checked(path, "picture", script.MARK) == path
    assert save(script.profile_figure({"one": parts, "two": parts}), path, script.MARK) == f"replaced: {path}"
    path.write_bytes(b"someone else's")
    with pytest.raises(ValueError, match="no picture of this benchmark"):
        checked(path, "picture", script.MARK)


# Mistakes.


def mistake(scripts, capsys, script, *arguments):
    """The one line on stderr; nothing goes to stdout."""
    assert getattr(scripts, script).main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    start = f"{script}.py: error: "
    assert line.startswith(start)
    return line.removeprefix(start)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["other"], "other: got a folder with mine.txt in it, which is no workload; choose a new folder"),
        (["checkpoint"], "checkpoint: got a folder with model in it, which is no workload"),
        (["other/mine.txt"], "other/mine.txt: got a file, expected a folder"),
        (["new", "--named=short", "--vocab=64"], "--named short: got --vocab too"),
        (["new", "--vocab=10"], "--vocab: got 10, expected at least 11"),
        (["new", "--hidden=12"], "--hidden: got 12, expected a multiple of 8"),
        (["new", "--prompts-per-step=0"], "--prompts-per-step: got 0, expected at least 1"),
        (["new", "--prompt=2000", "--completion=49"], "got 2000 and 49, expected at most 2048 together"),
    ],
)
def test_a_workload_that_cannot_be_written_is_one_line(scripts, monkeypatch, tmp_path, capsys, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    for file in (Path("other/mine.txt"), Path("checkpoint/model/config.json")):
        file.parent.mkdir(parents=True)
        file.write_text("mine")
    assert complaint in mistake(scripts, capsys, "write_workload", *arguments)
    assert not Path("new").exists()
    assert Path("other/mine.txt").read_text() == Path("checkpoint/model/config.json").read_text() == "mine"


@pytest.mark.parametrize("script", ["training_step", "profile_step"])
@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--steps=1", "--steps: got 1, expected at least 2"),
        ("--threads=0", "--threads: got 0, expected at least 1"),
        ("--seed=-1", "--seed: got -1, expected at least 0"),
    ],
)
def test_a_number_that_is_too_small_is_one_line(scripts, workload, capsys, script, option, complaint):
    assert mistake(scripts, capsys, script, workload, option) == complaint


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"beta": None}, "beta: got None, expected a number"),
        ({"group_size": 2.5}, "group_size: got 2.5, expected a whole number of at least 1"),
        ({"completion": True}, "completion: got True, expected a whole number of at least 1"),
        ({"loss": "dapo"}, "loss: got dapo, expected grpo, which is what is timed here"),
        ({"num_iterations": 2}, "num_iterations: got 2, expected 1, which is what is timed here"),
        ({"group_size": 1}, "group_size: got 1, expected at least 2"),
    ],
)
def test_a_workload_that_cannot_be_timed_is_one_line(scripts, noting_workload, capsys, settings, complaint):
    path = noting_workload / "workload.json"
    found = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps(found | settings))
    assert complaint in mistake(scripts, capsys, "training_step", noting_workload, "--threads=1")


def test_a_folder_that_is_no_workload_is_one_line(scripts, noting_workload, capsys):
    (noting_workload / "workload.json").unlink()
    complaint = mistake(scripts, capsys, "training_step", noting_workload)
    assert complaint.startswith(f"{noting_workload}: got no workload.json, expected a workload")
    (noting_workload / "workload.json").write_text("{")
    assert "workload.json: no JSON" in mistake(scripts, capsys, "training_step", noting_workload)


def test_a_reward_file_without_the_function_is_one_line(scripts, noting_workload, capsys):
    (noting_workload / "reward.py").write_text("def other(): ...\n")
    assert "reward.py: got no function ends_in_seven" in mistake(scripts, capsys, "training_step", noting_workload)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rounds=0"], "--rounds: got 0, expected at least 1"),
        (["--learning=1"], "--learning: got 1, expected at least 2"),
        (["--output=other.csv"], "--output: got other.csv, which is there and no table of this benchmark"),
        (["--output=out.txt"], "--output: got out.txt, expected a name that ends in .csv"),
        (["--trl-python=nowhere/python"], "--trl-python: got nowhere/python, which does not run: No such file"),
        (["--trl-python=without"], "--trl-python: got without, where TRL is not installed"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_one_line(scripts, stand_ins, trl_python, capsys, arguments, complaint):
    Path("other.csv").write_text("group,reward\na,1\n")
    Path("without").write_text("#!/bin/sh\nexit 1\n")
    Path("without").chmod(0o755)
    found = mistake(scripts, capsys, "against_trl", "--trl-python", trl_python, *arguments)
    assert complaint in found
    assert not Path("runs/benchmarks/workloads").exists()


def test_a_picture_of_another_kind_is_refused_before_anything_is_trained(scripts, workload, capsys):
    complaint = mistake(scripts, capsys, "profile_step", workload, "--output=profile.pdf")
    assert complaint == "--output: got profile.pdf, expected a name that ends in .svg or .png"
