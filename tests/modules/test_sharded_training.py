"""Processes that share weights or a batch do what one process does with the whole of both."""

from pathlib import Path

import pytest
import torch
from helpers.drivers import run_driver
from modules.grpo_runs import relative_difference, scalars
from modules.sharded_driver import VARIANTS
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpovi_lightning.models.checkpoint_folder import in_memory, read_checkpoint

DRIVER = Path(__file__).parent / "sharded_driver.py"
SHORT = 3  # steps before a run goes on elsewhere


def train(inputs, folder, devices, strategy, *runs):
    run_driver(DRIVER, folder, *inputs, devices, strategy, *runs)


@pytest.fixture(scope="module")
def runs(policy_folder, reward_folder, tmp_path_factory, request):
    """The folder of all runs: `one/*`, `ddp/*`, `fsdp2/*`, and those that went from one to the other."""
    folder, ranks, inputs = (
        tmp_path_factory.mktemp("sharded"),
        request.config.getoption("--ranks"),
        (policy_folder, reward_folder),
    )
    short = f"full:{SHORT}"
    last = "checkpoints/last.ckpt"
    train(inputs, folder, 1, "auto", *(f"{name}:5:one/{name}" for name in VARIANTS), f"{short}:one/short")
    train(inputs, folder, ranks, "ddp", "full:5:ddp/full", "lora:5:ddp/lora")
    parts = {"full": "", "lora": "+parts", "layers": "+parts", "offloaded": "", "replicated": "+parts"}
    sharded = [f"{name}{how}:5:fsdp2/{name}" for name, how in parts.items()]
    continued = f"full+parts:5:fsdp2/continued:one/short/{last}", f"full:5:fsdp2/same:fsdp2/short/{last}"
    train(inputs, folder, ranks, "fsdp2", *sharded, f"full+parts:{SHORT}:fsdp2/short", *continued)
    train(inputs, folder, 1, "auto", f"full:5:one/continued:fsdp2/short/{last}")
    return folder


def exported(folder):
    return load_file(folder / "model" / "model.safetensors")


def texts(folder):
    """The completions of each step, those of all ranks together."""
    of_ranks = [torch.load(file, weights_only=True) for file in sorted(folder.glob("texts_*.pt"))]
    return [[text for of_rank in of_step for text in of_rank] for of_step in zip(*of_ranks, strict=True)]


def policy_weights(checkpoint):
    return {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("policy.")}


def momenta(checkpoint):
    return {place: of["momentum_buffer"] for place, of in checkpoint["optimizer_states"][0]["state"].items()}


RUNS = [("ddp", "full"), ("ddp", "lora"), *(("fsdp2", name) for name in VARIANTS)]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "variant"), RUNS)
def test_processes_end_with_the_completions_parameters_and_metrics_of_one(runs, policy_folder, strategy, variant):
    alone, together = runs / "one" / variant, runs / strategy / variant

    assert texts(together) == texts(alone)
    found, expected, initial = exported(together), exported(alone), load_file(policy_folder / "model.safetensors")
    assert relative_difference(found, expected) < 1e-5
    moved = [{name: state[name] - initial[name] for name in initial} for state in (found, expected)]
    assert relative_difference(*moved) < 1e-4
    assert relative_difference(expected, initial) > 1e-3
    one, several = scalars(alone), scalars(together)
    assert one.keys() == several.keys()
    for tag in one:
        if tag.startswith("sampling/"):  # rounding, and nothing else
            assert max(several[tag].values()) < 1.001
        else:
            assert several[tag] == pytest.approx(one[tag], rel=1e-4, abs=1e-5), tag


@pytest.mark.slow
@pytest.mark.parametrize("goes_on_under", ["one", "fsdp2"])
def test_a_run_goes_on_with_another_number_of_processes(runs, goes_on_under):
    found, expected = exported(runs / goes_on_under / "continued"), exported(runs / "one" / "full")
    assert relative_difference(found, expected) < 1e-5
    assert texts(runs / goes_on_under / "continued") == texts(runs / "one" / "full")[SHORT:]


@pytest.mark.slow
def test_a_run_that_goes_on_from_the_parts_of_its_processes_ends_with_the_same_bits(runs):
    found, expected = exported(runs / "fsdp2" / "same"), exported(runs / "fsdp2" / "full")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert texts(runs / "fsdp2" / "same") == texts(runs / "fsdp2" / "full")[SHORT:]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["full", "lora"])
def test_plain_transformers_loads_what_a_sharded_run_exports_and_its_checkpoint_is_that_of_one_process(runs, variant):
    folder = runs / "fsdp2" / variant / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = AutoModelForCausalLM.from_pretrained(runs / "one" / variant / "model")
    ids = AutoTokenizer.from_pretrained(folder)("the old house", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-5)
    saved = [runs / by / variant / "checkpoints" / "last.ckpt" for by in ("fsdp2", "one")]
    assert [path.is_dir() for path in saved] == [variant == "lora", False]
    states = [in_memory(read_checkpoint(path)) for path in saved]
    assert states[0]["state_dict"].keys() == states[1]["state_dict"].keys()
    assert relative_difference(*map(policy_weights, states)) < 1e-4
    assert states[0]["optimizer_states"][0]["param_groups"] == states[1]["optimizer_states"][0]["param_groups"]
    assert relative_difference(*map(momenta, states)) < 1e-4
    if variant == "lora":
        adapters = [load_file(runs / by / "lora" / "adapter" / "adapter_model.safetensors") for by in ("fsdp2", "one")]
        assert relative_difference(*adapters) < 1e-4
