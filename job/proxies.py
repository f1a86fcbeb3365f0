"""The proxy that downloads go through, for hints: a wrong one looks like no network."""

import urllib.request


def hint() -> str:
    """The end of a hint that names the proxy, or nothing where there is none."""
    proxy = urllib.request.getproxies().get("https")
    return f"; https_proxy={proxy} is in use: correct it, or unset it" if proxy else ""
