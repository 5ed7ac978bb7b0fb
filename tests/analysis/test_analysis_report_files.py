"""The files beside the page: tables as Markdown and LaTeX, pictures as PDF and PNG."""

import io
import re
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from synthetic_runs import INCREASE, ramp, run_folder, write_run

from analysis import report_figures, write_report
from analysis.report_files import to_latex, to_markdown
from analysis.svg import to_pdf, to_png

NAME = "gr_po & 50 % #1 | {x}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = tmp_path_factory.mktemp("study")
    for seed, at in ((1, 50), (2, 40)):
        write_run(run_folder(study, "base", seed), ramp(at), seed=seed)
        write_run(run_folder(study, NAME, seed), ramp(at + 20), seed=seed, adjustment=INCREASE)
    return write_report(study, baseline="base").parent


def test_every_picture_is_there_as_svg_pdf_and_png(folder: Path):
    names = {file.stem for file in folder.glob("*.svg")}
    assert names == {"learning_metric", "paired_difference_1"}
    for name in names:
        pdf = (folder / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF-") and b"/Type3" not in pdf and b"CreationDate" not in pdf
        with Image.open(folder / f"{name}.png") as image:
            assert image.width == pytest.approx(160 * 5.2, abs=1) and "Software" not in image.info


def test_the_figures_of_a_report_are_its_pictures_and_drawn_anew_give_the_same_bytes(folder: Path):
    figures = report_figures(folder.parent, baseline="base")
    assert list(figures) == ["learning_metric", "paired_difference_1"]
    figure = figures["learning_metric"]
    figure.savefig(io.StringIO(), format="svg")  # as the report does first
    assert to_pdf(figure) == (folder / "learning_metric.pdf").read_bytes()
    assert to_png(figure) == (folder / "learning_metric.png").read_bytes()


def test_the_markdown_table_shows_names_as_they_are_in_as_many_cells_as_headings(folder: Path):
    heading, rule, *rows = (folder / "efficiency.md").read_text(encoding="utf-8").splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in (heading, rule, *rows)]
    assert len({len(line) for line in cells}) == 1 and len(rows) == 2
    named = next(row for row in cells[2:] if "base" not in row[0])
    assert re.sub(r"\\(.)", r"\1", named[0]).strip() == NAME and named[1].strip() == "base"
    speedup = cells[0].index(" speedup ")
    assert named[speedup].strip().startswith("0.6")


def test_the_latex_table_has_the_rules_of_booktabs_and_no_sign_that_latex_would_act_on(folder: Path):
    text = (folder / "efficiency.tex").read_text(encoding="utf-8")
    assert re.findall(r"\\(\w+rule)", text) == ["toprule", "midrule", "bottomrule"]
    assert r"gr\_po \& 50 \% \#1 | \{x\}" in text
    assert text.isascii()
    rows = text.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {11}
    assert "$-$" in rows[1], "the paired difference is negative"


def test_signs_and_markup_in_a_table_of_texts():
    table = pd.DataFrame({"a_b": ["\N{MINUS SIGN}1 \N{RIGHTWARDS ARROW} 2", "\\x^2~$y$"], "n": ["\N{EN DASH}", "<b>"]})
    latex = to_latex(table)
    assert r"a\_b & n \\" in latex and r"$-$1 $\rightarrow$ 2 & -- \\" in latex
    assert r"\textbackslash x\textasciicircum 2\textasciitilde \$y\$ & <b> \\" in latex
    assert to_markdown(table).splitlines()[3] == r"| \\x^2\~\$y\$ | \<b\> |"
