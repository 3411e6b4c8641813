"""Whether the page of another origin sent a request. A browser adds cookies to such a request, whoever wrote the page.

SameSite=Lax holds back the cookie from other sites only. The pages of one site, such as all of example.com, share it.
"""

from collections.abc import Collection

from handlers.event import Event, header, mapping

_OWN = ("same-origin", "none")
"""What `Sec-Fetch-Site` says of the service's own pages, and of an address that somebody typed in."""


def is_foreign(event: Event, allowed: Collection[str]) -> bool:
    """Whether a page of another origin than the service's, and than those `allowed` by name, sent a request.

    Only browsers say where a request comes from, and no page can make them say something else. Without a word of that
    there is no browser, and no cookie that was added without its owner's knowledge.
    """
    origin, site = header(event, "origin"), header(event, "sec-fetch-site")
    if origin in allowed and origin != "*":
        return False
    if site is not None:
        return site not in _OWN
    return origin is not None and origin.lower() not in _here(event)


def _here(event: Event) -> set[str]:
    """The service's origin as its clients see it, if nothing in front of it changes the host.

    Both names are those that the client asked for; an API may hand on its own instead of a custom domain's in one.
    """
    scheme = (header(event, "x-forwarded-proto") or "https").rpartition(",")[2].strip()
    hosts = header(event, "host"), mapping(event, "requestContext").get("domainName")
    return {f"{scheme}://{host}".lower() for host in hosts if host}
