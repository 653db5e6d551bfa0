"""What the Hub and the way to it may answer, as one line that says the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of httpx or httpx2, as the version of huggingface_hub has it
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)


@contextmanager
def one_line_errors(repo: str) -> Iterator[None]:
    """Turn what the Hub and the way to it may answer into a ValueError of one line that says the way out.

    Args:
        repo: what messages call the repository.

    Raises:
        ValueError: instead of the errors of huggingface_hub.
    """
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise ValueError("no token for the Hub; log in with `hf auth login`") from error
    except OfflineModeIsEnabled as error:
        raise ValueError("HF_HUB_OFFLINE is set, so nothing can be sent; unset it") from error
    except HFValidationError as error:
        raise ValueError(f"{repo} is no name of a repository ({error}); give OWNER/NAME") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        ways_out = {
            401: "the Hub does not know the token; log in with `hf auth login`",
            403: "the token may not write there; log in with one that may (`hf auth login`), or choose another owner",
            404: "not found; check owner and revision, and that the token may see them",
        }
        raise ValueError(f"{repo}: {ways_out.get(status, ' '.join(str(error).split()))} ({status})") from error
    except HTTPError as error:
        raise ValueError(f"{constants.ENDPOINT} cannot be reached ({error}); try again later") from error
    except (OSError, RuntimeError) as error:
        cause = f": {error.__cause__}" if error.__cause__ else ""
        raise ValueError(
            f"{repo}: {' '.join(f'{error}{cause}'.split())}; push again, what has arrived is not sent twice"
        ) from error
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())) from error
