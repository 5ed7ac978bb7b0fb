"""Logged runs -> pandas tables, figures and one HTML report.

Opens runs on a machine without torch: of the training package it imports `metric_keys` and `run_record` only.
"""

from analysis.efficiency import efficiency_table
from analysis.errors import ReportError
from analysis.loading import load_runs, load_status
from analysis.power import Power, print_power
from analysis.report import write_report
from analysis.several_tasks import TasksComparison, tasks_comparison
from analysis.terminal import print_report, terminal_table
from analysis.tuned import TunedComparison, tuned_comparison

__all__ = [
    "Power",
    "ReportError",
    "TasksComparison",
    "TunedComparison",
    "efficiency_table",
    "load_runs",
    "load_status",
    "print_power",
    "print_report",
    "tasks_comparison",
    "terminal_table",
    "tuned_comparison",
    "write_report",
]
