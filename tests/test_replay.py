"""`grpovi replay`: advantages to the last bit, a table checked by plain loops, gradients by autograd, refusals."""

import csv
from math import isnan, sqrt

import pyarrow.parquet as pq
import pytest
import torch
from helpers.commands import refusal
from helpers.own_input import run_config, write_own_input, write_yaml

from grpovi_lightning.cli import main
from grpovi_lightning.models import PretrainedCausalLM

SHELF = "grpovi_lightning"
UNSCALED = {"class_path": f"{SHELF}.advantages.GroupAdvantage", "init_args": {"scale_rewards": "none"}}
METHODS = {
    "grpo": {},
    "grpovi": {"adjustment": {"class_path": f"{SHELF}.adjustment.VarianceIncrease"}},
    "token_mean": {
        "adjustment": {
            "class_path": f"{SHELF}.adjustment.VarianceIncrease",
            "init_args": {"weights": {"class_path": f"{SHELF}.adjustment.TokenMeanWeights"}},
        }
    },
    "dithering": {"adjustment": {"class_path": f"{SHELF}.adjustment.GaussianDithering", "init_args": {"std": 0.1}}},
    "kl_in_reward": {"adjustment": {"class_path": f"{SHELF}.adjustment.KLInReward", "init_args": {"beta": 0.5}}},
    "pods": {"selection": {"class_path": f"{SHELF}.selection.MaxVarianceSelection", "init_args": {"keep": 2}}},
    "random": {"selection": {"class_path": f"{SHELF}.selection.RandomSelection", "init_args": {"keep": 3}}},
    "opo": {"advantage": {"class_path": f"{SHELF}.advantages.OPOAdvantage"}},
    "vcrl": {
        "resampling": {
            "class_path": f"{SHELF}.selection.VarianceCurriculum",
            "init_args": {"threshold": 0.2, "capacity": 8, "momentum": 0.5},
        }
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    write_own_input(folder)
    return folder


@pytest.fixture(autouse=True)
def in_root(root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root)


def overlay(folder, name, **settings):
    return write_yaml(folder / f"{name}.yaml", {"model": {"init_args": settings or METHODS[name]}})


@pytest.fixture(scope="module")
def runs(root):
    """A run of each method."""
    made = {}

    def run_of(name):
        if name not in made:
            made[name] = root / "runs" / name
            config = run_config(root, made[name], **METHODS[name])
            assert main(["fit", "--config", write_yaml(root / f"run_{name}.yaml", config)]) == 0
        return made[name]

    return run_of


def stored(run):
    """The rows of training steps, as dictionaries."""
    (path,) = (run / "completions").glob("train-*.parquet")
    return pq.read_table(path).to_pylist()


def table_of(path):
    with path.open() as file:
        return {
            row.pop("method"): {name: float(value or "nan") for name, value in row.items()}
            for row in csv.DictReader(file)
        }


@pytest.mark.parametrize("name", METHODS)
def test_the_advantages_that_a_run_logged_are_reproduced_to_the_last_bit(name, runs, capsys):
    run = runs(name)
    rows = stored(run)
    kept = [row for row in rows if not isnan(row["advantage"])]
    assert len(rows) == 5 * 2 * 4 and len({row["advantage"] for row in kept}) > 4
    left_out = [row for row in rows if isnan(row["adjusted"]) and not isnan(row["advantage"])]
    assert bool(left_out) is (name == "vcrl")
    capsys.readouterr()
    assert main(["replay", str(run), "--no_gradient"]) == 0
    out = capsys.readouterr().out
    assert "5 steps, 40 completions" in out
    assert f"{len(kept)} of {len(kept)} are reproduced to the last bit\n" in out


def test_advantages_that_are_not_those_of_the_run_end_with_status_1(runs, root, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "completions").mkdir(parents=True)
    (run / "config.yaml").write_text((runs("grpovi") / "config.yaml").read_text())
    rows = stored(runs("grpovi"))
    rows[3]["advantage"] += 1.0
    pq.write_table(
        pq.read_table(next((runs("grpovi") / "completions").glob("train-*"))).from_pylist(rows),
        run / "completions" / "train-000000.parquet",
    )
    assert main(["replay", str(run), "--no_gradient"]) == 1
    assert "39 of 40 are reproduced to the last bit; the largest difference is 1\n" in capsys.readouterr().out


def cosine(first, second):
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / sqrt(sum(a * a for a in first) * sum(b * b for b in second))


def test_the_table_is_that_of_plain_loops_over_what_runs_of_these_methods_log(runs, root, tmp_path):
    """The run of step 0 alone is that of every method: the same completions, each with its own advantages."""
    file = tmp_path / "table.csv"
    names = ("grpovi", "pods", "opo")
    configs = [word for name in names for word in ("--config", overlay(tmp_path, name))]
    run = tmp_path / "run"
    config = run_config(root, run)
    config["trainer"]["max_steps"] = config["trainer"]["val_check_interval"] = 1
    assert main(["fit", "--config", write_yaml(tmp_path / "run.yaml", config)]) == 0
    assert main(["replay", str(run), *configs, "--output", str(file)]) == 0
    found = table_of(file)
    assert list(found) == ["grpo", "this run", *names]
    assert [found["grpo"][name] for name in ("cosine", "gradient_cosine")] == pytest.approx([1.0, 1.0])
    assert found["this run"] == pytest.approx(found["grpo"])
    plain = [row for row in stored(runs("grpo")) if row["step"] == 0]
    for name in names:
        rows = [row for row in stored(runs(name)) if row["step"] == 0]
        assert [row["ids"] for row in rows] == [row["ids"] for row in plain]
        kept = [row for row in rows if not isnan(row["advantage"])]
        advantages = [0.0 if isnan(row["advantage"]) else row["advantage"] for row in rows]
        theirs = [row["advantage"] for row in plain]
        groups = [advantages[:4], advantages[4:]]
        adjusted = [
            [row["adjusted"] for row in kept if row["row"] == number] for number in sorted({row["row"] for row in rows})
        ]
        expected = {
            "completions": len(kept) / 8,
            "tokens": sum(row["length"] for row in kept) / sum(row["length"] for row in rows),
            "variance": sum(sum((r - sum(g) / len(g)) ** 2 for r in g) / len(g) for g in adjusted) / 2,
            "effective": sum(sum(map(abs, g)) ** 2 / sum(a * a for a in g) for g in groups) / 2,
            "magnitude": sum(map(abs, advantages)) / 8,
            "cosine": cosine(advantages, theirs),
            "sign_flips": sum(a * b < 0 for a, b in zip(advantages, theirs, strict=True)) / 8,
        }
        assert {key: found[name][key] for key in expected} == pytest.approx(expected, rel=1e-6), name


def test_gradients_are_those_of_autograd_at_the_exported_policy(runs, tmp_path):
    """GRPO's loss at ratio 1 is the mean over completions of the mean over tokens of -A logp."""
    run = runs("grpo")
    file = tmp_path / "table.csv"
    assert main(["replay", str(run), "--config", overlay(tmp_path, "pods"), "--output", str(file)]) == 0
    policy = PretrainedCausalLM(str(run / "model")).load()
    last = [row for row in stored(run) if row["step"] == 4]

    def gradient(advantages):
        policy.zero_grad()
        kept = [(row, a) for row, a in zip(last, advantages, strict=True) if a is not None]
        for row, advantage in kept:
            prompt = policy.encode([row["prompt"]])[0]
            ids = torch.tensor([prompt + row["ids"]])
            logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
            logprobs = logits.log_softmax(dim=1).gather(1, ids[0, len(prompt) :, None])
            (-advantage * logprobs.mean() / len(kept)).backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    pods = []
    for start in (0, 4):
        rewards = [row["reward"] for row in last[start : start + 4]]
        low, high = rewards.index(min(rewards)), rewards.index(max(rewards))
        half = 1 / sqrt(2)  # of two rewards, standardised with Bessel's correction
        pods += [half if i == high else -half if i == low else None for i in range(4)]
    expected = torch.nn.functional.cosine_similarity(
        gradient(pods), gradient([row["advantage"] for row in last]), dim=0
    )
    assert table_of(file)["pods"]["gradient_cosine"] == pytest.approx(float(expected), abs=2e-4)


def test_a_method_stands_on_plain_grpo_whatever_the_run_was(runs, tmp_path):
    tables = []
    for run in ("grpovi", "pods"):
        file = tmp_path / f"{run}.csv"
        assert (
            main(["replay", str(runs(run)), "--config", overlay(tmp_path, run), "--no_gradient", "--output", str(file)])
            == 0
        )
        tables.append(table_of(file))
    for table, name in zip(tables, ("grpovi", "pods"), strict=True):
        assert repr(table[name]) == repr(table["this run"]) and table["grpo"]["completions"] == 1.0
        assert isnan(table[name]["gradient_cosine"])


def test_what_cannot_be_replayed_is_refused_in_one_line(runs, root, tmp_path, capsys):
    run = runs("grpo")

    def refused(folder, *more):
        return refusal(capsys, "replay", folder, *more)

    assert "no config.yaml in it" in refused(tmp_path / "nothing")
    assert "sets model.group_size" in refused(run, "--config", overlay(tmp_path, "more", group_size=8))
    assert "sets model.resampling" in refused(run, "--config", overlay(tmp_path, "vcrl"))
    maxrl = overlay(tmp_path, "maxrl", advantage={"class_path": f"{SHELF}.advantages.MaxRLAdvantage"})
    assert "maxrl" in refused(run, "--config", maxrl)  # some of these rewards are below 0
    (tmp_path / "there.csv").write_text("mine")
    assert "is not overwritten" in refused(run, "--output", tmp_path / "there.csv")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text((run / "config.yaml").read_text())
    assert "no completions of training steps" in refused(bare)
    (bare / "completions").symlink_to(run / "completions")
    assert "no model/ in it, at which gradients are taken; add --no_gradient" in refused(bare)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop_columns(["ids"]), "its completions lack ids"),
        (lambda table: table.slice(0, 39), "expected groups of 4"),
        (lambda table: table.replace_schema_metadata({"halvings": "1"}), "only a part of its completions was kept"),
    ],
)
def test_completions_that_are_not_all_there_are_refused(change, said, runs, tmp_path, capsys):
    run = runs("grpo")
    (tmp_path / "completions").mkdir()
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    (path,) = (run / "completions").glob("train-*.parquet")
    pq.write_table(change(pq.read_table(path)), tmp_path / "completions" / path.name)
    assert said in refusal(capsys, "replay", tmp_path, "--no_gradient")
