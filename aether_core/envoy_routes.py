"""How one slice's requests find a version: Envoy routes by chance, or by what a request carries.

Pure, part of `envoy.py`. Sources: Envoy 1.40 v3 API reference, "HTTP route components"; RFC 9110,
9.2.2 for what is idempotent; RFC 6265 for cookies.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aether_core.model import WHOLE_SHARE_BP, FleetId, RouteTable, Variants

Json = dict[str, Any]

TYPE = "type.googleapis.com/envoy."
FLEET_HEADER = "x-aether-fleet"
RETRIES = 3
# How often Envoy draws anew when it drew an endpoint that was tried already: with two of three
# tried, sixteen draws miss the third once in a thousand times.
DRAWS = 16
# Not idempotent: sent again only when it certainly reached nobody.
UNSAFE_METHODS = "POST|PATCH|CONNECT"
# A node says with this header that it has no instance of the fleet: whoever asked it knew less
# than it does, and asks another one.
ABSENT_HEADER = "x-aether-absent"
RETRY_UNSENT = "connect-failure,refused-stream,reset-before-request,retriable-headers"
RETRY_IDEMPOTENT = RETRY_UNSENT + ",reset"
PREVIOUS_HOSTS = TYPE + "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
# How long a visitor without the context keeps the version that chance gave.
COOKIE_MAX_AGE_S = 30 * 86_400


@dataclass(frozen=True)
class _Choice:
    """Requests that carry `headers` and `query` (all of them) go where `action` says."""

    action: Json
    headers: tuple[Json, ...] = ()
    query: tuple[Json, ...] = ()


def slice_routes(name: str, prefix: str, table: RouteTable, known: set[FleetId]) -> list[Json]:
    """Return the routes of a slice below `prefix`, in the order in which Envoy tries them."""
    place: Json = {"prefix": "/"} if prefix == "/" else {"path_separated_prefix": prefix}
    shares = {fleet: bp for fleet, bp in table.shares.get(name, {}).items() if bp}
    if not shares or not shares.keys() <= known:
        return [answer(503, f"slice '{name}' has nothing to serve it yet\n", place)]
    assert sum(shares.values()) == WHOLE_SHARE_BP, f"shares of '{name}' are not whole"
    variants = table.variants.get(name) if len(shares) > 1 else None
    choices = list(_by_context(name, shares, variants)) if variants else [_by_chance(shares)]
    return [route for choice in choices for route in _both_kinds(place, choice)]


def _both_kinds(place: Json, choice: _Choice) -> Iterator[Json]:
    """Yield the route for methods that must not be repeated, then the one for all others."""
    unsafe = {"name": ":method", "string_match": {"safe_regex": {"regex": UNSAFE_METHODS}}}
    for headers, retry_on in (
        ((unsafe, *choice.headers), RETRY_UNSENT),
        (choice.headers, RETRY_IDEMPOTENT),
    ):
        match = {**place}
        if headers:
            match["headers"] = list(headers)
        if choice.query:
            match["query_parameters"] = list(choice.query)
        extra = {key: value for key, value in choice.action.items() if key != "route"}
        yield {"match": match, "route": {**forward(retry_on), **choice.action["route"]}, **extra}


def _by_chance(shares: Mapping[FleetId, int]) -> _Choice:
    if len(shares) == 1:
        return _Choice(_only(next(iter(shares))))
    clusters = [_weighted(fleet, bp) for fleet, bp in sorted(shares.items())]
    return _Choice({"route": {"weighted_clusters": {"clusters": clusters}}})


def _by_context(name: str, shares: Mapping[FleetId, int], variants: Variants) -> Iterator[_Choice]:
    """Yield: who chooses, who carries the context, who has our cookie, everybody else."""
    order = sorted(shares, key=lambda fleet: (fleet != variants.first, fleet))
    if variants.force_header:
        for fleet in order:
            wanted = {"exact": variants.names[fleet]}
            header = {"name": variants.force_header, "string_match": wanted}
            yield _Choice(_only(fleet), headers=(header,))
    hashed = [_weighted(fleet, shares[fleet]) for fleet in order]
    split = {"clusters": hashed, "use_hash_policy": True}
    carried = {"route": {"weighted_clusters": split, "hash_policy": [_hash_of(variants)]}}
    yield _Choice(carried, headers=_carries(variants), query=_asks(variants))
    for fleet in order:
        yield _Choice(_only(fleet), headers=(_cookie(*_our_cookie(name, variants, fleet)),))
    drawn = [
        _weighted(fleet, shares[fleet])
        | {"response_headers_to_add": [_sets(name, variants, fleet)]}
        for fleet in order
    ]
    yield _Choice({"route": {"weighted_clusters": {"clusters": drawn}}})


def _only(fleet: FleetId) -> Json:
    return {"route": {"cluster": fleet}, "request_headers_to_add": [fleet_header(fleet)]}


def _weighted(fleet: FleetId, bp: int) -> Json:
    return {"name": fleet, "weight": bp, "request_headers_to_add": [fleet_header(fleet)]}


def _hash_of(variants: Variants) -> Json:
    if variants.by == "header":
        return {"header": {"header_name": variants.name}}
    if variants.by == "query":
        return {"query_parameter": {"name": variants.name}}
    return {"cookie": {"name": variants.name}}


def _carries(variants: Variants) -> tuple[Json, ...]:
    if variants.by == "header":
        return ({"name": variants.name, "present_match": True},)
    return (_cookie(variants.name, None),) if variants.by == "cookie" else ()


def _asks(variants: Variants) -> tuple[Json, ...]:
    return ({"name": variants.name, "present_match": True},) if variants.by == "query" else ()


def _our_cookie(name: str, variants: Variants, fleet: FleetId) -> tuple[str, str]:
    return f"aether-{name}", f"{variants.test}.{variants.names[fleet]}"


def _cookie(name: str, value: str | None) -> Json:
    """Return what matches a request with that cookie, whatever its value without one."""
    wanted = "[^;]+" if value is None else re.escape(value)
    regex = rf"(?:.*;\s*)?{re.escape(name)}={wanted}(?:;.*)?"
    return {"name": "cookie", "string_match": {"safe_regex": {"regex": regex}}}


def _sets(name: str, variants: Variants, fleet: FleetId) -> Json:
    cookie, value = _our_cookie(name, variants, fleet)
    text = f"{cookie}={value}; Path=/; Max-Age={COOKIE_MAX_AGE_S}; HttpOnly; SameSite=Lax"
    return {
        "header": {"key": "set-cookie", "value": text},
        "append_action": "APPEND_IF_EXISTS_OR_ADD",
    }


def forward(retry_on: str) -> Json:
    """Return the part of a route that says how requests are passed on, and when again."""
    return {
        "timeout": "0s",  # Streams may last; an idle one ends by the listener's limit.
        "retry_policy": {
            "retry_on": retry_on,
            "retriable_headers": [{"name": ABSENT_HEADER, "present_match": True}],
            "num_retries": RETRIES,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": PREVIOUS_HOSTS},
                }
            ],
            "host_selection_retry_max_attempts": DRAWS,
            "retry_back_off": {"base_interval": "0.010s", "max_interval": "0.100s"},
        },
    }


def answer(status: int, body: str, match: Json | None = None) -> Json:
    """Return the route that answers by itself."""
    return {
        "match": match or {"prefix": "/"},
        "direct_response": {"status": status, "body": {"inline_string": body}},
    }


def fleet_header(fleet: FleetId) -> Json:
    """Return the header that tells the next node the fleet.

    It overwrites what the client sent: nobody outside chooses a fleet.
    """
    return {
        "header": {"key": FLEET_HEADER, "value": fleet},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
