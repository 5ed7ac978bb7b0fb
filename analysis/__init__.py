"""Logged runs -> pandas tables, figures and one HTML report.

Opens runs on a machine without torch: of the training package it imports `metric_keys`, `run_record`
and `diagnoses` only.
"""

from analysis.diagnoses import diagnose
from analysis.diagnoses_terminal import print_diagnoses
from analysis.efficiency import efficiency_table
from analysis.errors import ReportError
from analysis.loading import load_runs, load_status
from analysis.power import Power, print_power
from analysis.report import write_report
from analysis.terminal import print_report, terminal_table
from analysis.tuned import TunedComparison, tuned_comparison

__all__ = [
    "Power",
    "ReportError",
    "TunedComparison",
    "diagnose",
    "efficiency_table",
    "load_runs",
    "load_status",
    "print_diagnoses",
    "print_power",
    "print_report",
    "terminal_table",
    "tuned_comparison",
    "write_report",
]
