"""What libraries would log, kept out of the log: requests, responses and the texts of errors hold what was said.

Switches such as OPENAI_LOG, or a root logger at DEBUG, would let all of it through. The functions log what is to be
known of a failure themselves, without any text.
"""

import logging
from collections.abc import Mapping

LEVELS: Mapping[str, int] = {
    # Bodies and headers at DEBUG.
    "aws_lambda_powertools": logging.WARNING,
    "aws_xray_sdk": logging.WARNING,
    "boto3": logging.WARNING,
    "botocore": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpx": logging.WARNING,
    "openai": logging.WARNING,
    "urllib3": logging.WARNING,
    # The texts of errors, results of tasks, whole messages, at any level.
    "asyncio": logging.CRITICAL,
    "llama_index": logging.CRITICAL,
    "workflows": logging.CRITICAL,
}


def silence() -> None:
    """Raise the libraries' levels to what tells nothing, whatever has lowered them."""
    for name, level in LEVELS.items():
        if (library := logging.getLogger(name)).level < level:
            library.setLevel(level)
