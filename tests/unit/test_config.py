"""Reading files: every mistake is one line with file, line, key and reason; secrets survive."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from aether_core.blueprint import Blueprint, parse_blueprint, read_blueprint
from aether_core.cluster_config import (
    ClusterConfig,
    NetworkTable,
    config_model,
    ports,
    read_cluster_config,
    resolve_config,
)
from aether_core.config import Table, json_schema, read_toml, references, resolve, validate
from aether_core.drivers import MachineSpec
from aether_core.errors import ConfigError, NotFound, Problem, Refused
from aether_core.model import NodeId
from aether_core.providers.local import LocalCompute

CLUSTER = """\
[cluster]
name = "local"
size = 3

[cloud]
provider = "local"

[security]
cluster_secret = "${secrets:cluster/secret}"
"""

BLUEPRINT = """\
[blueprint]
name = "shop"
version = "1.0.0"

[[slices]]
name = "web"
artifact = "web:1.0.0"
"""


NAME_RULE = "must be a DNS label: a to z, 0 to 9 and '-', at most 63 characters"
SIZE_RULE = 'must be a number with KiB, MiB, GiB or TiB, such as "256MiB"'
PATH_RULE = 'must be a path that begins with "/", in visible ASCII characters'
NUL_RULE = "must not hold the character NUL, which no environment can"
NO_PLACEHOLDER = "begins no placeholder | ${env:NAME} or ${secrets:path}"
VARIABLE_RULE = "must be a variable's name: letters, digits and '_'"
AT_LEAST_1 = "input should be greater than or equal to 1"


def problems(path: Path, text: str, model: type[BaseModel]) -> list[Problem]:
    """Return what is wrong with `text`, less the file's name."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        validate(read_toml(path), model)
    assert all(problem.file == str(path) for problem in caught.value.problems)
    assert all("\n" not in str(problem) for problem in caught.value.problems)
    return list(caught.value.problems)


