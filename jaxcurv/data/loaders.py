"""The data set behind a torch DataLoader, told by names: torch is not imported."""

from typing import Any

from jaxcurv.data.layouts import comes_from


def dataset_of(given: Any) -> Any:
    """The data set of a torch DataLoader; anything else as it is.

    Batch size, shuffling and workers of the loader play no part: samples are read by position.

    Raises:
        ValueError: the loader would give other samples than its data set has, or makes something
            else of them.
    """
    if not comes_from(given, "torch", "DataLoader"):
        return given
    if reason := _other_samples(given):
        raise ValueError(
            f"samples are read by position from the DataLoader's data set, and {reason}: give the "
            "data set in its place (loader.dataset), a torch.utils.data.Subset of it for some of "
            "its samples, or one whose items are what the loader makes of them"
        )
    return given.dataset


def _other_samples(loader: Any) -> str | None:
    """What of a loader would be overlooked if its data set were read in its place."""
    if comes_from(loader.dataset, "torch", "IterableDataset"):
        return None  # refused by its name, with or without a loader
    sampler, batches, collate = loader.sampler, loader.batch_sampler, loader.collate_fn
    if batches is not None and (loader.batch_size is None or not _is(batches, "BatchSampler")):
        return f"its batch_sampler ({type(batches).__name__}) would be ignored"
    if not _chooses_all(sampler, len(loader.dataset)):
        return f"its sampler ({type(sampler).__name__}) would be ignored"
    if loader.drop_last and (left := len(loader.dataset) % loader.batch_size):
        return f"its drop_last, which leaves {left} samples out, would be ignored"
    if not _is_default_collate(collate):
        name = getattr(collate, "__qualname__", type(collate).__name__)
        return f"its collate_fn ({name}) would be ignored"
    if _torch_class(loader).__iter__ is not type(loader).__iter__:
        return f"the __iter__ of {type(loader).__name__} would be ignored"
    return None


def _is(value: Any, name: str) -> bool:
    """Whether it is torch's own class, not one that inherits from it."""
    return type(value).__name__ == name and type(value).__module__.startswith("torch.utils.data.")


def _chooses_all(sampler: Any, count: int) -> bool:
    """Whether the sampler gives each of `count` positions once."""
    if _is(sampler, "SequentialSampler"):
        return len(sampler) == count
    if _is(sampler, "RandomSampler"):
        return not sampler.replacement and len(sampler) == len(sampler.data_source) == count
    return False


def _is_default_collate(function: Any) -> bool:
    name, module = (getattr(function, one, "") for one in ("__name__", "__module__"))
    return name in ("default_collate", "default_convert") and module.startswith("torch.utils.data")


def _torch_class(loader: Any) -> Any:
    return next(one for one in type(loader).__mro__ if one.__module__.startswith("torch.utils."))
