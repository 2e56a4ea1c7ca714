"""From a torch module to a graph of ATen's operators, by `torch.export`."""

import logging
import math
import operator
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export.graph_signature import InputKind, OutputKind, OutputSpec

from bridge.graphs.graph import Argument, Constant, Graph, Node, Ref
from bridge.graphs.operators import OPERATORS

# Not taken apart: as one operator each they are exact where parts would overflow, have a gradient
# at a kink, or are the products that a reader of the graph looks for.
_WHOLE = (
    "celu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "linear",
    "log_sigmoid",
    "logsumexp",
    "matmul",
    "mish",
    "prelu",
    "relu6",
    "scaled_dot_product_attention",
    "selu",
    "silu",
    "softplus",
    "softshrink",
    "threshold",
)
_RANDOM = (
    "rand",
    "bernoulli",
    "dropout",
    "exponential",
    "multinomial",
    "normal",
    "poisson",
    "rrelu",
)
_BY_VALUE = (
    "index",
    "nonzero",
    "item",
    "_local_scalar_dense",
    "masked_select",
    "_unique2",
    "bincount",
)
_PYTORCH = str(Path(torch.__file__).parent)
_NAMED = 5  # missing operators, or places of one, that a message names


def export(module: nn.Module, images: torch.Tensor) -> Graph:
    """The graph of a module in evaluation mode.

    Args:
      module: float32 on the CPU.
      images: at least two examples, in the module's own layout.

    Raises:
      ValueError: the module decides by values, gives something else than one tensor, draws random
        numbers, changes its buffers, or uses operators that are not in `OPERATORS`.
    """
    program = _exported(module, images)
    signature = program.graph_signature
    if changed := [
        f"{spec.target}".removeprefix(_ROOT)
        for spec in signature.output_specs
        if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)
    ]:
        if parts := _quantised(module, ""):
            raise ValueError(
                _float_wanted(f"{type(module).__name__} has quantised parts ({_some(parts)})")
            )
        raise ValueError(
            f"the module changes {_some(map(str, changed))} in a forward pass: a network whose "
            "state changes gives no fixed logits; keep the state out of forward()"
        )
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    missing: dict[str, list[str]] = {}
    for node in nodes:
        name = _operator(node)
        if name not in OPERATORS or _selects(node):
            missing.setdefault(name, []).append(f"{_layer(node) or 'the module'} ({_line(node)})")
    if missing:
        raise ValueError(_missing(missing))
    tensors, constants, image = _inputs(program, module)
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    return Graph(
        nodes=tuple(_node(node) for node in nodes),
        image=image,
        tensors=tuple(tensors),
        constants=tuple(constants),
        output=Ref(_returned(output, signature.output_specs, module)),
        batch=_range_of(program, image),
    )


def _selects(node: torch.fx.Node) -> bool:
    """Whether it picks by a mask, so that the mask's values decide a shape."""
    if _operator(node) != "aten.index.Tensor":
        return False
    indices: Any = node.args[1]
    return any(_is_mask(one) for one in indices)


def _is_mask(value: Any) -> bool:
    found = value.meta.get("val") if isinstance(value, torch.fx.Node) else None
    return isinstance(found, torch.Tensor) and found.dtype == torch.bool


def _exported(module: nn.Module, images: torch.Tensor) -> torch.export.ExportedProgram:
    table = torch.export.default_decompositions()
    for overload in list(table):
        if isinstance(overload, torch._ops.OpOverload) and _name(overload) in _WHOLE:
            del table[overload]
    with _quiet(), _plain_attention(), torch.no_grad():
        try:
            program = torch.export.export(
                _within(module),
                (images,),
                dynamic_shapes=({0: torch.export.Dim.AUTO},),
                strict=False,
            )
            return program.run_decompositions(table)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ValueError(_failure(error, module, images)) from error


_ROOT = "0."
"""What `_within` puts before all names."""


