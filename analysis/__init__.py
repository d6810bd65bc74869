"""analysis: see inside a vision network. Every function answers a result with rows, a figure and a report."""

from analysis.result import Result
from analysis.shifts import ShiftSparsity, shift_sparsity
from surgeon.errors import AnalysisError

__all__ = ["AnalysisError", "Result", "ShiftSparsity", "shift_sparsity"]
