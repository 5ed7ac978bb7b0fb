"""The list of methods: the command, the page and the rooms name the same classes."""

import inspect
import re
from pathlib import Path

import pytest
from helpers.every_class import classes

from grpovi_lightning.cli import main
from grpovi_lightning.methods_command import ROOMS, methods

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
each = pytest.mark.parametrize("room", ROOMS, ids=[room.setting for room in ROOMS])


def rows(setting):
    """The cells of the table under the heading of a setting."""
    (section,) = re.findall(rf"^## `{setting}`\n(.*?)^## ", PAGE, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]


@each
def test_the_page_names_the_classes_that_the_command_names_with_their_sources_and_settings(room):
    found = {method.name: method for method in methods(room)}
    table = {cells[0].strip(" `"): cells for cells in rows(room.setting)}
    assert set(table) == set(found) and len(rows(room.setting)) == len(found)
    for name, (_, what, settings, source) in table.items():
        assert what and source and all(paper in source for paper in found[name].sources), name
        parameters = inspect.signature(getattr(room.package, name)).parameters.values()
        own = {p.name: p.default is p.empty for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
        assert {key: bool(star) for key, star in re.findall(r"`(\w+)`(\*?)", settings)} == own, name


@each
def test_every_class_of_a_room_is_listed_or_is_what_listed_ones_are_made_of(room):
    listed = {getattr(room.package, method.name) for method in methods(room)}
    assert listed and all(issubclass(found, room.base) for found in listed)
    for found in classes(room.base, room.package):
        assert found in listed or any(issubclass(other, found) for other in listed), found


@each
def test_the_first_line_of_every_method_is_a_sentence_that_fits_on_a_line(room):
    for method in methods(room):
        assert method.summary.endswith(".") and len(method.summary) <= 120, method.name


def test_every_special_case_of_the_page_names_classes_that_there_are():
    (section,) = re.findall(
        r"^## What is a special case of what\n(.*?)^The tests:", PAGE, flags=re.MULTILINE | re.DOTALL
    )
    known = {method.name for room in ROOMS for method in methods(room)}
    named = set(re.findall(r"`([A-Z]\w+)`", section))
    assert named <= known and len(named) > 10
    cases = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert all(re.search(r"`test_\w+` \|$", line) for line in cases)


def test_the_command_prints_every_method_with_its_first_line_and_its_papers(capsys):
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    for room in ROOMS:
        assert f"{room.setting}: {room.what}\n" in printed
        for method in methods(room):
            (line,) = [line for line in printed.splitlines() if line.startswith(f"  {method.name} ")]
            assert method.summary in line and all(source in line for source in method.sources)
    assert "GroupAdvantage " in printed and "[arXiv 2503.20783]" in printed


def test_an_argument_of_the_command_is_refused_in_one_line(capsys):
    assert main(["methods", "GRPOLoss"]) == 2
    assert capsys.readouterr().err == "grpovi: error: unrecognized arguments: GRPOLoss; see grpovi methods --help\n"
