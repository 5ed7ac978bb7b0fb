"""The files around the code: versions that are promised, the licence, notes for contributors, hooks."""

import importlib
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def pinned(name):
    """name -> version of a file of constraints."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    pins = (Requirement(line) for line in lines if line)
    return {pin.name.lower().replace("_", "-"): Version(str(pin.specifier).removeprefix("==")) for pin in pins}


def promised():
    """Every requirement of a user: name -> lowest version. Tools of development are not tried at their lowest."""
    lists = [PROJECT["dependencies"], PROJECT["optional-dependencies"]["peft"]]
    requirements = [Requirement(text) for texts in lists for text in texts]
    lowest = {requirement.name: str(requirement.specifier) for requirement in requirements}
    assert all(text.startswith(">=") for text in lowest.values())
    return {name: Version(text.removeprefix(">=")) for name, text in lowest.items()}


def test_the_lowest_versions_that_are_promised_are_those_that_test_lowest_installs():
    found = pinned("constraints-lowest.txt")
    assert {name: found.get(name) for name in promised()} == promised()


def test_the_known_set_lies_in_the_ranges_that_are_promised():
    found = pinned("constraints.txt")
    assert {name for name, lowest in promised().items() if found[name] < lowest} == set()


def test_the_folders_that_contributors_are_sent_to_exist():
    paths = set(re.findall(r"`((?:grpovi_lightning|analysis|experiments|tests)/[\w/.]*)`", CONTRIBUTING))
    assert len(paths) >= 8
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_the_classes_that_contributors_subclass_are_where_they_are_told():
    rows = re.findall(r"\| `grpovi_lightning/([\w/]+)/` \| a subclass of `(\w+)`", CONTRIBUTING)
    assert len(rows) == 5
    for folder, name in rows:
        assert hasattr(importlib.import_module("grpovi_lightning." + folder.replace("/", ".")), name), (folder, name)


def test_the_hooks_are_the_tools_of_make_lint():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert recipe is not None
    commands = [line.strip().removeprefix("$(BIN)/").removesuffix(" .") for line in recipe[1].splitlines()]
    entries = [hook["entry"].replace(" --force-exclude", "") for hook in repository["hooks"]]
    assert entries == [command.replace(" --check", "") for command in commands]  # `make lint` only tells


def test_licence_and_version_are_said_alike_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    (author,) = PROJECT["authors"]
    assert citation["authors"] == [author]
    assert f"Copyright 2026 {author['name']}" in (ROOT / "LICENSE").read_text()
