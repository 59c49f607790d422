"""What a healthy cluster answers, and every command that asks it something."""

from typing import Any

from tests.contract.answering import Answer, Script

AT = "2026-01-01T00:00:00Z"
ARTIFACT = {
    "name": "web",
    "version": "1.0.0",
    "kind": "pyz",
    "size_bytes": 14,
    "sha256": "a" * 64,
    "state": "STORED",
    "holders": ["node-1"],
    "created_at": AT,
    "by": "test",
    "copies": ["node-1"],
}
NODE = {
    "id": "node-1",
    "state": "ON_DUTY",
    "is_live": True,
    "is_core": True,
    "is_leader": True,
    "address": "127.0.0.1",
    "ports": {"api": 1, "ingress": 2},
    "ready": 1,
    "instances": 1,
    "ingress_error": "",
    "why": "",
}
TOKEN = {"id": "0a", "name": "x", "role": "viewer", "created_at": AT, "expires_at": None}
FLEET = {
    "slice": "web",
    "fleet": "web@1.0.0-abc",
    "version": "1.0.0",
    "role": "new",
    "wanted": 2,
    "ready": 2,
    "running": 2,
    "share_bp": 10_000,
    "variant": "",
    "counted": None,
}
INSTANCES = [
    {"id": f"web-{i}", "fleet": "web@1.0.0-abc", "node": "node-1", "state": "READY", "why": ""}
    | {"slice": "web", "is_node_live": True}
    for i in (1, 2)
]
CHANGE = {"slice": "web", "old": None, "new": {"id": "web@1.0.0-abc"}}
PLAN = {
    "strategy": "immediate",
    "stages": [],
    "plan": {
        "blueprint": "shop",
        "version": "1",
        "revision": 7,
        "changes": [CHANGE],
        "routes": [{"host": "*", "prefix": "/", "slice": "web"}],
        "starts": {"web@1.0.0-abc": ["node-1"]},
        "stops": {},
        "keeps": [],
        "peak": [
            {
                "node": "node-1",
                "instances": 1,
                "reserved": {"cpu": 0.5, "memory_bytes": 1024},
                "capacity": {"cpu": 4.0, "memory_bytes": 4096},
            }
        ],
    },
}


MOVE = {"at": "2026-01-01T00:00:00.000Z", "stage": 0, "inputs": {}}


def deployment(state: str = "COMPLETED", why: str = "the old instances have stopped") -> Any:
    return {
        "deployment": {
            "id": "shop-1",
            "blueprint": "shop",
            "version": "1",
            "strategy": "immediate",
            "state": state,
            "since": AT,
            "by": "test",
            "deadline_at": AT,
            "stages": [],
            "stage": 0,
            "asking": None,
            "history": [MOVE | {"state": state, "why": why}],
            "failures": [],
        },
        "fleets": [FLEET],
        "judgements": {},
    }


SUMMARY = {
    "id": "shop-1",
    "blueprint": "shop",
    "version": "1",
    "strategy": "immediate",
    "state": "COMPLETED",
    "since": AT,
    "by": "test",
    "why": "",
}
LOG_LINES = '{"node": "node-1", "instance": "web-1", "line": "hello"}\n\n'

#: Rules for a `Script`, each written out: a path that is asked in another way is not answered.
HEALTHY: dict[str, Answer] = {
    r"GET /v1/uploads/[0-9a-f]{64}$": Answer(200, {"received": 0, "whole": False}),
    r"PUT /v1/artifacts/web/1\.0\.0\?": Answer(200, {**ARTIFACT, "uploaded": True}),
    r"GET /v1/artifacts$": Answer(200, {"artifacts": [ARTIFACT]}),
    r"GET /v1/artifacts/web/1\.0\.0$": Answer(200, ARTIFACT),
    r"DELETE /v1/artifacts/web/1\.0\.0$": Answer(200, {"deleted": "web:1.0.0"}),
    r"POST /v1/plans$": Answer(200, PLAN),
    r"POST /v1/deployments$": Answer(200, {"id": "shop-1"}),
    r"POST /v1/deployments/ask$": Answer(200, {"id": "shop-1", "asked": "promote"}),
    r"GET /v1/deployments$": Answer(200, {"deployments": [SUMMARY]}),
    r"GET /v1/deployments/current": Answer(200, deployment()),
    r"DELETE /v1/blueprints/shop$": Answer(200, {"id": "shop-1"}),
    r"GET /v1/slices$": Answer(
        200,
        {"slices": [{"name": "web", "blueprint": "shop", "pinned": None, "fleets": [FLEET]}]},
    ),
    r"GET /v1/instances": Answer(200, {"instances": INSTANCES}),
    r"POST /v1/slices/web/scale$": Answer(
        200, {"slice": "web", "fleet": "web@1.0.0-abc", "before": 1, "now": 2}
    ),
    r"GET /v1/logs\?": Answer(200, LOG_LINES),
    r"GET /v1/nodes$": Answer(200, {"nodes": [NODE]}),
    r"GET /v1/cluster$": Answer(
        200,
        {
            "cluster": {"name": "test", "provider": "local"},
            "revision": 7,
            "leader": "node-1",
            "nodes": [NODE],
            "slices": 1,
            "active_deployments": [],
        },
    ),
    r"POST /v1/tokens$": Answer(200, {"token": "aet_0a_x", **TOKEN}),
    r"GET /v1/tokens$": Answer(200, {"tokens": [TOKEN]}),
    r"DELETE /v1/tokens/0a$": Answer(200, {"revoked": "0a"}),
}


def healthy_but(changed: dict[str, Answer]) -> Script:
    """Return the script of a healthy cluster with some answers changed."""
    kept = {rule: answer for rule, answer in HEALTHY.items() if rule not in changed}
    return Script(Answer(500, "nobody asks this"), {**changed, **kept})


#: Every command that asks the cluster; `{}` is the directory with a test's files.
ASKING: dict[str, list[str]] = {
    "artifact upload": ["artifact", "upload", "{}/web-1.0.0.pyz"],
    "artifact list": ["artifact", "list"],
    "artifact show": ["artifact", "show", "web:1.0.0"],
    "artifact delete": ["artifact", "delete", "web:1.0.0"],
    "deploy": ["deploy", "{}/blueprint.toml", "--yes"],
    "deploy --dry-run": ["deploy", "{}/blueprint.toml", "--dry-run"],
    "deploy --detach": ["deploy", "{}/blueprint.toml", "--yes", "--detach"],
    "deploy status": ["deploy", "status"],
    "deploy status --watch": ["deploy", "status", "shop", "--watch"],
    "deploy list": ["deploy", "list"],
    "deploy promote": ["deploy", "promote"],
    "deploy rollback": ["deploy", "rollback"],
    "deploy complete": ["deploy", "complete"],
    "deploy variant remove": ["deploy", "variant", "remove", "B"],
    "rollback": ["rollback"],
    "explain": ["explain"],
    "undeploy": ["undeploy", "shop", "--yes"],
    "undeploy --detach": ["undeploy", "shop", "--yes", "--detach"],
    "scale": ["scale", "web", "--instances", "2"],
    "scale --detach": ["scale", "web", "--instances", "2", "--detach"],
    "slices": ["slices"],
    "instances": ["instances"],
    "logs": ["logs", "web"],
    "node list": ["node", "list"],
    "cluster status": ["cluster", "status"],
    "token create": ["token", "create", "x", "--role", "viewer"],
    "token list": ["token", "list"],
    "token revoke": ["token", "revoke", "0a"],
}
