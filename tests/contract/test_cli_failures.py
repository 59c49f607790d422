"""Every command against every failure: the exit code, one clear line, and no word of success."""

import json
import socket
from typing import Any

import pytest

from aether_core.contexts import Context, load_context, save_context
from aether_core.errors import (
    AetherError,
    ConfigError,
    Conflict,
    Forbidden,
    IntegrityError,
    NoQuorum,
    NotFound,
    OutcomeUnknown,
    Problem,
    Refused,
    Unauthenticated,
    to_problem_document,
)
from aether_core.settings import Settings
from tests.contract.answering import Answer, Script
from tests.contract.cluster_answers import ASKING, HEALTHY, deployment, healthy_but
from tests.contract.conftest import TOKEN, Desk, lose_patience

WHY, HINT = "the reason of this test", "what this test says"


def refusal(kind: type[AetherError]) -> Answer:
    return Answer(kind.http_status, to_problem_document(kind(WHY, hint=HINT)))


#: Answer: the exit code that is documented for it.
FAILURES: dict[str, tuple[Answer, int]] = {
    "400": (refusal(ConfigError), 3),
    "401": (refusal(Unauthenticated), 4),
    "403": (refusal(Forbidden), 4),
    "404": (refusal(NotFound), 1),
    "409 refused": (refusal(Refused), 4),
    "409 conflict": (refusal(Conflict), 1),
    "422": (refusal(IntegrityError), 1),
    "500": (refusal(AetherError), 1),
    "503": (refusal(NoQuorum), 5),
    "503 unknown": (refusal(OutcomeUnknown), 5),
    "an error of later": (Answer(418, {"type": "NotInventedYet", "title": WHY, "hint": HINT}), 1),
    "403 of a stranger": (Answer(403, "<html>no</html>"), 4),
    "500 of a stranger": (Answer(500, "<html>oh</html>"), 1),
    "503 of a stranger": (Answer(503, "<html>later</html>"), 5),
    "200 of a stranger": (Answer(200, "<html>welcome</html>"), 1),
    "no answer": (Answer(None), 5),
}
SUCCESS = ("stored", "deleted", "revoked", "removed", "-> 2", "goes on", "COMPLETED", "aet_0a")


