import jaxcurv.engine as _engine
import jaxcurv.estimators as _estimators
import jaxcurv.flips as _flips
import jaxcurv.training as _training

from . import data as data
from . import engine as engine
from . import estimators as estimators
from . import flips as flips
from . import models as models
from . import training as training
from .curvature import Curvature as Curvature
from .curvature import input_curvature as input_curvature
from .dataset import score_dataset as score_dataset
from .estimators import Adaptive as Adaptive
from .estimators import FiniteDifference as FiniteDifference
from .estimators import GaussNewton as GaussNewton
from .estimators import HessianTrace as HessianTrace
from .estimators import HessianVector as HessianVector
from .estimators import LowRankGaussNewton as LowRankGaussNewton
from .estimators import OwnEstimator as OwnEstimator
from .flips import Moments as Moments
from .logit_scores import logit_scores as logit_scores
from .shards import merge_scores as merge_scores

# Earlier names, for type checkers alone: see `_MOVED` in `__init__.py`.
Published = _estimators.Published
Recipe = _training.Recipe
cross_entropy = _engine.cross_entropy
fit = _training.fit
keep_trained = _training.keep_trained
margin_moments = _flips.margin_moments
margin_table = _flips.margin_table
probe = _engine.probe
restore_best = _training.restore_best
