"""The routes of a slice as Envoy is told them: in which order, for whom, to which fleet."""

import re
from typing import Any

import pytest

from aether_core.envoy_routes import FLEET_HEADER, UNSAFE_METHODS, slice_routes
from aether_core.model import FleetId, RouteTable, Variants

OLD, NEW = FleetId("web@1"), FleetId("web@2")
KNOWN = {OLD, NEW}
Json = dict[str, Any]


def table(new_bp: int, variants: Variants | None = None) -> RouteTable:
    parts = {OLD: 10_000 - new_bp, NEW: new_bp}
    shares = {"web": {fleet: bp for fleet, bp in parts.items() if bp}}
    return RouteTable(shares=shares, variants={"web": variants} if variants else {})


def variants(by: str, force_header: str = "") -> Variants:
    return Variants("shop-2", by, "x-user", force_header, NEW, {OLD: "A.b", NEW: "B"})


def routes(of: RouteTable, prefix: str = "/") -> list[Json]:
    """Return the routes for methods that may be repeated; their twins are checked by a test."""
    return slice_routes("web", prefix, of, KNOWN)[1::2]


def targets(route: Json) -> dict[str, int] | str:
    action = route["route"]
    if "cluster" in action:
        return str(action["cluster"])
    return {part["name"]: part["weight"] for part in action["weighted_clusters"]["clusters"]}


def names(route: Json) -> list[str]:
    """Return the headers and query parameters that a request must carry."""
    match = route["match"]
    return [one["name"] for one in (*match.get("headers", ()), *match.get("query_parameters", ()))]


def test_one_version_has_one_route() -> None:
    (route,) = routes(table(10_000))
    assert (names(route), targets(route)) == ([], NEW)
    assert "use_hash_policy" not in str(route)


def test_two_versions_share_by_chance() -> None:
    (route,) = routes(table(500))
    assert (names(route), targets(route)) == ([], {OLD: 9_500, NEW: 500})


def test_variants_of_a_single_version_are_chance() -> None:
    assert routes(table(10_000, variants("header"))) == routes(table(10_000))


@pytest.mark.parametrize(
    ("by", "carried", "hash_policy"),
    [
        ("header", ["x-user"], {"header": {"header_name": "x-user"}}),
        ("cookie", ["cookie"], {"cookie": {"name": "x-user"}}),
        ("query", ["x-user"], {"query_parameter": {"name": "x-user"}}),
    ],
)
def test_a_split_asks_the_tester_then_the_context_then_our_cookie_then_chance(
    by: str, carried: list[str], hash_policy: Json
) -> None:
    found = routes(table(1_000, variants(by, "x-variant")))
    both = {NEW: 1_000, OLD: 9_000}
    assert [(names(route), targets(route)) for route in found] == [
        (["x-variant"], NEW),
        (["x-variant"], OLD),
        (carried, both),
        (["cookie"], NEW),
        (["cookie"], OLD),
        ([], both),
    ]
    by_context = found[2]["route"]
    assert by_context["hash_policy"] == [hash_policy]
    assert by_context["weighted_clusters"]["use_hash_policy"] is True
    # Buckets are dealt out in this order: the new version's first, so that growing it adds to it.
    order = [part["name"] for part in by_context["weighted_clusters"]["clusters"]]
    assert order == [NEW, OLD]
    assert "hash_policy" not in found[5]["route"]


def test_nobody_may_choose_without_a_forced_header() -> None:
    assert len(routes(table(1_000, variants("header")))) == 4


def test_who_is_met_by_chance_gets_a_cookie_of_his_variant() -> None:
    drawn = routes(table(1_000, variants("header")))[-1]["route"]["weighted_clusters"]["clusters"]
    said = {part["name"]: part["response_headers_to_add"][0]["header"]["value"] for part in drawn}
    assert said[NEW].startswith("aether-web=shop-2.B; Path=/; Max-Age=2592000; HttpOnly")
    assert said[OLD].startswith("aether-web=shop-2.A.b; ")


@pytest.mark.parametrize(
    ("cookies", "matches"),
    [
        ("aether-web=shop-2.A.b", True),
        ("a=1; aether-web=shop-2.A.b; z=2", True),
        ("a=1;aether-web=shop-2.A.b", True),
        ("aether-web=shop-2.Axb", False),
        ("aether-web=shop-2.A.bc", False),
        ("aether-web=shop-1.A.b", False),
        ("not-aether-web=shop-2.A.b", False),
        ("a=aether-web=shop-2.A.b", False),
    ],
)
def test_our_cookie_is_found_among_others(cookies: str, matches: bool) -> None:
    (header,) = routes(table(1_000, variants("header")))[2]["match"]["headers"]
    regex = header["string_match"]["safe_regex"]["regex"]
    assert (re.fullmatch(regex, cookies) is not None) == matches


@pytest.mark.parametrize(
    ("cookies", "matches"),
    [
        ("x-user=ada", True),
        ("a=1; x-user=ada; b=2", True),
        ("x-user=", False),
        ("xx-user=a", False),
    ],
)
def test_a_context_cookie_must_have_a_value(cookies: str, matches: bool) -> None:
    (header,) = routes(table(1_000, variants("cookie")))[0]["match"]["headers"]
    regex = header["string_match"]["safe_regex"]["regex"]
    assert (re.fullmatch(regex, cookies) is not None) == matches


@pytest.mark.parametrize("by", ["header", "cookie", "query"])
def test_every_choice_is_there_for_both_kinds_of_methods(by: str) -> None:
    """What must not be repeated is only sent again when it reached nobody."""
    found = slice_routes("web", "/", table(1_000, variants(by, "x-variant")), KNOWN)
    for unsafe, safe in zip(found[::2], found[1::2], strict=True):
        method, *others = unsafe["match"]["headers"]
        assert method["name"] == ":method"
        assert method["string_match"]["safe_regex"]["regex"] == UNSAFE_METHODS
        assert others == safe["match"].get("headers", [])
        assert unsafe["match"].get("query_parameters") == safe["match"].get("query_parameters")
        assert targets(unsafe) == targets(safe)
        assert "reset" not in unsafe["route"]["retry_policy"]["retry_on"].split(",")
        assert "reset" in safe["route"]["retry_policy"]["retry_on"].split(",")


def test_every_way_tells_the_next_node_the_fleet() -> None:
    for route in slice_routes("web", "/", table(1_000, variants("header", "x-variant")), KNOWN):
        action = route["route"]
        ways = action["weighted_clusters"]["clusters"] if "weighted_clusters" in action else [
            route | {"name": action["cluster"]}
        ]  # fmt: skip
        for way in ways:
            (added,) = way["request_headers_to_add"]
            assert added["header"] == {"key": FLEET_HEADER, "value": way["name"]}
            assert added["append_action"] == "OVERWRITE_IF_EXISTS_OR_ADD"


@pytest.mark.parametrize("known", [set(), {OLD}])
def test_shares_of_fleets_that_envoy_does_not_know_serve_nobody(known: set[FleetId]) -> None:
    (route,) = slice_routes("web", "/", table(1_000), known)
    assert route["direct_response"]["status"] == 503


@pytest.mark.parametrize(
    ("prefix", "place"),
    [("/", {"prefix": "/"}), ("/shop", {"path_separated_prefix": "/shop"})],
)
def test_prefixes_end_at_whole_segments(prefix: str, place: Json) -> None:
    (route,) = routes(table(10_000), prefix)
    assert route["match"] == place
