"""The conformance suites over every driver that is installed; a driver without a suite fails."""

import tarfile
import zipapp
import zipfile
from functools import cache
from pathlib import Path

import pytest

from aether_core.drivers import ProviderContext
from aether_core.plugins import driver_names
from aether_core.testing import ProviderSuite, RuntimeSuite
from examples.shop import build as shop

ANSWERER = """\
import os
from http.server import HTTPServer, SimpleHTTPRequestHandler

def main():
    HTTPServer(("127.0.0.1", int(os.environ["PORT"])), SimpleHTTPRequestHandler).serve_forever()
"""


class TestLocal(ProviderSuite):
    name = "local"
    secret = ("conformance/secret", "only for tests")

    @pytest.fixture(autouse=True)
    def _secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AETHER_SECRET_CONFORMANCE_SECRET", self.secret[1])

    def context(self, cluster: str, state_dir: Path) -> ProviderContext:
        return ProviderContext(cluster, state_dir)


class TestPyz(RuntimeSuite):
    name = "pyz"

    def artifact(self, directory: Path) -> Path:
        (directory / "answerer.py").write_text(ANSWERER)
        file = directory.parent / "answerer-1.0.0.pyz"
        zipapp.create_archive(directory, file, main="answerer:main")
        return file


class TestTarball(RuntimeSuite):
    name = "tar_gz"
    entry = "bin/answer --bind 127.0.0.1 $PORT"

    def artifact(self, directory: Path) -> Path:
        program, file = directory / "answer", directory / "answerer-1.0.0.tar.gz"
        program.write_text('#!/bin/sh\nexec python3 -m http.server "$@"\n')
        program.chmod(0o755)
        with tarfile.open(file, "w:gz") as archive:
            archive.add(program, "bin/answer")
        return file


class TestWheel(RuntimeSuite):
    name = "whl"
    entry = "answer"

    def artifact(self, directory: Path) -> Path:
        about = "answerer-1.0.0.dist-info"
        content = {
            "answerer.py": ANSWERER,
            f"{about}/METADATA": "Metadata-Version: 2.1\nName: answerer\nVersion: 1.0.0\n",
            f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{about}/entry_points.txt": "[console_scripts]\nanswer = answerer:main\n",
        }
        content[f"{about}/RECORD"] = "".join(
            f"{path},,\n" for path in [*content, f"{about}/RECORD"]
        )
        file = directory / "answerer-1.0.0-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as archive:
            for path, text in content.items():
                archive.writestr(path, text)
        return file


class TestJar(RuntimeSuite):
    name = "jar"

    def artifact(self, directory: Path) -> Path:
        return _jar()


@cache
def _jar() -> Path:
    shop.TARGET.mkdir(exist_ok=True)
    shop.build_prices("1.0.0")
    return shop.TARGET / "shop-prices-1.0.0.jar"


@pytest.mark.parametrize(
    ("group", "suite"), [("aether.providers", ProviderSuite), ("aether.runtimes", RuntimeSuite)]
)
def test_every_installed_driver_has_its_suite(group: str, suite: type) -> None:
    proven = {kind.name for kind in suite.__subclasses__() if kind.__module__ == __name__}
    assert set(driver_names(group)) == proven
