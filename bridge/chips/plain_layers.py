"""Layers as they compute in evaluation: weights without parametrization, and hooks that stay."""

import dis
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

MAPPED = (nn.Conv2d, nn.Linear)
"""What goes to tiles, with subclasses that compute as they do."""
COMPUTING = {
    *("forward", "_conv_forward", "__call__", "_call_impl", "_wrapped_call_impl"),
    *("_slow_forward", "__getattr__", "__getattribute__", "weight", "bias"),
}
"""What a subclass must not have of its own."""

_SETS_WEIGHTS = (BasePruningMethod, SpectralNorm, WeightNorm)
"""Forward pre-hooks of PyTorch's that compute a layer's weights from other parameters."""
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_OF_A_LAYER = {"weight", "bias", "_hooks_before", "_digital_kind"}
_OF_MODULES = set(vars(nn.Module())) - {"training"}
_OF_AIHWKIT = {  # what its convolutions have and PyTorch's have not
    *("fold_indices", "in_features", "out_features", "input_size", "tensor_view", "use_indexed"),
}


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model whose layers hold weights that a hook computed.

    Raises:
      ValueError: an attribute cannot be copied, such as a lock or an open file; it is named.
    """
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    try:
        return deepcopy(model, dict(computed))
    except Exception as error:  # as many as there are kinds of attributes
        for path, module in model.named_modules():
            for name, value in vars(module).items():
                if name == "_modules" or _is_copied(value, computed):
                    continue
                if name in _OF_MODULES and name.endswith("hooks"):
                    raise ValueError(
                        f"a hook of layer {path or 'at the root'} holds on to what cannot be "
                        f"copied, and a chip has a copy of the network ({error}): remove it "
                        "before, handle.remove(), or register a plain function"
                    ) from error
                place = f"{path}.{name}".lstrip(".")
                raise ValueError(
                    f"{place} of the model, a {type(value).__name__}, cannot be copied, and a "
                    f"chip has a copy of the network ({error}): set it to None before, or "
                    "define its __deepcopy__"
                ) from error
        raise


def separate_copy_of(model: nn.Module) -> nn.Module:
    """A `copy_of` that is to be changed in place.

    Raises:
      ValueError: besides, a module is its own copy, and so would be changed with it; it is named.
    """
    copied = copy_of(model)
    own = dict(copied.named_modules())
    for path, module in model.named_modules():
        if any(True for _ in _tensors(module)) and own.get(path) is module:
            raise ValueError(
                f"layer {path or 'at the root'} ({type(module).__name__}) is its own copy, by its "
                "__deepcopy__, so that a chip of the model would put tiles into the model itself: "
                "let its __deepcopy__ make another module, or leave it out"
            )
    return copied


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def without_compilation(model: nn.Module, left: Callable[[str], bool]) -> nn.Module:
    """Puts layers that `torch.compile` wraps one by one in the place of their wrappers; in place.

    Layers within compiled blocks are found without.

    Args:
      model: a copy of the user's.
      left: whether the layer at a path stays digital.
    """
    made: dict[nn.Module, nn.Module] = {}
    for path, module in model.named_modules():
        inner: Any = getattr(module, "_orig_mod", None)
        if (
            not _is_compiled(module)
            or left(path)
            or left(f"{path}._orig_mod")
            or list(inner.children())
        ):
            continue
        made[module] = inner
    return put_in_place(model, made)


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule"  # the import of which takes seconds


def _is_copied(value: Any, computed: dict[int, Any]) -> bool:
    try:
        deepcopy(value, dict(computed))
    except Exception:
        return False
    return True


def put_in_place(model: nn.Module, made: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Puts modules in the place of others, under each of their names; in place.

    Args:
      model: a network.
      made: the new module by the one whose place it takes.

    Returns:
      The model, or the module in its place.
    """
    if model in made:
        return made[model]
    for parent in list(model.modules()):
        for attribute, child in list(parent._modules.items()):  # named_children tells one name
            if child is not None and child in made:
                setattr(parent, attribute, made[child])
    return model


