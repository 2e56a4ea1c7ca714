"""A module as it was before it ran."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Within it a module runs; afterwards it is as it was, also where it failed.

    What its parts have as attributes is put back, with what tensors, lists, dicts and sets among
    these hold. Not put back: what other objects hold that the module refers to, and what a lazy
    layer becomes.
    """
    containers: dict[int, tuple[Any, Any]] = {}
    tensors: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    parts = [part for part in module.modules() if not isinstance(part, LazyModuleMixin)]
    waiting: list[Any] = [*map(vars, parts), *module.buffers()]  # TorchScript's are no attributes
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if id(value) not in tensors and _is_plain(value):
                tensors[id(value)] = value, value.detach(), value.detach().clone()
        elif isinstance(value, dict | list | set | deque) and id(value) not in containers:
            containers[id(value)] = value, value.copy()
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, tuple):
            waiting += value
    try:
        yield
    finally:
        for value, before in containers.values():
            _put_back(value, before)
        for tensor, was, values in tensors.values():
            if tensor.data_ptr() != was.data_ptr() or tensor.shape != was.shape:
                tensor.data = was
            if not torch.equal(was, values):
                with torch.inference_mode(was.is_inference()):
                    was.copy_(values)


def _is_plain(tensor: torch.Tensor) -> bool:
    kind = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer)
    return kind and tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta)


def _put_back(value: Any, before: Any) -> None:
    if isinstance(value, dict):
        for name in [name for name in value if name not in before]:
            del value[name]
        value.update({name: one for name, one in before.items() if value.get(name) is not one})
    elif isinstance(value, set):
        value.intersection_update(before)
        value.update(before)
    else:
        value.clear()
        value.extend(before)
