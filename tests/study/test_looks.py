"""`compare --until-decided`: which seeds are run when, what is kept of the looks, and what is refused."""

import json

import pytest

from grpovi_lightning.errors import UserError
from grpovi_lightning.run_record.looks import read_looks
from grpovi_lightning.study import dry_run

ARMS = 2


def seeds_started(bench) -> list[str]:
    return [run for run in bench.started() if run.startswith("plain/")]


def judged(bench) -> list[int]:
    """The seeds in the study's record, which are those that a report counts."""
    return [int(line[2:]) for line in (bench.folder / "study.yaml").read_text().splitlines() if line[:2] == "- "]


def test_seeds_are_added_batch_by_batch_until_the_verdict_is_decided(bench, capsys):
    bench.write()
    bench.decided_at = 3
    assert bench.compare(until_decided=6) == 0
    looks = read_looks(bench.folder)
    assert (looks.counts, looks.seen, looks.made) == ((2, 3, 4, 6), (1, 2, 3), ((), ()))
    assert seeds_started(bench) == ["plain/seed_1", "plain/seed_2", "plain/seed_3"]
    assert judged(bench) == [1, 2, 3]
    assert bench.reported == [bench.folder]
    said = capsys.readouterr().out
    assert "looks at 2, 3, 4, 6 seeds, 0 of 4 made; seeds 3 to 6 are added if needed" in said
    assert "look 1 of 4, at 2 seeds: not decided: Is other faster than plain?" in said
    assert "look 2 of 4, at 3 seeds: every verdict is decided" in said


def test_without_a_decision_the_last_look_is_at_the_most_seeds(bench):
    bench.write()
    assert bench.compare(until_decided=4) == 0
    looks = read_looks(bench.folder)
    assert looks.over and looks.seen == (1, 2, 3, 4) and judged(bench) == [1, 2, 3, 4]


def test_run_again_it_goes_on_at_the_same_look_and_makes_none_twice(bench):
    bench.write()
    bench.decided_at = 4

    def killed(_folder):
        raise KeyboardInterrupt

    assert bench.compare(until_decided=6, undecided=killed) == 130
    looks = read_looks(bench.folder)
    assert looks.seen == (1, 2) and len(looks.made) == 1
    assert bench.compare(until_decided=6) == 0
    assert read_looks(bench.folder).seen == (1, 2, 3, 4) and len(seeds_started(bench)) == 4
    assert bench.compare(until_decided=6) == 0
    assert read_looks(bench.folder).seen == (1, 2, 3, 4) and len(seeds_started(bench)) == 4


def test_a_look_waits_for_a_run_that_failed_and_leaves_it_out_when_it_fails_once_more(bench, capsys):
    bench.write()
    bench.config("other.yaml", fail_at=1)
    assert bench.compare(until_decided=4) == 1
    assert "the look at 2 seeds waits for 2 of 4 runs; the same command tries again" in capsys.readouterr().err
    assert read_looks(bench.folder).made == ()
    bench.decided_at = 2
    assert bench.compare(until_decided=4) == 1  # its runs did not finish
    assert read_looks(bench.folder).made == (("arms/other/seed_1", "arms/other/seed_2"),)


def test_the_runs_that_may_be_needed_are_foretold(bench):
    bench.write()
    lines = dry_run(bench.study_file, bench.services, until_decided=4, output=bench.output)
    assert sum(line.endswith("to do, unless decided before") for line in lines) == 2 * ARMS
    assert "looks at 2, 3, 4 seeds, 0 of 3 made; seeds 3 to 4 are added if needed" in lines
    assert "6 to 10 runs: 0 done, 0 to resume, 6 to 10 to do" in lines
    bench.decided_at = 3
    bench.compare(until_decided=4)
    lines = dry_run(bench.study_file, bench.services, until_decided=4, output=bench.output)
    assert "8 runs: 8 done, 0 to resume, 0 to do" in lines and lines[-1] == "nothing is left to do"


def test_seeds_of_the_command_line_are_those_of_the_first_look(bench):
    bench.write()
    assert bench.compare(seeds=[7, 5], until_decided=3) == 0
    assert read_looks(bench.folder).seeds == (7, 5, 8) and read_looks(bench.folder).counts == (2, 3)