def check(desk: Desk, words: list[str], code: int, *, may_say: tuple[str, ...] = ()) -> str:
    """Run it for people and for machines: both must hear that it failed, and why.

    Returns what people read.
    """
    typed = [word.format(desk.files) for word in words]
    got, out, read = desk.types(*typed)
    assert got == code, read
    assert not any(word in out for word in SUCCESS), out
    assert not out or may_say, out
    assert read.count("error: ") == 1, read
    assert "Traceback" not in read
    assert TOKEN not in out + read
    desk.script.asked.clear()
    got, out, err = desk.types(*typed, "--json")
    assert got == code, err
    assert "Traceback" not in err
    objects = [json.loads(line) for line in out.splitlines()]
    assert objects[0]["schema"] == "aether/v1"
    assert objects[-1]["kind"] == "error"
    assert objects[-1]["exit_code"] == code
    assert objects[-1]["message"] in err
    assert {one["kind"] for one in objects[:-1]} <= set(may_say)
    return read


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("command", ASKING)
def test_a_failure_is_a_failure(
    desk: Desk, command: str, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, code = FAILURES[failure]
    if answer.status is None:
        lose_patience(monkeypatch)
    if command == "logs" and failure == "200 of a stranger":
        answer = Answer(200, "<html>welcome\n")
    desk.script = Script(answer)
    read = check(desk, ASKING[command], code)
    if isinstance(answer.body, dict):
        assert read.splitlines()[-2:] == [f"error: {WHY}", f"try: {HINT}"]


@pytest.mark.parametrize("command", ASKING)
def test_nobody_listens(desk: Desk, command: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        known = load_context(Settings())
        endpoint = f"https://127.0.0.1:{unused.getsockname()[1]}"
        nowhere = Context("test", (endpoint,), known.ca_pem, known.token)
        save_context(Settings(), nowhere, make_current=True)
        read = check(desk, ASKING[command], 5)
        assert "no node of the cluster answers" in read
        assert "try: " in read


#: What fails only after something went well: the rule that fails, and what may have been said.
LATER: list[tuple[str, str, tuple[str, ...]]] = [
    ("artifact upload", r"PUT ", ()),
    ("deploy", r"POST /v1/deployments", ("plan",)),
    ("deploy", r"GET /v1/deployments/current", ("plan",)),
    ("deploy --detach", r"POST /v1/deployments", ("plan",)),
    ("deploy status --watch", r"GET /v1/deployments/current", ()),
    ("undeploy", r"GET /v1/deployments/current", ()),
    ("scale", r"GET /v1/instances", ()),
]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize(("command", "rule", "said"), LATER, ids=str)
def test_a_late_failure_is_a_failure_too(
    desk: Desk,
    command: str,
    rule: str,
    said: tuple[str, ...],
    failure: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer, code = FAILURES[failure]
    if answer.status is None:
        lose_patience(monkeypatch)
    desk.script = healthy_but({rule: answer})
    check(desk, ASKING[command], code, may_say=said)


@pytest.mark.parametrize(("state", "code"), [("FAILED", 1), ("ROLLED_BACK", 6)])
@pytest.mark.parametrize("command", ["deploy", "deploy status --watch", "undeploy"])
def test_a_deployment_that_did_not_land(desk: Desk, command: str, state: str, code: int) -> None:
    over = Answer(200, deployment(state, "instance 'web-1' failed 3 times"))
    desk.script = healthy_but({r"GET /v1/deployments/current": over})
    words = [word.format(desk.files) for word in ASKING[command]]
    got, out, err = desk.types(*words)
    assert got == code
    assert f"error: deployment 'shop-1' is {state}: instance 'web-1' failed 3 times" in err
    assert "COMPLETED" not in out + err
    got, out, _ = desk.types(*words, "--json")
    last = json.loads(out.splitlines()[-1])
    assert (got, last["kind"], last["exit_code"]) == (code, "error", code)


@pytest.mark.parametrize("command", ["deploy", "scale"])
def test_to_stop_waiting_is_no_success(desk: Desk, command: str) -> None:
    slow = {
        r"GET /v1/deployments/current": Answer(200, deployment("DEPLOYING")),
        r"GET /v1/instances": Answer(200, {"instances": []}),
    }
    desk.script = healthy_but(slow)
    words = [word.format(desk.files) for word in ASKING[command]]
    got, out, err = desk.types(*words, "--timeout", "0.05")
    assert got == 7
    assert "it goes on" in err
    assert "-> 2" not in out


def test_every_problem_is_shown(desk: Desk) -> None:
    problems = (Problem("body", 0, "role", "missing"), Problem("x.toml", 3, "a.b", "bad", "do c"))
    document = to_problem_document(ConfigError("two things", problems=problems))
    desk.script = Script(Answer(400, document))
    code, out, err = desk.types("token", "create", "x", "--role", "viewer", "--json")
    assert code == 3
    assert err.splitlines() == ["error: body: role: missing", "error: x.toml:3: a.b: bad (do c)"]
    told = json.loads(out)
    assert [problem["key"] for problem in told["problems"]] == ["role", "a.b"]


@pytest.mark.parametrize(
    "words",
    [
        ["slices", "--no-such-option"],
        ["--no-such-option", "slices"],
        ["no-such-command"],
        ["scale", "web"],
        ["scale", "web", "--instances", "0"],
        ["scale", "web", "--instances", "many"],
        ["token", "create", "x", "--role", "king"],
        ["token", "create", "x", "--role", "viewer", "--expires-in", "soon"],
        ["artifact", "show", "web"],
        ["undeploy", "shop"],
        ["cluster", "destroy", "test"],
        ["deploy"],
    ],
    ids=" ".join,
)
def test_wrong_usage_asks_nobody_and_ends_with_2(desk: Desk, words: list[str]) -> None:
    """Among them questions: without a terminal there is nobody to answer."""
    code, out, err = desk.types(*words)
    assert (code, out) == (2, "")
    assert err
    code, out, _ = desk.types(*words, "--json")
    told: dict[str, Any] = json.loads(out)
    assert (code, told["kind"], told["type"], told["exit_code"]) == (2, "error", "Usage", 2)
    assert desk.script.asked == []


def test_a_plan_that_takes_something_away_is_a_question(desk: Desk) -> None:
    plan = HEALTHY[r"POST /v1/plans$"].body
    changes = [{"slice": "old", "old": {"id": "old@1"}, "new": None}]
    taking = {**plan, "plan": {**plan["plan"], "changes": changes}}
    desk.script = healthy_but({r"POST /v1/plans$": Answer(200, taking)})
    code, _, err = desk.types("deploy", f"{desk.files}/blueprint.toml")
    assert code == 2
    assert "say --yes" in err
    assert desk.script.asked == ["POST /v1/plans"]


def test_names_stay_in_their_place_in_a_path(desk: Desk) -> None:
    desk.types("token", "revoke", "../artifacts/web?x=1#y")
    desk.types("undeploy", "../tokens/0a", "--yes")
    assert desk.script.asked == [
        "DELETE /v1/tokens/..%2Fartifacts%2Fweb%3Fx%3D1%23y",
        "DELETE /v1/blueprints/..%2Ftokens%2F0a",
    ]


def test_without_a_context_it_says_how_to_get_one(desk: Desk) -> None:
    assert desk.types("context", "remove", "test")[0] == 0
    code, out, err = desk.types("slices")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "error: no cluster is known here",
        "try: make one: aether cluster bootstrap --config cluster.toml",
    ]


def test_what_nobody_expected_is_a_bug(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("aether_core.contexts.load_context", broken)
    code, out, err = desk.types("slices", "--json")
    assert code == 1
    assert "this is a bug in aether" in err
    assert json.loads(out)["type"] == "Bug"
