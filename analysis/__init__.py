"""Logged runs -> pandas tables, figures and one HTML report.

Opens runs on a machine without torch: of the training package it imports `metric_keys`, `run_record` and `diagnoses`
only.

`metric_figure`, `report_figures` and the functions of `analysis.figures` return `matplotlib.figure.Figure` objects,
which notebooks show and `savefig` writes.
"""

from analysis.completions import load_completions
from analysis.diagnoses import diagnose
from analysis.diagnoses_terminal import print_diagnoses
from analysis.efficiency import efficiency_table
from analysis.errors import ReportError
from analysis.loading import load_runs, load_status
from analysis.pictures import metric_figure, report_figures
from analysis.power import Power, print_power
from analysis.report import write_report
from analysis.several_tasks import TasksComparison, tasks_comparison
from analysis.terminal import print_report, terminal_table
from analysis.texts import prompt_rewards
from analysis.tuned import TunedComparison, tuned_comparison

__all__ = [
    "Power",
    "ReportError",
    "TasksComparison",
    "TunedComparison",
    "diagnose",
    "efficiency_table",
    "load_completions",
    "load_runs",
    "load_status",
    "metric_figure",
    "print_diagnoses",
    "print_power",
    "print_report",
    "prompt_rewards",
    "report_figures",
    "tasks_comparison",
    "terminal_table",
    "tuned_comparison",
    "write_report",
]
