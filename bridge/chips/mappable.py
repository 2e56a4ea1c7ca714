"""Layers that cannot go to tiles, all named in one message."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from bridge.chips.plain_layers import MAPPED, is_mapped, own_in_class

_GROUPS = "groups; tiles need groups=1"
_CALLS = ("forward", "_call_impl", "_wrapped_call_impl", "_slow_forward")
_SILENT = ("extra_repr", "reset_parameters")  # methods of a layer that its outputs do not come from
_NAMED = 3  # layers of a kind that are named where many have one fault


def refuse_unreadable(model: nn.Module, left: Callable[[str], bool]) -> None:
    """Refuses networks whose layers or weights are not there to be read; the cure is named.

    Args:
      model: in any mode.
      left: whether the layer at a path stays digital.

    Raises:
      ValueError: TorchScript, an exported program, quantised layers, weights without values (lazy
        layers, the meta device), or sparse ones.
    """
    for path, module in model.named_modules():
        where = f"layer {path}" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule) and list(module.parameters()):
            raise ValueError(
                f"{where} is TorchScript, whose layers cannot go to tiles: give the Python module "
                "that it was made of"
            )
        if left(path):
            continue
        if isinstance(module, torch.fx.GraphModule) and any(
            isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
        ):
            raise ValueError(
                f"{where} is a program of torch.export, which has operations in place of layers: "
                "give the Python module that was exported"
            )
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic")):
            raise ValueError(
                f"{where} ({type(module).__name__}) is quantised: give the network before "
                "quantisation; the ADC of a profile and its memory are what quantises on a chip"
            )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if lazy := [name for name, tensor in tensors if is_lazy(tensor)]:
        raise ValueError(
            f"{some(lazy)} of lazy layers have no values yet: run the model on an image once, then "
            "load its weights"
        )
    if meta := [name for name, tensor in tensors if tensor.is_meta]:
        raise ValueError(
            f"{some(meta)} on the meta device have no values: model.to_empty(device='cpu'), then "
            "load its weights"
        )
    if sparse := [n for n, tensor in model.named_parameters() if tensor.layout != torch.strided]:
        raise ValueError(
            f"{some(sparse)} of a sparse layout: make it dense, nn.Parameter(weight.to_dense())"
        )


def refuse_unmappable(model: nn.Module, left: Callable[[str], bool]) -> None:
    """Refuses a network that does not map onto tiles.

    Args:
      model: in eval mode, without parametrizations where it is to be mapped.
      left: whether the layer at a path stays digital.

    Raises:
      ValueError: layers with weights that are neither Conv2d, Linear nor BatchNorm, settings of a
        convolution that tiles do not have, or layers that do more than their type says; all are
        named, many of one kind by their number.
    """
    mapped = 0
    faults: dict[tuple[str, str], list[str]] = {}
    told: list[str] = []
    groups: list[int] = []
    for name, module in model.named_modules():
        if left(name) or any(name.startswith(f"{path}.") for path in told):
            continue
        mapped += is_mapped(module)
        if fault := _fault(module):
            faults.setdefault((type(module).__name__, fault), []).append(name or "at the root")
            told.append(name)
            groups += [module.groups] if fault == _GROUPS else []
    if faults:
        raise ValueError(_all(faults, groups))
    if not mapped:
        raise ValueError("the model has no Conv2d or Linear layer to put on tiles")
    tensors = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    if other := [name for name, tensor in tensors.items() if tensor.dtype != torch.float32]:
        dtype = tensors[other[0]].dtype
        raise ValueError(f"{other[0]} is {dtype}; chips are simulated in float32: model.float()")
    weights = {**dict(model.named_parameters()), **_statistics(model)}  # a mask may be infinite
    if broken := [n for n, t in weights.items() if not torch.isfinite(t).all()]:
        raise ValueError(f"non-finite weights in {some(broken)}; load another checkpoint")


def _statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """What BatchNorm layers keep of the images that they saw, by name."""
    return {
        f"{path}.{name}": tensor
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, tensor in module.named_buffers(recurse=False)
    }


def some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    shown, more = names[:_NAMED], len(names) - _NAMED
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return ", ".join(shown)


def _fault(module: nn.Module) -> str:
    """What keeps a layer from tiles; "" for nothing."""
    own = [name for name, _ in module.named_parameters(recurse=False)]
    if isinstance(module, nn.MultiheadAttention):
        return "cannot be mapped: it multiplies with its weights itself"
    if isinstance(module, nn.ParameterList | nn.ParameterDict):
        return ""
    if isinstance(module, MAPPED) and (own_of_kind := own_in_class(module)):
        return (
            f"cannot be mapped: with a {own_of_kind[0]} of its own it is neither Conv2d nor Linear"
        )
    if not is_mapped(module):
        # What a block holds beside its layers stays digital: tokens, positions, scales.
        if not own or isinstance(module, _BatchNorm) or list(module.children()):
            return ""
        return "cannot be mapped: it has weights but is neither Conv2d nor Linear"
    if own_methods := [name for name, value in vars(module).items() if _computes(name, value)]:
        return f"cannot be mapped: with a {own_methods[0]} of its own in place of its type's"
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, nn.Parameter):
        return "cannot be mapped: its weight is no parameter"
    axes = 2 if isinstance(module, nn.Linear) else 4
    if weight.ndim != axes:
        return f"cannot be mapped: its weight has {weight.ndim} axes in place of {axes}"
    if bias is not None and bias.shape != weight.shape[:1]:
        return (
            f"cannot compute: its weight has {len(weight)} outputs and its bias {bias.numel()}; "
            "prune both"
        )
    if extra := sorted({*own, *dict(module.named_buffers())} - {"weight", "bias"}):
        return f"cannot be mapped: with tensors beside its weights ({some(extra)})"
    if list(module.children()):
        return "cannot be mapped: with layers within it"
    if not isinstance(module, nn.Conv2d):
        return ""
    if module.groups != 1:
        return _GROUPS
    if module.padding_mode != "zeros":
        return f"cannot be mapped: it pads by {module.padding_mode}, not by zeros"
    if module.padding == "same" and any(span % 2 for span in _spans(module)):
        return (
            "cannot be mapped: its padding='same' is one more on one side; pad before it, by "
            "torch.nn.functional.pad"
        )
    return ""


def _spans(module: nn.Conv2d) -> list[int]:
    """The sum of what padding='same' adds on both sides, along height and width."""
    sizes = zip(module.dilation, module.weight.shape[2:], strict=True)
    return [dilation * (size - 1) for dilation, size in sizes]


def _computes(name: str, value: object) -> bool:
    """Whether an attribute of a layer stands in place of a method that its outputs come from."""
    if not callable(value) or name in _SILENT or (hasattr(nn.Module, name) and name not in _CALLS):
        return False
    return any(callable(getattr(kind, name, None)) for kind in MAPPED)


def _all(faults: dict[tuple[str, str], list[str]], groups: list[int]) -> str:
    lines = []
    for (kind, fault), names in faults.items():
        count = "layer" if len(names) == 1 else f"{len(names)} layers:"
        if fault == _GROUPS:
            few, most = min(groups), max(groups)
            fault = f"has {few if few == most else f'{few} to {most}'} {fault}"
        lines.append(f"{count} {some(names)} ({kind}) {fault}")
    total = sum(map(len, faults.values()))
    if total == 1:
        return f"{lines[0]}; use Conv2d or Linear, or name it in digital_layers"
    kinds = [kind for kind, _ in faults if kind not in ("Conv2d", "Linear")]
    chosen = []
    if kinds:
        types = ", ".join(repr(kind) for kind in dict.fromkeys(kinds))
        chosen.append(f"type(layer).__name__ in {{{types}}}")
    if any(fault == _GROUPS for _, fault in faults):
        chosen.append('getattr(layer, "groups", 1) > 1')
    recipe = "name them in digital_layers"
    if chosen:
        recipe = (
            "leave them digital, digital_layers=[name for name, layer in model.named_modules() if "
            f"{' or '.join(chosen)}]"
        )
    return f"{total} layers do not map onto tiles: {'; '.join(lines)}. Use others, or {recipe}"
