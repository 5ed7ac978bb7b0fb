"""Workloads, single runs and the profile: what they train, count and refuse. How fast anything is stays untested."""

import ast
import json
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.chat import save_chat_policy
from helpers.compilers import needs_torch

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.models.passes import compiled_passes

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
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


@pytest.fixture(scope="module")
def workload(scripts, tmp_path_factory):
    """A workload that trains in a moment; nobody writes to it."""
    folder = tmp_path_factory.mktemp("workloads") / "tiny"
    module = scripts("write_workload")
    module.write_workload(folder, module.Sizes(**TINY))
    return folder


@pytest.fixture
def noting_workload(workload, tmp_path):
    """The same workload, whose reward function notes in `notes` each step's token count, prompts and completions."""
    folder = tmp_path / "noting"
    folder.mkdir()
    for part in ("model", "prompts.jsonl", "workload.json"):
        (folder / part).symlink_to(workload / part)
    noting = (
        "\nimport json\ndef reward(prompts, completions, completion_ids, **columns):\n"
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
    assert scripts("training_step").main([str(folder), "--threads=1", "--decoder=group", *options]) == 0
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
    reward = scripts("workload").read_workload(workload).reward
    assert reward(completions=["w7 w17 w1 w70", "", "w7"], prompts=["w7"] * 3) == [0.5, 0.0, 1.0]


def test_the_same_sizes_give_the_same_files_also_in_the_place_of_an_older_workload(scripts, workload, tmp_path):
    write, sizes = scripts("write_workload").write_workload, scripts("write_workload").Sizes
    state = torch.get_rng_state()
    assert write(tmp_path / "w", sizes(**TINY | {"layers": 1})).startswith("written: ")
    assert write(tmp_path / "w", sizes(**TINY)).startswith("replaced: ")
    files = {path.relative_to(workload): path.read_bytes() for path in workload.rglob("*") if path.is_file()}
    again = {path.relative_to(tmp_path / "w"): path.read_bytes() for path in tmp_path.rglob("w/**/*") if path.is_file()}
    assert len(files) >= 6 and again == files
    assert torch.equal(torch.get_rng_state(), state)


def test_the_named_workloads_are_those_that_are_compared(scripts):
    module = scripts("write_workload")
    named = {name: module.NAMED[name] for name in module.BY_DEFAULT}
    lengths = {name: (sizes.prompt, sizes.completion, sizes.vocab) for name, sizes in named.items()}
    assert lengths == {"short": (16, 48, 512), "even": (96, 48, 512), "long": (256, 64, 512), "ragged": (96, 96, 64)}
    assert {(s.hidden, s.layers, s.prompts_per_step, s.group_size) for s in named.values()} == {(128, 4, 8, 8)}


@pytest.fixture
def chat_workload(scripts, tmp_path):
    """The workload of a chat model, with a tiny one in its place."""
    save_chat_policy(tmp_path / "chat")
    module = scripts("write_workload")
    tiny = module.ChatModel(
        str(tmp_path / "chat"), completion=COMPLETION, prompts_per_step=PROMPTS, group_size=GROUP, learning_rate=0.01
    )
    return module.write_workload(tmp_path / "smollm2", tiny).removeprefix("written: ")


def test_a_chat_models_workload_has_messages_and_a_link_to_the_checkpoint(scripts, chat_workload, tmp_path):
    folder = Path(chat_workload)
    prompts = [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").open()]
    assert len(prompts) == 1024 and {(len(prompt), prompt[0]["role"]) for prompt in prompts} == {(1, "user")}
    words = [len(prompt[0]["content"].split()) for prompt in prompts]
    assert min(words) < 25 and 75 < max(words) < 110 and 42 < sum(words) / len(words) < 52
    assert (folder / "model").resolve() == tmp_path / "chat"
    module = scripts("write_workload")
    again = module.write_workload(folder, module.ChatModel(str(tmp_path / "chat")))
    assert again == f"replaced: {folder}" and (tmp_path / "chat" / "config.json").exists(), "the link alone is replaced"


def test_a_chat_model_that_was_not_got_is_one_line(scripts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert scripts("write_workload").main(["smollm2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "got no checkpoint at runs/smollm2-135m-instruct; get it with python experiments/smollm2/" in line


@pytest.mark.parametrize("script", ["training_step", "trl_step"])
def test_both_systems_train_the_chat_model_on_its_messages(scripts, chat_workload, capsys, script):
    options = ["--decoder=group"] if script == "training_step" else []
    assert scripts(script).main([chat_workload, "--steps=2", "--threads=1", *options]) == 0
    found = last_line(capsys)
    assert found["completion_tokens_per_second"] > 0
    assert found["reward_last"] == 0.0, "no word of this tokenizer ends in 7"


# One run.


@needs_torch
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
    work = scripts("workload").read_workload(workload)
    # Steps of 10, 2, 1 and 4 seconds; 5 tokens for each of 2 x 4 completions in 3 seconds.
    line = scripts("workload").step_result("any", work, [100.0, 110.0, 112.0, 113.0, 117.0], 5.0, None, 0.5)
    found = json.loads(line)
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

    beside = {"command", "workload"}
    others = {name: set(imported(name)) - sys.stdlib_module_names for name in (*beside, "trl_step")}
    assert others.pop("trl_step") - beside == {"datasets", "safetensors", "torch", "transformers", "trl"}
    assert all(names <= beside for names in others.values())


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
    parts = scripts("profile_step").profile(scalars, ends=[100.0, 114.0, 127.0, 150.0])
    assert (parts[keys.STEP_TIME_DECODE], parts[keys.STEP_TIME_BACKWARD]) == (6.0, 3.0)
    # The median step takes 12, and 14 pass from end to end.
    assert parts["rest"] == 3.0 and parts["between steps"] == 2.0
    assert set(parts.index) == {*keys.STEP_PHASES, "rest", "between steps"}


def test_the_parts_of_a_profile_add_up_to_the_step(scripts, workload, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert scripts("profile_step").main([str(workload), "--steps=3", "--threads=1"]) == 0
    out = capsys.readouterr().out
    cells = [line.rsplit(maxsplit=2) for line in out.splitlines()]
    ms = {row[0].strip(): float(row[1].replace(",", "")) for row in cells if row and row[-1].endswith("%")}
    names = [phase.removeprefix("step_time/") for phase in keys.STEP_PHASES]
    assert list(ms) == [*names, "rest", "between steps", "end to end"]
    total = ms.pop("end to end")
    assert sum(ms.values()) == pytest.approx(total, abs=0.06)
    assert min(ms[name] for name in ("decode", "reference", "forward", "backward", "optimizer")) > 0.0
    (picture,) = Path("runs/benchmarks").glob("profile_*.png")
    assert out.splitlines()[-1] == f"written: {picture}"


def test_the_bars_of_the_picture_begin_where_the_part_before_ends(scripts):
    script = scripts("profile_step")
    parts = {part: 0.1 * i for i, part in enumerate(script.COLOURS)}
    figure = script.profile_figure(pd.DataFrame({"one": parts, "two": dict.fromkeys(parts, 0.2)}))
    bars = [[(bar.get_x(), bar.get_width()) for bar in container] for container in figure.axes[0].containers]
    for number, widths in enumerate((list(parts.values()), [0.2] * len(parts))):
        starts = [1e3 * sum(widths[:i]) for i in range(len(widths))]
        assert [x for x, _ in (of[number] for of in bars)] == pytest.approx(starts)
        assert [width for _, width in (of[number] for of in bars)] == pytest.approx([1e3 * width for width in widths])


# Mistakes.


def test_a_folder_that_holds_anything_else_is_left_alone(scripts, tmp_path):
    module = scripts("write_workload")
    for name in ("other/mine.txt", "checkpoint/model/config.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("mine")
        folder = tmp_path / Path(name).parts[0]
        with pytest.raises(ValueError, match=f"got a folder with {Path(name).parts[1]} in it, which is no workload"):
            module.write_workload(folder, module.Sizes(**TINY))
        assert (tmp_path / name).read_text() == "mine"


def test_named_workloads_are_written_where_the_other_scripts_look(scripts, tmp_path, monkeypatch, capsys):
    module = scripts("write_workload")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(module.NAMED, "short", module.Sizes(**TINY))
    assert module.main(["short"]) == 0
    assert capsys.readouterr().out == "written: runs/benchmarks/workloads/short\n"
    assert scripts("workload").read_workload(Path("runs/benchmarks/workloads/short")).group_size == GROUP


@pytest.mark.parametrize("script", ["training_step", "profile_step"])
@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--steps=1", "--steps: got 1, expected at least 2"),
        ("--threads=0", "--threads: got 0, expected at least 1"),
        ("--seed=-1", "--seed: got -1, expected at least 0"),
    ],
)
def test_a_number_that_is_too_small_is_one_line(mistake, workload, script, option, complaint):
    assert mistake(script, workload, option) == complaint


def test_a_folder_that_is_no_workload_is_one_line(mistake, noting_workload):
    path = noting_workload / "workload.json"
    found = json.loads(path.read_text())
    path.unlink()
    complaint = mistake("training_step", noting_workload)
    assert complaint.startswith(f"{noting_workload}: got no workload.json, expected a workload")
    for text in ("{", json.dumps({name: value for name, value in found.items() if name != "beta"})):
        path.write_text(text)
        assert "workload.json: got " in mistake("training_step", noting_workload)
    path.write_text(json.dumps(found | {"group_size": 1}))
    assert "group_size: got 1, expected at least 2" in mistake("training_step", noting_workload, "--threads=1")
