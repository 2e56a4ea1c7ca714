"""Weights that no tile holds: products with a network's parameters beside its layers on tiles."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bridge.chips.mappable import some
from bridge.graphs.scaled_weights import Operand, Scaled, are_ids, scaled_weights

_BOTH = (0, 1)
_PRODUCTS = {
    **dict.fromkeys(["mm", "bmm", "mv", "dot", "vdot", "linear", "matmul", "inner"], _BOTH),
    **dict.fromkeys(["convolution", "_convolution", "convolution_overrideable"], _BOTH),
    **dict.fromkeys(["mkldnn_convolution", "mkldnn_linear", "_cdist_forward"], _BOTH),
    **dict.fromkeys(["_euclidean_dist", "_sparse_mm", "hspmm", "conv_tbc"], _BOTH),
    **dict.fromkeys(["_linalg_solve_ex", "linalg_solve_triangular", "triangular_solve"], _BOTH),
    **dict.fromkeys(["cholesky_solve", "linalg_lstsq"], _BOTH),
    **dict.fromkeys(["linalg_lu_solve", "linalg_ldl_solve", "ormqr"], (0, 2)),
    **dict.fromkeys(["_embedding_bag", "_embedding_bag_forward_only"], (0, 6)),
    **dict.fromkeys(["_int_mm", "_grouped_mm", "_scaled_mm"], _BOTH),
    **dict.fromkeys(["addmm", "baddbmm", "addbmm", "addmv", "addr", "_addmm_activation"], (1, 2)),
    **dict.fromkeys(["_sparse_addmm", "sspaddmm", "sparse_sampled_addmm"], (1, 2)),
}
"""Where PyTorch's operations have the factors of a product; elsewhere are biases."""
_FUNCTIONS = {"cosine_similarity"}
"""Functions of two factors whose product is lost in the operations that they are made of."""
_WHOLE = (
    "_trilinear",
    "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
    "lstm",
    "gru",
    "rnn",
    "mkldnn_rnn",
)
"""Operations, by the beginning of their name, whose every matrix is a factor of a product."""
_KEEPS_TERMS = {
    *("view", "_unsafe_view", "reshape", "transpose", "t", "permute", "expand", "unsqueeze"),
    *("squeeze", "slice", "select", "clone", "contiguous", "add", "add_", "sub", "neg"),
    *("_to_copy", "masked_fill", "masked_fill_", "where"),  # each number where it was
}
"""Operations through which a product written with `*` is followed to its sum."""
_MOVES = _KEEPS_TERMS - {"add", "add_", "sub"}
_OF_SPECTRA = {*_MOVES, "view_as_real", "view_as_complex", "real", "imag", "abs", "angle"}
"""Operations that leave complex values their places, or give those of their parts."""
_FILTERS = {"mul", "div", "addcmul", "addcdiv"}
"""Operations by which they are filtered."""
_SUMS = {"sum", "mean", "nansum", "cumsum"}
_POOLS = {"avg_pool1d": 1, "avg_pool2d": 2, "avg_pool3d": 3}
_POOLS |= {"_adaptive_avg_pool2d": 2, "_adaptive_avg_pool3d": 3}
"""By how many of the last axes they sum."""
_SCATTERS = {"index_add": 3, "scatter_add": 3, "scatter_reduce": 3, "index_reduce": 3}
"""Sums along the axis of their second argument, and where they have what is summed."""
_NORMS = {"linalg_vector_norm", "norm"}
_SCALES = {"mul", "div", "neg"}
_EVEN = {"pow", "square", "abs"}
_LEAVES_TORCH = {"numpy", "__array__", "__dlpack__", "tolist"}
"""Methods of a tensor by which its numbers leave PyTorch."""
_UNLISTED = "a parameter that the network does not list"
UNNAMED = "a tensor or array that it does not list"
"""In place of a name: NumPy's arrays, tensors in lists, globals, those a hook holds on to."""


class _Picked(NamedTuple):
    """A parameter of which the input picks a part, by name."""

    name: str


