"""Right and wrong bits: to disk and back, merged, and every kind of damage."""

import io
import zipfile

import numpy as np
import pytest

from cl_lora.run_folder.hits import read_hits, write_hits
from cl_lora.support.errors import UserError


def draw(n, seed=0):
    return np.random.default_rng(seed).random(n) < 0.7


def test_to_disk_and_back(tmp_path):
    hits = {(-1, 0): draw(13), (0, 0): draw(13, 1), (0, 1): draw(8, 2), (3, 2): draw(0)}
    path = tmp_path / "hits" / "seed-0" / "ties.npz"
    write_hits(path, hits)
    found = read_hits(path)
    assert found.keys() == hits.keys()
    for unit, right in hits.items():
        assert found[unit].dtype == np.bool_
        np.testing.assert_array_equal(found[unit], right)


def test_numpy_reads_it_without_this_module(tmp_path):
    write_hits(tmp_path / "a.npz", {(3, 0): np.array([True, False, True])})
    with np.load(tmp_path / "a.npz") as archive:
        assert sorted(archive.files) == ["3/0", "n/0"]
        assert archive["3/0"].tolist() == [0b10100000]
        assert int(archive["n/0"]) == 3


def test_a_second_unit_is_added_and_the_same_is_replaced(tmp_path):
    path = tmp_path / "a.npz"
    write_hits(path, {(0, 0): draw(9)})
    write_hits(path, {(1, 0): draw(9, 1), (1, 1): draw(20, 2)})
    write_hits(path, {(1, 1): ~draw(20, 2)})
    found = read_hits(path)
    assert sorted(found) == [(0, 0), (1, 0), (1, 1)]
    np.testing.assert_array_equal(found[0, 0], draw(9))
    np.testing.assert_array_equal(found[1, 1], ~draw(20, 2))


def test_the_same_hits_are_the_same_bytes_in_any_order(tmp_path):
    a, b = {(0, 0): draw(9)}, {(1, 0): draw(9, 1)}
    write_hits(tmp_path / "one.npz", {**a, **b})
    write_hits(tmp_path / "two.npz", b)
    write_hits(tmp_path / "two.npz", a)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_ten_thousand_samples_are_a_few_kilobytes(tmp_path):
    write_hits(tmp_path / "a.npz", {(3, j): draw(2500, j) for j in range(4)})
    assert (tmp_path / "a.npz").stat().st_size < 4000


@pytest.mark.parametrize("wrong", [np.ones(3), np.ones((2, 2), dtype=bool)])
def test_only_vectors_of_bits_are_written(tmp_path, wrong):
    with pytest.raises(ValueError, match="Expected bool"):
        write_hits(tmp_path / "a.npz", {(0, 0): wrong})
    assert not list(tmp_path.iterdir())


def test_an_experience_has_one_number_of_samples(tmp_path):
    write_hits(tmp_path / "a.npz", {(0, 0): draw(9)})
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(ValueError, match="Expected 9 test samples of experience 0 at stage 1"):
        write_hits(tmp_path / "a.npz", {(1, 0): draw(10)})
    assert (tmp_path / "a.npz").read_bytes() == before


def archive(**arrays):
    data = io.BytesIO()
    np.savez(data, **{k.replace("_", "/"): v for k, v in arrays.items()})
    return data.getvalue()


def single():
    data = io.BytesIO()
    np.save(data, np.zeros(3))
    return data.getvalue()


def cut():
    whole = archive(**{"0_0": np.zeros(2, np.uint8), "n_0": np.array(9)})
    return whole[: len(whole) // 2]


def flipped():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        z.writestr("0/0.npy", b"not an array")
    return data.getvalue()


BITS = np.zeros(2, np.uint8)
DAMAGED = {
    "empty": (b"", "cannot be read"),
    "cut": (cut(), "cannot be read"),
    "no array": (flipped(), "damaged"),
    "one array": (single(), "no archive"),
    "text": (b"seed,arm\n", "cannot be read"),
    "pickle": (archive(**{"0_0": np.array([{}])}), "cannot be read"),
    "other name": (archive(model=BITS), "'model', which is no stage"),
    "no length": (archive(**{"0_0": BITS}), "number of samples of experience 0 is missing"),
    "too short": (archive(**{"0_0": BITS, "n_0": np.array(17)}), "bits of 17 samples"),
    "other type": (archive(**{"0_0": np.zeros(2), "n_0": np.array(9)}), "bits of 9 samples"),
    "bad length": (archive(**{"0_0": BITS, "n_0": np.array(-9)}), "n/0 is no number"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_one_sentence(tmp_path, kind):
    data, problem = DAMAGED[kind]
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    for use in (read_hits, lambda p: write_hits(p, {(0, 0): draw(9)})):
        with pytest.raises(UserError, match=problem) as raised:
            use(path)
        assert str(path) in str(raised.value)
        assert "delete it" in str(raised.value)
    assert path.read_bytes() == data


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="missing"):
        read_hits(tmp_path / "a.npz")
