"""What wrappers of networks add to the names of weights, and the networks within them."""

import re
from collections.abc import Iterable

import torch
from torch.optim.swa_utils import AveragedModel

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and Lightning put before all names."""
_WITHIN = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_COUNTER = "n_averaged"  # AveragedModel's
_WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel, AveragedModel)


def without_wrappers(names: Iterable[str], *, lightning: bool) -> dict[str, str]:
    """The names without what `DataParallel`, `torch.compile`, ... add to them.

    The counter of an `AveragedModel` is left out. Names that would then be the same stay, all of
    them, as they are.

    Args:
      names: of a state dict.
      lightning: whether a "model." that all have, Lightning's, goes too.

    Returns:
      The new name by the old one.
    """
    found = {name: without_inner(name) for name in names}
    given = list(found)
    averaged = _COUNTER in found and len(found) > 1
    if averaged and all(new.startswith("module.") for new in found.values() if new != _COUNTER):
        del found[_COUNTER]
    while found:
        if all(new.startswith("module.") for new in found.values()):
            prefix = "module."
        elif lightning and all(new.startswith("model.") for new in found.values()):
            prefix, lightning = "model.", False
        else:
            break
        found = {name: new.removeprefix(prefix) for name, new in found.items()}
    if len(set(found.values())) < len(found):
        return {name: name for name in given}
    return found


def undone_first(names: Iterable[str]) -> str:
    """How to have plain weights, where names are of what weights are computed from; else ""."""
    names = set(names)
    cures = []
    if any(".parametrizations." in f".{name}" for name in names):
        cures.append("torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')")
    stems = {name.removesuffix("_orig") for name in names if name.endswith("_orig")}
    if any(f"{stem}_mask" in names for stem in stems):
        cures.append("torch.nn.utils.prune.remove(layer, 'weight')")
    if any(f"{stem}_u" in names for stem in stems):
        cures.append("torch.nn.utils.remove_spectral_norm(layer)")
    if any(name.endswith("_g") and f"{name[:-2]}_v" in names for name in names):
        cures.append("torch.nn.utils.remove_weight_norm(layer)")
    if not cures:
        return ""
    return f"; weights are computed from others: first {' and '.join(cures)}, for each such layer"


def without_inner(name: str) -> str:
    """A name without what `torch.compile` and others put into it, whichever layer they wrap."""
    return _WITHIN.sub("", name)


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """What `torch.compile`, a parallel or an averaged module wraps; any other module as it is."""
    if isinstance(inner := getattr(module, "_orig_mod", None), torch.nn.Module):
        return unwrapped(inner)
    if isinstance(module, _WRAPPERS):
        return unwrapped(module.module)
    return module
