from .conversion import to_jax as to_jax
from .scoring import score as score
