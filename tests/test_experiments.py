"""Every YAML that is shipped loads, and arms of a study differ in the one knob they say they differ in."""

from pathlib import Path

import pytest
import yaml

from grpovi_lightning.preflight import check_command
from grpovi_lightning.study import load_study
from grpovi_lightning.study.plan import plan_arms, plan_prepare, plan_tuning

ROOT = Path(__file__).parents[1] / "experiments"
STUDIES = sorted(ROOT.glob("*/study.yaml"))
VARIANCE = sorted(set((ROOT / "variance").glob("*.yaml")) - set(STUDIES))
FOR_SINGLE_RUNS = {"focal", "greso", "reinforce_plus_plus", "top_selection", "uniform_dithering"}
"""Overlays of `variance` that no study uses: further methods, for runs of one's own."""


@pytest.mark.parametrize("study_file", STUDIES, ids=lambda path: path.parent.name)
def test_every_stage_and_arm_of_a_study_is_a_valid_configuration(study_file, tmp_path):
    study, folder = load_study(study_file), tmp_path / "study"
    runs = plan_prepare(study, folder) + plan_tuning(study, folder) + plan_arms(study, folder)
    for run in {(run.owner, run.seed is None): run for run in runs}.values():
        if run.command != "task":
            check_command(list(run.arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("study_file", STUDIES, ids=lambda path: path.parent.name)
def test_no_yaml_of_a_study_is_left_unused(study_file):
    study = load_study(study_file)
    used = {config.path.resolve() for part in (*study.prepare, *study.arms) for config in part.configs}
    offered = {path.resolve() for path in VARIANCE if path.stem in FOR_SINGLE_RUNS}
    assert {path.resolve() for path in study_file.parent.glob("*.yaml")} - {study_file.resolve()} <= used | offered


def overlays(study_file):
    """arm -> the one file that it has and its baseline has not, as a mapping."""
    study = load_study(study_file)
    arms = {arm.name: arm for arm in study.arms}
    paired = [arm for arm in study.arms if arm.baseline is not None]
    assert paired
    for arm in paired:
        mine, theirs = ([config.path for config in part.configs] for part in (arm, arms[arm.baseline]))
        assert [path for path in theirs if path not in mine] == []
        (overlay,) = (yaml.safe_load(path.read_text()) for path in mine if path not in theirs)
        yield arm.name, overlay


@pytest.mark.parametrize("name", ["quickstart", "miniature", "smollm2", "ultrafeedback-pythia-1b", "gsm8k-qwen"])
def test_an_arm_and_its_baseline_differ_in_the_adjustment_alone(name):
    for _, overlay in overlays(ROOT / name / "study.yaml"):
        assert list(overlay) == ["model"] and list(overlay["model"]["init_args"]) == ["adjustment"]


def test_an_arm_of_the_family_differs_from_grpo_in_what_makes_the_method_and_not_in_the_penalty():
    for name, overlay in overlays(ROOT / "family" / "study.yaml"):
        own = {
            "dapo": {"loss", "updates", "resampling"},
            "dr-grpo": {"loss", "advantage"},
            "rloo": {"advantage"},
            "high-entropy-tokens": {"updates"},
            "kl-in-reward": {"loss", "adjustment"},
        }
        settings = overlay["model"]["init_args"]
        assert set(settings) == own.get(name, {"loss"})
        loss = settings.get("loss", {"init_args": {"beta": 0.04}})["init_args"]
        in_loss = loss["loss"]["init_args"]["beta"] if name == "entropy-bonus" else loss["beta"]
        in_reward = settings["adjustment"]["init_args"]["beta"] if name == "kl-in-reward" else 0.0
        assert sorted([in_loss, in_reward]) == [0.0, 0.04]
        assert set(overlay) == ({"model", "data"} if name == "dapo" else {"model"})


def test_every_experiment_folder_has_a_readme():
    for folder in {file.parent for file in ROOT.glob("*/*.yaml")}:
        assert (folder / "README.md").is_file()


BEFORE = {
    "stretch": "advantage-scaling/unscaled.yaml",
    "maxrl": "variance/bounded.yaml",
    "focal": "variance/bounded.yaml",
    "uniform_weights": "quickstart/variance_increase.yaml",
}
"""Overlay of `variance` -> what it needs before it, with the quickstart's reward model."""


@pytest.mark.parametrize("overlay", VARIANCE, ids=lambda path: path.stem)
def test_an_overlay_of_the_variance_methods_is_a_valid_configuration_and_one_knob_that_its_readme_names(overlay):
    before = [ROOT / BEFORE[overlay.stem]] if overlay.stem in BEFORE else []
    files = [ROOT / "quickstart" / "grpo.yaml", *before, overlay]
    check_command(["fit", *(word for file in files for word in ("--config", str(file)))])
    content = yaml.safe_load(overlay.read_text())
    assert list(content) in (["model"], ["model", "data"]) and len(content["model"]["init_args"]) == 1
    readme = (overlay.parent / "README.md").read_text()
    assert f"`{overlay.name}`" in readme
    assert all(f"`{file.name}`" in readme or f"`../{file.relative_to(ROOT)}`" in readme for file in before)


def test_arms_of_the_online_study_differ_from_grpo_in_the_adjustment_and_from_each_other_in_the_reward():
    folder = ROOT / "online"
    for _, overlay in overlays(folder / "study.yaml"):
        assert list(overlay["model"]["init_args"]) == ["adjustment"]
    parts = {}
    for name in ("frozen", "one_pass", "refit"):
        overlay = yaml.safe_load((folder / f"{name}.yaml").read_text())
        assert list(overlay) == ["model"] and list(overlay["model"]["init_args"]) == ["reward"]
        composite = overlay["model"]["init_args"]["reward"]["init_args"]
        assert composite["reward_weights"] == [1.0, 0.0]
        parts[name] = composite["rewards"][0]["init_args"]
    assert "online" not in parts["frozen"] and parts["one_pass"]["online"] == parts["refit"]["online"]
    assert parts["one_pass"] == parts["frozen"] | {"online": parts["one_pass"]["online"]}
    assert {key for key in parts["refit"] if parts["refit"][key] != parts["one_pass"][key]} == {"estimator", "start"}


def test_arms_of_the_network_study_differ_in_the_optimizer_and_in_what_it_trains_and_see_each_pair_once():
    folder = ROOT / "one-pass-network"
    task, shared = (yaml.safe_load((folder / name).read_text()) for name in ("task.yaml", "reward_model.yaml"))
    steps = shared["trainer"]["max_steps"]
    assert steps * shared["data"]["init_args"]["batch_size"] == task["n_pairs"]
    for scope in ("head", "whole"):
        for path in folder.glob(f"{scope}_*.yaml"):
            overlay = yaml.safe_load(path.read_text())
            assert list(overlay) == ["model"] and set(overlay["model"]["init_args"]) == {"head_only", "optimizer"}
            assert overlay["model"]["init_args"]["head_only"] is (scope == "head")
            assert overlay["model"]["init_args"]["optimizer"]["init_args"].get("total_steps", steps) == steps
    study = load_study(folder / "study.yaml")
    assert {arm.name: arm.baseline for arm in study.arms} == {
        f"{scope}-{name}": None if name == "adamw" else f"{scope}-adamw"
        for scope in ("head", "whole")
        for name in ("adamw", "sgd", "one-pass")
    }


def test_the_tuned_study_gives_each_arm_the_same_grid_and_judges_on_other_seeds_than_it_chooses_on():
    study = load_study(ROOT / "tuned" / "study.yaml")
    grids = {}
    for arm in study.arms:
        grids.setdefault(arm.written, []).append(dict(arm.point.values))
    assert list(grids) == ["grpo-group", "grpovi-group", "grpo-none", "grpovi-none"]
    assert all(grid == grids["grpo-group"] for grid in grids.values()) and len(grids["grpo-group"]) == 3 * 2
    assert (len(study.tuning_seeds), len(study.seeds)) == (3, 10) and not set(study.tuning_seeds) & set(study.seeds)
    paired = {arm.written: arm.written_baseline for arm in study.arms if arm.baseline}
    assert paired == {"grpovi-group": "grpo-group", "grpovi-none": "grpo-none"}
    assert all(arm.baseline.partition("@")[2] == arm.name.partition("@")[2] for arm in study.arms if arm.baseline)
