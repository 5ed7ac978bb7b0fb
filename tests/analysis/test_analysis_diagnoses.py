import io
import math
from pathlib import Path

import pytest
from ill_runs import DISEASES, EVALUATIONS, STEPS, curve, healthy, saturating, write_ill_run
from rich.console import Console
from synthetic_runs import IDENTITY, run_folder, write_events, write_run, write_status, write_study_yaml
from torch.utils.tensorboard import SummaryWriter

from analysis import ReportError, diagnose, print_diagnoses, write_report
from grpovi_lightning.cli import main
from grpovi_lightning.diagnoses import RULES


def text_of(*paths, **settings):
    out = io.StringIO()
    print_diagnoses(paths, Console(file=out, width=100), **settings)
    return " ".join(out.getvalue().split())


@pytest.mark.parametrize("disease", DISEASES)
def test_a_planted_disease_is_found_and_nothing_else(tmp_path, disease):
    found = diagnose(write_ill_run(tmp_path, disease))
    assert list(found["kind"]) == [DISEASES[disease][0]]


def test_every_rule_has_a_planted_disease():
    assert {kind for kind, _ in DISEASES.values()} == {rule.kind for rule in RULES}


def test_in_a_healthy_run_nothing_is_found_and_everything_was_judged(tmp_path):
    found = diagnose(write_ill_run(tmp_path))
    assert found.empty and found.attrs["problems"] == {}
    assert "not judged" not in text_of(tmp_path) and "nothing found" in text_of(tmp_path)


def test_evidence_has_the_numbers_and_steps_of_the_worst_stretch(tmp_path):
    kl = {step: (2.0 if 30 <= step < 40 else 0.25) for step in STEPS}
    write_events(tmp_path, healthy() | {"kl": kl})
    write_status(tmp_path)
    (row,) = diagnose(tmp_path).to_dict("records")
    assert (row["kind"], row["step"], row["value"]) == ("KL run-away", 39, 2.0)
    assert row["evidence"] == "kl was 2 nats a token over step 30 to 39"


def test_groups_without_variance_are_split_and_what_they_wasted_is_said(tmp_path):
    constant = {"frac_reward_zero_std": 0.75, "frac_groups_all_high": 0.5, "frac_groups_all_low": 0.125}
    write_events(tmp_path, healthy() | {tag: curve(lambda t, value=value: value) for tag, value in constant.items()})
    write_status(tmp_path)
    (evidence,) = diagnose(tmp_path)["evidence"]
    assert evidence.startswith("75 % of the groups had no two different rewards over step 0 to 9")
    assert "50 % of all groups all good, 12 % all bad; 75 % over all steps" in evidence


def test_flips_of_an_adjustment_that_was_not_applied_are_no_finding(tmp_path):
    assert diagnose(write_ill_run(tmp_path, "flips", adjustment=IDENTITY)).empty


def test_a_correlation_that_moves_no_length_is_no_finding(tmp_path):
    write_events(tmp_path, healthy() | {"completions/length_reward_correlation": curve(lambda t: 0.8)})
    write_status(tmp_path)
    assert diagnose(tmp_path).empty  # lengths fall


def test_a_gold_reward_of_which_too_little_is_known_is_not_judged(tmp_path):
    noisy = {name: curve(lambda t: 0.26, 0.2, 8, steps) for name, steps in GOLD.items()}
    write_events(tmp_path, healthy() | noisy)
    write_status(tmp_path)
    assert diagnose(tmp_path).empty


GOLD = {"rewards/gold/mean": STEPS, "eval/rewards/gold/mean": EVALUATIONS}


@pytest.mark.parametrize("seed", range(40))
def test_noise_alone_is_no_over_optimisation(seed):
    """The gold reward saturates while the reward goes on rising a little, as in the quickstart."""
    from grpovi_lightning.diagnoses import Series, diagnose, logged

    reward, gold = saturating(-0.9, 1.0), saturating(0.26, 0.48)
    scalars = healthy() | {
        "reward": curve(reward, 0.08, 100 + seed),
        "rewards/gold/mean": curve(gold, 0.03, 200 + seed),
        "eval/reward": curve(reward, 0.06, 300 + seed, EVALUATIONS),
        "eval/rewards/gold/mean": curve(gold, 0.022, 400 + seed, EVALUATIONS),
    }
    run = logged({tag: Series.of(list(values), list(values.values())) for tag, values in scalars.items()}, True)
    assert [finding.kind for finding in diagnose(run)] == []


