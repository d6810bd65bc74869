"""analysis: see inside a vision network. Every function answers a result with rows, a figure and a report."""

from analysis.attack_result import Adversarial
from analysis.attacking import adversarial
from analysis.detection_comparing import DetectionComparison, compare_detection
from analysis.detection_diagnosis import DetectionErrors, ErrorsBeside, detection_errors
from analysis.detection_running import Detections, detect
from analysis.detection_scores import DetectionScores, detection
from analysis.jointly import JointRobustness, joint_robustness
from analysis.layerwise import Robustness, robustness
from analysis.pages import write_report
from analysis.parts import Unit, units
from analysis.result import Result
from analysis.searching import JointSearch, search_joint
from analysis.shifts import ShiftSparsity, shift_sparsity
from analysis.stored import StoredResult, read_result
from surgeon.errors import AnalysisError

__all__ = [
    "Adversarial",
    "AnalysisError",
    "DetectionComparison",
    "DetectionErrors",
    "DetectionScores",
    "Detections",
    "ErrorsBeside",
    "JointRobustness",
    "JointSearch",
    "Result",
    "Robustness",
    "ShiftSparsity",
    "StoredResult",
    "Unit",
    "adversarial",
    "compare_detection",
    "detect",
    "detection",
    "detection_errors",
    "joint_robustness",
    "read_result",
    "robustness",
    "search_joint",
    "shift_sparsity",
    "units",
    "write_report",
]
