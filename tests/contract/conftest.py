"""A user with a context whose cluster answers what a test wants."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from aether_core import certs
from aether_core.cli.main import run
from aether_core.clock import SystemClock
from aether_core.contexts import Context, save_context
from aether_core.model import NodeId
from aether_core.settings import Settings
from tests.contract.answering import Answer, Script, answering

TOKEN = "aet_0a0a0a0a_not-a-secret-but-must-not-be-shown"


def lose_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for answers that never come only shortly; connecting keeps its time."""
    quick = httpx.Timeout(0.1, connect=3.0, write=3.0)
    monkeypatch.setattr("aether_core.client.TIMEOUT", quick)
    monkeypatch.setattr("aether_core.client.UPLOAD_TIMEOUT_S", 0.1)


@dataclass
class Desk:
    """Where commands are typed. `files`: what they are about."""

    script: Script
    files: Path
    capture: pytest.CaptureFixture[str]

    def types(self, *words: str) -> tuple[int, str, str]:
        """Run a command line; return its exit code and what it wrote."""
        self.capture.readouterr()
        code = run(list(words))
        said = self.capture.readouterr()
        return code, said.out, said.err


@pytest.fixture(scope="session")
def authority_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certs")
    ca = certs.authority("test", "a secret for tests only")
    now = SystemClock().at()
    certs.write_node_certs(directory, ca, node=NodeId("node-1"), addresses=(), now=now)
    return directory


@pytest.fixture
def desk(
    tmp_path: Path,
    authority_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Desk]:
    """A desk whose cluster answers 500 to everything until the test says otherwise."""
    monkeypatch.setenv("AETHER_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("AETHER_DATA_DIR", str(tmp_path / "data"))
    one = Desk(Script(Answer(500, {})), _files(tmp_path), capsys)
    with answering(certs.server_context(authority_dir), lambda: one.script) as port:
        ca_pem = (authority_dir / certs.CA_FILE).read_text()
        context = Context("test", (f"https://127.0.0.1:{port}",), ca_pem, TOKEN)
        save_context(Settings(), context, make_current=True)
        yield one
        one.script.over.set()


def _files(directory: Path) -> Path:
    (directory / "web-1.0.0.pyz").write_bytes(b"print('hello')")
    (directory / "blueprint.toml").write_text(
        '[blueprint]\nname = "shop"\nversion = "1"\n'
        '[[slices]]\nname = "web"\nartifact = "web:1.0.0"\n'
    )
    return directory