class _Origin(NamedTuple):
    """What a tensor comes from: the input, parameters by name, terms of a product written out.

    Names are words, in terms also those of `_Picked`.
    """

    input: bool = False
    parameters: frozenset[Any] = frozenset()
    terms: frozenset[Any] = frozenset()
    same: frozenset[int] = frozenset()
    """Axes of those terms, from the last, along which what depends on the input is the same."""
    fixed: frozenset[str] = frozenset()
    """Buffers and other tensors of the network, by name, and what was made before the pass."""
    differences: frozenset[str] = frozenset()
    """Parameters that each row of what depends on the input is subtracted from, or they from it."""
    squares: frozenset[str] = frozenset()
    """Those of such differences squared, or without their sign."""
    scaled: Scaled = Scaled()
    """Parameters that it is, times fewer numbers of the input's, such as one for each column.

    Or a part of them, which the input picks.
    """
    factors: frozenset[tuple[Any, int]] = frozenset()
    """Parameters that a product written out is times, each with an axis, from the last, along which
    they differ."""
    ids: bool = False
    """Whether it is whole numbers that the input itself has, such as token ids."""
    spectrum: bool = False
    """Whether it is complex values of the input, or their parts, sizes or angles."""
    parts: frozenset[str] = frozenset()
    """Parameters that parts, sizes or angles of such values were multiplied by, up to a transform:
    those of a filter where complex values are made of it again."""


class Picks(NamedTuple):
    """Floating-point operations for one sample of products with parts that the input picks.

    Attributes:
      products: those of matrix products and convolutions.
      sums: those of products that are written out and summed, which PyTorch does not count.
    """

    products: float = 0.0
    sums: float = 0.0


class Seen(NamedTuple):
    """What a forward pass shows of a network that is not refused."""

    unused: list[str]
    """Layers on tiles that these images do not need: not called, and their weights not read."""
    fixed: dict[tuple[str, ...], float]
    """Floating-point operations for one sample of the products with buffers, by their names."""
    distances: list[str]
    """Parameters that distances are taken to by differences that are squared and summed."""
    picked: dict[tuple[str, ...], Picks]
    """Products with parts of parameters that the input picks, by the parameters' names."""
    filters: list[str]
    """Parameters that complex features are multiplied by, number by number, as those of a Fourier
    transform are."""


