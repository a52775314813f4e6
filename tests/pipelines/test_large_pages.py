import os
import platform
import subprocess
import sys

import pytest

from tfdlrm.pipelines.large_pages import OPT_OUT, TUNABLE, large_page_environment


@pytest.fixture
def kernel(tmp_path):
    def says(text):
        path = tmp_path / "enabled"
        path.write_text(text)
        return path

    return says


def test_asks_where_the_kernel_gives_on_request(kernel):
    setting = kernel("always [madvise] never\n")
    assert large_page_environment({"A": "b"}, setting) == {"A": "b", "GLIBC_TUNABLES": TUNABLE, OPT_OUT: "0"}
    other = {"GLIBC_TUNABLES": "glibc.malloc.check=1"}
    assert large_page_environment(other, setting)["GLIBC_TUNABLES"] == f"glibc.malloc.check=1:{TUNABLE}"


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({}, "[always] madvise never\n"),
        ({}, "always madvise [never]\n"),
        ({OPT_OUT: "0"}, "always [madvise] never\n"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "always [madvise] never\n"),
    ],
)
def test_leaves_the_rest_alone(kernel, environment, text):
    assert large_page_environment(environment, kernel(text)) is None


def test_no_such_kernel(tmp_path):
    assert large_page_environment({}, tmp_path / "absent") is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
@pytest.mark.parametrize(("wanted", "starts", "tunables"), [("1", 2, TUNABLE), ("0", 1, None)])
def test_a_command_starts_again_once_with_the_same_arguments(kernel, wanted, starts, tunables):
    program = (
        "from tfdlrm.pipelines.large_pages import start_again_with_large_pages as again\n"
        "import os, sys, pathlib\nprint('line'); sys.stdout.flush(); again(pathlib.Path(sys.argv[1]))\n"
        "print(os.environ.get('GLIBC_TUNABLES'), sys.argv[2:])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | {OPT_OUT: wanted}
    command = [sys.executable, "-c", program, str(kernel("always [madvise] never\n")), "a b", "c"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["line"] * starts + [f"{tunables} ['a b', 'c']"]
