"""analysis: see inside a vision network. Every function answers a result with rows, a figure and a report."""

from analysis.detection_comparing import DetectionComparison, compare_detection
from analysis.detection_diagnosis import DetectionErrors, ErrorsBeside, detection_errors
from analysis.detection_running import Detections, detect
from analysis.detection_scores import DetectionScores, detection
from analysis.layerwise import Robustness, robustness
from analysis.parts import Unit, units
from analysis.result import Result
from analysis.shifts import ShiftSparsity, shift_sparsity
from surgeon.errors import AnalysisError

__all__ = [
    "AnalysisError",
    "DetectionComparison",
    "DetectionErrors",
    "DetectionScores",
    "Detections",
    "ErrorsBeside",
    "Result",
    "Robustness",
    "ShiftSparsity",
    "Unit",
    "compare_detection",
    "detect",
    "detection",
    "detection_errors",
    "robustness",
    "shift_sparsity",
    "units",
]
