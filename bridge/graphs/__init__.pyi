from .conversion import to_jax as to_jax