def _within(module: nn.Module) -> nn.Module:
    """The module as a layer of another: a tensor of the outermost one may not be called as the
    exporter's own modules call their attributes, `code` or `graph`.
    """
    outer = nn.Sequential(module)
    outer.training = module.training  # and not train(), which reaches the parts of the module
    return outer


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own account of what it could not do; its error says it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention by the operators that it is made of, not by one kernel of PyTorch's for all."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _failure(error: Exception, module: nn.Module, images: torch.Tensor) -> str:
    kind = type(module).__name__
    text = str(error).strip()
    if parts := _quantised(module, text):
        return _float_wanted(f"{kind} has quantised parts ({_some(parts)})")
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        return (
            f"{kind} has scripted parts (torch.jit.script), which PyTorch does not export: give "
            "the module that they were made from"
        )
    first = text.splitlines()[0] if text else type(error).__name__
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return (
            f"{kind} decides by the values of its inputs ({first}): JAX needs one program for all "
            "samples; write torch.where in place of an if, or a mask in place of a selection"
        )
    return (
        f"{kind} cannot be exported with inputs {images.dtype} {tuple(images.shape)} ({first}): "
        "torch.export.export(module, (inputs,), strict=False) must work; images are [batch, "
        "height, width, channel], other inputs as the module takes them"
    )


def _quantised(module: nn.Module, text: str) -> list[str]:
    """Kinds of a module's quantised parts, or the quantising operator that an error tells of."""
    kinds = {
        type(part).__name__ for part in module.modules() if _QUANTISED.match(type(part).__module__)
    }
    return sorted(kinds) or _QUANTISING.findall(text)[:1]


_QUANTISED = re.compile(r"torch\.ao\.(nn\.|quantization\.)|torchao\.")
_QUANTISING = re.compile(r"\w*(?:quantize|quantized)\w*")


def _float_wanted(what: str) -> str:
    return (
        f"{what}: rounding has no derivative, so that there is nothing to score; give the float "
        "network that it was made from, as it is before torch.ao prepares or converts it"
    )


def _inputs(
    program: torch.export.ExportedProgram, module: nn.Module
) -> tuple[list[tuple[str, str]], list[tuple[str, Constant]], str]:
    """Tensors and constants that the nodes use, and the name of the image."""
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    first = {id(t): name for name, t in _named_tensors(module, duplicates=False)}
    names = {name: first[id(t)] for name, t in _named_tensors(module, duplicates=True)}
    held = dict(_named_tensors(module, duplicates=True))
    tensors, constants, images = [], [], []
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind == InputKind.USER_INPUT:
            images.append(name)
            continue
        if name not in used:
            continue
        target = f"{spec.target}".removeprefix(_ROOT)
        if target in held and _holds_weights(held[target]):
            tensors.append((name, names[target]))
        else:
            value = held.get(target, program.constants.get(f"{spec.target}"))
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"{target} of the module is no tensor: {type(value)}")
            constants.append((name, _constant(value)))
    if not images:
        raise ValueError(f"{type(module).__name__} takes no input")
    return tensors, constants, images[0]


def _holds_weights(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _named_tensors(module: nn.Module, *, duplicates: bool) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=not duplicates)
    yield from module.named_buffers(remove_duplicate=not duplicates)


def _constant(value: torch.Tensor) -> Constant:
    """In 32 bits, as JAX computes."""
    if value.is_floating_point():
        value = value.to(torch.float32)
    array = value.detach().numpy()
    if array.dtype == np.int64:
        limits = np.iinfo(np.int32)
        array = np.clip(array, limits.min, limits.max).astype(np.int32)
    return Constant.of(array)


def _returned(output: torch.fx.Node, specs: Sequence[OutputSpec], module: nn.Module) -> str:
    """The name of what a module returns; what it makes of its input in place is given besides."""
    kind = type(module).__name__
    given = output.args[0]
    assert isinstance(given, tuple | list)
    values = [
        value
        for value, spec in zip(given, specs, strict=True)
        if spec.kind != OutputKind.USER_INPUT_MUTATION
    ]
    if len(values) != 1:
        raise ValueError(
            f"{kind} returns {len(values)} values: wrap it in a module that returns its logits "
            "[batch, class] alone"
        )
    if not isinstance(values[0], torch.fx.Node):
        raise ValueError(f"{kind} returns {values[0]!r}, which its inputs do not decide")
    return values[0].name


