"""Text without the secrets that URLs carry: user and password before the host, and the values of a query.

Applied where a setting, an error or a fact of the log becomes text. Elsewhere a secret looks like any other text: so
what is not a setting is never shown with its value.
"""

import re
from typing import Any

HIDDEN = "***"

# One slash is enough: a URL that was taken for a path has lost the other.
_SCHEME = r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*:/{1,2})"
_USER_IN_TEXT = re.compile(_SCHEME + r"(?P<rest>\S*)@")
_USER_IN_VALUE = re.compile(_SCHEME + r"(?P<rest>.*)@", re.DOTALL)
_QUERY_OF_URL = re.compile(_SCHEME + r"(?P<place>[^\s?#'\"]*[?#])(?P<query>[^\s'\"]+)")
_QUERY = re.compile(r"([?&][^\s?&=]+=)[^\s&'\"]+")
_STORE = re.compile(r"(gs|s3|az|file):", re.IGNORECASE)


def redacted(text: str) -> str:
    """Text of any kind, as it may be shown."""
    text = _QUERY_OF_URL.sub(_without_query, _USER_IN_TEXT.sub(_without_user, text))
    return _QUERY.sub(rf"\1{HIDDEN}", text)


def redacted_value(value: str) -> str:
    """A value that was given as one, as it may be shown: here a password may also have spaces in it."""
    return redacted(_USER_IN_VALUE.sub(_without_user, value))


def redacted_facts(facts: Any) -> Any:
    """JSON values of any depth, each text of them as it may be shown."""
    if isinstance(facts, str):
        return redacted(facts)
    if isinstance(facts, dict):
        return {key: redacted_facts(value) for key, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [redacted_facts(value) for value in facts]
    return facts


def _without_user(match: re.Match[str]) -> str:
    """An object may have an @ in its name; before the name, where a user would stand, a bucket has neither @ nor :."""
    authority = re.split("[/?#]", f"{match['rest']}@", maxsplit=1)[0]
    if _STORE.match(match["scheme"]) and not re.search("[@:]", authority):
        return match[0]
    return f"{match['scheme']}{HIDDEN}@"


def _without_query(match: re.Match[str]) -> str:
    names = [part.partition("=")[:2] for part in match["query"].split("&")]
    return (
        match["scheme"] + match["place"] + "&".join(f"{name}={HIDDEN}" if is_set else HIDDEN for name, is_set in names)
    )
