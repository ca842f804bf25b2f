"""Tables of results, rendered for the terminal, Markdown, LaTeX and CSV."""

from cl_lora.reporting.tables.budgets import sizes_table, with_sizes
from cl_lora.reporting.tables.by_shots import main_tables, shots_table, tables_by_experience
from cl_lora.reporting.tables.by_task import partner_tables, tables_by_task
from cl_lora.reporting.tables.column import MISSING, Column, N
from cl_lora.reporting.tables.costs import costs_table
from cl_lora.reporting.tables.names import shorten
from cl_lora.reporting.tables.of_run import result_table, run_table
from cl_lora.reporting.tables.table import RENDERERS, ResultTable

__all__ = [
    "MISSING",
    "RENDERERS",
    "Column",
    "N",
    "ResultTable",
    "costs_table",
    "main_tables",
    "partner_tables",
    "result_table",
    "run_table",
    "shorten",
    "shots_table",
    "sizes_table",
    "tables_by_experience",
    "tables_by_task",
    "with_sizes",
]