def fill(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Gives a layer copies of weight and bias, which are not trained; in place."""
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    layer.eval()


def staying_digital(model: nn.Module, digital_layers: Sequence[str]) -> Callable[[str], bool]:
    """Whether the layer at a path is named, or within what is named, by any of its paths."""
    paths = list(model.named_modules(remove_duplicate=False))
    left = {
        module
        for path, module in paths
        if any(f"{path}.".startswith(f"{name}.") for name in digital_layers)
    }
    return {path for path, module in paths if module in left}.__contains__


def kind_of(module: nn.Module) -> type[nn.Module]:
    """Its type, without parametrizations."""
    found: type[nn.Module] = parametrize.type_before_parametrizations(module)
    return found


def is_mapped(module: nn.Module) -> bool:
    """Whether a layer computes as Conv2d or Linear, without its parametrizations."""
    return isinstance(module, MAPPED) and not own_in_class(module)


def own_in_class(module: nn.Module) -> list[str]:
    """What the class of a Conv2d or Linear layer has in place of theirs, of what computes."""
    kinds = kind_of(module).__mro__
    above = kinds[: min(kinds.index(base) for base in MAPPED if base in kinds)]
    return sorted(COMPUTING.intersection(name for one in above for name in vars(one)))


def fold_parametrizations(model: nn.Module, left: Callable[[str], bool]) -> nn.Module:
    """Gives Conv2d and Linear layers the weights that they compute with; in place.

    Pruning masks, `torch.nn.utils.parametrizations` and the older weight and spectral
    normalisation are functions of fixed parameters in evaluation: their results are the weights.

    Args:
      model: in eval mode, a copy of the user's.
      left: whether the layer at a path stays as it is.

    Returns:
      The model, which is another module where its root was such a layer.

    Raises:
      ValueError: a parametrization that gives other weights each time; the layer is named.
    """
    chosen = [
        (name, module)
        for name, module in model.named_modules()
        if is_mapped(module) and not left(name) and _is_parametrized(module)
    ]
    # All before any is replaced, for they may share parameters; a layer of two names once.
    return put_in_place(model, {module: _plain(name, module) for name, module in chosen})


def state_geometry(model: nn.Module, left: Callable[[str], bool]) -> None:
    """Has layers say their geometry in numbers, and that of the weights that they have; in place.

    After pruning a layer may have smaller weights than it says; PyTorch computes with the weights.
    Padding by name becomes as many zeros.

    Args:
      model: a copy of the user's, without parametrizations of what is to be mapped.
      left: whether the layer at a path stays as it is.
    """
    for name, module in model.named_modules():
        if left(name) or not is_mapped(module):
            continue
        out, inputs, *kernel = module.get_parameter("weight").shape
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = out, inputs
        elif isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels = out, inputs
            module.kernel_size = (kernel[0], kernel[1])
            if isinstance(module.padding, str):
                around = [
                    dilation * (size - 1) // 2
                    for dilation, size in zip(module.dilation, kernel, strict=True)
                ]
                module.padding = (around[0], around[1]) if module.padding == "same" else (0, 0)


def without_fast_paths(network: nn.Module, mapped: Iterable[nn.Module]) -> None:
    """Has transformers call their layers, which PyTorch's fast paths do not; in place.

    Encoders make nested tensors of padded sequences there, and so give zeros at padded places;
    these they still give.

    Args:
      network: in eval mode.
      mapped: layers of it; transformers without any of them stay as they are.
    """
    mapped = set(mapped)
    for module in network.modules():
        if mapped.isdisjoint(module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        nested = getattr(module, "use_nested_tensor", False)
        if nested and type(module).forward is nn.TransformerEncoder.forward:
            vars(module)["use_nested_tensor"] = False
            last: Any = module.get_submodule("layers")
            last[-1].register_forward_hook(_without_padding, with_kwargs=True)


def _without_padding(
    _: nn.Module, args: Any, kwargs: dict[str, Any], output: torch.Tensor
) -> torch.Tensor:
    """Zeros at padded places, where `nn.TransformerEncoder` would have made nested tensors."""
    padding = kwargs.get("src_key_padding_mask")
    if padding is None or kwargs.get("src_mask") is not None or output.ndim != 3:
        return output
    taken = padding.logical_not()
    off = not torch.backends.mha.get_fastpath_enabled() or torch.is_autocast_enabled()
    if off or not torch._nested_tensor_from_mask_left_aligned(output, taken):
        return output
    return output.masked_fill(~taken[..., None], 0.0)


def carry_over(old: nn.Module, new: nn.Module) -> None:
    """Gives a layer in another's place its forward hooks, and the attributes that it lacks."""
    for kind in _HOOKS:
        getattr(new, kind).update(getattr(old, kind))
    # Handles of hooks refer to these weakly, and cannot be copied without them.
    vars(new)["_hooks_before"] = (vars(old).get("_hooks_before"), [vars(old)[k] for k in _HOOKS])
    left = _OF_A_LAYER | (_OF_AIHWKIT if hasattr(old, "fold_indices") else set())
    for name, value in vars(old).items():
        taken = name in vars(new) or name in new._modules
        if not taken and name not in left and not _of_pytorch(name):
            vars(new)[name] = value


def own_attributes(layer: nn.Module) -> dict[str, Any]:
    """What a layer holds but for tensors and what every module has."""
    return {name: value for name, value in vars(layer).items() if not _of_pytorch(name)}


def _of_pytorch(name: str) -> bool:
    return name in _OF_MODULES or (name.startswith("_") and hasattr(nn.Module, name))


def refuse_untraceable_hooks(model: nn.Module) -> None:
    """Refuses forward hooks that hold on to the network, as a copy's would to the original's.

    And those of what `torch.compile` makes of a layer, which a copy is without.

    Raises:
      ValueError: such a hook; its layer is named.
    """
    modules = set(model.modules())
    for name, module in model.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            if getattr(module, kind) and _is_compiled(module):
                raise ValueError(
                    f"a forward hook of layer {name or 'at the root'} is on what torch.compile "
                    "made of it, and a copy of that is without hooks: register it on the layer "
                    "before it is compiled, or on its _orig_mod"
                )
            for hook in getattr(module, kind).values():
                if any(one in modules for one in _held(hook)):
                    raise ValueError(
                        f"a forward hook of layer {name or 'at the root'} ({type(module).__name__})"
                        " refers to the network or a layer of it, which a chip's copy of the "
                        "network would not run: register a method of the network, "
                        "register_forward_hook(self.method), use the module that the hook is "
                        "given, or remove it, handle.remove()"
                    )


def refuse_replaced_forwards(model: nn.Module, left: Callable[[str], bool]) -> None:
    """Refuses a `forward` that was set on an object and holds on to layers that are to be mapped.

    A copy of the network would have the same function, which calls the original's layers. Methods,
    and what `functools.partial` was given, are copied with the network.

    Args:
      model: the user's.
      left: whether the layer at a path stays digital.

    Raises:
      ValueError: such a function; its layer is named.
    """
    modules = set(model.modules())
    for name, module in model.named_modules():
        function = vars(module).get("forward")
        compiled = _is_compiled(module) or hasattr(function, "_torchdynamo_orig_callable")
        if compiled or left(name) or is_mapped(module):  # which are told of otherwise
            continue
        held = modules.intersection(_held_within(function))
        if any(is_mapped(layer) for one in held for layer in one.modules()):
            where = f"layer {name}" if name else "the model"
            raise ValueError(
                f"the forward of {where} ({type(module).__name__}) was replaced on the object by a "
                "function that holds on to the original's, so that a chip's copy would call the "
                "layers of the model and not its own on tiles: leave the object's forward as it "
                "is, del model.forward, and wrap it in a module, as with "
                "nn.Sequential(Normalise(), model); torch.no_grad() is not needed"
            )


def _held_within(function: Any) -> set[nn.Module]:
    """The modules that a function or one that it calls holds on to, itself or by their methods."""
    found, waiting, seen = set[nn.Module](), [function], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        for held in _referred(one):
            of = getattr(held, "__self__", held)
            if isinstance(of, nn.Module):
                found.add(of)
            elif isinstance(held, FunctionType | partial):
                waiting.append(held)
    return found


def settle_weights(module: nn.Module) -> None:
    """Has a layer hold the weights that PyTorch's pre-hooks compute, without these; in place."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, _SETS_WEIGHTS):
            hook(module, ())
            del module._forward_pre_hooks[key]
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            vars(module)[name] = value.detach()


def own_hooks(module: nn.Module) -> list[Any]:
    """Its forward pre-hooks, but for PyTorch's own that compute weights."""
    return [h for h in module._forward_pre_hooks.values() if not isinstance(h, _SETS_WEIGHTS)]


def _held(hook: Any) -> Iterable[nn.Module]:
    """The modules that a plain function holds on to; methods are copied with their object."""
    return [one for one in _referred(hook) if isinstance(one, nn.Module)]


_READS_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME")  # names of attributes are read otherwise


def _referred(hook: Any) -> list[Any]:
    """What a plain function reads of its closure, defaults and module."""
    while isinstance(hook, partial):
        hook = hook.func
    code = getattr(hook, "__code__", None)
    if code is None or hasattr(hook, "__self__"):
        return []
    found = []
    for cell in hook.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not bound yet
            continue
    found += hook.__defaults__ or ()
    found += (hook.__kwdefaults__ or {}).values()
    names = dict.fromkeys(
        one.argval for one in dis.get_instructions(code) if one.opname in _READS_GLOBALS
    )
    found += [hook.__globals__[name] for name in names if name in hook.__globals__]
    return found


def _is_parametrized(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module) or any(
        isinstance(hook, _SETS_WEIGHTS) for hook in module._forward_pre_hooks.values()
    )


def _plain(name: str, module: Any) -> nn.Module:
    weight, bias = _weights(module)
    for one, again in zip((weight, bias), _weights(module), strict=True):
        if one is None or again is None or torch.equal(one, again):
            continue
        raise ValueError(
            f"layer {name or 'at the root'} has a parametrization that gives other weights each "
            "time: remove it, or name the layer in digital_layers"
        )
    made: Any
    if isinstance(module, nn.Linear):
        made = nn.utils.skip_init(
            nn.Linear, module.in_features, module.out_features, bias=bias is not None
        )
    else:
        made = nn.utils.skip_init(
            nn.Conv2d,
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            bias is not None,
            module.padding_mode,
        )
    made.__class__ = kind_of(module)
    fill(made, weight, bias)
    carry_over(module, made)
    kept = own_hooks(module)
    for key, hook in list(made._forward_pre_hooks.items()):
        if hook not in kept:
            del made._forward_pre_hooks[key]
    return made.train(module.training)


@torch.no_grad()
def _weights(module: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weights and the bias that a forward pass would use."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _SETS_WEIGHTS):
            hook(module, ())
    weight, bias = module.weight, module.bias
    return weight.detach().clone(), None if bias is None else bias.detach().clone()
