"""Reporting: numbers, figures and one self-contained page that a person enjoys reading."""

from convpeft.reporting.canvas import figure_bytes, save_figure
from convpeft.reporting.content import (
    Code,
    Figure,
    KeyFigure,
    KeyFigures,
    Notes,
    ReportContent,
    Section,
    Table,
    Text,
)
from convpeft.reporting.html import render_report, write_report
from convpeft.reporting.pictures import plot_confusion, plot_gallery
from convpeft.reporting.plots import plot_curves, plot_reliability
from convpeft.reporting.tables import write_confusion_csv
from convpeft.reporting.tradeoff import TradeoffPoint, plot_tradeoff
from convpeft.reporting.wording import (
    format_bytes,
    format_count,
    format_duration,
    format_interval,
    format_number,
    format_percent,
    format_share,
    printable,
)
from convpeft.reporting.writing import write_whole

__all__ = [
    "Code",
    "Figure",
    "KeyFigure",
    "KeyFigures",
    "Notes",
    "ReportContent",
    "Section",
    "Table",
    "Text",
    "TradeoffPoint",
    "figure_bytes",
    "format_bytes",
    "format_count",
    "format_duration",
    "format_interval",
    "format_number",
    "format_percent",
    "format_share",
    "plot_confusion",
    "plot_curves",
    "plot_gallery",
    "plot_reliability",
    "plot_tradeoff",
    "printable",
    "render_report",
    "save_figure",
    "write_confusion_csv",
    "write_report",
    "write_whole",
]
