"""Upload of an export to the Hugging Face Hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from psy_agents_noaug.errors import ConfigError

logger = logging.getLogger(__name__)

# OSError, and the error of the HTTP library, which is not the same in all versions of huggingface_hub.
_UNREACHABLE = HfHubHTTPError.__bases__
CARD = "README.md"
_CONFLICT = 409
_REFUSED = (401, 403)
_LOGIN = "Log in by `hf auth login`, or set HF_TOKEN to a token that may write."


def check_push(repo: str) -> None:
    """Refuse an upload that cannot succeed, before anything is computed.

    Raises:
        ConfigError: the name is none, or there is no token.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(
            f"`push` must be the name of a repository, such as me/model: {error}"
        ) from error
    if get_token() is None:
        raise ConfigError(f"`push={repo}` needs a token of the Hugging Face Hub. {_LOGIN}")


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Make a repository of the name, upload the folder, and return its address.

    Args:
        folder: the export.
        repo: name of a repository that does not exist yet.
        private: whether only its owner sees it.

    Raises:
        ConfigError: it exists already, the token may not, or the Hub cannot be reached. The folder
            stays.
    """
    api = HfApi()
    with _explained(folder, repo):
        ModelCard.load(folder / CARD).validate()
        address = str(api.create_repo(repo, private=private))
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Export of PSY Agents NO-AUG"
        )
    logger.info("Uploaded to %s (%s).", address, "private" if private else "public")
    return address


@contextmanager
def _explained(folder: Path, repo: str) -> Iterator[None]:
    whole = f"The export is whole in {folder}."
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == _CONFLICT:
            reason = (
                f"it exists already. Choose another name, or upload by `hf upload {repo} {folder}`"
            )
        elif status in _REFUSED:
            reason = f"the Hub refuses the token ({status}). {_LOGIN.rstrip('.')}"
        else:
            reason = f"the Hub answers {status}. Try again later"
        raise ConfigError(f"`push={repo}` failed: {reason}. {whole}") from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"`push={repo}` failed: the Hub does not accept the model card ({reason}). {whole}"
        ) from error
    except _UNREACHABLE as error:  # type: ignore[misc]
        raise ConfigError(
            f"`push={repo}` failed: the Hub cannot be reached ({type(error).__name__}). Without "
            f"a network, upload later by `hf upload {repo} {folder}`. {whole}"
        ) from error
