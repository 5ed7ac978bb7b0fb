"""What docs/one-pass.md says is so: its names, settings, commands, and what its tables say of each other."""

import re
from pathlib import Path

import pytest

from grpovi_lightning import metric_keys
from grpovi_lightning.cli import check_fit
from grpovi_lightning.rewards import online

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "one-pass.md").read_text()
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)


def section(number):
    return re.split(r"^## ", PAGE, flags=re.MULTILINE)[number]


def rows(number, first):
    """Cells of the table of a section whose header begins with `first`, without header and rule."""
    lines = section(number).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip(" *") for cell in line.strip("|").split("|")])
    return found


def mean(cell):
    return float(cell.split(" ±")[0].replace(",", ""))


def test_every_class_on_the_page_is_exported():
    names = set(re.findall(r"`([A-Z]\w+)`", PROSE)) - {"OnePassRewardModule", "RunningRange", "SigmoidRange"}
    assert {"OnlineMirrorDescent", "UncertainPairs", "LinearReward", "FileOracle"} <= names
    assert names <= set(online.__all__), names - set(online.__all__)


def test_every_strategy_and_estimator_is_on_the_page():
    named = {cell for number, first in ((1, "class"), (3, "class")) for row in rows(number, first) for cell in row}
    words = set(re.findall(r"`(\w+)`", " ".join(named)))
    kinds = (online.PairSelection, online.PreferenceEstimator)
    exported = {name for name in online.__all__ if issubclass(getattr(online, name), kinds)}
    assert exported - {"PairSelection", "PreferenceEstimator", "UncertainEstimator"} <= words


def test_every_test_that_the_page_names_is_in_a_file_that_it_links_to():
    names = set(re.findall(r"`(test_\w+)`", PAGE))
    linked = [ROOT / path for path in set(re.findall(r"\]\(\.\./(tests/[^)]+\.py)\)", PAGE))]
    assert len(names) > 3
    for name in names:
        assert any(f"def {name}(" in path.read_text() for path in linked), name


def test_the_scalars_on_the_page_are_those_that_are_logged():
    named = set(re.findall(r"`(online/\w+)`", PROSE))
    logged = {value for name, value in vars(metric_keys).items() if name.startswith("ONLINE_")} - {"online/"}
    assert named == logged
    assert metric_keys.pair_agreement("<name>") in PROSE


def test_the_yaml_of_the_page_is_a_valid_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    optimizer, learning = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    for base, block in (("reward_model", optimizer), ("grpo", learning)):
        (tmp_path / "more.yaml").write_text(block)
        check_fit(["--config", f"experiments/quickstart/{base}.yaml", "--config", str(tmp_path / "more.yaml")])


def test_commands_name_scripts_and_files_that_exist():
    commands = re.findall(r"^    (?:python|grpovi) (.*)$", PAGE, flags=re.MULTILINE)
    files = [word for command in commands for word in command.split() if "/" in word and "." in word]
    assert len(files) > 3 and all((ROOT / file).is_file() for file in files), files


def test_the_table_of_promises_follows_from_the_table_of_arms():
    arms = {(row[0], row[1]): row[2:] for row in rows(2, "arm")}
    promises = {row[0]: row[1] for row in rows(2, "one pass, lam 1")}
    ours, refit = arms["one-pass", "lam 1"], arms["refit, warm", "lam 1"]
    sgd = min(mean(cells[0]) for (name, _), cells in arms.items() if name.startswith("SGD"))
    found = [mean(cell) for cell in promises.values()]
    assert found[0] == pytest.approx(mean(ours[0]) - mean(refit[0]), abs=2e-4)
    assert found[1] == pytest.approx(mean(ours[0]) - sgd, abs=2e-4)
    late, early = (float(cell.removesuffix(" ms")) for cell in (ours[3], ours[2]))
    assert found[2] == pytest.approx(late / early, abs=0.02)
    assert ours[5] == ours[6] and found[3] == 1
    for promise, name in ((found[4], "refit, warm"), (found[5], "refit, loose")):
        theirs, mine = (float(cells[4].removesuffix(" ms").replace(",", "")) for cells in (arms[name, "lam 1"], ours))
        assert promise == pytest.approx(theirs / mine, rel=0.02)


def test_verdicts_on_active_selection_agree_with_the_intervals():
    for _, _, _, late, verdict in rows(3, "regime"):
        low, high = (float(number) for number in re.findall(r"[-+]\d\.\d+", late)[1:])
        # "No difference" is also said where only one of two kinds of interval excludes 0.
        assert {"better": high < 0, "worse": low > 0, "no difference": True}[verdict], late
        assert verdict == "no difference" or low * high > 0
