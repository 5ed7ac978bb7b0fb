"""The scripts of benchmarks/ as modules, and one quick run of a script for all tests of a file."""

import contextlib
import importlib
import io
import logging
import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scripts():
    """Import a script by its name; what importing and running them changes is put back."""
    threads, logger = torch.get_num_threads(), logging.getLogger("lightning.pytorch")
    level, environment = logger.level, dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.syspath_prepend(str(ROOT))  # tests/analysis must not stand in for the package
        yield importlib.import_module
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def run_in(scripts):
    """(script, folder, arguments) -> what the script printed when it ran there."""

    def run(script, folder, *arguments):
        printed, before = io.StringIO(), Path.cwd()
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(printed):
                assert scripts(script).main(list(arguments)) == 0
        finally:
            os.chdir(before)
        return printed.getvalue()

    return run


@pytest.fixture
def mistake(scripts, capsys):
    """(script, arguments) -> the one line on stderr with which it ends; nothing goes to stdout."""

    def run(script, *arguments, status=2):
        assert scripts(script).main([*map(str, arguments)]) == status
        captured = capsys.readouterr()
        *progress, line = captured.err.splitlines()
        assert status == 1 or (not progress and not captured.out)
        assert line.startswith(f"{script}.py: error: ")
        return line.removeprefix(f"{script}.py: error: ")

    return run
