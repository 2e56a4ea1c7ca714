"""An earlier name of `bridge.analysis`."""

from jaxcurv import faces

_MOVED = {
    "Trend": "bridge.analysis.Trend",
    "analog_only_failures": "bridge.analysis.analog_only_failures",
    "deciles": "bridge.analysis.deciles",
    "edge_ties": "bridge.analysis.edge_ties",
    "failure_table": "bridge.analysis.failure_table",
    "trend_test": "bridge.analysis.trend_test",
    "wilson_interval": "bridge.analysis.wilson_interval",
    "within_class_rank": "bridge.analysis.within_class_rank",
}

__getattr__ = faces.earlier(__name__, _MOVED)
