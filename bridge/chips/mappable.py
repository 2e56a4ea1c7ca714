"""Layers that cannot go to tiles, all named in one message."""

from collections.abc import Callable, Iterable
from types import BuiltinFunctionType

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from bridge.chips.attention import PlainAttention
from bridge.chips.plain_layers import MAPPED, copy_of, is_mapped, own_in_class

_CALLS = ("forward", "_call_impl", "_wrapped_call_impl", "_slow_forward")
_SILENT = ("extra_repr", "reset_parameters")  # methods of a layer that its outputs do not come from
_QUANTISED = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.", "torch.ao.nn.qat.")
_FLOATS = ("FloatFunctional", "FXFloatFunctional")  # which lie beside the quantised ones
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
        if _is_quantised(module):
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


def _is_quantised(module: nn.Module) -> bool:
    """Whether a layer is of integers, or prepared for them; a float network may be written so that
    it can be quantised, with `FloatFunctional` and fused layers.
    """
    kind = type(module)
    if kind.__name__ in _FLOATS or kind.__module__.startswith("torch.ao.nn.intrinsic.modules."):
        return False
    return kind.__module__.startswith(_QUANTISED)


def refuse_unmappable(model: nn.Module, left: Callable[[str], bool]) -> None:
    """Refuses a network that does not map onto tiles.

    Args:
      model: in eval mode, without parametrizations where it is to be mapped.
      left: whether the layer at a path stays digital.

    Raises:
      ValueError: layers of a class derived from Conv2d or Linear, or that do more than their type
        says; all are named, many of one kind by their number. No layer to map, weights that are
        not finite or not float32.
    """
    mapped = 0
    faults: dict[tuple[str, str], list[str]] = {}
    told: list[str] = []
    for name, module in model.named_modules():
        if left(name) or any(name.startswith(f"{path}.") for path in told):
            continue
        mapped += is_mapped(module)
        if fault := _fault(module):
            faults.setdefault((type(module).__name__, fault), []).append(name or "at the root")
            told.append(name)
    if faults:
        raise ValueError(_all(faults))
    if not mapped:
        raise ValueError("the model has no Conv2d or Linear layer to put on tiles")
    state = model.state_dict()  # which may hold what is no tensor
    tensors = {
        n: t for n, t in state.items() if isinstance(t, torch.Tensor) and t.is_floating_point()
    }
    if other := [name for name, tensor in tensors.items() if tensor.dtype != torch.float32]:
        dtype = tensors[other[0]].dtype
        raise ValueError(f"{other[0]} is {dtype}; chips are simulated in float32: model.float()")
    if broken := _non_finite(model):
        raise ValueError(f"non-finite weights in {some(broken)}; load another checkpoint")


def with_values(model: nn.Module) -> nn.Module:
    """A network to read a chip's weights into, which has some where they are missing.

    Returns:
      The model, or where it is on the meta device or has weights that are not finite, as
      `to_empty` may leave, a copy with ones in their place.

    Raises:
      ValueError: a tensor on the meta device that is neither parameter nor buffer; it is named.
    """
    if not isinstance(model, nn.Module):
        return model  # which is told
    if lost := [
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor) and value.is_meta
    ]:
        raise ValueError(
            f"{some(lost)} on the meta device is neither parameter nor buffer, so that no file "
            "holds its values: make it one, register_buffer(...), or give the network on the CPU"
        )
    broken = set(_non_finite(model))
    named = [*model.named_parameters(), *model.named_buffers()]
    if not any(name in broken or tensor.is_meta for name, tensor in named):
        return model
    model = copy_of(model)
    given: dict[torch.Tensor, torch.Tensor] = {}  # one tensor may have several names
    for path, module in model.named_modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is None or is_lazy(tensor):
                    continue
                if tensor.is_meta and tensor not in given:
                    made = torch.ones_like(tensor, device="cpu")
                    parameter = isinstance(tensor, nn.Parameter)
                    given[tensor] = nn.Parameter(made, tensor.requires_grad) if parameter else made
                elif f"{path}.{key}".lstrip(".") in broken:
                    tensor.data.fill_(1)
                held[key] = given.get(tensor, tensor)
    return model


def is_mask(module: nn.Module, tensor: torch.Tensor) -> bool:
    """Whether a parameter is a mask: -inf somewhere, finite elsewhere, and of no layer of torch's.

    Such as one that is added to attention's or to the logits; a layer's weights are never so.
    """
    if type(module).__module__.startswith("torch.") and not isinstance(
        module, nn.ParameterList | nn.ParameterDict
    ):
        return False
    infinite = tensor == -torch.inf
    return bool(infinite.any()) and bool((infinite | tensor.isfinite()).all())


def _non_finite(model: nn.Module) -> list[str]:
    """Names of weights and statistics that are not finite; a mask may be infinite."""
    weights = {
        f"{path}.{name}".lstrip("."): tensor
        for path, module in model.named_modules()
        for name, tensor in module.named_parameters(recurse=False)
        if not is_lazy(tensor)
        and not tensor.is_meta
        and tensor.layout == torch.strided
        and not is_mask(module, tensor)
    }
    statistics = _statistics(model).items()
    weights |= {name: one for name, one in statistics if not one.is_meta and not is_lazy(one)}
    return [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]


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
    if isinstance(module, nn.MultiheadAttention) and not isinstance(module, PlainAttention):
        return "cannot be mapped: its own code, derived from MultiheadAttention, would not run"
    if isinstance(module, MAPPED) and (own_of_kind := own_in_class(module)):
        return (
            f"cannot be mapped: with a {own_of_kind[0]} of its own it is neither Conv2d nor Linear"
        )
    if not is_mapped(module):
        # What is no product stays digital: normalisation, embeddings, scales, tokens, positions.
        return ""
    if replaced := _replaced(module):
        return f"cannot be mapped: {replaced} is not PyTorch's, put that back before programming"
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
    return ""


def _replaced(module: nn.Module) -> str:
    """What other code has put in place of a function that all layers of a type compute with."""
    kind = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    for name in ("forward", "_conv_forward"):
        method = vars(kind).get(name)
        # A wrapper may bear the name of what it wraps, and not its globals.
        if method and getattr(method, "__globals__", {}).get("__name__") != kind.__module__:
            return f"nn.{kind.__name__}.{name}"
    name = "linear" if kind is nn.Linear else "conv2d"
    plain = isinstance(getattr(nn.functional, name), BuiltinFunctionType)
    return "" if plain else f"torch.nn.functional.{name}"


def _computes(name: str, value: object) -> bool:
    """Whether an attribute of a layer stands in place of a method that its outputs come from."""
    if not callable(value) or name in _SILENT or (hasattr(nn.Module, name) and name not in _CALLS):
        return False
    return any(callable(getattr(kind, name, None)) for kind in MAPPED)


def _all(faults: dict[tuple[str, str], list[str]]) -> str:
    lines = []
    for (kind, fault), names in faults.items():
        count = "layer" if len(names) == 1 else f"{len(names)} layers:"
        lines.append(f"{count} {some(names)} ({kind}) {fault}")
    total = sum(map(len, faults.values()))
    if total == 1:
        return f"{lines[0]}; use Conv2d or Linear, or name it in digital_layers"
    types = ", ".join(dict.fromkeys(repr(kind) for kind, _ in faults))
    return (
        f"{total} layers do not map onto tiles: {'; '.join(lines)}. Use others, or leave them "
        "digital, digital_layers=[name for name, layer in model.named_modules() if "
        f"type(layer).__name__ in {{{types}}}]"
    )
