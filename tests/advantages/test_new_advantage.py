"""An advantage of one's own is one file and one YAML."""

import sys

import torch
import yaml
from helpers.every_class import classes
from jsonargparse import ArgumentParser
from modules.grpo_runs import grpo, train

from grpovi_lightning import advantages
from grpovi_lightning.advantages import Advantage, FocalAdvantage

SOURCE = '''
from grpovi_lightning.advantages import Advantage


class BestOfOthers(Advantage):
    """Reward minus a share of the best of its group."""

    def __init__(self, share: float = 1.0) -> None:
        self.share = share

    def advantages(self, rewards, scored, lengths):
        return rewards - self.share * rewards.amax(dim=1, keepdim=True)
'''
YAML = "{class_path: my_advantages_here.BestOfOthers, init_args: {share: 0.5}}"


def from_yaml(text):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--advantage", type=Advantage)
    parsed = parser.parse_object({"advantage": yaml.safe_load(text)})
    instantiate = (
        getattr(parser, "instantiate", None) or parser.instantiate_classes
    )  # its name before jsonargparse 4.49
    return instantiate(parsed).advantage


def test_every_advantage_can_be_chosen_in_yaml():
    for found in classes(Advantage, advantages):
        name = found.__name__
        settings = "init_args: {gamma: 0.5}" if found is FocalAdvantage else ""
        assert type(from_yaml(f"class_path: grpovi_lightning.advantages.{name}\n{settings}")) is found


def test_a_new_advantage_is_a_file_and_a_yaml_and_trains(policy_folder, tmp_path, monkeypatch):
    (tmp_path / "my_advantages_here.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_advantages_here", raising=False)

    advantage = from_yaml(YAML)
    (output,) = train(grpo(policy_folder, advantage=advantage), tmp_path / "run", 1).outputs

    rewards = output.rewards
    torch.testing.assert_close(output.advantages, rewards - 0.5 * rewards.amax(dim=1, keepdim=True))
    assert not advantage.standardised
