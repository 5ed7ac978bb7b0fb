"""Runs from the command line whose rollouts vLLM makes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers.tiny_checkpoints import WORDS
from safetensors.torch import load_file
from with_vllm.servers import SECRET, ended, free_port, serving, started

from analysis.loading import load_runs

ROOT = Path(__file__).parents[2]
REWARD = '''"""Words of one kind, by length."""


def share_of_animals(prompts, completions, **columns):
    texts = [text.split() for text in completions]
    return [sum(word in ("fox", "dog", "cat") for word in words) / (1 + len(words)) for words in texts]
'''
GRPOVI = {"class_path": "grpovi_lightning.adjustment.VarianceIncrease", "init_args": {}}
STEPS = 20


@pytest.fixture(scope="module")
def own(tmp_path_factory, vllm_policy_folder):
    root = tmp_path_factory.mktemp("own")
    (root / "my_rewards.py").write_text(REWARD)
    rows = [{"prompt": " ".join(WORDS[i % 5 : 5 + i % 11])} for i in range(24)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def write(own, policy, name, adjustment=None, steps=STEPS, **engine):
    """Write the YAML of a run, of which every step is saved."""
    settings = {
        "policy": {"class_path": "grpovi_lightning.models.PretrainedCausalLM", "init_args": {"path": str(policy)}},
        "reward": {
            "class_path": "grpovi_lightning.rewards.RewardFunction",
            "init_args": {"function": "my_rewards.share_of_animals"},
        },
        "group_size": 8,
        "sampling": {"max_completion_length": 12, "temperature": 0.9, "top_k": 30},
        "loss": {"class_path": "grpovi_lightning.losses.GRPOLoss", "init_args": {"beta": 0.01}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 5e-3}},
        "evaluation": {"greedy": True, "samples": 4},
        "adjustment": adjustment or {"class_path": "grpovi_lightning.adjustment.IdentityAdjustment"},
        "decoder": {"class_path": "grpovi_lightning.rollout.VLLMDecoder", "init_args": {"engine": engine}},
    }
    data = {"train": str(own / "prompts.jsonl"), "validation": str(own / "prompts.jsonl"), "prompts_per_step": 4}
    content = {
        "seed_everything": 1,
        "trainer": {
            "default_root_dir": str(own / name),
            "accelerator": "cpu",
            "max_steps": steps,
            "val_check_interval": 10,
            "check_val_every_n_epoch": None,
            "enable_progress_bar": False,
        },
        "model": {"class_path": "grpovi_lightning.modules.GRPOModule", "init_args": settings},
        "data": {"class_path": "grpovi_lightning.data.PromptDataModule", "init_args": data | {"columns": []}},
        "checkpoint": {"every_n_train_steps": 1},
    }
    (own / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return own / name


def server_at(url, **settings):
    return {"class_path": "grpovi_lightning.rollout.vllm.VLLMServer", "init_args": {"url": url} | settings}


def ahead_at(url, **settings):
    kind = "grpovi_lightning.rollout.vllm.OneStepAhead"
    return {"class_path": kind, "init_args": {"server": server_at(url, **settings)}}


COLOCATED = {
    "class_path": "grpovi_lightning.rollout.vllm.ColocatedVLLM",
    "init_args": {"kv_cache_gb": 0.05, "options": {"enforce_eager": True}},
}


def begun(run, *arguments):
    command = [sys.executable, "-m", "grpovi_lightning.cli", "fit", "--config", f"{run}.yaml", *map(str, arguments)]
    environment = os.environ | {"GRPOVI_VLLM_TOKEN": SECRET, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=run.parent, env=environment, stderr=subprocess.PIPE, text=True)


def finished(process, status=0):
    errors = process.communicate(timeout=500)[1]
    assert process.returncode == status, errors
    return errors


def scalars(run):
    found = load_runs(run)
    return {name: rows.sort_values("step").value.tolist() for name, rows in found.groupby("metric", observed=True)}


def weights(run):
    return (run / "model" / "model.safetensors").read_bytes()


def when_at_step(run, step, process):
    """Wait until so many steps of a run are saved."""
    while not list(run.glob(f"checkpoints/step={step}.ckpt")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(own, vllm_policy_folder):
    """GRPOVI with a server that nothing happened to."""
    with serving(vllm_policy_folder) as url:
        run = write(own, vllm_policy_folder, "grpovi", GRPOVI, **server_at(url))
        finished(begun(run))
    return run


def check_curves(run):
    logged = scalars(run)
    names = ["logp_difference/mean", "logp_difference/max"]
    differences = {name: logged[f"sampling/sampling_{name}"] for name in names}
    ratios = [logged[f"sampling/importance_sampling_ratio/{end}"] for end in ("min", "max")]
    print({name: (max(values), len(values)) for name, values in differences.items()})
    print("reward", logged["reward"][0], logged["reward"][-1], "held out, greedy", logged["eval/greedy/reward"])
    assert all(len(values) == STEPS for values in (*differences.values(), *ratios))
    assert 0.0 < max(differences["logp_difference/max"]) < 1e-3
    assert min(ratios[0]) > 0.999 and max(ratios[1]) < 1.001
    assert sum(logged["reward"][-5:]) > 2.0 * sum(logged["reward"][:5])  # it learns
    assert logged["eval/greedy/reward"][-1] > logged["eval/greedy/reward"][0]


def test_grpo_trains_with_vllm_in_its_process(own, vllm_policy_folder):
    run = write(own, vllm_policy_folder, "grpo", **COLOCATED)
    finished(begun(run))

    check_curves(run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    decoder = config["model"]["init_args"]["decoder"]
    assert decoder["class_path"].endswith("VLLMDecoder") and decoder["init_args"]["importance_sampling_cap"] == 2.0
    assert SECRET not in (run / "config.yaml").read_text()


def test_grpovi_trains_with_a_vllm_server(undisturbed):
    check_curves(undisturbed)


def test_a_server_that_is_killed_and_started_again_changes_no_bit_of_the_run(own, undisturbed, vllm_policy_folder):
    port = free_port()
    server = started(vllm_policy_folder, port)
    run = write(own, vllm_policy_folder, "survivor", GRPOVI, **server_at(f"http://127.0.0.1:{port}"))
    process = begun(run)
    when_at_step(run, 5, process)
    ended(server)
    time.sleep(3)
    assert process.poll() is None
    server = started(vllm_policy_folder, port)
    finished(process)
    ended(server)

    assert weights(run) == weights(undisturbed)
    assert scalars(run)["reward"] == scalars(undisturbed)["reward"]


def test_a_server_that_stays_away_stops_the_run_in_one_line_and_it_goes_on(own, undisturbed, vllm_policy_folder):
    port = free_port()
    server = started(vllm_policy_folder, port)
    engine = server_at(f"http://127.0.0.1:{port}", retry_seconds=20)
    run = write(own, vllm_policy_folder, "stopped", GRPOVI, **engine)
    process = begun(run)
    when_at_step(run, 5, process)
    ended(server)
    begin = time.monotonic()
    errors = finished(process, status=1)
    print(errors.splitlines()[-1], f"after {time.monotonic() - begin:.1f} s")

    (line,) = [line for line in errors.splitlines() if line.startswith("grpovi: error: ")]
    assert "no answer for 20 s" in line and "continue the run from its last checkpoint with --ckpt_path" in line
    assert "Traceback" not in errors
    assert 5 <= json.loads((run / "status.json").read_text())["step"] < STEPS
    server = started(vllm_policy_folder, port)
    finished(begun(run, "--ckpt_path", run / "checkpoints" / "last.ckpt"))
    ended(server)
    assert weights(run) == weights(undisturbed)


def test_what_is_drawn_ahead_learns_and_outlives_a_killed_server_and_a_killed_run(own, vllm_policy_folder):
    with serving(vllm_policy_folder) as url:
        undisturbed = write(own, vllm_policy_folder, "ahead", GRPOVI, **ahead_at(url))
        finished(begun(undisturbed))
    logged = scalars(undisturbed)
    print("reward", logged["reward"][0], logged["reward"][-1], logged["sampling/sampling_logp_difference/mean"])
    assert sum(logged["reward"][-5:]) > 2.0 * sum(logged["reward"][:5])
    difference = logged["sampling/sampling_logp_difference/max"]
    assert difference[0] < 1e-3 < min(difference[1:])  # one update apart, from the second step on

    port = free_port()
    server = started(vllm_policy_folder, port)
    run = write(own, vllm_policy_folder, "ahead_again", GRPOVI, **ahead_at(f"http://127.0.0.1:{port}"))
    process = begun(run)
    when_at_step(run, 4, process)
    ended(server)
    server = started(vllm_policy_folder, port)
    when_at_step(run, 9, process)
    process.kill()
    process.wait()
    finished(begun(run, "--ckpt_path", run / "checkpoints" / "last.ckpt"))
    ended(server)
    assert weights(run) == weights(undisturbed)
    assert scalars(run)["reward"] == logged["reward"]


BAD = {
    "heads": (["--model.init_args.policy.init_args.path", "{policy}"], "got attention heads of size 8, expected one"),
    "both filters": (
        ["--model.init_args.sampling.min_p", "0.1", "--model.init_args.sampling.top_p", "0.9"],
        "got min_p 0.1 with top_p 0.9, which vLLM applies in the other order",
    ),
    "processes": (["--trainer.devices", "2"], "ColocatedVLLM: got 2 training processes, expected one"),
    "memory": (
        ["--model.init_args.decoder.init_args.engine.init_args.kv_cache_gb", "0"],
        "kv_cache_gb: got 0.0, expected a number above 0",
    ),
}


@pytest.mark.parametrize(("arguments", "said"), BAD.values(), ids=BAD)
def test_what_vllm_cannot_do_is_refused_before_anything_is_loaded(
    own, vllm_policy_folder, policy_folder, arguments, said
):
    run = write(own, vllm_policy_folder, "refused", **COLOCATED)
    errors = finished(begun(run, *(word.format(policy=policy_folder) for word in arguments)), status=2)

    (line,) = [line for line in errors.splitlines() if line.startswith("grpovi: error: ")]
    assert said in line
    assert not run.exists()


@pytest.mark.parametrize(
    ("strategy", "engine"),
    [("ddp", server_at), ("fsdp2", server_at), ("ddp", ahead_at), ("fsdp2", ahead_at)],
    ids=["ddp", "fsdp2", "ddp, ahead", "fsdp2, ahead"],
)
def test_two_training_processes_share_a_server(own, vllm_policy_folder, strategy, engine):
    with serving(vllm_policy_folder) as url:
        for name, devices in {"together": 2, "alone": 1}.items():
            name = f"{strategy}_{engine.__name__}_{name}"
            run = write(own, vllm_policy_folder, name, GRPOVI, steps=5, **engine(url))
            shared = ["--trainer.strategy", strategy] if devices > 1 else []
            finished(begun(run, "--trainer.devices", devices, *shared))
    folders = [own / f"{strategy}_{engine.__name__}_{name}" for name in ("together", "alone")]
    together, alone = map(scalars, folders)

    if engine is server_at:
        assert max(together["sampling/sampling_logp_difference/max"]) < 1e-3
    assert together["reward"] == pytest.approx(alone["reward"], abs=1e-6)
    found, expected = (load_file(folder / "model" / "model.safetensors") for folder in folders)
    apart = torch.cat([(found[name] - value).flatten() for name, value in expected.items()]).abs()
    assert apart.mean() < 1e-5  # AdamW makes much of the rounding of a gradient that is hardly any
