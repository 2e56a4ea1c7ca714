from .analysis import Trend as Trend
from .analysis import analog_only_failures as analog_only_failures
from .analysis import deciles as deciles
from .analysis import edge_ties as edge_ties
from .analysis import failure_table as failure_table
from .analysis import trend_test as trend_test
from .analysis import wilson_interval as wilson_interval
from .analysis import within_class_rank as within_class_rank
