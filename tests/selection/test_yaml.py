"""The overlays of the experiments name selections that there are."""

from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from grpovi_lightning import selection
from grpovi_lightning.selection import CompletionSelection, PromptSelection

FOLDER = Path(__file__).parents[2] / "experiments" / "variance"
OVERLAYS = {
    "pods": "MaxVarianceSelection",
    "random_selection": "RandomSelection",
    "top_selection": "TopSelection",
    "vcrl": "VarianceCurriculum",
    "greso": "HistorySkipping",
}


@pytest.mark.parametrize(("name", "expected"), OVERLAYS.items(), ids=OVERLAYS)
def test_an_overlay_of_a_selection_changes_nothing_else(name, expected):
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--selection", type=CompletionSelection | None)
    parser.add_argument("--resampling", type=PromptSelection | None)
    parsed = parser.parse_object(content["model"]["init_args"])
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # before jsonargparse 4.49
    found = instantiate(parsed)
    (chosen,) = (value for value in (found.selection, found.resampling) if value is not None)
    assert type(chosen) is getattr(selection, expected)
    spare = content.get("data", {"init_args": {}})["init_args"]
    assert set(spare) == ({"spare_prompts_per_step"} if name == "greso" else set())


def test_the_selections_of_completions_keep_as_many():
    kept = {
        yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["model"]["init_args"]["selection"]["init_args"]["keep"]
        for name in ("pods", "random_selection", "top_selection")
    }
    assert kept == {4}