def test_the_checkpoint_of_the_best_evaluation_is_named_where_it_is_kept(tmp_path):
    write_ill_run(tmp_path, "gold rises and falls")
    (row,) = diagnose(tmp_path).to_dict("records")
    assert row["best_step"] == 30 and row["checkpoint"] is None
    assert "best evaluation was at step 30; no checkpoint of it is kept" in text_of(tmp_path)

    (tmp_path / "checkpoints").mkdir()
    for step in (30, 60):
        (tmp_path / "checkpoints" / f"step={step}.ckpt").touch()
    assert Path(diagnose(tmp_path)["checkpoint"][0]).name == "step=30.ckpt"

    write_status(tmp_path, step=120)  # two updates of each rollout
    assert Path(diagnose(tmp_path)["checkpoint"][0]).name == "step=60.ckpt"


def write_trl(folder, scalars):
    with SummaryWriter(str(folder)) as writer:
        for tag, values in scalars.items():
            for step, value in values.items():
                writer.add_scalar(tag, value, step)
    return folder


def of_trl(scalars):
    """What TRL logs of these: its names, and nothing that only this package has."""
    renamed = {"reward_batch_std": "reward_std"}
    own = ("frac_groups", "advantages/", "adjustment/", "completions/length_reward")
    return {
        tag if tag.startswith("eval/") else f"train/{renamed.get(tag, tag)}": values
        for tag, values in scalars.items()
        if not tag.startswith(own) and not tag.endswith(("pair_agreement", "variance_share"))
    }


JUDGED = [
    *("gold rises and falls", "gold never rises", "all good", "cut off", "entropy", "kl", "held-out kl", "clipped"),
    "plateau",
]


@pytest.mark.parametrize("disease", [None, *JUDGED])
def test_a_folder_of_trl_is_diagnosed_as_far_as_it_logs(tmp_path, disease):
    write_trl(tmp_path / "runs" / "Nov30", of_trl(healthy() | dict(DISEASES[disease][1] if disease else {})))
    (tmp_path / "checkpoint-30").mkdir()
    found = diagnose(tmp_path)
    assert list(found["kind"]) == ([DISEASES[disease][0]] if disease else [])
    if disease == "gold rises and falls":
        assert Path(found["checkpoint"][0]) == tmp_path / "checkpoint-30"
    told = text_of(tmp_path)
    assert "not judged, because not logged: a reward component dominates (rewards/<name>/variance_share)" in told
    assert "advantages that change sign" in told and "length follows reward" in told


def test_the_judge_of_a_run_of_trl_can_be_named(tmp_path):
    ill = healthy() | dict(DISEASES["gold rises and falls"][1])
    write_trl(tmp_path, of_trl({tag.replace("gold", "judge"): values for tag, values in ill.items()}))
    assert diagnose(tmp_path).empty and "over-optimisation (eval/rewards/gold/mean)" in text_of(tmp_path)
    assert list(diagnose(tmp_path, gold="judge")["kind"]) == ["over-optimisation"]


def test_the_command_tells_by_its_status_what_it_found(tmp_path, capsys):
    well, ill = write_ill_run(tmp_path / "well"), write_ill_run(tmp_path / "ill", "kl")
    assert main(["diagnose", str(well)]) == 0
    assert "0 of 1 run with findings" in capsys.readouterr().out
    assert main(["diagnose", str(well), str(ill)]) == 1
    out = capsys.readouterr().out
    assert "KL run-away: kl was" in out and "threshold: above 1 nat a token (ours)" in out
    assert "1 of 2 runs with findings" in out


def test_a_run_that_cannot_be_judged_is_no_healthy_one(tmp_path, capsys):
    event_file = next(write_ill_run(tmp_path / "damaged").glob("events*"))
    content = bytearray(event_file.read_bytes())
    content[200] ^= 1
    event_file.write_bytes(content)
    write_ill_run(tmp_path / "ill", "kl")
    write_events(tmp_path / "other", {"val_loss": {0: 1.0}})
    assert main(["diagnose", str(tmp_path)]) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert "not judged: damaged log file events.out.tfevents" in out
    assert "other not judged: " in out and "KL run-away" in out
    assert "1 of 3 runs with findings, 2 could not be judged" in out
    assert set(diagnose(tmp_path).attrs["problems"]) == {"damaged", "other"}


