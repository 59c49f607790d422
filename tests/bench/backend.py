"""A slice that costs nearly nothing: a zip application that becomes an Envoy which answers by
itself. With a backend in Python, Python would be what is measured."""

import json
import tempfile
import zipapp
from pathlib import Path

from aether_core.ingress import find_envoy
from tests.bench import floor
from tests.e2e.desk import Desk

MAIN = """\
import os
config = {config!r}.replace('"PORT"', os.environ["PORT"])
with open("envoy.json", "w") as file:
    file.write(config)
os.execv({program!r}, [{program!r}, "-c", "envoy.json", *{options!r}])
"""
SLICE = """\
name = "{name}"
artifact = "bench-backend:{version}"
instances = {instances}
route = {{ prefix = "/{name}" }}
resources = {{ cpu = 0.01, memory = "256MiB" }}
"""


def upload(desk: Desk, version: str) -> None:
    """Store the backend that answers with `version`."""
    config = json.dumps(floor.answering("PORT", version))
    main = MAIN.format(config=config, program=find_envoy(), options=floor.QUIET)
    with tempfile.TemporaryDirectory(dir=desk.root) as source:
        (Path(source) / "__main__.py").write_text(main)
        file = desk.root / f"bench-backend-{version}.pyz"
        zipapp.create_archive(source, file)
    desk.aether("artifact", "upload", file)


def deploy(desk: Desk, name: str, version: str, instances: int = 1) -> None:
    """Run the slice `name`, which answers under `/name` with `version`."""
    table = SLICE.format(name=name, version=version, instances=instances)
    desk.aether("deploy", desk.blueprint(name, version, table), "--strategy", "immediate")
