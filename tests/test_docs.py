"""The pages: their examples run, their links and names lead somewhere, their settings and commands are valid."""

import doctest
import importlib
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers.exact_adjustment import exact_adjustment
from matplotlib.patches import Rectangle
from PIL import Image

from grpovi_lightning.cli import check_fit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
every_page = pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda page: page.name)
ONE_PASS = "one_pass", "one_pass_embedded", "one_pass_settings"
SCALING = "scaling_arithmetic", "sharded_memory"
SCRIPTS = "adjustment", "against_trl", "calibration", "load_runs", *ONE_PASS, "overlap", "profile_step", *SCALING


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def prose(page):
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if ">>> " in page.read_text()], ids=lambda page: page.name)
def test_every_example_prints_what_the_page_shows(page):
    examples = blocks(page, "pycon")
    assert sum(block.count(">>> ") for block in examples) == page.read_text().count(">>> ") > 0
    session = doctest.DocTestParser().get_doctest("\n".join(examples), {}, page.name, None, None)
    failures: list[str] = []
    found = doctest.DocTestRunner(verbose=False).run(session, out=failures.append)
    assert found.failed == 0, "".join(failures)


def anchors(text):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_link_leads_to_a_file_of_the_repository_and_to_a_heading_in_it(page):
    targets = {target for target in re.findall(r"\]\(([^)]+)\)", prose(page)) if not target.startswith("https://")}
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file() and file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file.read_text()), target


@every_page
def test_every_test_that_a_page_names_is_in_a_file_that_it_links_to(page):
    linked = [ROOT / path for path in set(re.findall(r"\]\(\.\./(tests/[^)]+\.py)\)", page.read_text()))]
    sources = [path.read_text() for path in linked]
    for name in set(re.findall(r"`(test_\w+)`", prose(page))):
        assert any(f"def {name}(" in source for source in sources), name


@every_page
def test_formulas_stand_as_github_reads_them(page):
    # Inside $...$ Markdown takes a backslash before punctuation away, and may take < for a tag.
    for formula in re.findall(r"\$([^$]+)\$", prose(page)):
        assert not re.search(r"\\[^a-zA-Z]", formula) and "<" not in formula and "\n\n" not in formula, formula
    assert all(paragraph.count("$") % 2 == 0 for paragraph in prose(page).split("\n\n"))
    for formula in blocks(page, "math"):
        assert formula.count("{") == formula.count("}") and formula.count(r"\left") == formula.count(r"\right")


@every_page
def test_the_yaml_of_a_page_is_a_valid_configuration(page, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks(page, "yaml"):
        base = "reward_model" if "head_only" in block else "grpo"
        (tmp_path / "more.yaml").write_text(block)
        check_fit(["--config", f"experiments/quickstart/{base}.yaml", "--config", str(tmp_path / "more.yaml")])


def commands(page):
    """(script, arguments) of the indented lines that run a script of benchmarks/ here; globs stay as they are."""
    lines = re.findall(r"^    (?:\.venv/bin/)?python benchmarks/(\w+)\.py(.*)$", page.read_text(), flags=re.MULTILINE)
    return [(script, shlex.split(rest, comments=True)) for script, rest in lines]


@every_page
def test_commands_have_options_that_their_scripts_know(page, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT))
    for name, arguments in commands(page):
        script = importlib.import_module(name)
        # What a command line asks for is parsed, and not run.
        monkeypatch.setattr(script, "run_command", lambda parser, _, argv, **__: parser.parse_args(argv))
        assert script.main(arguments) is not None


def test_every_script_that_measures_is_run_by_a_command_of_a_page():
    named = {script for page in PAGES for script, _ in commands(page)}
    assert named == set(SCRIPTS)


@every_page
def test_files_that_commands_name_exist(page):
    found = re.findall(r"^    (?:python|grpovi) (.*)$", page.read_text(), flags=re.MULTILINE)
    words = [word for command in found for word in command.split() if word.startswith("experiments/")]
    assert all((ROOT / word).is_file() for word in words), words


# The pictures.


@pytest.mark.parametrize("picture", sorted(path for path in ROOT.glob("docs/*.*g")), ids=lambda path: path.name)
def test_pictures_are_small_pngs(picture):
    assert Image.open(picture).format == "PNG" and picture.stat().st_size < 100_000


@pytest.fixture(scope="module")
def drawing():
    return runpy.run_path(str(DOCS / "draw_adjustment.py"))


def test_the_bars_of_the_picture_keep_mean_order_and_bounds_and_are_the_exact_solution(drawing):
    left, right = ([patch for patch in axes.patches if isinstance(patch, Rectangle)] for axes in drawing["draw"]().axes)
    width, before, after = (
        np.array([get(bar) for bar in bars])
        for get, bars in [(Rectangle.get_width, left), (Rectangle.get_height, left), (Rectangle.get_height, right)]
    )
    assert len(before) == 8 and (np.diff(before) < 0).all() and (np.diff(after) <= 0).all()
    np.testing.assert_allclose(width, [bar.get_width() for bar in right], atol=1e-12)
    assert width.sum() == pytest.approx(1.0) and all(bar.get_y() == 0.0 for bar in [*left, *right])
    assert width @ after == pytest.approx(width @ before, abs=1e-12)
    assert after.min() >= 0.0 and after.max() <= 1.0 and np.isin(after, [0.0, 1.0]).sum() == 7
    exact = exact_adjustment(before.tolist(), width.tolist(), 0, 1)
    np.testing.assert_allclose(after, [float(value) for value in exact], atol=1e-12)
    for bars, axes in zip((before, after), drawing["draw"]().axes, strict=True):
        variance = width @ (bars - width @ bars) ** 2
        assert axes.get_title(loc="left").endswith(f"{variance:.3f}")


def test_the_script_writes_the_same_picture_every_time_and_the_one_in_docs_is_up_to_date(tmp_path, monkeypatch):
    written = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        monkeypatch.setattr("sys.argv", ["draw_adjustment.py", str(folder)])
        runpy.run_path(str(DOCS / "draw_adjustment.py"), run_name="__main__")
        (picture,) = folder.iterdir()
        written.append(picture.read_bytes())
    assert picture.name == "adjustment_group.png" and written[0] == written[1]
    # Another release of matplotlib may place things elsewhere by a pixel; areas stay.
    drawn, shown = (np.asarray(Image.open(path).convert("L"), float) for path in (picture, DOCS / picture.name))
    assert drawn.shape == shown.shape and np.abs(drawn - shown).mean() < 6.0


def test_the_page_on_reliability_has_at_least_twenty_faults_with_their_tests():
    faults = re.findall(r"^\| .* \[`(?:test_|Test)\w+`\]\(.*\|$", (DOCS / "reliability.md").read_text(), re.MULTILINE)
    assert len(faults) >= 20
