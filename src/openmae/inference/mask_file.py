"""Whether what `--mask-file` names can be read. Imports no torch: it is asked before that is loaded."""

from openmae.errors import RequestError


def check_mask_file(path: str) -> None:
    """Raise RequestError where it cannot be opened."""
    try:
        with open(path, "rb"):
            pass
    except Exception as error:
        raise mask_file_error(path, error) from None


def mask_file_error(path: str, error: Exception) -> RequestError:
    """The error for a `--mask-file` that cannot be read."""
    return RequestError(f"--mask-file {path} cannot be read as .npy: {error}")
