import math
import re
import statistics
from collections.abc import Mapping

import pytest
from scipy import stats
from synthetic_runs import GOLD, frame, line, ramp

from analysis.curves import curves_of
from analysis.efficiency import compare
from analysis.reward_kl import at_equal_kl
from analysis.selection import status_of, with_reasons
from analysis.settings import Settings
from analysis.statistics import power_of
from analysis.verdict import Verdict, verdicts_of

Seeds = Mapping[int, Mapping[int, float]]


def verdict(arm: Seeds, baseline: Seeds, names: tuple[str, str] = ("grpovi", "grpo"), **changes) -> Verdict:
    runs = frame({names[0]: arm, names[1]: baseline})
    settings = Settings("study", GOLD, "named", {names[0]: names[1]}, **changes)
    status = with_reasons(status_of(runs), runs, GOLD)
    (comparison,) = [one for one in compare(runs, status, settings) if one.arm == names[0]]
    kl = {name: curves_of(runs, GOLD).get(name, {}) for name in names}
    equal = at_equal_kl(*names, comparison.paired_seeds, curves_of(runs, GOLD), kl)
    (found,) = verdicts_of([(comparison, equal)])
    return found


def ramps(*ends: int) -> dict[int, dict[int, float]]:
    return {seed: ramp(end) for seed, end in enumerate(ends, 1)}


def test_the_question_names_both_arms_and_a_cost_that_was_not_logged_is_unknown():
    assert verdict(ramps(60, 80), ramps(30, 40)).question == "Is grpovi faster than grpo?"
    runs = frame({"grpo": ramps(60, 80)})
    (alone,) = compare(runs, status_of(runs).assign(reason=None), Settings("study", GOLD, "named", {}))
    assert math.isnan(alone.run_tokens) and math.isnan(alone.run_seconds)


def test_an_arm_that_is_slower_is_called_slower():
    words = verdict(ramps(60, 80, 60), ramps(30, 40, 30))
    assert words.headline == "grpovi is slower than grpo."
    assert words.sentences[0].startswith(
        "grpovi reached the target of 0.900 later than grpo: 2.00 times the steps (95 %"
    )
    assert words.sentences[1].startswith(f"grpovi's mean {GOLD} over the run was lower than grpo's by 0.167")


def test_an_arm_that_is_faster_is_called_faster():
    words = verdict(ramps(30, 40, 30), ramps(60, 80, 60))
    assert words.headline == "grpovi is faster than grpo."
    assert words.sentences[0].startswith("grpovi reached the target of 0.900 sooner than grpo: 0.500 times the steps")
    assert words.sentences[1].startswith(f"grpovi's mean {GOLD} over the run was higher than grpo's by 0.167")


def test_an_arm_with_the_curves_of_its_baseline_is_told_from_a_difference_that_cannot_be_seen():
    words = verdict(ramps(60, 80, 60), ramps(60, 80, 60))
    assert words.headline == (
        "Nothing tells grpovi from grpo: on each of the 3 seeds their areas are equal to the last digit."
    )
    assert not any("that takes" in sentence for sentence in words.sentences), "no number of seeds would see it"
    assert verdict(ramps(60, 80, 61), ramps(60, 80, 60)).headline.startswith("No difference")


@pytest.mark.parametrize(
    ("arm", "baseline"),
    [
        (ramps(40, 41, 39), ramps(80, 81, 79)),
        (ramps(40, 90, 50), ramps(80, 30, 60)),
        (ramps(40), ramps(50)),
        (ramps(40, 50), {1: line(0, 0.3), 2: line(0, 0.2)}),
        ({1: ramp(50), 2: line(0, 0.5)}, {1: line(0, 0.4), 2: ramp(50)}),
    ],
)
def test_with_the_arms_exchanged_the_words_are_the_opposite_ones(arm: Seeds, baseline: Seeds):
    there = verdict(arm, baseline, ("alpha", "beta"), target=0.9)
    back = verdict(baseline, arm, ("beta", "alpha"), target=0.9)
    opposites = [("faster", "slower"), ("sooner", "later"), ("higher", "lower"), ("alpha", "beta"), ("gain", "loss")]
    swap = dict(opposites) | {theirs: ours for ours, theirs in opposites}

    def exchanged(headline: str) -> str:
        claim = headline.split(":")[0]  # what follows a colon is the fact behind the claim, and stays the same
        return re.sub(r"[a-z]+", lambda word: swap.get(word.group(), word.group()), claim)

    assert exchanged(there.headline) == back.headline.split(":")[0].replace("alpha and beta", "beta and alpha")
    assert len(there.sentences) == len(back.sentences)


def test_a_difference_within_the_noise_is_no_difference():
    words = verdict(ramps(40, 90, 50), ramps(80, 30, 60))
    assert words.headline == "No difference between grpovi and grpo can be seen with 3 seeds."
    assert "no difference can be seen: the 95 % interval" in words.sentences[1]
    assert words.sentences[1].endswith("contains 0.")
    assert any("of the size seen here that takes" in sentence for sentence in words.sentences)


def test_three_seeds_on_one_side_are_not_enough_when_they_scatter():
    words = verdict(ramps(20, 50, 70), ramps(30, 80, 80))
    assert words.headline == "No difference between grpovi and grpo can be seen with 3 seeds."
    (area,) = [sentence for sentence in words.sentences if "over the run" in sentence]
    assert area.endswith("contains 0.") and "no difference can be seen: the 95 % interval (" in area