def shown(found: list[Problem]) -> list[str]:
    return [f"{p.line}: {p.key}: {p.reason}" + (f" | {p.hint}" if p.hint else "") for p in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            CLUSTER.replace("size", "sizes"),
            ["1: cluster.size: missing", "3: cluster.sizes: unknown key | did you mean 'size'?"],
        ),
        (
            CLUSTER.replace("3", '"3"'),
            ["3: cluster.size: input should be a valid integer, not '3'"],
        ),
        (CLUSTER.replace("3", "0"), [f"3: cluster.size: {AT_LEAST_1}, not 0"]),
        (
            CLUSTER.replace("3", "true"),
            ["3: cluster.size: input should be a valid integer, not True"],
        ),
        (CLUSTER.replace('"local"\nsize', '"Lo cal"\nsize'), [f"2: cluster.name: {NAME_RULE}"]),
        (
            CLUSTER.replace("size = 3", "size = 3\nquorum = 4"),
            ["4: cluster.quorum: quorum 4 must be odd and at most the size, 3 | quorum = 3"],
        ),
        (
            CLUSTER + "[network]\napi = 80_000\n",
            ["11: network.api: input should be less than or equal to 65535, not 80000"],
        ),
        (
            CLUSTER + "[network]\napi = 1\nmesh = 1\n",
            ["12: network.mesh: port 1 is that of 'api' already"],
        ),
        (CLUSTER + "[netwrok]\napi = 1\n", ["10: netwrok: unknown key | did you mean 'network'?"]),
        (
            CLUSTER + "[zzz]\n",
            ["10: zzz: unknown key | known here: cloud, cluster, network, security"],
        ),
        (
            CLUSTER.replace("secrets:", "secret:"),
            [f"9: security.cluster_secret: '${{secret:' {NO_PLACEHOLDER}"],
        ),
        (
            CLUSTER.replace('"${secrets:cluster/secret}"', "12345678901234567890"),
            ["9: security.cluster_secret: input should be a valid string"],
        ),
        ("", ["1: cloud: missing", "1: cluster: missing", "1: security: missing"]),
    ],
)
def test_each_mistake_in_a_cluster_toml_is_one_line(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    assert sorted(shown(problems(tmp_path / "c.toml", text, ClusterConfig))) == sorted(expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("instances = 0", [f"8: slices[1].instances: {AT_LEAST_1}, not 0"]),
        ("instances = 1.5", ["8: slices[1].instances: input should be a valid integer, not 1.5"]),
        ("instancs = 2", ["8: slices[1].instancs: unknown key | did you mean 'instances'?"]),
        ("min_available = 2", ["8: slices[1].min_available: 2 is more than instances, 1"]),
        ("scale = { min = 2 }", ["5: slices[1].instances: 1 is outside scale, 2 to 10000"]),
        ("scale = { mni = 2 }", ["8: slices[1].scale.mni: unknown key | did you mean 'min'?"]),
        ('resources = { memory = "5MB" }', [f"8: slices[1].resources.memory: {SIZE_RULE}"]),
        ("resources = { memory = 256 }", [f"8: slices[1].resources.memory: {SIZE_RULE}"]),
        (
            "resources.cpu = inf",
            ["8: slices[1].resources.cpu: input should be a finite number, not inf"],
        ),
        (
            "resources.cpu = nan",
            ["8: slices[1].resources.cpu: input should be a finite number, not nan"],
        ),
        ('route = { prefix = "shop" }', [f"8: slices[1].route.prefix: {PATH_RULE}"]),
        (
            'route = { prefix = "/a?b" }',
            ["8: slices[1].route.prefix: must be a path without a query"],
        ),
        (
            'route = { host = "a:80" }',
            ['8: slices[1].route.host: must be a host name without port, or "*" for any'],
        ),
        ('health = { path = "/a\\r\\nX: y" }', [f"8: slices[1].health.path: {PATH_RULE}"]),
        (
            "health = { interval_s = 0 }",
            ["8: slices[1].health.interval_s: input should be greater than 0, not 0"],
        ),
        ('env = { PORT = "1" }', ["8: slices[1].env.PORT: is set by Aether itself"]),
        ('env = { "A=B" = "1" }', [f"8: slices[1].env.A=B: {VARIABLE_RULE}"]),
        ('env = { A = "\\u0000" }', [f"8: slices[1].env.A: {NUL_RULE}"]),
        ("env = { A = 1 }", ["8: slices[1].env.A: input should be a valid string"]),
        ('env = { A = "${secrets:a" }', [f"8: slices[1].env.A: '${{secrets:' {NO_PLACEHOLDER}"]),
        ('entry = "a \'b"', ["8: slices[1].entry: must be a command line: no closing quotation"]),
        ('entry = " "', ["8: slices[1].entry: must say what to start"]),
        (
            '[[slices]]\nname = "web"\nartifact = "a:1"',
            ["9: slices[2].name: slice 'web' is there already"],
        ),
        (
            "[[slices]]\nname = 'a b'\nartifact = 'ab'",
            [
                f"9: slices[2].name: {NAME_RULE}",
                '10: slices[2].artifact: must be "name:version"',
            ],
        ),
        (
            'route.prefix = "/a"\n[[slices]]\nname = "b"\nartifact = "b:1"\nroute.prefix = "/a/"',
            ["12: slices[2].route: slice 'web' has the route */a already"],
        ),
    ],
)
def test_each_mistake_in_a_blueprint_is_one_line(
    tmp_path: Path, line: str, expected: list[str]
) -> None:
    assert shown(problems(tmp_path / "b.toml", BLUEPRINT + line + "\n", Blueprint)) == expected


def test_a_blueprint_without_slices_says_so_and_all_problems_come_together(
    tmp_path: Path,
) -> None:
    text = 'slices = []\n[blueprint]\nname = 5\nversion = ""\ncolour = 1\n'
    assert shown(problems(tmp_path / "b.toml", text, Blueprint)) == [
        "1: slices: must be one slice at least",
        "3: blueprint.name: input should be a valid string, not 5",
        "4: blueprint.version: string should have at least 1 character, not ''",
        "5: blueprint.colour: unknown key | known here: name, version",
    ]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a = 1\nb = = 2\n", 2, "not valid TOML: invalid value"),
        ('a = 1\n\nb = "never closed\n', 3, "not valid TOML: illegal character"),
        ("a = [1,\n2\n", 3, "not valid TOML: unclosed array"),
        ("a = 1\na = 2\n", 2, "not valid TOML: cannot overwrite a value"),
    ],
)
def test_what_is_not_toml_is_one_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    (found,) = problems(tmp_path / "c.toml", text, ClusterConfig)
    assert (found.line, found.key) == (line, "")
    assert found.reason.startswith(reason)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^file '.*none.toml' not found$"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"^file '.*binary.toml' not readable: "):
        read_toml(tmp_path / "binary.toml")
    with pytest.raises(ConfigError, match="not readable"):
        read_toml(tmp_path)


