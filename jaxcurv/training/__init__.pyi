from .checkpoints import keep_trained as keep_trained
from .checkpoints import restore_best as restore_best
from .loop import fit as fit
from .recipe import Recipe as Recipe
