"""A third party's plugin, from outside: wheels in a fresh environment, used through `aether`.

Making the environment takes seconds: uv takes everything from its cache where it can.
"""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.desk import Desk, until

ROOT = Path(__file__).parents[2]
HELLO = ROOT / "examples" / "hello-plugin"
GREETING = HELLO / "greeting-1.0.0.sh"
SLICE = 'name = "greeting"\nartifact = "greeting:1.0.0"\nroute = { host = "*", prefix = "/" }'


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with Aether and the sample plugin, as a user would have it."""
    made, wheels = tmp_path_factory.mktemp("outside") / "venv", tmp_path_factory.mktemp("wheels")
    _uv("sync", "--frozen", "--no-install-workspace", UV_PROJECT_ENVIRONMENT=str(made))
    for source in (ROOT, ROOT / "plugins" / "strategies", HELLO):
        _uv("build", "--wheel", "--out-dir", str(wheels), str(source))
    python = str(made / "bin" / "python")
    _uv("pip", "install", "--no-deps", "--python", python, *map(str, wheels.glob("*.whl")))
    return made


@pytest.fixture
def desk(environment: Path, tmp_path: Path) -> Desk:
    return Desk(tmp_path, program=str(environment / "bin" / "aether"))


def test_what_it_adds_is_there(desk: Desk) -> None:
    listed = desk.aether("plugin", "list", "--json").document["plugins"]
    ours = [line for line in listed if line["distribution"] == "aether-hello"]
    assert [(line["name"], line["state"]) for line in ours] == [("hello", "ok"), ("sh", "ok")]
    assert "  hello " in desk.aether("--help").out
    assert desk.aether("hello", "reader").out == "hello, reader\n"


def test_its_table_is_checked_like_our_own(desk: Desk) -> None:
    desk.aether("config", "check", HELLO / "cluster.toml")
    wrong = desk.root / "wrong.toml"
    wrong.write_text((HELLO / "cluster.toml").read_text().replace("forbidden_suffix", "forbiden"))
    refused = desk.aether("config", "check", wrong, fails=3)
    line = 1 + wrong.read_text().splitlines().index('forbiden = "-beta"')
    assert f"{wrong}:{line}: hello.forbiden: unknown key" in refused.err
    assert "did you mean 'forbidden_suffix'?" in refused.err


def test_it_passes_the_suites_it_inherits(environment: Path, tmp_path: Path) -> None:
    proven = subprocess.run(
        [environment / "bin" / "pytest", "-p", "no:cacheprovider", "-q", HELLO / "tests"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert proven.returncode == 0, proven.stdout


async def test_a_cluster_lives_with_it_and_outlives_it(desk: Desk, environment: Path) -> None:
    config = desk.config("hello", 1)
    config.write_text(config.read_text() + '\n[hello]\nforbidden_suffix = "-beta"\n')
    try:
        desk.aether("cluster", "bootstrap", "--config", config)
        desk.aether("artifact", "upload", GREETING)
        desk.aether("deploy", desk.blueprint("hello", "1.0.0", SLICE))
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(desk.ingress())
        assert answer.text == "hello from greeting 1.0.0\n"

        refused = desk.aether("deploy", desk.blueprint("hello", "1.1.0-beta", SLICE), fails=4)
        assert (
            "plugin 'hello' refuses the deployment: versions that end with '-beta'" in refused.err
        )
        deployments = desk.aether("deploy", "list", "--json").document["deployments"]
        assert len(deployments) == 1

        log = desk.node_dir("hello", "node-1") / "logs" / "agent.log"
        await until(lambda: "deployment of 'hello' is over: COMPLETED" in log.read_text())
    finally:
        python = str(environment / "bin" / "python")
        _uv("pip", "uninstall", "--python", python, "aether-hello")
        desk.aether("cluster", "destroy", "hello", "--yes")


def _uv(*words: str, **env: str) -> None:
    """Run uv, at first without the network."""
    program = str(Path(sys.executable).with_name("uv"))
    for offline in (["--offline"], []):
        done = subprocess.run(
            [program, *words, *offline, "--quiet"],
            cwd=ROOT,
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        if done.returncode == 0:
            return
    raise AssertionError(f"uv {words[0]} failed: {done.stderr}")
