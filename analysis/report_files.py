"""The files beside the page: tables as CSV, Markdown and LaTeX, pictures as SVG, PDF and PNG."""

import pandas as pd

from analysis import wording
from analysis.curve_file import curve_file, curves_content
from analysis.efficiency import Comparison, table_of
from analysis.markdown import plain
from analysis.online import online_table
from analysis.pictures import Pictures
from analysis.settings_table import SettingsTable
from analysis.statistics import Estimate
from analysis.study import Analysis
from analysis.svg import to_pdf, to_png
from analysis.texts import as_csv, prompt_rewards
from analysis.tuned import TunedArm


def files_of(
    analysis: Analysis, pictures: Pictures, last: pd.DataFrame, settings: SettingsTable
) -> dict[str, str | bytes]:
    """Compute every file beside the page: name -> content. The same analysis gives the same bytes.

    `last`: the completions of the last evaluation of each run, where they were kept.
    """
    content: dict[str, str | bytes] = {"efficiency.csv": _csv(table_of(analysis.comparisons))}
    content["settings.csv"] = _csv(settings.frame())
    content[curve_file(analysis.all_runs)] = curves_content(analysis.all_runs, analysis.status)
    if not last.empty:
        content["prompts.csv"] = as_csv(prompt_rewards(last))
    if analysis.online:
        content["online.csv"] = _csv(online_table(analysis.online))
    if analysis.tuned:
        content["tuned.csv"] = _csv(analysis.tuned.table())
    if analysis.tasks and analysis.tasks.methods:
        content["tasks.csv"] = _csv(analysis.tasks.table())
    for name, table in main_tables(analysis).items():
        content[f"{name}.md"] = to_markdown(table)
        content[f"{name}.tex"] = to_latex(table)
    for picture in [picture for section in pictures.values() for picture in section]:
        content[f"{picture.name}.svg"] = picture.svg
        content[f"{picture.name}.pdf"] = to_pdf(picture.figure)
        content[f"{picture.name}.png"] = to_png(picture.figure)
    return content


def main_tables(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """Return the main tables as people read them, every cell a text: by the name of their files."""
    tables = {"efficiency": pd.DataFrame([_efficiency_row(row) for row in analysis.comparisons])}
    if analysis.equal_kl:
        tables["equal_kl"] = pd.DataFrame(
            {
                "arm": equal.arm,
                "against": equal.baseline,
                "seeds": str(len(equal.seeds)),
                "KL, nats a token": wording.number(equal.kl),
                "difference at that KL": _with_interval(equal.difference, signed=True),
            }
            for equal in analysis.equal_kl
        )
    if analysis.equal_cost:
        tables["equal_cost"] = pd.DataFrame(
            {
                "arm": equal.arm,
                "against": equal.baseline,
                "seeds": str(len(equal.seeds)),
                "at equal tokens": _with_interval(equal.tokens.estimate, signed=True),
                "at equal seconds": _with_interval(equal.seconds.estimate, signed=True),
            }
            for equal in analysis.equal_cost
        )
    if analysis.online:
        tables["online"] = pd.DataFrame(
            {
                "arm": row.arm,
                "labels": wording.amount(row.labels.point),
                "fresh pair accuracy": _with_interval(row.pair_accuracy),
                "fresh cross-entropy": _with_interval(row.cross_entropy),
                "regret": _with_interval(row.regret),
                "final": _with_interval(row.final),
            }
            for row in analysis.online
        )
    if analysis.tuned:
        tables["tuned"] = pd.DataFrame([_tuned_row(row) for row in analysis.tuned.arms])
    return {name: table for name, table in tables.items() if len(table)}


def to_markdown(table: pd.DataFrame) -> str:
    """Write a table of texts in GitHub's Markdown; every text is shown as it is."""
    heading, *rows = [[plain(text) for text in line] for line in [list(table.columns), *table.to_numpy().tolist()]]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heading, ["---"] * len(heading), *rows))


def to_latex(table: pd.DataFrame) -> str:
    r"""Write a table of texts as a LaTeX `tabular` with the rules of booktabs; every text is shown as it is.

    Needs `\usepackage{booktabs}`, and nothing else: the signs that LaTeX has no letter for are set as formulas.
    """
    latex = table.to_latex(index=False, escape=True, column_format="l" * len(table.columns))
    for sign, command in _LATEX_SIGNS.items():
        latex = latex.replace(sign, command)
    return latex


_LATEX_SIGNS = {
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
}


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")


def _efficiency_row(row: Comparison) -> dict[str, str]:
    return {
        "arm": row.arm,
        "against": row.baseline or wording.MISSING,
        "seeds": str(len(row.seeds)),
        "excluded": str(row.n_excluded),
        "target": wording.number(row.target.value),
        "reached it": wording.reached(row.n_reached, len(row.seeds), row.target.value),
        "steps to target": _with_interval(row.steps),
        "speedup": _with_interval(row.speedup.estimate),
        "final": _with_interval(row.final),
        "area": _with_interval(row.auc),
        "paired difference": _with_interval(row.paired, signed=True),
    }


def _tuned_row(row: TunedArm) -> dict[str, str]:
    def difference(estimate: Estimate | None) -> str:
        return wording.MISSING if estimate is None else _with_interval(estimate, signed=True)

    return {
        "arm": row.arm,
        "best point": row.label or wording.MISSING,
        "area, judging seeds": _with_interval(row.own.auc),
        "against": row.baseline or wording.MISSING,
        "each at its best": difference(row.own.paired if row.baseline else None),
        "at equal settings": "the same" if row.same else difference(row.equal.paired if row.equal else None),
        "at equal KL": difference(row.equal_kl.difference if row.equal_kl else None),
    }


def _with_interval(estimate: Estimate, *, signed: bool = False) -> str:
    ends = wording.interval(estimate.low, estimate.high, signed=signed)
    return wording.number(estimate.point, signed=signed) + (f" ({ends})" if ends else "")
