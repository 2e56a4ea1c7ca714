from .checkpoints import keep_trained as keep_trained
from .checkpoints import restore_best as restore_best
from .loop import fit as fit
from .recipe import Recipe as Recipe
from .tuning import fine_tuning as fine_tuning
