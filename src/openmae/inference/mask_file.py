"""Whether what `--mask-file` names can be read. Imports no torch: it is asked before that is loaded."""

from openmae.errors import RequestError


def check_mask_file(path: str) -> None:
    """Raise RequestError where it cannot be opened."""
    try:
        with open(path, "rb"):
            pass
    except Exception as error:
        raise no_mask(path, error) from None


def no_mask(path: str, error: Exception) -> RequestError:
    """What is said of a mask that cannot be read."""
    return RequestError(f"--mask-file {path} cannot be read as .npy: {error}")
