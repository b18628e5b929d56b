"""Page-locked memory, from which a GPU copies asynchronously."""

from torch import Tensor


def pinned(tensor: Tensor | None) -> Tensor | None:
    """The tensor in page-locked memory; None stays None."""
    return None if tensor is None else tensor.pin_memory()
