"""`bridge.analysis.failures` under its public name."""

from bridge.analysis.failures import Trend as Trend
from bridge.analysis.failures import analog_only_failures as analog_only_failures
from bridge.analysis.failures import deciles as deciles
from bridge.analysis.failures import edge_ties as edge_ties
from bridge.analysis.failures import failure_table as failure_table
from bridge.analysis.failures import trend_test as trend_test
from bridge.analysis.failures import within_class_rank as within_class_rank
from bridge.analysis.intervals import wilson_interval as wilson_interval