def test_of_a_tuned_study_judging_seeds_are_added(bench):
    bench.write(
        tuning_seeds=[11],
        arms={
            "plain": {"configs": ["arm.yaml"], "values": {"lr": [1, 2]}},
            "other": {"configs": ["arm.yaml"], "values": {"lr": [1, 2]}, "baseline": "plain"},
        },
    )
    bench.scores = {"plain@lr=2": 1.0, "other@lr=2": 1.0}
    assert bench.compare(until_decided=3) == 0
    tuning = [f"{arm}@lr={lr}/seed_11" for arm in ("plain", "other") for lr in (1, 2)]
    judging = [f"{arm}@lr=2/seed_{seed}" for seed in (1, 2, 3) for arm in ("plain", "other")]
    assert sorted(bench.started()[2:6]) == sorted(tuning) and sorted(bench.started()[6:]) == sorted(judging)


@pytest.mark.parametrize(
    ("most", "seeds", "study", "words"),
    [
        (1, None, {}, "--until-decided is 1, and the study has 2 seeds to begin with; give at least 2"),
        (4, [1, 2**32 - 2], {}, "the 2 seeds after 4294967294 would pass 4294967295"),
        (4, None, {"arms": {"plain": {"configs": ["arm.yaml"]}}}, "no arm has a baseline and there are no contrasts"),
        (
            4,
            None,
            {"tuning_seeds": [4], "arms": {
                "plain": {"configs": ["arm.yaml"]},
                "other": {"configs": ["arm.yaml"], "baseline": "plain", "values": {"lr": [1, 2]}},
            }},
            "--until-decided 4 would add the seeds 3 to 4, and 4 is a tuning seed",
        ),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused_before_anything_is_written(bench, most, seeds, study, words):
    bench.write(**study)
    with pytest.raises(UserError, match=words):
        bench.compare(seeds=seeds, until_decided=most)
    with pytest.raises(UserError, match=words):
        dry_run(bench.study_file, bench.services, seeds=seeds, until_decided=most, output=bench.output)
    assert not bench.started() and not (bench.folder / "study.yaml").exists()


def test_looks_do_not_change_once_they_are_planned(bench):
    bench.write()
    bench.decided_at = 2
    bench.compare(until_decided=4)
    with pytest.raises(UserError, match=r"asked for 2 to 5 now.*looks cannot change once planned"):
        bench.compare(until_decided=5)
    with pytest.raises(UserError, match="beginning with seed 2; looks cannot"):
        bench.compare(seeds=[2, 3], until_decided=4)
    with pytest.raises(UserError, match="is judged at planned looks only; give --until-decided 4 again"):
        bench.compare()
    assert judged(bench) == [1, 2]


def test_seeds_that_a_report_has_judged_cannot_be_looked_at_again(bench):
    bench.write()
    bench.compare(report=lambda folder: (folder / "report").mkdir())
    with pytest.raises(UserError, match="a report has judged seed 1 already, at the whole level"):
        bench.compare(until_decided=4)
    assert bench.compare(seeds=[3, 4], until_decided=3) == 0
    assert read_looks(bench.folder).seen == (3, 4, 5)


def test_points_are_not_chosen_anew_after_a_look(bench):
    bench.write(
        tuning_seeds=[11],
        arms={
            "plain": {"configs": ["arm.yaml"]},
            "other": {"configs": ["arm.yaml"], "values": {"lr": [1, 2]}, "baseline": "plain"},
        },
    )
    bench.decided_at = 2
    bench.compare(until_decided=4)
    (bench.folder / "choice.json").unlink()
    with pytest.raises(UserError, match="points would be chosen anew, after a look"):
        bench.compare(until_decided=4)


@pytest.mark.parametrize(
    "change", [{"counts": [2, 2, 4]}, {"shares": [0.9, 0.9, 0.9]}, {"made": [[]] * 4}, {"seeds": 3}]
)
def test_a_record_of_looks_that_was_tampered_with_is_refused(bench, change):
    bench.write()
    bench.decided_at = 2
    bench.compare(until_decided=4)
    file = bench.folder / "looks.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=r"looks\.json (contradicts itself|cannot be read)"):
        bench.compare(until_decided=4)
