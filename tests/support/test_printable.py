"""What a message shows of a name that holds whatever it likes."""

from __future__ import annotations

import os

import pytest

from cl_lora.support.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name.jpg", "plain name.jpg"),
        ("Käse €.jpg", "Käse €.jpg"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred", r"\x1b[31mred"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        ("\u202egpj.x", r"\u202egpj.x"),  # turns around what follows
    ],
)
def test_whatever_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()
