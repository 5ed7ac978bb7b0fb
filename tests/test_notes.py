"""What is logged reaches the person at the terminal, once."""

import logging

import pytest
from lightning.pytorch.utilities import rank_zero_only

from grpovi_lightning.notes import show_notes


@pytest.fixture
def package_log():
    log = logging.getLogger("grpovi_lightning")
    before = log.level, list(log.handlers)
    log.handlers.clear()
    yield logging.getLogger("grpovi_lightning.data.reading")
    log.setLevel(before[0])
    log.handlers[:] = before[1]


@pytest.mark.parametrize(("rank", "said"), [(0, "3 rows\nbeware\n"), (1, "beware\n")])
def test_notes_are_shown_by_the_first_process_and_warnings_by_each(package_log, monkeypatch, capsys, rank, said):
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    show_notes()
    show_notes()
    package_log.debug("no matter")
    package_log.info("3 rows")
    package_log.warning("beware")
    assert capsys.readouterr().err == said
