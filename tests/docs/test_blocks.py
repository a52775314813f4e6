"""Every code block of the README and the documentation: run, parsed, or marked with the reason why it is not run here.

`make test` runs the quick ones and parses all; `make docs-check` (TFDLRM_DOCS=all) runs the slow ones, too.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.hooks.commands import command_modules, parser_of
from tests.docs.blocks import REASONS, ROOT, Block, blocks_of, pages, read_blocks
from tests.docs.prepared import planted_rows, prepare
from tests.docs.running import PageFolder
from tfdlrm.distribute.plan_recipe import load_plan_recipe
from tfdlrm.pipelines.beam import split_beam_options
from tfdlrm.pipelines.cli import recipe
from tfdlrm.spec.cluster import load_cluster, run_config
from tfdlrm.spec.config import load_config

SLOW = os.environ.get("TFDLRM_DOCS") == "all"
RUN = {"bash", "python"}
READ = {"toml", "json", "protobuf"}
ANOTHERS = "another project's code"
PLACEHOLDER = re.compile(r"[\w.]+=[A-Z]")
"""A setting for whose value the text has a letter, `seed=S`."""


def is_run(block: Block) -> bool:
    """Whether a block is run (or read by what reads such files) in this run of the tests."""
    if block.language == "text" or block.kind == "not run":
        return False
    return SLOW or block.kind != "run"


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "train.txt"
    planted_rows(path)
    return path


@pytest.mark.timeout(1800 if SLOW else 300)
@pytest.mark.parametrize("page", [page for page in pages() if any(map(is_run, blocks_of(page)))])
def test_blocks_run(page: str, rows: Path, tmp_path: Path) -> None:
    """Every block of a page ends well; `PageFolder.run` raises with its output where one does not."""
    folder, well = PageFolder(tmp_path, rows), 0
    blocks = [block for block in blocks_of(page) if is_run(block)]
    try:
        prepare(page, folder, SLOW)
        # A file may stand below the command that reads it.
        for block in sorted(blocks, key=lambda block: block.kind != "file"):
            folder.run(block)
            well += 1
    finally:
        folder.close()
    assert well == len(blocks) > 0


@pytest.mark.parametrize("page", pages())
def test_blocks_are_marked(page: str) -> None:
    for block in blocks_of(page):
        assert block.language, f"{block.place}: output is fenced as `text`, anything else by its language"
        if block.kind == "not run":
            assert block.what in REASONS, f"{block.place}: not run for a reason that is none: {block.what}"
        elif block.kind == "run":
            assert block.what in ("slow", "small"), f"{block.place}: run: {block.what}"
        elif block.language != "text":
            known = block.language in RUN | READ or block.kind == "file"
            assert known, f"{block.place}: nothing runs {block.language}: say why it is not run"


def command_lines() -> Iterator[tuple[Block, list[str]]]:
    """Yield every command of the package in a shell block, with its block: what follows `python -m`."""
    for page in pages():
        for block in blocks_of(page):
            for words in block.commands if block.language == "bash" else ():
                if words[:2] == ["python", "-m"] and words[2].startswith("tfdlrm."):
                    yield block, words[2:]
                elif words[0] == "tfdlrm":
                    module = "serving" if words[1] == "serve" else f"pipelines.{words[1].replace('-', '_')}"
                    yield block, [f"tfdlrm.{module}", *words[2:]]


COMMAND_LINES = list(command_lines())


def test_command_lines_are_found() -> None:
    assert len(COMMAND_LINES) > 60
    assert {words[0] for _, words in COMMAND_LINES} >= set(command_modules())


@pytest.mark.parametrize(
    ("block", "words"), COMMAND_LINES, ids=[f"{block.place}-{i}" for i, (block, _) in enumerate(COMMAND_LINES)]
)
def test_command_line_parses(block: Block, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    module, arguments = words[0], words[1:]
    if module == "tfdlrm.pipelines.benchmarks.batching":  # a measurement of this project's own, without a parser to ask
        assert (ROOT / "tfdlrm/pipelines/benchmarks/batching.py").exists()
        return
    if module == "tfdlrm.pipelines.prepare":
        arguments = split_beam_options(arguments)[0]
    try:
        args = parser_of(module).parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{block.place}: {' '.join(words)}\n{capsys.readouterr().err}")
    check_settings(words, args, block)


def check_settings(words: list[str], args: argparse.Namespace, block: Block) -> None:
    """Load the recipe that a command names, if it is one of the project's, with what `--set` changes."""
    given: Path | None = getattr(args, "config", None)
    if given is not None and given.parts[0] == "pipelines":
        assert (ROOT / given).is_file(), f"{block.place}: there is no {given}"
    changes = [text for text in getattr(args, "set", None) or [] if not PLACEHOLDER.fullmatch(text)]
    if getattr(args, "continue_from", None) is not None:
        changes.append('data.growth.from_run="x"')
    path = None if given is None else ROOT / given if given.parts[0] == "pipelines" else None
    if given is not None and path is None:
        return  # a recipe of the reader's
    module = words[0]
    if module == "tfdlrm.pipelines.cluster":
        if words[1] == "plan":
            load_plan_recipe(path, changes)
        elif words[1] in ("run", "task"):
            path = path or recipe("cluster_local")
            run_config(load_cluster(path, changes), path.parent)
    elif module not in ("tfdlrm.pipelines.compare", "tfdlrm.pipelines.sweep", "tfdlrm.serving"):
        load_config(path, changes)


def test_other_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    missing = []
    for page in pages():
        for block in blocks_of(page):
            for words in block.commands if block.language == "bash" and block.what != ANOTHERS else ():
                if words[0] == "make" and words[1] not in targets:
                    missing.append(f"{block.place}: make {words[1]}")
                files = [word for word in words[1:2] if words[0] in ("python", "pytest") and word[0] != "-"]
                missing += [f"{block.place}: {file}" for file in files if not (ROOT / file).exists()]
    assert missing == []


def test_blocks_are_read_as_they_stand() -> None:
    page = "\n".join(
        [
            "Text with `code`.",
            "",
            "<!-- run: slow -->",
            "```bash",
            "A=1 python -m tfdlrm.serving --model_name x \\",
            "  --port 1   # the reader's",
            'make demo && curl -d \'{"a": [1,',
            "  2]}' http://localhost:1 > out.json",
            "```",
            "- item",
            "  ```text",
            "  output",
            "  ```",
        ]
    )
    shell, output = read_blocks("page.md", page)
    assert (shell.place, shell.language, shell.kind, shell.what) == ("page.md:4", "bash", "run", "slow")
    assert shell.commands == [
        ["python", "-m", "tfdlrm.serving", "--model_name", "x", "--port", "1"],
        ["make", "demo"],
        ["curl", "-d", '{"a": [1,\n  2]}', "http://localhost:1"],
    ]
    assert (output.language, output.text, output.kind) == ("text", "output\n", "")


def test_a_fence_that_is_never_closed_is_refused() -> None:
    with pytest.raises(AssertionError, match="never closed"):
        list(read_blocks("page.md", "```bash\nls\n"))


def test_a_failing_command_fails(rows: Path, tmp_path: Path) -> None:
    block = next(read_blocks("page.md", "```bash\ntrue\nfalse\ntrue\n```"))
    with pytest.raises(AssertionError, match="exit code 1"):
        PageFolder(tmp_path, rows).run(block)
