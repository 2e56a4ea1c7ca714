"""What wrappers of networks add to the names of weights, and the networks within them."""

import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

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


def without_any(name: str) -> str:
    """A name without what wrappers of any part of a network put into it, a "module." too."""
    return ".".join(part for part in without_inner(name).split(".") if part != "module")


def named_as(
    given: Mapping[str, torch.Tensor],
    known: Collection[str],
    others: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, torch.Tensor]:
    """Tensors by the known names, where the two sides differ by wrappers of parts alone.

    Args:
      given: tensors by name; as they are where two would have one name without wrappers.
      known: names of a network's weights.
      others: what a name without wrappers may stand for.
    """
    there = {without_any(name): name for name in known}
    found = {}
    for name, tensor in given.items():
        short = without_any(name)
        found[there.get(short) or there.get(others.get(short, ""), name)] = tensor
    alone = len(there) == len(known) and len(found) == len(given)
    return found if alone else dict(given)


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """What `torch.compile`, a parallel or an averaged module wraps; any other module as it is."""
    if isinstance(inner := getattr(module, "_orig_mod", None), torch.nn.Module):
        return unwrapped(inner)
    if isinstance(module, _WRAPPERS):
        return unwrapped(module.module)
    return module


class _Renamed(torch.nn.Module):
    """A network under the name that a wrapper gives it."""

    def __init__(self, name: str, inner: torch.nn.Module):
        super().__init__()
        self.add_module(name, inner)
        self.train(inner.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (inner,) = self.children()
        return inner(*args, **kwargs)


def wrapped_as(module: torch.nn.Module, names: Iterable[str], *, counted: bool) -> torch.nn.Module:
    """The network in a module, in wrappers in which its layers have the names that are given.

    Args:
      module: a network, bare or within what `torch.compile` and others wrap it in.
      names: paths of layers; where some are not the network's in any wrapper, it is given back.
      counted: whether the outermost wrapper has the counter of an `AveragedModel`.
    """
    names = list(names)
    bare = unwrapped(module)
    for one in (module, bare):
        if _has_all(one, names):
            return one
    around: list[str] = []
    while prefix := next((p for p in PREFIXES[:2] if all(n.startswith(p) for n in names)), ""):
        names = [name.removeprefix(prefix) for name in names]
        around.append(prefix.removesuffix("."))
        if _has_all(bare, names):
            for name in reversed(around):
                bare = _Renamed(name, bare)
            if counted:
                bare.register_buffer(_COUNTER, torch.tensor(0))
            return bare
    return module


def _has_all(module: torch.nn.Module, names: list[str]) -> bool:
    """Whether each name begins with that of a part; the parts of layers may be others on tiles."""
    parts = dict(module.named_children())
    return all(name.partition(".")[0] in parts for name in names)


def require_unfrozen(module: torch.nn.Module, what: str) -> None:
    """Refuses a module whose weights TorchScript has made constants; `what` is its name.

    Raises:
      ValueError: it is that of `torch.jit.freeze` or `optimize_for_inference`.
    """
    # Freezing takes the mode away; eval() then puts one beside the script.
    if any(
        isinstance(part, torch.jit.ScriptModule)
        and (not hasattr(part, "training") or "training" in vars(part))
        for part in module.modules()
    ):
        raise ValueError(
            f"{what} is frozen by TorchScript (torch.jit.freeze or optimize_for_inference), which "
            "makes constants of its weights: give the module as it was before"
        )
