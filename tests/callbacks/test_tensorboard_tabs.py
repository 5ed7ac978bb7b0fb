"""HParams and Custom Scalars, as TensorBoard itself serves them."""

import json
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from helpers.own_input import run_config, write_yaml
from tensorboard import default, program

from grpovi_lightning.callbacks.tabs import told_apart_by
from grpovi_lightning.cli import main
from grpovi_lightning.metric_keys import REWARD, held_out
from grpovi_lightning.modules import GRPOModule

RUNS = {
    "grpo@lr=0.001,beta=0.04/seed_1": {},
    "plain/seed_2": {"loss": {"class_path": "grpovi_lightning.losses.BNPOLoss", "init_args": {"beta": 0.0}}},
}


@pytest.fixture(scope="module")
def served(inputs, tmp_path_factory):
    """Two runs of one step, and how to ask TensorBoard about them: (address, what is sent) -> what it answers."""
    root = tmp_path_factory.mktemp("tabs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inputs)
        for place, model in RUNS.items():
            config = run_config(inputs, root / place, **model)
            config["seed_everything"] = int(place[-1])
            config["trainer"] |= {"max_steps": 1, "val_check_interval": 1}
            Path(root / place).mkdir(parents=True)
            assert main(["fit", "--config", write_yaml(root / f"{place[-1]}.yaml", config)]) == 0
    server = program.TensorBoard(plugins=default.get_plugins())
    server.configure(argv=["tensorboard", "--logdir", str(root), "--port", "0", "--load_fast", "false"])
    address = server.launch()

    def ask(path, sent=None):
        json_type = {"Content-Type": "application/json"} if sent else {}
        request = urllib.request.Request(f"{address}data/plugin/{path}", sent and json.dumps(sent).encode(), json_type)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    return ask


def test_the_tab_of_settings_has_arms_seeds_rate_and_beta_as_columns_and_final_metrics(served):
    experiment = served("hparams/experiment", {"experimentName": ""})
    assert {info["name"] for info in experiment["hparamInfos"]} == (
        {"arm", "seed", "adjustment", "advantage", "loss", "lr", "beta", "group_size"}
    )
    metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {REWARD, held_out(REWARD), "kl"} <= metrics
    request = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_SUCCESS"],
        "colParams": [{"metric": {"tag": held_out(REWARD), "group": ""}}],
        "startIndex": 0,
        "sliceSize": 9,
    }
    sessions = served("hparams/session_groups", request)["sessionGroups"]
    shown = {each["hparams"]["arm"]: each["hparams"] for each in sessions}
    assert {arm: (of["seed"], of["lr"], of["beta"], of["loss"]) for arm, of in shown.items()} == {
        "grpo@lr=0.001,beta=0.04": (1, 0.001, 0.04, "GRPOLoss"),
        "plain": (2, 0.001, 0, "BNPOLoss"),
    }
    assert all(
        value["trainingStep"] == 1
        for each in sessions
        for value in each["metricValues"]
        if value["name"]["tag"] == held_out(REWARD)
    )


def test_charts_show_the_scalars_of_all_runs_in_groups(served):
    layout = served("custom_scalars/layout")
    assert [group["title"] for group in layout["category"]] == [
        *("Rewards", "Policy", "Adjustment", "Completions", "Cost")
    ]
    charts = {chart["title"]: chart for group in layout["category"] for chart in group["chart"]}
    asked = urllib.parse.urlencode({"run": next(iter(RUNS)), "tag": charts["KL"]["multiline"]["tag"][0]})
    found = served(f"custom_scalars/scalars?{asked}")
    assert found["regex_valid"] and set(found["tag_to_events"]) == {"kl", "eval/kl"}
    for chart in charts.values():
        assert chart["multiline"]["tag"], chart["title"]


def test_values_of_a_point_are_columns_of_their_own(tmp_path):
    settings = told_apart_by(tmp_path / "a@k=3,kl=K1" / "seed_4", 4, object.__new__(GRPOModule.__base__), None)
    assert settings == {"arm": "a@k=3,kl=K1", "seed": 4, "k": 3.0, "kl": "K1"}
