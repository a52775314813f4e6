"""A folder in which the code blocks of one page are run, one after the other, as a reader would."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path
from sysconfig import get_path
from typing import Any

import numpy as np

from tests.docs.blocks import ROOT, Block
from tfdlrm.distribute.plan_recipe import load_plan_recipe
from tfdlrm.serving.model_config import read_model_config
from tfdlrm.serving.text_proto import read_text_proto
from tfdlrm.spec.cluster import load_cluster
from tfdlrm.spec.compare import load_compare
from tfdlrm.spec.config import load_config
from tfdlrm.tuning.sweep_config import load_sweep

_SECONDS = 900  # of one block
_FEW_ROWS = ("--set", "data.planted.rows=4000", "--set", "export.verify_rows=200")
SMALLER: dict[str, tuple[str, ...]] = {
    "tfdlrm.pipelines.criteo": (*_FEW_ROWS, "--set", "train.epochs=1"),
    "tfdlrm.pipelines.cluster": (*_FEW_ROWS, "--set", "train.epochs=1"),
    "tfdlrm.pipelines.sweep": ("--set", "data.planted.rows=4000", "--trials", "2"),
    "tfdlrm.pipelines.benchmark": ("--steps", "3", "--repeats", "1"),
}
"""What is added to a command of a block that is run small, by its module."""
_READERS: dict[str, Callable[[Path], Any]] = {
    "docs/cluster.md": load_cluster,
    "docs/compare.md": load_compare,
    "docs/planning.md": load_plan_recipe,
    "docs/sweeps.md": load_sweep,
    "models.toml": load_compare,
}
"""What reads the TOML of a page, or of a file; all others are recipes of a run, whole or in part."""


class PageFolder:
    """Runs the blocks of a page; see the module.

    Args:
        folder: An empty folder.
        rows: File in Criteo's format, which `$CRITEO/train.txt` is.

    Attributes:
        path: The folder.
        names: What Python blocks see and set.
    """

    def __init__(self, folder: Path, rows: Path) -> None:
        self.path = folder
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self._servers: list[subprocess.Popen[bytes]] = []
        self._ports = {"8501": _free_port(), "8500": _free_port()}
        for name in ("pipelines", "deploy", "benchmarks"):  # what a reader finds in a clone
            (folder / name).symlink_to(ROOT / name)
        (folder / "criteo").mkdir()
        (folder / "criteo" / "train.txt").symlink_to(rows)
        (folder / "train.txt").symlink_to(rows)
        (folder / ".curlrc").write_text("fail-with-body\nsilent\n", encoding="utf-8")  # a refusal is a failure here
        self._environment = {
            **os.environ,
            # `python` may be one that forks, in a folder without the command `tfdlrm`.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), get_path("scripts"), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "CRITEO": str(folder / "criteo"),
            "SHOP": str(folder),
            "CURL_HOME": str(folder),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }

    def run(self, block: Block) -> None:
        """Do with a block what its language says; raises where it fails."""
        if block.kind == "file":
            path = self.path / block.what
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        text = self._with_free_ports(block.text)
        if block.language == "bash":
            self._run_shell(block, text)
        elif block.language == "python":
            self.run_python(text, block.place, block.line)
        elif block.language == "toml":
            self._read_toml(block)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "protobuf":
            self._read_protobuf(block)

    def run_python(self, text: str, place: str, line: int = 0) -> None:
        """Run Python in the namespace of the page, with the folder as the current one."""
        here = Path.cwd()
        os.chdir(self.path)
        sys.path.insert(0, str(self.path))
        os.environ.update({name: self._environment[name] for name in ("CRITEO", "SHOP")})
        try:
            exec(compile("\n" * line + text, place, "exec"), self.names)
        finally:
            sys.path.remove(str(self.path))
            os.chdir(here)

    def run_shell(self, text: str) -> None:
        """Run shell commands in the folder."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.path,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_SECONDS,
        )
        assert done.returncode == 0, f"exit code {done.returncode} of:\n{text}\n{done.stdout.decode()[-4000:]}"

    def close(self) -> None:
        """End the servers that blocks have started."""
        for server in self._servers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        self._servers.clear()

    def _with_free_ports(self, text: str) -> str:
        for port, free in self._ports.items():
            text = re.sub(rf"(?<!\d){port}(?!\d)", str(free), text)
        return text

    def _run_shell(self, block: Block, text: str) -> None:
        if block.what == "small":
            for words in block.commands:
                assert words[:2] == ["python", "-m"], f"{block.place}: only commands of the package are run small"
                self.run_shell(shlex.join([*words, *SMALLER[words[2]]]))
            return
        servers = [words for words in block.commands if words[:3] == ["python", "-m", "tfdlrm.serving"]]
        if not servers:
            self.run_shell(text)
            return
        assert len(servers) == len(block.commands), f"{block.place}: a server stands alone in its block"
        for words in servers:
            self.serve(words)

    def serve(self, words: list[str]) -> None:
        """Start a server that answers until the page is done, in the place of one that was started before."""
        self.close()
        rest, grpc = self._ports.values()
        log = self.path / "server.log"
        with log.open("wb") as file:
            server = subprocess.Popen(
                [*words, f"--rest_api_port={rest}", f"--port={grpc}"],
                executable=str(Path(sys.executable).parent / "python"),
                cwd=self.path,
                env=self._environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._servers.append(server)
        name = dict(zip(words, words[1:], strict=False)).get("--model_name")
        until = time.monotonic() + 120
        while not _answers(f"http://127.0.0.1:{rest}/v1/models/{name or 'x'}", by_name=name is not None):
            assert server.poll() is None and time.monotonic() < until, f"no server:\n{log.read_text()[-4000:]}"
            time.sleep(0.1)

    def _read_toml(self, block: Block) -> None:
        path = self.path / (block.what if block.kind == "file" else "read.toml")
        path.write_text(block.text, encoding="utf-8")
        tomllib.loads(block.text)
        _READERS.get(block.what, _READERS.get(block.page, load_config))(path)

    def _read_protobuf(self, block: Block) -> None:
        path = self.path / "read.config"
        path.write_text(block.text, encoding="utf-8")
        if "model_config_list" in block.text:
            assert read_model_config(path)
            return
        message = "MonitoringConfig" if "prometheus_config" in block.text else "BatchingParameters"
        read_text_proto(block.place, path, message)


def write_visits(path: Path, rows: int = 4000) -> None:
    """Write the visits of the README's shop: numbers with gaps, strings, bags, and stars that depend on them."""
    random = np.random.default_rng(0)
    user, city = random.integers(0, 80, rows), random.integers(0, 6, rows)
    price = np.exp(random.normal(3, 1, rows))
    tags = [";".join(random.choice(["new", "red", "sale", "blue"], random.integers(0, 4), False)) for _ in range(rows)]
    taste = random.normal(0, 1, 80)[user] + 0.5 * random.normal(0, 1, 6)[city] - 0.3 * np.log(price)
    stars = np.clip(np.round(4 + taste + random.normal(0, 1, rows)), 1, 5).astype(int)
    cities = ["Rome", "Oslo", "Lima", "Kyiv", "Bonn", "Cork"]
    lines = ["price,user,city,tags,stars"]
    for i in range(rows):
        shown = "" if random.random() < 0.05 else f"{price[i]:.2f}"
        lines.append(f"{shown},u{user[i]},{cities[city[i]]},{tags[i]},{stars[i]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _answers(url: str, by_name: bool) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return b"AVAILABLE" in answer.read()
    except urllib.error.HTTPError:
        return not by_name  # it is there, and knows no model of that name
    except OSError:
        return False