def refuse_weights_beside_tiles(
    network: nn.Module,
    mapped: Sequence[str],
    digital_layers: Sequence[str],
    images: torch.Tensor,
    more: torch.Tensor,
) -> Seen:
    """Refuses a network that multiplies with parameters which are on no tile.

    Seen by behaviour, in one forward pass: a matrix product or convolution of what depends on the
    input with what comes from parameters alone, outside the layers. Looking up, adding and scaling
    by parameters are no such products. Weights that the input scales before a product (modulated
    convolutions, gated layers) are seen where each scale has fewer numbers than the scaled weights.
    Parameters that the network does not list, such as those of layers in a plain list, are seen
    too, and matrices of parameters whose numbers leave PyTorch (`numpy()`). Products with buffers
    alone, or with tensors and NumPy's arrays that were made before the pass, are found; so are
    products with weights that the input picks from parameters (experts; not rows that its token ids
    name), distances to parameters that are written out as the sum of squared differences, and
    filters: complex features, as of a Fourier transform, times parameters, number by number. A
    product may be written out with `*` and summed by `sum`, `mean`, `cumsum`, averaging pools,
    `index_add` and `scatter_add`.

    Not seen: matrices that the code makes anew (`torch.eye`); products that are written out for a
    single output (`(x * w).sum(-1)`, and a stack of such), for a single input (`x[:, i : i + 1] *
    w[:, i]`, added up), or of copies in place of expanded views (`repeat`); whose terms are joined,
    padded, clipped or picked before they are summed; other such sums; and weights to which the
    input adds or gives each number its scale.

    Args:
      network: digital, on the CPU; hooks are registered and removed.
      mapped: paths of the layers that go to tiles.
      digital_layers: paths of layers, and of single parameters, that stay digital.
      images: what it takes, `[batch, ...]`.
      more: run too if these do not call each layer on tiles, as where an image chooses its layers.

    Returns:
      Layers on tiles that are not needed, and the products with buffers that are not to stay
      digital anyway.

    Raises:
      ValueError: such parameters, a layer on tiles that is not called though its weights are read,
        or one whose weights the network writes itself; named.
    """
    depth: list[str] = []
    called: set[str] = set()
    weights = _moved({name: network.get_submodule(name) for name in mapped})
    written: dict[str, None] = {}

    def enter(name: str, module: nn.Module, *_: Any) -> None:
        depth.append(name)
        called.add(name)
        check(name, module)

    def check(name: str, module: nn.Module) -> None:
        if name in weights and not _has(module, weights[name].at):
            written[name] = None

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if depth.pop() in mapped:  # what tiles give is no parameter
            for x in tree_leaves(output):
                if isinstance(x, torch.Tensor):
                    watch.add_input(x)

    left = set(digital_layers)
    named = dict(network.named_modules(remove_duplicate=False))
    kept = {named[name] for name in left if name in named}
    handles = []
    for name, module in network.named_modules():
        # The layers of PyTorch's own that are not mapped were refused, or are to stay digital.
        own = type(module).__module__.startswith("torch.nn") and bool(
            list(module.parameters(recurse=False))
        )
        if name in mapped or module in kept or own:
            around = module in kept
            handles += [
                module.register_forward_pre_hook(partial(enter, name), prepend=around),
                module.register_forward_hook(leave, prepend=not around, always_call=True),
            ]
    watch = _Watch(network, lambda: bool(depth))
    try:
        _run(watch, network, images)
        if len(more) > len(images) and not called.issuperset(mapped):
            _run(watch, network, more)
        for name in weights:
            check(name, network.get_submodule(name))
    finally:
        for handle in handles:
            handle.remove()
        for name, weight in weights.items():
            network.get_submodule(name).weight = weight.own
            weight.own.data = weight.was
    if written:
        raise ValueError(
            f"the network, or a hook of it, writes the weights of {some(written)} itself: they "
            "would take the place of those on tiles, noise and all; write them once before, "
            "net.load_state_dict(weights) in place of torch.func.functional_call(net, weights, x), "
            "or compute them by torch.nn.utils.parametrize, or name the layer, "
            f"digital_layers=[{next(iter(written))!r}]"
        )
    _refuse_found(network, mapped, watch.found, left)
    _refuse_outside(network, watch.outside, left)
    unused = [name for name in mapped if name not in called]
    read = [name for name in unused if not watch.read.isdisjoint(_tensors(network, name))]
    if not called:
        read = unused  # such as a copy that runs the original's layers
    if read:
        names = ", ".join(map(repr, read[:3]))
        raise ValueError(
            f"{'layer' if len(read) == 1 else f'{len(read)} layers:'} {some(read)} would be on "
            "tiles but a forward pass does not call it, and computes with its weights or with "
            "others in their place: call it in the network's code as a module, self.fc(x) and not "
            "self.fc.forward(x), by an nn.ModuleList and not a plain list; compile the whole "
            "network, torch.compile(model), and not self.forward = torch.compile(self.forward); or "
            f"name it, digital_layers=[{names}]"
        )
    if any(_UNLISTED in names for names in watch.found):
        raise ValueError(
            "the network multiplies with parameters that it does not list, so that they would be "
            "on no tile and no noise would reach them: those of layers in a plain list, of a "
            "second name of a layer (self.f = self.fc.forward), or outside of the network, which "
            "a hook or a lambda holds on to; make them attributes of the network, such as "
            "nn.ModuleList or nn.ParameterList, and call layers as self.fc(x)"
        )
    distances = [name for name in sorted(watch.distances) if not _stays(network, name, left)]
    filters = [name for name in sorted(watch.filters) if not _stays(network, name, left)]
    return Seen(unused, watch.fixed_products(left), distances, watch.picked_products(left), filters)


