"""Takes out of what is written what lets someone in: the user and password of a URL, and its query string.

People share run folders, logs and bundles; a presigned URL in one of them is a key.
"""

import re
from typing import Any

_USER = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)[^/\s?#'\"@]*(?:@[^/\s?#'\"@]*)*@")
_QUERY = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://[^\s?#'\"<>]*)[?#][^\s'\"<>,;)\]}]*")


def without(text: str) -> str:
    """Returns the text with every URL cut to scheme, host and path."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text)) if "://" in text else text


def cleaned(value: Any) -> Any:
    """Returns plain values, as of a config, with every text in them without secrets."""
    if isinstance(value, str):
        return without(value)
    if isinstance(value, dict):
        return {cleaned(key): cleaned(one) for key, one in value.items()}
    return [cleaned(one) for one in value] if isinstance(value, list | tuple) else value
