"""From trained weights to analog chips, their predictions and their failures.

- `program` a chip under one of the `PROFILES` or a `Profile` of your own, `save_chip`,
  `load_chip`; `predict` on it or on the digital network; `simulate` many chips in one call.
- `recalibrate` and `fit_logits` undo some of what drift does; `average_logits` of several chips.
- `study` scores and predictions, a real chip's too: which samples fail, what tells them, a page.
- `failure_table` and `compare_predictors` on the outcomes, which need neither torch nor JAX;
  `Router` sends fragile samples to the digital model.
- `weight_moments` and `output_noise` for `jaxcurv.flip_probability`.
- `to_torch` and `from_torch` carry weights between Flax and PyTorch.
- The rest is in `analysis`, `chips`, `routing` and `weights`.
"""

from jaxcurv import faces

_MOVED = {
    "ADC": "bridge.chips.ADC",
    "Checkpoint": "bridge.weights.Checkpoint",
    "Chip": "bridge.chips.Chip",
    "Clipping": "bridge.chips.Clipping",
    "Costs": "bridge.routing.Costs",
    "Hermes": "bridge.chips.Hermes",
    "MappedPairs": "bridge.chips.MappedPairs",
    "Memory": "bridge.chips.Memory",
    "PCM": "bridge.chips.PCM",
    "Pairs": "bridge.chips.Pairs",
    "ReRamCMO": "bridge.chips.ReRamCMO",
    "ReRamWan2022": "bridge.chips.ReRamWan2022",
    "Routed": "bridge.routing.Routed",
    "SinglePair": "bridge.chips.SinglePair",
    "WeightNoise": "bridge.chips.WeightNoise",
    "calibration_table": "bridge.analysis.calibration_table",
    "choose_threshold": "bridge.routing.choose_threshold",
    "clipped_share": "bridge.chips.clipped_share",
    "cross_validated_logistic": "bridge.analysis.cross_validated_logistic",
    "eight_profiles": "bridge.chips.eight_profiles",
    "expected_calibration_error": "bridge.analysis.expected_calibration_error",
    "failures": "bridge.analysis",
    "flip_probability": "bridge.analysis.gaussian_flip_probability",
    "layer_failures": "bridge.chips.layer_failures",
    "layer_report": "bridge.chips.layer_report",
    "load_checkpoint": "bridge.weights.load_checkpoint",
    "load_weights": "bridge.weights.load_weights",
    "logit_scores": "bridge.analysis.logit_scores",
    "moment_state_dict": "bridge.chips.moment_state_dict",
    "resnet18": "bridge.weights.resnet18",
    "resnet50": "bridge.weights.resnet50",
    "routed_at": "bridge.routing.routed_at",
    "routing_baselines": "bridge.routing.routing_baselines",
    "routing_curve": "bridge.routing.routing_curve",
    "save_weights": "bridge.weights.save_weights",
    "twin": "bridge.weights.twin",
}

__getattr__, __dir__, __all__ = faces.attach(__name__, __file__, extra="bridge", moved=_MOVED)
