import bridge.analysis as _analysis
import bridge.chips as _chips
import bridge.routing as _routing
import bridge.weights as _weights

from . import analysis as analysis
from . import chips as chips
from . import routing as routing
from . import weights as weights
from .analysis.failures import failure_table as failure_table
from .analysis.predictors import compare_predictors as compare_predictors
from .chips.files import load_chip as load_chip
from .chips.files import save_chip as save_chip
from .chips.moments import output_noise as output_noise
from .chips.moments import weight_moments as weight_moments
from .chips.prediction import predict as predict
from .chips.profiles import PROFILES as PROFILES
from .chips.profiles import Profile as Profile
from .chips.programming import program as program
from .routing.router import Router as Router
from .weights.state import from_torch as from_torch
from .weights.state import to_torch as to_torch

# Earlier names, for type checkers alone: see `_MOVED` in `__init__.py`.
ADC = _chips.ADC
Checkpoint = _weights.Checkpoint
Chip = _chips.Chip
Clipping = _chips.Clipping
Costs = _routing.Costs
Hermes = _chips.Hermes
MappedPairs = _chips.MappedPairs
Memory = _chips.Memory
PCM = _chips.PCM
Pairs = _chips.Pairs
ReRamCMO = _chips.ReRamCMO
ReRamWan2022 = _chips.ReRamWan2022
Routed = _routing.Routed
SinglePair = _chips.SinglePair
WeightNoise = _chips.WeightNoise
calibration_table = _analysis.calibration_table
choose_threshold = _routing.choose_threshold
clipped_share = _chips.clipped_share
cross_validated_logistic = _analysis.cross_validated_logistic
eight_profiles = _chips.eight_profiles
expected_calibration_error = _analysis.expected_calibration_error
failures = _analysis
flip_probability = _analysis.gaussian_flip_probability
layer_failures = _chips.layer_failures
layer_report = _chips.layer_report
load_checkpoint = _weights.load_checkpoint
load_weights = _weights.load_weights
logit_scores = _analysis.logit_scores
moment_state_dict = _chips.moment_state_dict
resnet18 = _weights.resnet18
resnet50 = _weights.resnet50
routed_at = _routing.routed_at
routing_baselines = _routing.routing_baselines
routing_curve = _routing.routing_curve
save_weights = _weights.save_weights
twin = _weights.twin