def _tensors(network: nn.Module, name: str) -> set[str]:
    """The names of a layer's weight and bias, by each of its paths."""
    layer = network.get_submodule(name)
    paths = [path for path, one in network.named_modules(remove_duplicate=False) if one is layer]
    return {f"{path}.{kind}".lstrip(".") for path in paths for kind in ("weight", "bias")}


def _run(watch: "_Watch", network: nn.Module, images: torch.Tensor) -> None:
    images = images.clone()
    watch.add_input(images)
    watch.samples += len(images)
    with watch, _WatchFunctions(watch):
        network(images)


def _refuse_found(
    network: nn.Module, mapped: Sequence[str], found: list[frozenset[str]], left: set[str]
) -> None:
    refused: dict[str, None] = {}
    for names in found:
        if _UNLISTED not in names and not any(_stays(network, name, left) for name in names):
            refused |= dict.fromkeys(sorted(names))
    if refused:
        owners = {name: name.rpartition(".")[0] for name in refused}
        paths = dict.fromkeys(at if at in mapped else name for name, at in owners.items())
        raise ValueError(
            f"the network multiplies with {some(refused)} outside of a layer on tiles: these "
            "weights would be on no tile, and no noise would reach them; make it a call of a "
            "Conv2d or Linear layer, such as self.fc(x) for F.linear(x, self.fc.weight) or "
            "self.fc.forward(x), and self.fc(x * scale) for a weight times what the input gives, "
            "or name what is to stay digital, "
            f"digital_layers=[{', '.join(map(repr, paths))}]"
        )


def _refuse_outside(network: nn.Module, outside: set[str], left: set[str]) -> None:
    names = [name for name in sorted(outside) if not _is_under(name, left)]
    if names:
        raise ValueError(
            f"the network takes the numbers of {some(names)} out of PyTorch, by numpy(), tolist() "
            "or the like: what is computed with them is on no tile, and no noise would reach these "
            "weights; compute in PyTorch, by a call of a Conv2d or Linear layer, or name what is "
            f"to stay digital, digital_layers=[{names[0]!r}]"
        )


def _is_under(name: str, left: Iterable[str]) -> bool:
    """Whether a tensor, or a module that it is in, is among the paths."""
    return any(f"{name}.".startswith(f"{one}.") for one in left)


def _stays(network: nn.Module, name: str, left: set[str]) -> bool:
    """Whether a parameter is to stay digital: by its name or list, or as a digital layer's weight.

    Not as that of an embedding, say: who looks a table up in digital may still multiply with it.
    """
    path = name.rpartition(".")[0]
    owner = network.get_submodule(path)
    layer = isinstance(
        owner, nn.Linear | nn.modules.conv._ConvNd | nn.ParameterList | nn.ParameterDict
    )
    return name in left or (layer and any(f"{path}.".startswith(f"{one}.") for one in left))


class _Moved(NamedTuple):
    """A layer's weight: the parameter, its values before and those that it is watched with."""

    own: nn.Parameter
    was: torch.Tensor
    at: torch.Tensor


def _moved(layers: dict[str, nn.Module]) -> dict[str, _Moved]:
    """Gives layers other weights, off every grid and mask, so that what is written shows."""
    moved = {}
    for name, layer in layers.items():
        own: Any = layer.weight
        was = own.data
        step = 0.0137 * (float(was.abs().max()) or 1.0)
        own.data = was * 1.0113 + step
        moved[name] = _Moved(own, was, own.data.clone())
    return moved


def _has(layer: Any, weight: torch.Tensor) -> bool:
    found = layer.weight
    return isinstance(found, torch.Tensor) and torch.equal(found.detach(), weight)