def test_an_interval_without_0_is_not_enough_where_two_differences_are_tested():
    ours, theirs = (50, 62, 59, 52, 61), (58, 66, 68, 60, 60)
    words, reference = verdict(ramps(*ours), ramps(*theirs)), stats.ttest_rel(theirs, ours)
    assert 0.025 < reference.pvalue < 0.05
    assert words.headline == "No difference between grpovi and grpo can be seen with 5 seeds."
    (area,) = [sentence for sentence in words.sentences if "over the run" in sentence]
    assert "lies on one side of 0, but this report tests 2 differences, and corrected for that (Holm) p is" in area


def test_what_the_seeds_could_have_seen_is_said_with_what_the_difference_takes():
    words = verdict(ramps(40, 70, 50), ramps(60, 80, 80))
    differences = [(b - a) / 200 for a, b in ((40, 60), (70, 80), (50, 80))]
    spread = statistics.stdev(differences)
    (sentence,) = [sentence for sentence in words.sentences if "four times in five" in sentence]
    (seen,), (needed,) = re.findall(r"of ([\d.]+) four", sentence), re.findall(r"takes about ([\d,]+) seeds", sentence)
    assert power_of(float(seen) / spread, 3, 0.025) == pytest.approx(0.8, abs=0.01)
    n, effect = int(needed), statistics.mean(differences) / spread
    assert power_of(effect, n - 1, 0.025) < 0.8 <= power_of(effect, n, 0.025)


def test_a_target_missed_by_some_seeds_is_counted_and_bounded():
    words = verdict({1: ramp(50), 2: line(0, 0.5), 3: line(0, 0.5)}, ramps(50, 50, 50))
    assert words.sentences[0] == (
        "The target of 0.900 was not reached by 2 of 3 seeds of grpovi and by 0 of 3 of grpo, "
        "so the ratio of steps is not known."
    )
    assert words.headline == (
        "No difference between grpovi and grpo is certain with 3 seeds, "
        "but grpovi missed the target on 2 of 3 seeds, grpo on 0."
    )
    bound = (1 * (100 / 45) * (100 / 45)) ** (1 / 3)
    assert f"grpovi took at least {bound:.2f} times the steps of grpo" in words.sentences[1]


def test_a_baseline_that_misses_the_target_is_said_as_plainly():
    words = verdict(ramps(50, 50, 50), {1: ramp(50), 2: line(0, 0.5), 3: line(0, 0.5)}, target=0.9)
    assert "by 0 of 3 seeds of grpovi and by 2 of 3 of grpo" in words.sentences[0]
    assert "grpovi took at most 0.587 times the steps of grpo" in words.sentences[1]


def test_no_seed_of_the_arm_reaching_what_every_seed_of_the_baseline_reached_is_slower():
    words = verdict({seed: line(0, 0.3) for seed in (1, 2, 3)}, ramps(40, 50, 60))
    assert words.headline == (
        "grpovi is slower than grpo: on all 3 seeds only grpo reached the target, grpovi did not."
    )
    words = verdict(ramps(40, 50, 60), {seed: line(0, 0.3) for seed in (1, 2, 3)}, target=0.9)
    assert words.headline.startswith("grpovi is faster than grpo: on all 3 seeds only grpovi reached the target")


def test_one_seed_gives_no_verdict_about_others():
    words = verdict(ramps(40), ramps(80))
    assert words.headline == "grpovi against grpo: one seed only, so nothing can be said about other seeds."
    assert "no interval from one seed" in " ".join(words.sentences)


def test_no_common_seed_gives_no_verdict():
    words = verdict({1: ramp(40)}, {2: ramp(40)})
    assert words.headline == "No verdict on grpovi against grpo: no seed counts in both arms."


def test_a_baseline_that_falls_has_no_target_and_says_so():
    words = verdict({1: line(0, 1), 2: line(0, 1)}, {1: line(1, 0), 2: line(1, 0)})
    assert words.sentences[0] == (
        f"There is no target: grpo's {GOLD} did not rise (mean 1.00 at first, 0.100 at the end)."
    )


def test_a_baseline_whose_rise_is_noise_warns_that_the_target_is_too():
    words = verdict(ramps(50, 50), {1: line(0, -0.2), 2: line(0, 0.8)})
    assert any("own rise is not clear of 0 over its seeds" in sentence for sentence in words.sentences)


def test_runs_of_different_length_are_pointed_out():
    words = verdict(ramps(50, 50), {seed: ramp(50, range(0, 61, 10)) for seed in (1, 2)})
    assert any("The runs end at different steps (60.0, 100)" in sentence for sentence in words.sentences)


def test_sooner_and_yet_lower_is_mixed():
    late = {0: 0.0, 10: 0.0, 20: 1.0} | dict.fromkeys(range(30, 101, 10), 0.1)
    steady = {step: min(step / 40, 1.0) for step in range(0, 101, 10)}
    words = verdict({1: late, 2: late, 3: late}, {1: steady, 2: steady, 3: steady})
    assert words.headline == "Mixed: grpovi reached the target sooner than grpo, but its reward over the run was lower."


def test_a_run_that_does_not_count_is_said_to_favour_its_arm():
    nan = ramp(40) | {50: float("nan")}
    words = verdict(ramps(40, 41, 39) | {4: nan}, ramps(80, 81, 79) | {4: ramp(80)})
    assert words.headline == "grpovi is faster than grpo, on the 3 seeds that count in both."
    assert words.sentences[-1] == (
        "1 run of grpovi could not be counted (reasons in the list of runs). "
        "If the arm is the cause, leaving it out favours grpovi."
    )
