"""benchmarks/one_pass_embedded.py: what it learns from a study's folder, and what it refuses."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.preference_reference import mirror_descent_round, newton

from grpovi_lightning.rewards.online import FeatureModel, LastToken, MeanOverTokens
from grpovi_lightning.rewards.sequences import text_rows

PROMPTS = ["write about the fox", "a cat", "the old house in red", "ten words", "the river", "a boat and a dog"]
WORDS = ["fox", "dog", "cat", "tree", "boat", "house"]
PAIRS = [(p, f"the happy {w} sings", f"the sad {w} sees it") for p in PROMPTS for w in WORDS]


@pytest.fixture(scope="module")
def study(tmp_path_factory, policy_folder):
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(policy_folder, folder / "prepare" / "sft" / "model")
    (folder / "prepare" / "task").mkdir()
    for part, pairs in (("", PAIRS), ("_validation", PAIRS[::5])):
        lines = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), pair, strict=True))) + "\n" for pair in pairs]
        (folder / "prepare" / "task" / f"preferences{part}.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.slow
def test_the_fit_is_the_maximum_of_the_likelihood_and_one_pass_takes_rounds_of_32_in_the_order(
    study, policy_folder, tmp_path, run_in
):
    run_in("one_pass_embedded", tmp_path, str(study), "--orders", "2")
    (table,) = tmp_path.rglob("*.csv")
    rows = pd.read_csv(table)
    assert len(rows) == 3 + 2 * 9 and set(rows["samples"]) == {36}
    found = rows.set_index(["arm", "setting", "seed"])

    features = FeatureModel(str(policy_folder), [LastToken(), MeanOverTokens()])
    features.load()

    def differences(pairs):
        prompts = [pair[0] for pair in pairs]
        sides = [features(text_rows(features.tokenizer, prompts, [pair[i] for pair in pairs])) for i in (1, 2)]
        return (sides[0] - sides[1]).double().numpy()

    theta = newton(differences(PAIRS), np.ones(len(PAIRS)), 1.0)
    margins = torch.from_numpy(differences(PAIRS[::5]) @ theta)
    fit = found.loc[("MLE, one fit", "lam 1", 0)]
    assert fit["cross_entropy"] == pytest.approx(torch.nn.functional.softplus(-margins).mean().item(), rel=1e-5)
    assert fit["accuracy"] == pytest.approx((margins > 0).double().mean().item())

    order = torch.randperm(len(PAIRS), generator=torch.Generator().manual_seed(1)).numpy()
    h, theta = np.eye(64), np.zeros(64)
    for part in (order[:32], order[32:]):
        h, theta = mirror_descent_round(h, theta, differences(PAIRS)[part], np.ones(len(part)), 1.0)
    margins = torch.from_numpy(differences(PAIRS[::5]) @ theta)
    one_pass = found.loc[("one-pass OMD", "lam 1", 1), "cross_entropy"]
    assert one_pass == pytest.approx(torch.nn.functional.softplus(-margins).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no such folder"),
        (["nowhere", "--orders", "0"], "--orders: got 0, expected at least 1"),
        (["nowhere", "--pairs", "-1"], "--pairs: got -1, expected at least 1"),
    ],
)
def test_what_it_cannot_read_is_one_line(mistake, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in mistake("one_pass_embedded", *arguments)
