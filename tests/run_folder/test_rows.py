"""Files of rows: what is written is read back, and what is damaged is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_lora.run_folder.records import (
    Account,
    AdapterFact,
    Embedding,
    Relation,
    Similarity,
    Spectrum,
)
from cl_lora.run_folder.results import Results
from cl_lora.run_folder.rows import (
    ACCOUNTS,
    EMBEDDINGS,
    FACTS,
    RELATIONS,
    SIMILARITIES,
    SPECTRA,
)
from cl_lora.support.errors import UserError

NUMBERS = st.integers(0, 10**6)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1)


@given(st.lists(st.builds(Account, NUMBERS, NAMES, NUMBERS, NAMES, FLOATS)))
def test_what_is_written_is_read_back_exactly(tmp_path_factory, rows) -> None:
    path = tmp_path_factory.mktemp("rows") / ACCOUNTS.name
    path.write_bytes(ACCOUNTS.text(rows).encode())
    assert ACCOUNTS.read(path) == rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("seed,evaluated,group,adapter\n", "missing column value"),
        ("evaluated,seed,group,adapter,value\n", "expected the columns seed,evaluated"),
        ("seed,evaluated,group,adapter,value\n0,2,b,0,nan\n", "line 2: expected a finite value"),
        ("seed,evaluated,group,adapter,value\n0,2,b,x,0.5\n", "line 2"),
        ("seed,evaluated,group,adapter,value\n0,2,b,0\n", "line 2"),
        ("seed,evaluated,group,adapter,value\n0,2,b,0,0.5", "its last line is cut off"),
    ],
)
def test_what_is_damaged_is_said_with_the_remedy(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / SIMILARITIES.name
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        SIMILARITIES.read(path)
    assert said in str(caught.value)
    assert "delete it and run the command again" in str(caught.value)


def test_accounts_are_kept_by_unit(tmp_path: Path) -> None:
    made = Results(tmp_path, ["b", "a"], {0: frozenset()})
    for row, seconds in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        made.add([], (), [Account(0, row, 0, "seconds", seconds)])
    assert [(a.arm, a.value) for a in ACCOUNTS.read(tmp_path / ACCOUNTS.name)] == [
        ("b", 2.0),
        ("a", 3.0),
    ]
    made.forget(["a"])
    assert [a.arm for a in ACCOUNTS.read(tmp_path / ACCOUNTS.name)] == ["b"]


def test_units_may_wait_but_are_written_whatever_happens(tmp_path: Path, monkeypatch) -> None:
    """Writing takes no more than a share of the time; an end, also by Ctrl-C, loses none."""
    made = Results(tmp_path, ["a"], {0: frozenset(), 1: frozenset()})
    with pytest.raises(KeyboardInterrupt), made.writing():  # noqa: PT012
        made._took = 1e6  # as if the tables were very large
        made.add([], (), [Account(0, "a", 0, "seconds", 1.0)])
        assert not (tmp_path / ACCOUNTS.name).exists()
        raise KeyboardInterrupt
    assert [a.stage for a in ACCOUNTS.read(tmp_path / ACCOUNTS.name)] == [0]
    made.add([], (), [Account(0, "a", 1, "seconds", 1.0)])  # outside at once
    assert len(ACCOUNTS.read(tmp_path / ACCOUNTS.name)) == 2


def test_a_row_of_similarity(tmp_path: Path) -> None:
    row = Similarity(0, 2, "blocks.0.attn.qkv", 1, 0.25)
    assert SIMILARITIES.text([row]).splitlines()[1] == "0,2,blocks.0.attn.qkv,1,0.25"


def test_rows_of_relations_and_facts(tmp_path: Path) -> None:
    relation, fact = Relation(0, "cka", 1, 2, 0.25), AdapterFact(1, 3, "norm", 2.5)
    assert RELATIONS.text([relation]) == "seed,measure,first,second,value\n0,cka,1,2,0.25\n"
    assert FACTS.text([fact]) == "seed,adapter,quantity,value\n1,3,norm,2.5\n"
    path = tmp_path / RELATIONS.name
    path.write_text(RELATIONS.text([relation]).replace("0.25", "inf"))
    with pytest.raises(UserError, match="line 2: expected a finite value but got 'inf'"):
        RELATIONS.read(path)


def test_rows_of_spectra_and_embeddings(tmp_path: Path) -> None:
    spectrum = Spectrum(0, "full", 3, 1, 1.0, 0.25)
    point = Embedding(0, "ties", 2, 17, 4, -1.5, 2.25)
    assert SPECTRA.text([spectrum]) == "seed,bank,adapter,index,value,energy\n0,full,3,1,1.0,0.25\n"
    head = "seed,arm,evaluated,sample,label,x,y\n"
    assert EMBEDDINGS.text([point]) == head + "0,ties,2,17,4,-1.5,2.25\n"
    for file, row, wrong, said in (
        (SPECTRA, spectrum, ("0.25", "nan"), "line 2: expected a finite energy but got 'nan'"),
        (SPECTRA, spectrum, (",energy", ""), "missing column energy"),
        (SPECTRA, spectrum, ("3,1,", "3,first,"), "line 2"),
        (EMBEDDINGS, point, ("-1.5", "inf"), "line 2: expected a finite x but got 'inf'"),
        (EMBEDDINGS, point, (",17,4,", ",17,"), "line 2"),
    ):
        path = tmp_path / file.name
        path.write_text(file.text([row]))
        assert file.read(path) == [row]
        path.write_text(file.text([row]).replace(*wrong))
        with pytest.raises(UserError, match=said):
            file.read(path)
