"""The Hub, asked once and briefly."""

import threading

from huggingface_hub import constants
from huggingface_hub.utils import get_session

from smallm_hf.base.errors import UserError

HUB_ANSWER_SECONDS = 5  # for each of connect and read
HUB_PROBE_SECONDS = 8  # in all: the HTTP client's timeouts do not apply to a name server that never answers


def require_hub(wanted: str, alternative: str) -> None:
    """Returns when the Hugging Face Hub answers; the libraries would retry an unreachable Hub for most of a minute.

    Args:
        wanted: what is looked for; begins the message.
        alternative: what to do without the Hub; ends the message.

    Raises:
        UserError: no answer within 10 seconds, or `HF_HUB_OFFLINE` is set.
    """
    failure = [f"no answer in {HUB_PROBE_SECONDS} seconds"]

    def probe():
        try:
            get_session().head(constants.ENDPOINT, timeout=HUB_ANSWER_SECONDS)
            failure.clear()  # any status is an answer
        except Exception as error:  # whatever the HTTP library raises, there was no answer
            failure[0] = str(error).partition("\n")[0].rstrip(". ") or type(error).__name__

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(HUB_PROBE_SECONDS)
    if failure:
        raise UserError(
            f"{wanted} is not on this machine and the Hub at {constants.ENDPOINT} cannot be reached ({failure[0]}); "
            f"{alternative}"
        )
