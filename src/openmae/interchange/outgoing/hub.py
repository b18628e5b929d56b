"""Uploading a folder to the Hugging Face hub."""

from pathlib import Path

from openmae.errors import Fault


def push(folder: Path, name: str) -> str:
    """Upload a folder to the repository `name`, which is created as private where it does not exist.

    Returns:
        Its URL.

    Raises:
        Fault: the hub refused it, or cannot be reached.
    """
    import huggingface_hub  # takes half a second

    try:
        api = huggingface_hub.HfApi()
        api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Converted by openmae")
    except Exception as error:  # errors of the network, the login, the hub
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise Fault(f"{folder} is written, but --push {name} failed: {reason}") from error
    return f"https://huggingface.co/{name}"