TRICKY = '''\
# [not] a = "table"
a = "# no comment" # [a]
"quoted = key" = [
  1, # ]
  "]",
]
b = """
[x]
y = 1
""" # }
c.d.e = 1
[t] # [u]
'l = m' = { n = "}", o = [ { p = "[" } ] }
[[t.list]]
q = 1
[[t.list]]
r = \'\'\'
= \'\'\'
[t.list.inner]
s = "\\""
t = 2
'''


def test_lines_of_tricky_toml(tmp_path: Path) -> None:
    path = tmp_path / "tricky.toml"
    path.write_text(TRICKY)
    document = read_toml(path)
    lines = {
        ("a",): 2,
        ("quoted = key",): 3,
        ("b",): 7,
        ("c",): 11,
        ("c", "d", "e"): 11,
        ("t",): 12,
        ("t", "l = m"): 13,
        ("t", "l = m", "o", 0, "p"): 13,  # Inline: as near as it gets.
        ("t", "list", 0, "q"): 15,
        ("t", "list", 1): 16,
        ("t", "list", 1, "r"): 17,
        ("t", "list", 1, "inner"): 19,
        ("t", "list", 1, "inner", "t"): 21,
        ("nowhere",): 1,
    }
    assert {keys: document.line_of(keys) for keys in lines} == lines


# Placeholders


async def secret_of(values: Mapping[str, str], name: str) -> str:
    if name not in values:
        raise NotFound(f"secret '{name}' not found", hint="export it")
    return values[name]


names = st.from_regex(r"[a-z][a-z0-9/_-]{0,8}", fullmatch=True)


@given(secrets=st.dictionaries(names, st.text(max_size=30), min_size=1, max_size=4))
async def test_secrets_survive_whatever_they_hold(secrets: dict[str, str]) -> None:
    secrets |= {"tricky": "\"'\\\n\t{}${env:HOME}${secrets:tricky}[]#="}
    tree = {"list": [f"<${{secrets:{name}}}>" for name in secrets], "n": 5, "plain": "${PORT}"}
    resolved = await resolve(tree, lambda name: secret_of(secrets, name))
    assert resolved == {"list": [f"<{s}>" for s in secrets.values()], "n": 5, "plain": "${PORT}"}
    assert references(tree) == [("secrets", name) for name in secrets]