def _range_of(program: torch.export.ExportedProgram, image: str) -> tuple[int | None, int | None]:
    """Batch sizes for which the graph is the module's."""
    (node,) = (node for node in program.graph.nodes if node.name == image)
    size = node.meta["val"].shape[0]
    fixed = size if isinstance(size, int) else size.node.maybe_as_int()
    if fixed is not None:
        return fixed, fixed
    limits = program.range_constraints.get(size.node.expr)
    if limits is None:
        return None, None
    least = int(limits.lower)
    most = int(limits.upper) if str(limits.upper).isdigit() else None
    # The exporter takes no batch of one for granted; the operators here do not mind it.
    return None if least <= 2 else least, None if most is None or most > 2**31 else most


def _node(node: torch.fx.Node) -> Node:
    value = node.meta.get("val")
    dtype = str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else None
    return Node(
        name=node.name,
        operator=_operator(node),
        arguments=tuple(_argument(one) for one in node.args),
        options=tuple((name, _argument(one)) for name, one in node.kwargs.items() if _matters(one)),
        dtype=dtype,
        layer=_layer(node),
        line=_line(node),
    )


def _matters(value: Any) -> bool:
    """Whether an option is more than where a tensor lies, which JAX decides."""
    return not isinstance(value, torch.device | torch.layout | torch.memory_format | torch.dtype)


def _argument(value: Any) -> Argument:
    if isinstance(value, torch.fx.Node):
        return Ref(value.name)
    if isinstance(value, list | tuple):
        return tuple(_argument(one) for one in value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if value is None or isinstance(value, bool | int | float | complex | str):
        return value
    if not _matters(value):
        return None
    raise ValueError(f"an operator takes {value!r}, which has no counterpart in JAX")


def _name(overload: torch._ops.OpOverload) -> str:
    return overload._schema.name.split("::")[-1]


def _operator(node: torch.fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    name = getattr(target, "__name__", str(target))
    for place, label in ((operator, "operator"), (math, "math"), (torch, "torch")):
        if getattr(place, name, None) is target:
            return f"{label}.{name}"
    return f"{getattr(target, '__module__', '')}.{name}"


def _layer(node: torch.fx.Node) -> str:
    """Path of the innermost module that an operator belongs to."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    path = [path for path, _ in stack.values()][-1] if stack else ""
    return f"{path}.".removeprefix(_ROOT).removesuffix(".")


def _line(node: torch.fx.Node) -> str:
    """The line of the user's code, the last one outside PyTorch."""
    trace = (node.meta.get("stack_trace") or "").splitlines()
    calls = [
        (place.strip(), code.strip())
        for place, code in pairwise(trace)
        if place.strip().startswith("File ")
    ]
    own = [call for call in calls if _PYTORCH not in call[0]] or calls
    if not own:
        return "no source line known"
    place, code = own[-1]
    file, _, rest = place.removeprefix("File ").partition(", line ")
    name, number = file.strip().strip('"'), rest.partition(",")[0]
    return f"{name}:{number}: {code}"


def _missing(missing: Mapping[str, list[str]]) -> str:
    random = [name for name in missing if any(word in name for word in _RANDOM)]
    by_value = [name for name in missing if name.split(".")[1] in _BY_VALUE]
    lines = [f"{name} in {_some(places)}" for name, places in missing.items()]
    told = f"the module uses {_some(lines)}"
    if any("quant" in name for name in missing):
        return _float_wanted(told)
    if random:
        return (
            f"{told}: it draws random numbers, and each sample's logits must be the same at every "
            "call; call eval() on every part, or leave the noise out"
        )
    if by_value:
        return (
            f"{told}: its shapes depend on the values of its inputs, and JAX needs one program "
            "for all samples; use a mask in place of a selection"
        )
    if all("higher_order" in name for name in missing):
        return f"{told}: control flow and other functions of functions are not brought to JAX"
    return (
        f"{told}, for which there is no function in JAX here (bridge/graphs/operators): use others "
        "in the module, or add the function"
    )


def _some(names: Any) -> str:
    listed = list(names)
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")
