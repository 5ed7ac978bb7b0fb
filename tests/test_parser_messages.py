"""Messages as the argument parser really gives them, and what is left of them."""

import json
import re
from dataclasses import dataclass
from typing import Any, TypedDict

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from grpovi_lightning.cli import main
from grpovi_lightning.parser_messages import one_line
from grpovi_lightning.rewards import Reward


class Knobs:
    def __init__(self, group_size: int = 8, epsilon: float = 0.2):
        """Two knobs."""


@dataclass(frozen=True)
class Talk:
    system_prompt: str | None = None
    text_as_messages: bool = False


class Table(TypedDict, total=False):
    path: str
    max_rows: int


class Data:
    def __init__(
        self,
        talk: Talk = Talk(),
        maybe: Talk | None = None,
        table: str | Table = "",
        knobs: Knobs | None = None,
        several: list[Knobs] | None = None,
    ):
        """Values of every nested form."""


def complaint(arguments: list[str], kind: Any) -> str:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=kind)
    with pytest.raises(ArgumentError) as error:
        parser.parse_args(arguments)
    return one_line(str(error.value))


def test_a_misspelt_key_is_named_with_the_nearest_known_one():
    line = complaint([f"--it={{class_path: {__name__}.Knobs, init_args: {{gruop_size: 4}}}}"], Knobs)
    assert "\n" not in line
    assert "'gruop_size' is not accepted" in line and "did you mean 'group_size'?" in line


HERE = {"class_path": f"{__name__}.Data"}
KNOBS = {"class_path": f"{__name__}.Knobs", "init_args": {"gruop_size": 4}}


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ({"talk": {"system_promt": "a"}}, "system_prompt"),
        ({"maybe": {"system_promt": "a"}}, "system_prompt"),
        ({"table": {"path": "a", "max_row": 3}}, "max_rows"),
        ({"knobs": KNOBS}, "group_size"),
        ({"several": [KNOBS]}, "group_size"),
        ({"tabel": "a"}, "table"),
        (["--it.init_args.talk.system_promt", "a"], "system_prompt"),
        (["--it.init_args.tlak.system_prompt", "a"], "talk"),
        (["--it.init_args.maybe.system_promt", "a"], "system_prompt"),
        (["--it.init_args.tabel", "a"], "table"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [Data, Data | None])
def test_a_misspelt_key_of_every_nested_form_is_named_with_the_nearest_known_one(kind, arguments, meant):
    of_yaml, of_line = ({}, arguments) if isinstance(arguments, list) else ({"init_args": arguments}, [])
    line = complaint([f"--it={json.dumps(HERE | of_yaml)}", *of_line], kind)
    assert "\n" not in line and line.endswith(f"did you mean {meant!r}?") and "NestedArg" not in line


def test_a_key_like_no_other_is_answered_with_those_there_are():
    line = complaint([f"--it={{class_path: {__name__}.Knobs, init_args: {{zzz: 4}}}}"], Knobs)
    assert "'zzz' is not accepted" in line and "expected one of group_size, epsilon" in line


def test_the_misspelt_key_of_an_object_within_an_optional_is_found_too():
    line = complaint([f"--it={{class_path: {__name__}.Knobs, init_args: {{epsilo: 4}}}}"], Knobs | None)
    assert "\n" not in line and "did you mean 'epsilon'?" in line
    assert "NoneType" not in line and "Subtypes" not in line


def test_a_value_of_the_wrong_type_is_named():
    line = complaint([f"--it={{class_path: {__name__}.Knobs, init_args: {{group_size: many}}}}"], Knobs)
    assert "\n" not in line and "many" in line and "group_size" in line


def test_a_value_that_none_of_several_types_takes_is_named():
    line = complaint(["--it=many"], int | bool)
    assert "\n" not in line and line.endswith("; got many")


def test_a_class_that_does_not_exist_is_named():
    line = complaint(["--it={class_path: grpovi_lightning.rewards.NoReward}"], Reward)
    assert "\n" not in line and "NoReward" in line


def test_a_message_of_one_line_stays_as_it_is():
    assert one_line("Expected an integer") == "Expected an integer"


def test_an_endless_message_is_cut():
    line = one_line("Expected\n" + "word " * 1000)
    assert len(line) == 500 and line.endswith("...")


def test_a_rejected_key_of_an_unknown_class_points_to_the_list_of_keys():
    line = one_line("Problem with class_path 'nowhere.Nothing':\n- Option 'x' is not accepted")
    assert line.startswith("Problem with class_path 'nowhere.Nothing': Option 'x' is not accepted")
    assert line.endswith("; see --print_config for the keys there are")


@pytest.mark.parametrize("command", ["fit", "sample", "teach", "relabel", "task"])
def test_what_is_left_out_is_named_with_where_to_say_it(command, capsys):
    assert main([command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search("the following arguments are required: .*; give them in a YAML file, with --config", line)