async def test_a_secret_that_looks_like_toml_reaches_the_cluster_configuration(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(CLUSTER)
    secret = '"]\n[cluster]\nsize = 9\n{${env:HOME}}\\'
    config = read_cluster_config(path)
    resolved = await resolve_config(
        config, lambda name: secret_of({"cluster/secret": secret}, name)
    )
    assert resolved.security.cluster_secret == secret
    assert resolved.cluster == config.cluster
    assert secret not in repr(resolved)


async def test_all_unresolved_names_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWN", "value-of-known")
    tree = ["${env:KNOWN}", {"a": "${env:NO_ENV} ${secrets:no/secret}"}, "${secrets:other}"]
    with pytest.raises(ConfigError) as caught:
        await resolve(tree, lambda name: secret_of({}, name), where="cluster.toml")
    assert [(p.key, p.reason) for p in caught.value.problems] == [
        ("${env:NO_ENV}", "environment variable 'NO_ENV' is not set"),
        ("${secrets:no/secret}", "secret 'no/secret' not found"),
        ("${secrets:other}", "secret 'other' not found"),
    ]
    assert "value-of-known" not in str(caught.value.problems)


@pytest.mark.parametrize("text", ["${PORT}", "${PORT:-80}", "${A:0:3}", "$PORT", "${", "a:b}"])
def test_what_a_shell_understands_is_no_placeholder(tmp_path: Path, text: str) -> None:
    path = tmp_path / "b.toml"
    path.write_text(BLUEPRINT + f"entry = 'run {text}'\n")
    assert read_blueprint(path).slices[0].entry == f"run {text}"


def test_a_blueprint_sent_as_json_may_hold_anything_that_was_resolved() -> None:
    document = tomllib.loads(BLUEPRINT)
    document["slices"][0]["env"] = {"A": "${sh:x} {} ${secrets:"}
    assert parse_blueprint(document).slices[0].env["A"] == "${sh:x} {} ${secrets:"


# What the models make of right values


@pytest.mark.parametrize(
    ("size", "quorum"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (7, 5), (100, 5)]
)
def test_the_quorum_is_odd_and_at_most_five(tmp_path: Path, size: int, quorum: int) -> None:
    path = tmp_path / "c.toml"
    path.write_text(CLUSTER.replace("3", str(size)))
    assert read_cluster_config(path).cluster.quorum == quorum


def test_nodes_of_one_host_have_ports_of_their_own() -> None:
    taken = [
        port for slot in range(1, 11) for port in vars(ports(NetworkTable(), slot, True)).values()
    ]
    assert len(set(taken)) == 60
    assert ports(NetworkTable(), 4, False) == ports(NetworkTable(), 1, True)
    with pytest.raises(ConfigError, match=r"mesh is too high: node 3 would get port 65550"):
        ports(NetworkTable(mesh=65530), 3, True)


async def test_two_nodes_of_one_host_are_never_given_the_same_port(tmp_path: Path) -> None:
    network = NetworkTable(api=7400, mesh=7410)
    specs = [
        MachineSpec("local", NodeId(f"node-{slot}"), slot, {}, ports(network, slot, True), {})
        for slot in (1, 2)
    ]
    with pytest.raises(
        Refused, match=r"7410 \(\[network\] api\) of 'node-2' is one of 'node-1' too"
    ):
        await LocalCompute(tmp_path).check(specs)


@pytest.mark.parametrize(
    ("given_", "prefix"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/a", "/a"),
        ("/a/", "/a"),
        ("/a/b//", "/a/b"),
        ("/%C3%A9", "/%C3%A9"),
    ],
)
def test_prefixes_have_one_form(tmp_path: Path, given_: str, prefix: str) -> None:
    path = tmp_path / "b.toml"
    path.write_text(BLUEPRINT + f'route.prefix = "{given_}"\nroute.host = "Shop.Example"\n')
    (route,) = read_blueprint(path).routes()
    assert (route.prefix, route.host) == (prefix, "shop.example")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("256MiB", 2**28), ("1.5 GiB", 3 * 2**29), ("1KiB", 1024), ("0MiB", 0), ("2TiB", 2**41)],
)
def test_sizes(tmp_path: Path, text: str, size_bytes: int) -> None:
    path = tmp_path / "b.toml"
    path.write_text(BLUEPRINT + f'resources.memory = "{text}"\n')
    assert read_blueprint(path).slices[0].resources.memory == size_bytes


@given(text=st.text(max_size=12) | st.from_regex(r"\d+(\.\d+)? ?[KMGT]iB", fullmatch=True))
def test_any_size_is_bytes_or_an_error(text: str) -> None:
    document = tomllib.loads(BLUEPRINT)
    document["slices"][0]["resources"] = {"memory": text}
    try:
        size_bytes = parse_blueprint(document).slices[0].resources.memory
    except ConfigError:
        return
    assert 0 <= size_bytes < 2**80


def test_a_health_path_is_asked_for_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "b.toml"
    path.write_text(BLUEPRINT + 'health.path = "/health/?deep=1"\n')
    assert read_blueprint(path).slices[0].health.path == "/health/?deep=1"


class Mail(Table):
    """A plugin's table."""

    to: str


def test_a_plugin_adds_a_table(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(CLUSTER + '[mail]\nto = "a@b.example"\n')
    config = read_cluster_config(path, {"mail": Mail})
    assert config.model_dump()["mail"] == {"to": "a@b.example"}
    path.write_text(CLUSTER)
    assert read_cluster_config(path, {"mail": Mail}).model_dump()["mail"] is None
    assert shown(problems(path, CLUSTER + "[mail]\nfrom = 1\n", config_model({"mail": Mail}))) == [
        "10: mail.to: missing",
        "11: mail.from: unknown key | known here: to",
    ]


@pytest.mark.parametrize("model", [ClusterConfig, Blueprint, config_model({"mail": Mail})])
def test_the_json_schema_knows_every_key(model: type[BaseModel]) -> None:
    schema = json_schema(model)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert set(schema["properties"]) == set(model.model_fields)
    for name, table in schema["$defs"].items():
        allows_more = name == "StrategyTable"
        assert table["additionalProperties"] is allows_more, f"an editor accepts anything in {name}"
    if model is Blueprint:
        memory = schema["$defs"]["ResourcesTable"]["properties"]["memory"]
        assert memory["type"] == "string"
