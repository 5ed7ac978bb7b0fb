"""The arms of experiments/one-pass-network in small, from the command line: they train, and a report compares them."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from analysis.loading import load_runs
from grpovi_lightning.cli import main

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "one-pass-network"
PAIRS = [
    {"prompt": f"write about the {noun}", "chosen": f"the happy {noun} {verb}", "rejected": f"the sad {noun} {verb}"}
    for noun in ("fox", "boat", "house", "river", "tree", "dog")
    for verb in ("runs", "sleeps")
]


@pytest.fixture(scope="module")
def study(policy_folder, tmp_path_factory):
    """Three updates on four pairs each, of every arm that trains the whole network and of the head's one-pass arm."""
    folder = tmp_path_factory.mktemp("study")
    table = folder / "pairs.jsonl"
    table.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    settings = ["--trainer.max_steps", "3", "--trainer.val_check_interval", "1", "--model.init_args.path"]
    settings += [str(policy_folder), "--data.init_args.batch_size", "4", "--checkpoint.every_n_train_steps", "3"]
    settings += ["--data.init_args.train", str(table), "--data.init_args.validation", str(table)]
    for arm in ("whole-adamw", "whole-sgd", "whole-one-pass", "head-one-pass"):
        files = [EXPERIMENT / "reward_model.yaml", EXPERIMENT / f"{arm.replace('-', '_')}.yaml"]
        configs = [argument for file in files for argument in ("--config", str(file))]
        run = folder / "arms" / arm / "seed_1"
        assert main(["fit", *configs, *settings, "--trainer.default_root_dir", str(run)]) == 0
    return folder


def weights(study, arm):
    return load_file(study / "arms" / arm / "seed_1" / "model" / "model.safetensors")


def test_algorithm_5_moves_every_weight_of_the_network_and_of_the_head_alone_where_it_is_told_to(study, policy_folder):
    begun = load_file(policy_folder / "model.safetensors")
    whole, head = weights(study, "whole-one-pass"), weights(study, "head-one-pass")
    assert all(weight.isfinite().all() for weight in (*whole.values(), *head.values()))
    body = [name for name in whole if name in begun]
    assert len(body) > 10 and whole["score.weight"].any() and head["score.weight"].any()
    assert all(torch.equal(head[name], begun[name]) for name in body)
    assert not any(torch.equal(whole[name], begun[name]) for name in body)


def test_arms_begin_alike_and_learn_in_ways_of_their_own(study):
    runs = load_runs(study)
    losses = {arm: list(rows[rows.metric == "loss"].sort_values("step").value) for arm, rows in runs.groupby("arm")}
    assert len({values[0] for values in losses.values()}) == 1 and {len(values) for values in losses.values()} == {3}
    assert len({values[1] for values in losses.values()}) == 4


def test_how_often_curvature_was_negative_stands_in_the_checkpoint(study):
    (path,) = (study / "arms" / "whole-one-pass" / "seed_1" / "checkpoints").glob("last.ckpt")
    counts = torch.load(path, weights_only=True)["optimizer_states"][0]["state"][0]
    assert counts["n_updates"] == 3 and 0 <= counts["n_negative_curvature"] <= 3


def test_the_report_compares_arms_that_sample_nothing(study):
    assert main(["report", str(study), "--metric", "eval/pair_accuracy", "--baseline", "whole-adamw"]) == 0
    with (study / "report" / "efficiency.csv").open() as table:
        rows = {row["arm"]: row for row in csv.DictReader(table)}
    assert len(rows) == 4 and all(row["n_seeds"] == "1" and row["n_excluded"] == "0" for row in rows.values())
    assert {arm: row["baseline"] for arm, row in rows.items() if row["baseline"]} == dict.fromkeys(
        ("whole-sgd", "whole-one-pass", "head-one-pass"), "whole-adamw"
    )
    page = (study / "report" / "index.html").read_text()
    assert "did not start from the same completions" not in page and "nan" not in page.lower().split()
