from .costs import Costs as Costs
from .curves import RoutingResult as RoutingResult
from .curves import choose_threshold as choose_threshold
from .curves import routed_at as routed_at
from .curves import routing_baselines as routing_baselines
from .curves import routing_curve as routing_curve
from .router import Routed as Routed
from .router import Router as Router
