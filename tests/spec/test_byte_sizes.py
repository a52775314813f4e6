import pytest

from tfdlrm.spec.byte_sizes import bytes_in_words, parse_bytes
from tfdlrm.spec.errors import SpecError


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, 1),
        (2**70, 2**70),
        ("1", 1),
        ("512MB", 512_000_000),
        ("512 mb", 512_000_000),
        ("512MiB", 536_870_912),
        ("1.5 GiB", 1_610_612_736),
        (" 2kB ", 2000),
        ("2KiB", 2048),
        ("1TB", 10**12),
        ("1tib", 2**40),
        ("0.1GB", 100_000_000),  # not 99,999,999: no floating point
        ("1.9999 B", 1),
    ],
)
def test_sizes(size, expected):
    assert parse_bytes(size) == expected


@pytest.mark.parametrize(
    "size",
    [
        "0MB",
        0,
        -5,
        "-5",
        "5 parsecs",
        "",
        "MB",
        "5MBB",
        "1e9",
        "nan",
        "infMB",
        "1,000",
        "0.0001 kB",
        True,
        None,
        1.5,
        "٣MB",
    ],
)
def test_no_sizes(size):
    with pytest.raises(SpecError, match=r'`budget` must be a positive number of bytes, or a text such as "512MB"') as e:
        parse_bytes(size, "budget")
    assert str(e.value).endswith(f"Received: {size!r}.")


def test_in_words():
    assert [bytes_in_words(n) for n in (1, 1023, 1024, 5 * 2**20, 3 * 2**40)] == [
        *("1 B", "1023 B", "1.00 KiB", "5.00 MiB", "3.00 TiB")
    ]
