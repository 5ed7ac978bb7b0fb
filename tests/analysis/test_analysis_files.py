"""The files beside the report: every value of every run, and every setting of every arm."""

import pandas as pd
import pytest
import yaml
from synthetic_runs import line, run_folder, write_run, write_study

from analysis import curve_file, load_runs, write_report

MISSPELT = "<script>alert(1)</script>"


def write_config(folder, rate, seed, **more):
    """A config.yaml that names the run's folder, as those of `grpovi fit` do."""
    content = {"seed_everything": seed, "model": {"init_args": {"lr": rate, "betas": [0.9, 0.95]}} | more}
    content["trainer"] = {"default_root_dir": str(folder), "max_steps": 100}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def study(tmp_path):
    """Two arms of two seeds with other rates, and a run that failed."""
    root = write_study(tmp_path / "study", {arm: {1: line(0, 1), 2: line(0, 1)} for arm in ("grpo", "grpovi")}, {})
    write_run(run_folder(root, "grpovi", 3), line(0, 0.5), seed=3, state="failed", error="boom", step=50)
    for arm, rate, seeds in (("grpo", 0.1, (1, 2)), ("grpovi", 0.2, (1, 2, 3))):
        for seed in seeds:
            write_config(run_folder(root, arm, seed), rate, seed)
    return root


def test_every_value_of_every_run_stands_in_the_file_of_curves(study):
    write_report(study)
    read = pd.read_csv(study / "report" / "curves.csv")
    assert list(read.columns) == ["arm", "seed", "run", "counts", "metric", "step", "value"]
    runs = load_runs(study)
    for column in ("arm", "seed", "run", "metric", "step", "value"):
        assert read[column].tolist() == runs[column].tolist(), column
    assert read.groupby("run")["counts"].unique().map(list).to_dict() == {
        "arms/grpo/seed_1": ["yes"],
        "arms/grpo/seed_2": ["yes"],
        "arms/grpovi/seed_1": ["yes"],
        "arms/grpovi/seed_2": ["yes"],
        "arms/grpovi/seed_3": ["no"],
    }


def test_the_curves_of_a_large_study_are_written_as_parquet_and_the_smaller_file_goes(study, monkeypatch):
    page = write_report(study)
    assert "<code>curves.csv</code>" in page.read_text()
    expected = pd.read_csv(study / "report" / "curves.csv")
    monkeypatch.setattr(curve_file, "MOST_CSV_ROWS", len(expected) - 1)
    assert "<code>curves.parquet</code>" in write_report(study).read_text()
    assert not (study / "report" / "curves.csv").exists()
    found = pd.read_parquet(study / "report" / "curves.parquet")
    assert found.astype(object).to_numpy().tolist() == expected.astype(object).to_numpy().tolist()
    monkeypatch.undo()
    write_report(study)
    assert [path.name for path in (study / "report").glob("curves.*")] == ["curves.csv"]


def test_the_table_of_settings_has_every_key_of_every_arm_and_names_what_differs_between_seeds(study):
    page = write_report(study).read_text()
    table = pd.read_csv(study / "report" / "settings.csv", dtype=str, keep_default_na=False).set_index("key")
    assert table.to_dict("index") == {
        "model.init_args.betas.0": {"grpo": "0.9", "grpovi": "0.9"},
        "model.init_args.betas.1": {"grpo": "0.95", "grpovi": "0.95"},
        "model.init_args.lr": {"grpo": "0.1", "grpovi": "0.2"},
        "seed_everything": {"grpo": "1 | 2", "grpovi": "1 | 2 | 3"},
        "trainer.default_root_dir": {"grpo": str(study / "arms" / "<run>"), "grpovi": str(study / "arms" / "<run>")},
        "trainer.max_steps": {"grpo": "100", "grpovi": "100"},
    }
    assert "6 settings of 2 arms" in page
    assert "<td><code>0.1</code></td><td><code>0.2</code></td>" in page
    assert '<td colspan="2"><code>0.95</code></td>' in page


def test_a_run_without_a_config_is_named_and_what_configs_say_is_escaped(study):
    write_config(run_folder(study, "grpo", 1), 0.1, 1, note=MISSPELT)
    (run_folder(study, "grpovi", 2) / "config.yaml").write_text("a: [")
    page = write_report(study).read_text()
    assert "config.yaml is missing or cannot be read in: arms/grpovi/seed_2." in page
    assert MISSPELT not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    table = pd.read_csv(study / "report" / "settings.csv", dtype=str, keep_default_na=False).set_index("key")
    assert table.loc["model.note"].tolist() == [f"{MISSPELT} | ", ""]
    assert table.loc["seed_everything", "grpovi"] == "1 | 3"
