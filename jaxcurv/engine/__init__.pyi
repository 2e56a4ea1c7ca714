from .losses import cross_entropy as cross_entropy
from .probes import probe as probe
