"""Per-sample input loss curvature in JAX: where does a trained model's loss surface bend most?

- `input_curvature`: one batch; `score_dataset`: a data set, `merge_scores` for its shards.
- `FiniteDifference` (the default), `HessianVector`, `HessianTrace`, `GaussNewton`,
  `LowRankGaussNewton`, `Adaptive`, or an `OwnEstimator`: what is computed.
- `flip_probability`: the risk of failure on a chip that is never run.
- `image_folder`: a folder of images as a source for `score_dataset` and `flip_probability`.
- `logit_scores`: margin, entropy and other scores of one forward pass.
- The rest is in `data`, `engine`, `estimators`, `margins`, `models` and `training`.
"""

from jaxcurv import faces

_MOVED = {
    "Published": "jaxcurv.estimators.Published",
    "Recipe": "jaxcurv.training.Recipe",
    "cross_entropy": "jaxcurv.engine.cross_entropy",
    "fit": "jaxcurv.training.fit",
    "keep_trained": "jaxcurv.training.keep_trained",
    "margin_moments": "jaxcurv.margins.margin_moments",
    "margin_table": "jaxcurv.margins.margin_table",
    "probe": "jaxcurv.engine.probe",
    "restore_best": "jaxcurv.training.restore_best",
}

__getattr__, __dir__, __all__ = faces.attach(__name__, __file__, moved=_MOVED)