class _Watch(TorchDispatchMode):
    """Follows where tensors come from; storages are known, so that views are too.

    Attributes:
      found: parameters, by name, of each product outside of a layer.
      read: parameters, by name, that are read outside of a layer.
      samples: how many images run.
      distances: parameters, by name, that distances are taken to.
      outside: parameters, by name, whose numbers leave PyTorch outside of a layer.
      filters: parameters, by name, that complex features are multiplied by.
    """

    def __init__(self, network: nn.Module, inside: Callable[[], bool]):
        super().__init__()
        self.found: list[frozenset[str]] = []
        self.read: set[str] = set()
        self.samples = 0
        self.distances: set[str] = set()
        self.outside: set[str] = set()
        self.filters: set[str] = set()
        self._fixed: dict[frozenset[str], int] = {}
        self._picked: dict[frozenset[str], Picks] = {}
        self._unknown = _Origin(fixed=frozenset([UNNAMED]))  # what no operation of the pass made
        self._inside = inside
        self._origins: dict[int, _Origin] = {}
        self._held: dict[int, StorageWeakRef] = {}  # so that no address is used twice
        for name, parameter in network.named_parameters(remove_duplicate=False):
            self._add(parameter, _Origin(parameters=frozenset([name])))
        for name, tensor in fixed_tensors(network):
            self._add(tensor, _Origin(fixed=frozenset([name])))

    def add_input(self, x: torch.Tensor) -> None:
        """Takes a tensor for one that depends on the input."""
        self._add(x, _Origin(input=True, ids=not x.is_floating_point()))

    def fixed_products(self, left: set[str]) -> dict[tuple[str, ...], float]:
        """Operations for one sample of products with tensors that are no parameters, by names."""
        return {
            tuple(sorted(names)): operations / self.samples
            for names, operations in self._fixed.items()
            if not any(_is_under(name, left) for name in names)
        }

    def picked_products(self, left: set[str]) -> dict[tuple[str, ...], Picks]:
        """Products with weights that the input picks and that are not to stay digital."""
        return {
            tuple(sorted(names)): Picks(*(one / self.samples for one in picks))
            for names, picks in self._picked.items()
            if not any(_is_under(name, left) for name in names)
        }

    def see_leaving(self, x: torch.Tensor) -> None:
        """Notes a tensor whose numbers leave PyTorch: a parameter, or what depends on the input.

        From then on what comes from elsewhere may depend on the input.
        """
        origin = self._origin(x)
        if origin.input:
            self._unknown = _Origin(input=True)
        elif not self._inside() and sum(n > 1 for n in x.shape) > 1:
            self.outside |= origin.parameters

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode operations come whole, such as einsum
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        namespace, _, name = str(func._schema.name).partition("::")
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        for x in given:
            if isinstance(x, nn.Parameter) and _address(x) not in self._origins:
                self._add(x, _Origin(parameters=frozenset([_UNLISTED])))
        origins = [self._origin(x) for x in given]
        if not self._inside():
            self.read.update(*(one.parameters for one in origins if _weights_alone(one)))
            self._see(namespace, name, args, given)
        outputs = func(*args, **kwargs)
        if not self._inside() and (fixed := self._fixed_factors(namespace, name, args)):
            count = flop_registry.get(func._overloadpacket, lambda *_, **__: 0)
            self._fixed.setdefault(fixed, 0)
            self._fixed[fixed] += count(*args, **kwargs, out_val=outputs)
        if picked := self._picked_factors(namespace, name, args):
            count = flop_registry.get(func._overloadpacket, lambda *_, **__: 0)
            self._count(picked, Picks(products=count(*args, **kwargs, out_val=outputs)))
        made = [x for x in tree_leaves(outputs) if isinstance(x, torch.Tensor)]
        parts = frozenset[str]().union(*(one.parts for one in origins))
        if not self._inside() and name.removesuffix("_") in _FILTERS:
            by = _filters(given, origins)
            if any(x.is_complex() for x in made):
                self.filters |= by
            else:
                parts |= by
        for x, one in zip(given, origins, strict=True):
            if x.is_complex():
                self.filters |= one.parts
        origin = _Origin(
            any(one.input for one in origins),
            frozenset().union(*(one.parameters for one in origins)),
            fixed=frozenset().union(*(one.fixed for one in origins)),
            ids=bool(made)
            and are_ids(made[0].is_floating_point(), [(one.input, one.ids) for one in origins]),
            spectrum=name in _OF_SPECTRA and any(one.spectrum for one in origins),
            parts=frozenset() if name.startswith("_fft") else parts,
        )
        if made and made[0].is_complex() and origin.input:
            origin = origin._replace(spectrum=True)
        if made and (name in _KEEPS_TERMS or not self._inside()):
            origin = _written_out(name.removesuffix("_"), origin, given, origins, made[0])
        if made and (name == "embedding" or not self._inside()):
            operands = [_operand(x, one) for x, one in zip(given, origins, strict=True)]
            scaled = scaled_weights(name.removesuffix("_"), operands, _elements(made[0]))
            origin = origin._replace(scaled=scaled)
        written = [
            x
            for argument, x in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        for x in [*made, *tree_leaves(written), *tree_leaves(kwargs.get("out"))]:
            if isinstance(x, torch.Tensor):
                self._add(x, origin)
        return outputs

    def _see(self, namespace: str, name: str, args: Any, given: list[torch.Tensor]) -> None:
        if namespace != "aten" or name.startswith(_WHOLE):
            self.see_product([x for x in given if x.ndim > 1])
        else:
            self.see_product(_factors(name, args))
        if (found := _summed(name.removesuffix("_"), args)) is not None:
            x, summed = found
            origin = self._origin(x)
            if name.removesuffix("_") in _SCATTERS:  # of copies of features, as sparse weights do
                self._see_sum(frozenset(one for one, axis in origin.factors if axis in summed), x)
            if not summed <= origin.same:  # else parameters alone are summed
                self._see_sum(origin.terms, x)
                self.distances |= origin.squares
        elif name in _NORMS:
            origin = self._origin(given[0])
            if not _summed_axes([args[0], *args[2:]]) <= origin.same:
                self.distances |= origin.differences

    def _see_sum(self, terms: frozenset[Any], x: torch.Tensor) -> None:
        """Notes the parameters of products that are written out and summed."""
        picked = frozenset(one.name for one in terms if isinstance(one, _Picked))
        if bare := frozenset(one for one in terms if isinstance(one, str)):
            self.found.append(bare)
        if picked:
            self._count(picked, Picks(sums=2 * x.numel()))

    def _count(self, names: frozenset[str], picks: Picks) -> None:
        before = self._picked.get(names, Picks())
        self._picked[names] = Picks(*(a + b for a, b in zip(before, picks, strict=True)))

    def _picked_factors(self, namespace: str, name: str, args: Any) -> frozenset[str]:
        """The parameters of a product of what depends on the input with parts that it picks."""
        factors = _factors(name, args) if namespace == "aten" else []
        return frozenset() if self._inside() else self._picked_of(factors)

    def _picked_of(self, factors: Iterable[Any]) -> frozenset[str]:
        origins = [self._origin(x) for x in factors if isinstance(x, torch.Tensor)]
        if not any(one.input and not one.scaled.parameters for one in origins):
            return frozenset()
        picked = [one.scaled.parameters for one in origins if one.scaled.picked]
        return frozenset().union(*picked)

    def _fixed_factors(self, namespace: str, name: str, args: Any) -> frozenset[str]:
        """The tensors that are no parameters of a product with what depends on the input."""
        factors = _factors(name, args) if namespace == "aten" else []
        origins = [self._origin(x) for x in factors if isinstance(x, torch.Tensor)]
        if not any(one.input for one in origins):
            return frozenset()
        alone = [one.fixed for one in origins if not one.input and not one.parameters]
        return frozenset().union(*alone)

    def see_product(self, factors: Iterable[Any]) -> None:
        """Notes the parameters of a product with what depends on the input."""
        origins = [self._origin(x) for x in factors if isinstance(x, torch.Tensor)]
        if any(one.input for one in origins) and not self._inside():
            self.found += [one.parameters for one in origins if _weights_alone(one)]
        scaled = [one.scaled for one in origins]
        if not self._inside() and any(
            one.input and not own.parameters for one, own in zip(origins, scaled, strict=True)
        ):
            self.found += [own.parameters for own in scaled if own.parameters and not own.picked]

    def _origin(self, x: torch.Tensor) -> _Origin:
        address = _address(x)
        if not address and not self._unknown.input:
            return _Origin()
        return self._origins.get(address, self._unknown)

    def _add(self, x: torch.Tensor, origin: _Origin) -> None:
        address = _address(x)
        if not address:
            return
        before = self._origins.get(address, _Origin())
        if address not in self._held:
            self._held[address] = StorageWeakRef(_values(x).untyped_storage())
        self._origins[address] = _Origin(
            before.input or origin.input,
            before.parameters | origin.parameters,
            origin.terms,
            origin.same,
            before.fixed | origin.fixed,
            origin.differences,
            origin.squares,
            origin.scaled,
            origin.factors,
            origin.ids,
            origin.spectrum,
            origin.parts,
        )


class _WatchFunctions(TorchFunctionMode):
    """Sees the functions of `_FUNCTIONS`, by their first two arguments, and what leaves PyTorch."""

    def __init__(self, watch: _Watch):
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _FUNCTIONS:
            self._watch.see_product([*args, *(kwargs or {}).values()][:2])
        elif name in _LEAVES_TORCH and isinstance(args[0], torch.Tensor):
            self._watch.see_leaving(args[0])
        return func(*args, **(kwargs or {}))


def fixed_tensors(network: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Buffers, and tensors that are attributes of a module, by their names."""
    found = list(network.named_buffers(remove_duplicate=False))
    for path, module in network.named_modules(remove_duplicate=False):
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                found.append((f"{path}.{name}".lstrip("."), value))
    return found


def _factors(name: str, args: Any) -> list[Any]:
    """The factors of a product, among the arguments of one of PyTorch's operations."""
    if name.startswith("_scaled_dot_product"):
        return list(args[:3])  # not the bias that follows
    return [x for n in _PRODUCTS.get(name, ()) for x in tree_leaves(args[n : n + 1])]


def _weights_alone(origin: _Origin) -> bool:
    return bool(origin.parameters) and not origin.input


def _filters(given: list[torch.Tensor], origins: list[_Origin]) -> frozenset[str]:
    """The parameters of a product, number by number, with complex values of the input or parts.

    One number for all of them is a scale.
    """
    if not any(one.spectrum for one in origins):
        return frozenset()
    pairs = zip(given, origins, strict=True)
    alone = [one.parameters for x, one in pairs if _weights_alone(one) and _elements(x) > 1]
    return frozenset().union(*alone)


def _written_out(
    name: str,
    origin: _Origin,
    given: list[torch.Tensor],
    origins: list[_Origin],
    made: torch.Tensor,
) -> _Origin:
    """The origin of what an operation makes, with the sums of products that it may begin."""
    inputs = [one for one in origins if one.input]
    divided = name == "div" and (_weights_alone(origins[0]) or any(one.terms for one in inputs))
    if name == "mul" or divided:
        terms, same = _outer(given, _picked_apart(origins), made)
        factors = _differing(given, _picked_apart(origins))
        origin = origin._replace(terms=terms, same=same, factors=factors)
    elif name in _KEEPS_TERMS:
        kept = [one.terms for one in origins]
        stays = name in ("_to_copy", "masked_fill", "where") and len(inputs) == 1
        origin = origin._replace(
            terms=frozenset().union(*kept), same=inputs[0].same if stays else origin.same
        )
    if name in ("sub", "rsub"):
        plain = [one._replace(terms=frozenset()) for one in origins]
        differences, same = _outer(given, plain, made)
        if differences:
            return origin._replace(differences=differences, same=same)
    if name in _EVEN or (name == "mul" and len(inputs) == 2):
        alike = {one.differences for one in inputs}
        if len(alike) == 1 and (differences := alike.pop()):
            return origin._replace(squares=differences, same=inputs[0].same)
    if len(inputs) == 1 and (name in _KEEPS_TERMS or name in _SCALES):
        (one,) = inputs
        kept_axes = one.same if name in _SCALES and not origin.terms else origin.same
        return origin._replace(differences=one.differences, squares=one.squares, same=kept_axes)
    return origin


def _outer(
    given: list[torch.Tensor], origins: list[_Origin], made: torch.Tensor
) -> tuple[frozenset[Any], frozenset[int]]:
    """Parameters of a product that has more elements than what depends on the input.

    And the axes, from the last, along which that is the same. A factor may be such a product.
    """
    inputs = [(x, one) for x, one in zip(given, origins, strict=True) if one.input]
    outer = [x for x, one in inputs if not one.terms]
    larger = [made.numel() > _elements(x) for x in outer]
    if not (any(larger) if len(outer) == len(inputs) else all(larger)):
        return frozenset(), frozenset()
    same = frozenset(
        axis
        for axis in range(-made.ndim, 0)
        if all(axis in one.same if one.terms else _is_same_along(axis, x) for x, one in inputs)
    )
    alone = [one.parameters for one in origins if _weights_alone(one)]
    return frozenset[Any]().union(*alone, *(one.terms for _, one in inputs)), same


def _differing(given: list[torch.Tensor], origins: list[_Origin]) -> frozenset[tuple[Any, int]]:
    """Parameters beside what depends on the input, with the axes along which they differ."""
    return frozenset(
        (name, axis)
        for x, one in zip(given, origins, strict=True)
        if _weights_alone(one) and any(other.input for other in origins)
        for name in one.parameters
        for axis in range(-x.ndim, 0)
        if not _is_same_along(axis, x)
    )


def _picked_apart(origins: list[_Origin]) -> list[_Origin]:
    """The origins, with weights that the input picks as parameters beside it."""
    return [
        one._replace(input=False, parameters=frozenset(map(_Picked, one.scaled.parameters)))
        if one.scaled.picked
        else one
        for one in origins
    ]


def _operand(x: torch.Tensor, origin: _Origin) -> Operand:
    numbers = _elements(x)
    return Operand(
        origin.input, origin.parameters, tuple(x.shape), numbers, origin.scaled, origin.ids
    )


def _is_same_along(axis: int, x: torch.Tensor) -> bool:
    if -axis > x.ndim or x.shape[axis] == 1:
        return True
    return x.layout == torch.strided and x.stride(axis) == 0


def _summed(name: str, args: Any) -> tuple[torch.Tensor, frozenset[int]] | None:
    """What an operation sums, and along which axes, from the last; None for other operations."""
    if name in _SUMS:
        return args[0], _summed_axes(args)
    if name in _POOLS:
        return args[0], frozenset(range(-_POOLS[name], 0))
    if name in _SCATTERS:
        x = args[_SCATTERS[name]]
        return x, _summed_axes([x, args[1]])
    return None


def _summed_axes(args: Any) -> frozenset[int]:
    """The axes of a sum or mean, from the last."""
    axes: Sequence[int] = range(args[0].ndim)
    if len(args) > 1 and args[1]:
        axes = [args[1]] if isinstance(args[1], int) else args[1]
    return frozenset(axis - args[0].ndim if axis >= 0 else axis for axis in axes)


def _elements(x: torch.Tensor) -> int:
    """How many numbers a tensor has, those of an expanded axis once."""
    if x.layout != torch.strided:
        return x.numel()
    return math.prod(n for n, step in zip(x.shape, x.stride(), strict=True) if step)


def _values(x: torch.Tensor) -> torch.Tensor:
    """The tensor, or the values of a sparse one."""
    if x.layout == torch.sparse_coo:
        return x._values()
    return x if x.layout == torch.strided else x.values()


def _address(x: torch.Tensor) -> int:
    """A storage's; 0 for tensors without one."""
    try:
        return int(_values(x).untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0
