"""Build the shop's artifacts: python examples/shop/build.py [VERSION] [--no-java]

web: a wheel, by uv. catalog: a zip application, by the standard library. prices: a jar, by javac.
They land in examples/shop/target/. The same source gives the same bytes: a version never changes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipapp
from pathlib import Path

HERE = Path(__file__).parent
TARGET = HERE / "target"
BUILT_AT = 1_767_225_600  # 2026-01-01, UTC: archives hold the times of their files.


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    version = words[0] if words else "1.0.0"
    TARGET.mkdir(exist_ok=True)
    build_web(version)
    build_catalog(version)
    if "--no-java" not in sys.argv:
        build_prices(version)


def build_web(version: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "web"
        shutil.copytree(HERE / "web", source)
        (source / "shop_web" / "version.txt").write_text(version)
        beside = Path(sys.executable).with_name("uv")
        uv = str(beside) if beside.exists() else "uv"
        run(uv, "build", "--quiet", "--wheel", "--out-dir", str(TARGET), str(source))
    print(f"{TARGET}/shop_web-{version}-py3-none-any.whl")


def build_catalog(version: str) -> None:
    file = TARGET / f"shop-catalog-{version}.pyz"
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "catalog"
        shutil.copytree(HERE / "catalog", source, ignore=shutil.ignore_patterns("__pycache__"))
        for path in [source, *source.rglob("*")]:
            os.utime(path, (BUILT_AT, BUILT_AT))
        zipapp.create_archive(source, file)
    print(file)


def build_prices(version: str) -> None:
    javac, jar = shutil.which("javac"), shutil.which("jar")
    if javac is None or jar is None:
        sys.exit("prices is Java and needs a JDK: apt install default-jdk-headless, or --no-java")
    file = TARGET / f"shop-prices-{version}.jar"
    with tempfile.TemporaryDirectory() as scratch:
        run(javac, "-d", scratch, str(HERE / "prices" / "Prices.java"))
        date = ("--date", "2026-01-01T00:00:00Z")
        main_class = ("--main-class", "Prices")
        run(jar, "--create", "--file", str(file), *date, *main_class, "-C", scratch, ".")
    print(file)


def run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
