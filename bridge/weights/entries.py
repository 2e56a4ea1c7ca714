"""Where in a checkpoint the weights are."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from bridge.weights.archives import NumPyArray, NumPyValue
from bridge.weights.wrappers import without_wrappers

PLACES = (  # where scripts keep weights
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net_state_dict",
    "net",
    "network",
    "weights",
    "params",
    "checkpoint",
)
_LISTED = 20  # entries in a message
_DEEPEST = 4  # containers within one another; a file may claim one that holds itself
_SCALARS = (bool, int, float, complex, str, bytes, NumPyValue, type(None))


def tensors_of(content: Any, path: Path, prefix: str | None) -> dict[str, torch.Tensor]:
    """The named tensors in the content of a file; the names are those of the network.

    Numbers and words beside them are left out.

    Args:
      content: tensors, plain containers, numbers and words.
      path: of the file, for errors.
      prefix: as `load_checkpoint` has it.

    Raises:
      ValueError: no state dict, more than one, or more than tensors in it; says what there is.
    """
    entries, place, beside = _find(content, path)
    if not isinstance(entries, Mapping) or not entries:
        found = "nothing" if isinstance(entries, Mapping) else _kind(entries, article=True)
        raise ValueError(f"{path} holds {found} in place of a state dict; {_expected()}")
    tensors = {name: one for name, one in entries.items() if isinstance(one, torch.Tensor)}
    others = {
        name: value
        for name, value in entries.items()
        if not isinstance(name, str)
        or (name not in tensors and not (tensors and _is_scalar(value)))
    }
    if others:
        arrays = any(isinstance(value, NumPyArray) for value in others.values())
        cure = "make tensors of arrays with torch.from_numpy; " if arrays else ""
        raise ValueError(
            f"{path} holds {'more than tensors' if tensors else 'no tensors'}: {_listed(others)}; "
            f"{cure}{_expected()}. Write the weights alone: "
            "torch.save(torch.load(FILE, weights_only=True)[NAME], 'weights.pth')"
        )
    _refuse_others(tensors, place, beside, path)
    if prefix is None:
        names = without_wrappers(tensors, lightning=place == "state_dict")
        return {new: tensors[name] for name, new in names.items()}
    chosen = {
        name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)
    }
    if not chosen:
        raise ValueError(
            f"{path} has no name that begins with {prefix!r}; its names are {_some(tensors)}"
        )
    return chosen


def _is_scalar(value: Any) -> bool:
    return isinstance(value, _SCALARS) and not isinstance(value, NumPyArray)


def _find(content: Any, path: Path) -> tuple[Any, str | None, dict[str, Any]]:
    """The innermost entry of a usual name that holds tensors, that name, and what is beside it."""
    place = None
    beside: dict[str, Any] = {}
    for _ in range(_DEEPEST):
        content = _from_list(content, path, place)
        if not isinstance(content, Mapping):
            break
        found = {key: content[key] for key in PLACES if _holds_tensors(content.get(key))}
        if not found:
            if not _any_tensor(content.values()):
                content, place = _without_weights(content, place)
            break
        place, *more = found
        for key in more:
            if not _equal(found[key], found[place]):
                raise _several(path, sorted(found))
        beside |= {str(key): value for key, value in content.items() if key not in found}
        content = found[place]
    return content, place, beside


def _several(path: Path, names: list[str]) -> ValueError:
    return ValueError(
        f"{path} holds weights under {' and '.join(map(repr, names))}: write those that you want "
        "alone, torch.save(torch.load(FILE, weights_only=True)[NAME], 'weights.pth')"
    )


def _refuse_others(
    tensors: Mapping[str, torch.Tensor], place: str | None, beside: Mapping[str, Any], path: Path
) -> None:
    """Refuses other weights of the same network beside those that would be taken.

    Such as averaged ones, or the best of a training, under any name but an optimiser's.

    Raises:
      ValueError: there are some.
    """
    others = [
        name
        for name, value in beside.items()
        if "optim" not in name.lower() and any(_rivals(tensors, one) for one in _within(value))
    ]
    if place is not None and others:
        raise _several(path, [place, *others])


def _within(value: Any, depth: int = _DEEPEST) -> Iterator[dict[str, torch.Tensor]]:
    """The named tensors of a mapping, and of those within it or in a list."""
    if depth == 0:
        return
    parts: Iterable[Any] = value if isinstance(value, list | tuple) else ()
    if isinstance(value, Mapping):
        parts = value.values()
        yield {str(name): one for name, one in value.items() if isinstance(one, torch.Tensor)}
    elif parts and all(isinstance(one, list | tuple) and _is_entry(*one) for one in parts):
        yield dict(value)
    for part in parts:
        yield from _within(part, depth - 1)


def _rivals(tensors: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    """Whether others are of the same network: its matrices by name and shape, not all equal.

    Averages of parameters lack the running statistics, which are vectors. Where there are no
    matrices, all arrays count.
    """
    least = 2 if any(one.ndim > 1 for one in tensors.values()) else 1
    ours, theirs = _arrays(tensors, least), _arrays(others, least)
    return (
        bool(ours)
        and {name: one.shape for name, one in ours.items()}
        == {name: one.shape for name, one in theirs.items()}
        and not all(torch.equal(one, theirs[name]) for name, one in ours.items())
    )


def _arrays(tensors: Mapping[str, torch.Tensor], least: int) -> dict[str, torch.Tensor]:
    """Tensors of at least so many axes, by their names without wrappers."""
    names = without_wrappers(tensors, lightning=True)
    return {new: tensors[name] for name, new in names.items() if tensors[name].ndim >= least}


def _without_weights(content: Mapping, place: str | None) -> tuple[Mapping, str | None]:
    """An entry of a usual name that is empty or holds single numbers alone; else the mapping."""
    for key in PLACES:
        entry = content.get(key)
        if isinstance(entry, Mapping) and all(isinstance(v, torch.Tensor) for v in entry.values()):
            return entry, key
    return content, place


def _any_tensor(values: Iterable[Any]) -> bool:
    """Whether there are tensors of at least one axis: one number may be a setting."""
    return any(isinstance(value, torch.Tensor) and value.ndim for value in values)


def _from_list(value: Any, path: Path, place: str | None) -> Any:
    """A mapping made of a list of names with tensors, or the only one in a list; others as is."""
    if not isinstance(value, list | tuple) or not value:
        return value
    if all(isinstance(one, list | tuple) and _is_entry(*one) for one in value):
        return dict(value)
    if all(isinstance(one, Mapping) for one in value):
        if len(value) == 1:
            return value[0]
        where = "" if place is None else f" under {place!r}"
        raise ValueError(
            f"{path} holds a list of {len(value)} state dicts{where}: write the one that you want "
            "with torch.save"
        )
    return value


def _is_entry(*pair: Any) -> bool:
    return len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], torch.Tensor)


def _holds_tensors(value: Any, depth: int = _DEEPEST) -> bool:
    """Whether a mapping, or a list of mappings or of names with tensors, holds tensors within."""
    if depth == 0:
        return False
    if isinstance(value, Mapping):
        parts = value.values()
        return _any_tensor(parts) or any(_holds_tensors(part, depth - 1) for part in parts)
    return isinstance(value, list | tuple) and any(
        _holds_tensors(one, depth - 1) or (isinstance(one, list | tuple) and _is_entry(*one))
        for one in value
    )


def _equal(one: Any, other: Any) -> bool:
    """Whether two entries are the same weights."""
    return (
        isinstance(one, Mapping)
        and isinstance(other, Mapping)
        and one.keys() == other.keys()
        and all(
            isinstance(one[name], torch.Tensor)
            and isinstance(other[name], torch.Tensor)
            and torch.equal(one[name], other[name])
            for name in one
        )
    )


def _expected() -> str:
    return f"expected names with tensors, alone or as the entry {' or '.join(map(repr, PLACES))}"


def _listed(entries: Mapping[Any, Any]) -> str:
    return _some(f"{name!r} ({_kind(value)})" for name, value in entries.items())


def _some(words: Iterable[str]) -> str:
    listed = list(words)
    more = [f"and {len(listed) - _LISTED} more"] if len(listed) > _LISTED else []
    return ", ".join(listed[:_LISTED] + more)


def _kind(value: Any, *, article: bool = False) -> str:
    kind = type(value).__name__
    if isinstance(value, NumPyValue):
        kind = "NumPy array" if isinstance(value, NumPyArray) else "NumPy value"
    if article:
        return f"a {kind}"
    return f"{kind} of {len(value)}" if isinstance(value, Mapping | list | tuple) else kind