@pytest.mark.parametrize("arguments", [[], ["nowhere"]])
def test_a_wrong_request_is_one_line(capsys, arguments):
    assert main(["diagnose", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("grpovi: error: ") and error.count("\n") == 1


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ReportError, match="no runs in it"):
        diagnose(tmp_path)


def test_the_table_has_its_columns_and_types_without_a_finding_too(tmp_path):
    ill, well = diagnose(write_ill_run(tmp_path / "ill", "kl")), diagnose(write_ill_run(tmp_path / "well"))
    assert list(ill.columns) == list(well.columns) and ill.dtypes["seed"] == well.dtypes["seed"]
    assert math.isfinite(ill["value"][0])


def study(tmp_path):
    """Two arms of two seeds; grpovi has a disease on one of them."""
    root = tmp_path / "study"
    for arm in ("grpo", "grpovi"):
        for seed in (1, 2):
            ill = "kl" if (arm, seed) == ("grpovi", 2) else None
            adjustment = IDENTITY if arm == "grpo" else "VarianceIncrease"
            write_ill_run(run_folder(root, arm, seed), ill, adjustment=adjustment, seed=seed)
    write_study_yaml(root, ("grpo", "grpovi"), {"grpovi": "grpo"}, (1, 2))
    return root


def test_all_runs_of_a_study_are_diagnosed(tmp_path):
    found = diagnose(study(tmp_path))
    assert found[["arm", "seed", "run", "kind"]].values.tolist() == [["grpovi", 2, "arms/grpovi/seed_2", "KL run-away"]]


def test_the_report_lists_findings_by_arm_with_their_seeds(tmp_path):
    page = write_report(study(tmp_path)).read_text()
    section = page.partition('<section id="diagnoses">')[2].partition("</section>")[0]
    assert "KL run-away" in section and "1 of 2" in section and "seed 2" in section
    assert section.count("<tr>") == 2


def test_the_report_says_that_nothing_was_found(tmp_path):
    for seed in (1, 2):
        write_ill_run(tmp_path / "grpo" / f"seed_{seed}", seed=seed)
    section = write_report(tmp_path).read_text().partition('<section id="diagnoses">')[2].partition("</section>")[0]
    assert "Nothing was found in 2 runs" in section and "<table" not in section and "Not judged" not in section


def test_the_report_says_what_could_not_be_judged(tmp_path):
    known = {tag: values for tag, values in healthy().items() if tag != "entropy"}
    write_events(tmp_path / "grpo", known)
    write_status(tmp_path / "grpo", step=60, max_steps=60)
    section = write_report(tmp_path).read_text().partition('<section id="diagnoses">')[2].partition("</section>")[0]
    assert "Not judged, because not logged: entropy collapse (<code>entropy</code>, 1 of 1 runs)." in section


def test_the_report_of_runs_that_logged_nothing_to_judge_calls_none_healthy(tmp_path):
    write_events(tmp_path / "grpo", {"eval/score": {0: 0.1, 10: 0.2, 20: 0.3}})
    write_status(tmp_path / "grpo")
    section = write_report(tmp_path, metric="eval/score").read_text().partition('<section id="diagnoses">')[2]
    assert "No run could be judged" in section.partition("</section>")[0]


def test_a_warning_that_the_diagnoses_repeat_is_not_listed_twice(tmp_path):
    root = study(tmp_path)
    warnings = ["KL run-away: kl was 1.5 nats a token over step 30 to 39", "other: something else"]
    write_status(run_folder(root, "grpovi", 2), seed=2, adjustment="VarianceIncrease", warnings=warnings)
    page = write_report(root).read_text()
    listed = page.partition('<table id="warnings"')[2].partition("</table>")[0]
    assert "other: something else" in listed and "KL run-away" not in listed


def test_a_run_without_rewards_of_training_is_not_called_healthy(tmp_path):
    write_run(tmp_path, {0: 0.1, 10: 0.2}, seed=1)
    assert "not judged, because not logged" in text_of(tmp_path)
