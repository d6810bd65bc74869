"""analysis: see inside a vision network. Every function answers a result with rows, a figure and a report."""

from analysis.agreeing import Consistency, consistency
from analysis.attack_result import Adversarial
from analysis.attacking import adversarial
from analysis.attributing import Attribution, attribution
from analysis.comparing import Comparison, compare
from analysis.detection_comparing import DetectionComparison, compare_detection
from analysis.detection_diagnosis import DetectionErrors, ErrorsBeside, detection_errors
from analysis.detection_running import Detections, detect
from analysis.detection_scores import DetectionScores, detection
from analysis.detection_shifting import DetectionShift, detection_shift
from analysis.distorting import distorted_samples
from analysis.features_shifted import Equivariance, equivariance
from analysis.jointly import JointRobustness, joint_robustness
from analysis.layerwise import Robustness, robustness
from analysis.pages import write_report
from analysis.parts import Unit, units
from analysis.perceiving import perceptual
from analysis.perceptual_distance import PerceptualDistance
from analysis.perceptual_fitting import fit_perceptual
from analysis.perceptual_result import Perceptual, PerceptualFit
from analysis.periodicity import Aliasing, aliasing
from analysis.rating_layouts import rating_data
from analysis.ratings import RatedChoices, RatedPair, RatedTriplet, Ratings
from analysis.resolving import Resolution, resolution
from analysis.result import Result
from analysis.saliency_shifts import AttributionEquivariance, attribution_equivariance
from analysis.sampling import SamplingMap, sampling_map
from analysis.searching import JointSearch, search_joint
from analysis.shifts import ShiftSparsity, shift_sparsity
from analysis.spatial import spatial_dependence
from analysis.spatial_result import SpatialDependence
from analysis.stored import StoredResult, read_result
from analysis.translating import Translation, translation
from surgeon.errors import AnalysisError

__all__ = [
    "Adversarial",
    "Aliasing",
    "AnalysisError",
    "Attribution",
    "AttributionEquivariance",
    "Comparison",
    "Consistency",
    "DetectionComparison",
    "DetectionErrors",
    "DetectionScores",
    "DetectionShift",
    "Detections",
    "Equivariance",
    "ErrorsBeside",
    "JointRobustness",
    "JointSearch",
    "Perceptual",
    "PerceptualDistance",
    "PerceptualFit",
    "RatedChoices",
    "RatedPair",
    "RatedTriplet",
    "Ratings",
    "Resolution",
    "Result",
    "Robustness",
    "SamplingMap",
    "ShiftSparsity",
    "SpatialDependence",
    "StoredResult",
    "Translation",
    "Unit",
    "adversarial",
    "aliasing",
    "attribution",
    "attribution_equivariance",
    "compare",
    "compare_detection",
    "consistency",
    "detect",
    "detection",
    "detection_errors",
    "detection_shift",
    "distorted_samples",
    "equivariance",
    "fit_perceptual",
    "joint_robustness",
    "perceptual",
    "rating_data",
    "read_result",
    "resolution",
    "robustness",
    "sampling_map",
    "search_joint",
    "shift_sparsity",
    "spatial_dependence",
    "translation",
    "units",
    "write_report",
]
