"""Task residuals: hand-counted numbers, dense references, and what holds for all of them."""

import gc
import itertools
import weakref
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_reference import SHAPES, dense, relative_error, toy_adapters

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.commands.list import LISTS
from cl_lora.merging import Update, merge
from cl_lora.merging.registry import OptionSpec
from cl_lora.merging.residuals import (
    RESIDUALS,
    Residual,
    Residue,
    SingularDelta,
    SparseDelta,
    TaskUpdate,
    WholeDelta,
    make_residual,
    register_residual,
    residuals_table,
)
from cl_lora.merging.residuals.sparse import count_kept
from cl_lora.support.errors import UserError

TOTAL = sum(rows * columns for rows, columns in SHAPES.values())  # 4 * 120 + 70


def low_rank(q):
    return make_residual({"name": "low_rank", "q": q})


def sparse(m, scope="model"):
    return make_residual({"name": "sparse", "m": m, "scope": scope})


def merged(method="ties", n=3):
    """The entries of a merged update: dense with ties, factors with task_arithmetic."""
    return merge(toy_adapters(n), method).entries


def full(seed=0, dtype=torch.float32):
    """The entries of a fully fine-tuned model: a matrix, a bias, a kernel of four dimensions."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"fc": (6, 5), "fc.bias": (6,), "patch": (4, 3, 2, 2)}
    return {name: torch.randn(s, generator=draw, dtype=dtype) for name, s in shapes.items()}


def flat(entries: Mapping[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([np.asarray(d).ravel() for d in entries.values()])


def kept(residue: Residue) -> set[tuple[str, int]]:
    """Where the entries lie that a sparse residue keeps."""
    return {(m, at) for m, part in residue.entries.items() for at in part.indices.tolist()}


# Counts, worked by hand.


def test_low_rank_counts_its_triples():
    own = {
        "q": LoRAFactors(torch.randn(4, 10), torch.randn(12, 4)),
        "fc": LoRAFactors(torch.randn(4, 12), torch.randn(10, 4)),
    }
    residue = low_rank(2).take(own)
    assert [part.numbers for part in residue.entries.values()] == [46, 46]  # 2 (12 + 10 + 1)
    assert residue.numbers == 92
    first = residue.entries["q"]
    assert isinstance(first, SingularDelta)
    assert [tuple(t.shape) for t in (first.U, first.S, first.V)] == [(12, 2), (2,), (2, 10)]


def test_a_layer_of_vit_b_counts_as_in_the_paper():
    own = {"proj": LoRAFactors(torch.zeros(16, 768), torch.zeros(768, 16))}
    assert {q: low_rank(q).take(own).numbers for q in (4, 8, 16)} == {4: 6148, 8: 12296, 16: 24592}


def test_what_is_no_matrix_is_whole_and_counted_whole():
    own = full()
    residue = low_rank(3).take(own)
    assert residue.entries["fc"].numbers == 36  # 3 (6 + 5 + 1)
    for name, count in (("fc.bias", 6), ("patch", 48)):
        assert isinstance(residue.entries[name], WholeDelta)
        assert residue.entries[name].numbers == count
        assert torch.equal(residue.delta(name), own[name])
    assert residue.numbers == 90


@pytest.mark.parametrize(("m", "count"), [(10, 8), (50, 42), (1, 0), (100, 84), (99.9, 83)])
def test_sparse_keeps_exactly_its_share_of_the_model(m, count):
    residue = sparse(m).take(full())  # 30 + 6 + 48 entries
    assert residue.numbers == count
    assert sum(int((residue.delta(name) != 0).sum()) for name in residue.modules()) == count


def test_sparse_by_tensor_rounds_down_in_each():
    residue = sparse(25, "tensor").take(full())
    found = {name: part.numbers for name, part in residue.entries.items()}
    assert found == {"fc": 7, "fc.bias": 1, "patch": 12}


@pytest.mark.parametrize(
    ("m", "total", "k"), [(29, 100, 29), (0.1, 1000, 1), (1, 99, 0), (57, 100, 57), (100, 7, 7)]
)
def test_a_percentage_is_the_decimal_number_it_is_written_as(m, total, k):
    assert count_kept(m, total) == k


# The few largest singular triples.


@pytest.mark.parametrize("base", [None, "task_arithmetic", "ties"])
def test_low_rank_is_the_truncated_svd_of_the_difference(base):
    adapter = toy_adapters(3)[1]
    shared = None if base is None else merged(base)
    residue = low_rank(2).take(adapter.factors, shared)
    for module, deltas in dense([adapter]).items():
        u = (
            deltas[0]
            if shared is None
            else deltas[0] - Update(shared).delta(module).double().numpy()
        )
        left, values, right = np.linalg.svd(u, full_matrices=False)
        expected = left[:, :2] * values[:2] @ right[:2]
        assert relative_error(residue.delta(module), expected) < 1e-5
        np.testing.assert_allclose(residue.entries[module].S, values[:2], rtol=1e-5)


def test_no_matrix_of_the_rank_comes_closer():
    own = {"fc": full(dtype=torch.float64)["fc"]}
    for q in (1, 2, 4):
        error = (low_rank(q).take(own).delta("fc") - own["fc"]).norm()
        # Eckart and Young: the root of the sum of the squares of what is left out.
        torch.testing.assert_close(error, torch.linalg.svdvals(own["fc"])[q:].norm())
        draw = torch.Generator().manual_seed(q)
        for _ in range(20):
            rows = torch.randn(q, 5, generator=draw, dtype=torch.float64)
            best = torch.linalg.lstsq(rows.T, own["fc"].T).solution.T @ rows
            assert (best - own["fc"]).norm() >= error


def test_q_of_the_rank_is_the_oracle():
    (adapter,) = toy_adapters(1, 4)
    update = TaskUpdate(None, low_rank(4).take(adapter.factors))
    assert update.modules() == adapter.modules()
    for module, factors in adapter.factors.items():
        torch.testing.assert_close(update.delta(module), factors.delta(), rtol=1e-5, atol=1e-5)
    whole = {"fc": full()["fc"]}
    torch.testing.assert_close(low_rank(5).take(whole).delta("fc"), whole["fc"])


def test_no_matrix_larger_than_the_factors_is_decomposed(monkeypatch):
    sizes = []
    svd = torch.linalg.svd

    def watched(matrix, **options):
        sizes.append(tuple(matrix.shape))
        return svd(matrix, **options)

    monkeypatch.setattr(torch.linalg, "svd", watched)
    own, other = ({"fc": LoRAFactors(torch.randn(3, 40), torch.randn(50, 3))} for _ in range(2))
    low_rank(2).take(own)
    low_rank(2).take(own, merge_of(own, other))
    assert sizes == [(3, 3), (9, 9)]


def merge_of(*adapters):
    return merge([Adapter(f"a{i}", f) for i, f in enumerate(adapters)], "task_arithmetic").entries


# The largest entries.


@pytest.mark.parametrize("shared", [None, full(1)])
@pytest.mark.parametrize("m", [1, 5, 10, 33.3, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_is_a_sort_of_all_entries(dtype, m, shared):
    own = full(dtype=dtype)
    residue = sparse(m).take(own, shared)
    u = flat(own) - (0 if shared is None else flat(shared))
    k = int(m * len(u) / 100)
    expected = np.zeros_like(u)
    top = np.argsort(-np.abs(u), kind="stable")[:k]
    expected[top] = u[top]
    np.testing.assert_array_equal(flat({n: residue.delta(n) for n in residue.modules()}), expected)


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_factors_are_pruned_as_their_dense_updates(scope):
    (adapter,) = toy_adapters(1)
    deltas = {module: f.delta() for module, f in adapter.factors.items()}
    found = sparse(10, scope).take(adapter.factors)
    expected = sparse(10, scope).take(deltas)
    assert kept(found) == kept(expected)
    assert found.numbers == (TOTAL // 10 if scope == "model" else 4 * 12 + 7)


def test_ties_are_kept_in_the_order_of_modules_and_entries():
    own = {"b": torch.tensor([[1.0, -1.0], [2.0, 0.5]]), "a": torch.tensor([-1.0, 1.0, 3.0, 0.0])}
    of_model = [kept(sparse(m).take(own)) for m in (25, 37.5, 50, 75)]
    assert of_model[0] == {("b", 2), ("a", 2)}
    assert of_model[1] == {("b", 2), ("a", 2), ("b", 0)}
    assert of_model[2] == {("b", 2), ("a", 2), ("b", 0), ("b", 1)}
    assert of_model[3] == {("b", 2), ("a", 2), ("b", 0), ("b", 1), ("a", 0), ("a", 1)}
    assert kept(sparse(50, "tensor").take(own)) == {("b", 2), ("b", 0), ("a", 2), ("a", 0)}


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_all_entries_give_back_the_own_model(method, scope):
    adapter, shared = toy_adapters(3)[2], merged(method)
    update = TaskUpdate(shared, sparse(100, scope).take(adapter.factors, shared))
    for module, factors in adapter.factors.items():
        torch.testing.assert_close(update.delta(module), factors.delta(), rtol=1e-6, atol=1e-5)
    # Bit for bit where nothing is rounded.
    own, shared = ({n: t.round() for n, t in full(seed).items()} for seed in (0, 1))
    update = TaskUpdate(shared, sparse(100, scope).take(own, shared))
    assert all(torch.equal(update.delta(name), own[name]) for name in own)


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_the_kept_sets_of_a_growing_m_are_nested(scope):
    sets = [
        kept(sparse(m, scope).take(toy_adapters(1)[0].factors)) for m in (0.5, 1, 5, 10, 50, 100)
    ]
    for small, large in itertools.pairwise(sets):
        assert small < large


def test_indices_are_small_and_ascending():
    part = sparse(50).take(full()).entries["patch"]
    assert isinstance(part, SparseDelta)
    assert part.indices.dtype == torch.int32
    assert part.indices.diff().gt(0).all()
    assert part.values.numel() == part.indices.numel() == part.numbers


class Stored(Mapping):
    """Dense entries that are made when they are asked for, and how many of them live at a time."""

    def __init__(self, names):
        self.names, self.living, self.most = names, [], 0

    def __getitem__(self, name):
        self.living = [ref for ref in self.living if ref() is not None]
        tensor = torch.randn(20, 20, generator=torch.Generator().manual_seed(int(name)))
        self.living.append(weakref.ref(tensor))
        self.most = max(self.most, len(self.living))
        return tensor

    def __contains__(self, name):
        return name in self.names

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)


@pytest.mark.parametrize("choice", [sparse(5), sparse(5, "tensor"), low_rank(2)])
def test_a_stored_model_is_read_one_parameter_at_a_time(choice):
    own = Stored([str(i) for i in range(10)])
    gc.collect()
    residue = choice.take(own)
    assert own.most == 1
    assert len(residue.modules()) == 10


# Base and residual together.


def test_a_base_that_lacks_a_module_counts_as_zero_there_and_so_does_an_own_model():
    own, shared = {"a": torch.ones(2, 3), "b": torch.ones(4)}, {"a": torch.ones(2, 3) * 3}
    shared["c"] = torch.ones(2, 2)
    residue = sparse(100).take(own, shared)
    assert residue.modules() == ("a", "b", "c")
    assert torch.equal(residue.delta("a"), torch.full((2, 3), -2.0))
    assert torch.equal(residue.delta("c"), -torch.ones(2, 2))
    update = TaskUpdate(shared, residue)
    assert update.modules() == ("a", "b", "c")
    for module, expected in {**own, "c": torch.zeros(2, 2)}.items():
        assert torch.equal(update.delta(module), expected)


def test_factors_that_only_the_base_has_stay_factors():
    (adapter,) = toy_adapters(1)
    shared = dict(adapter.factors)
    own = {"out": shared["out"]}
    residue = low_rank(3).take(own, {k: f for k, f in shared.items() if k != "out"})
    torch.testing.assert_close(
        residue.delta("blocks.0.q"), -shared["blocks.0.q"].delta(), rtol=1e-4, atol=1e-5
    )


def test_low_rank_beside_a_low_rank_base_is_told_as_factors():
    adapter, shared = toy_adapters(2)[0], merged("task_arithmetic", 2)
    update = TaskUpdate(shared, low_rank(1).take(adapter.factors, shared))
    for module, entry in update.entries.items():
        assert isinstance(entry, LoRAFactors)
        assert entry.rank == 7  # 3 + 3 of the base and 1
        expected = Update(shared).delta(module) + update.residue.delta(module)
        torch.testing.assert_close(update.delta(module), expected, rtol=1e-4, atol=1e-5)


def test_the_update_of_a_task_can_be_saved(tmp_path):
    adapter, shared = toy_adapters(2)[0], merged("ties", 2)
    update = TaskUpdate(shared, sparse(10).take(adapter.factors, shared))
    Update(update.entries).save(tmp_path / "task")
    loaded = Adapter.load(tmp_path / "task")
    assert all(torch.equal(loaded.factors[m].delta(), update.delta(m)) for m in update.modules())


def test_half_precision_is_raised_and_gradients_are_cut():
    own = {"fc": torch.randn(4, 4, dtype=torch.bfloat16)}
    assert low_rank(2).take(own).delta("fc").dtype == torch.float32
    learned = {"fc": torch.randn(4, 4, requires_grad=True)}
    for choice in (low_rank(2), sparse(50)):
        assert not choice.take(own, learned).delta("fc").requires_grad


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000), st.data())
def test_any_low_rank_residual_shrinks_and_counts(d_out, d_in, rank, seed, data):
    draw = torch.Generator().manual_seed(seed)
    f = LoRAFactors(
        torch.randn(rank, d_in, generator=draw).double(),
        torch.randn(d_out, rank, generator=draw).double(),
        0.5,
    )
    q = data.draw(st.integers(1, min(rank, d_out, d_in)))
    residue = low_rank(q).take({"m": f})
    assert residue.numbers == q * (d_out + d_in + 1)
    rest = f.delta() - residue.delta("m")
    # What is left out is orthogonal to what is kept.
    torch.testing.assert_close(
        rest.square().sum() + residue.delta("m").square().sum(), f.delta().square().sum()
    )


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(1, 100),
)
def test_any_sparse_residual_is_a_stable_sort(values, m):
    own = {str(i): torch.tensor(v, dtype=torch.float32) for i, v in enumerate(values)}
    residue = sparse(m).take(own)
    u = flat(own)
    k = m * len(u) // 100
    places = [(name, at) for name, v in own.items() for at in range(len(v))]
    assert kept(residue) == {places[i] for i in np.argsort(-np.abs(u), kind="stable")[:k]}
    assert residue.numbers == k


# The registry, and what is refused.


def test_the_table_has_a_row_per_residual_with_every_cell_filled():
    rows = residuals_table()
    assert [row["name"] for row in rows] == ["low_rank", "sparse"]
    assert all(all(row.values()) for row in rows)
    assert [row["options"] for row in rows] == ["q=8", "m=10, scope=model"]
    assert LISTS["residuals"]() == rows


def test_defaults_are_written_out():
    assert make_residual({"name": "low_rank"}).variant == {"name": "low_rank", "q": 8}
    choice = make_residual({"name": "sparse", "m": 1})
    assert choice.variant == {"name": "sparse", "m": 1, "scope": "model"}
    assert make_residual(choice.variant) == choice
    assert choice.kind.needs_task


def test_one_class_adds_a_residual(monkeypatch):
    monkeypatch.setitem(RESIDUALS, "half", None)  # so that it is gone after the test

    class Half(Residual):
        name = "half"
        summary, formula, paper = "half of it", "base + u_t / 2", "nobody"
        options = {"of": OptionSpec(2, lambda v: v == 2, "2", "two")}  # noqa: RUF012

        def take(self, own, base, options):
            return Residue({m: WholeDelta(entry / options["of"]) for m, entry in own.items()})

    register_residual(Half)
    choice = make_residual({"name": "half"})
    choice.check_rank(1)
    assert torch.equal(choice.take({"m": torch.ones(2)}).delta("m"), torch.full((2,), 0.5))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("low_rank", r"Expected a residual with a name.*but got 'low_rank'; name one of low_rank"),
        ({"q": 8}, r"Expected a residual with a name.*but got \{'q': 8\}"),
        ({"name": "lowrank"}, r"Unknown residual 'lowrank': did you mean 'low_rank'\?"),
        ({"name": "low_rank", "rank": 8}, r"Unknown option of residual 'low_rank' 'rank'"),
        ({"name": "sparse", "scop": "model"}, r"option of residual 'sparse' 'scop'.*'scope'\?"),
        ({"name": "low_rank", "q": 0}, r"Expected q of residual 'low_rank' to be an integer of at"),
        ({"name": "low_rank", "q": True}, r"integer of at least 1 but got True"),
        ({"name": "low_rank", "q": 2.0}, r"integer of at least 1 but got 2.0"),
        (
            {"name": "sparse", "m": 0},
            r"Expected m of residual 'sparse' to be a percentage in \(0, ",
        ),
        ({"name": "sparse", "m": 101}, r"in \(0, 100\] but got 101"),
        ({"name": "sparse", "m": float("nan")}, r"in \(0, 100\] but got nan"),
        ({"name": "sparse", "m": "10"}, r"in \(0, 100\] but got '10'"),
        ({"name": "sparse", "scope": "layer"}, r"one of model, tensor but got 'layer'"),
    ],
)
def test_a_residual_that_is_none_is_refused(config, sentence):
    with pytest.raises(UserError, match=sentence):
        make_residual(config)


def test_q_above_the_rank_is_refused_before_training_and_by_module():
    low_rank(4).check_rank(4)
    sparse(10).check_rank(1)
    with pytest.raises(UserError, match="at most the rank 4 of the adapters but got 5; lower q"):
        low_rank(5).check_rank(4)
    own = {"a": LoRAFactors(torch.ones(4, 9), torch.ones(8, 4)), "b": torch.ones(2, 9)}
    with pytest.raises(UserError, match="at most the rank 4 of module 'a' but got 5"):
        low_rank(5).take(own)
    with pytest.raises(UserError, match="at most the rank 2 of module 'b' but got 3"):
        low_rank(3).take(own)
    assert low_rank(5).take({"a": own["a"]}, {"a": torch.ones(8, 9)}).numbers == 5 * 18


@pytest.mark.parametrize("choice", [low_rank(1), sparse(10), sparse(10, "tensor")])
def test_updates_that_do_not_fit_are_refused(choice):
    with pytest.raises(UserError, match=r"module 'fc' has \(2, 3\) and \(3, 2\); use models of"):
        choice.take({"fc": torch.ones(2, 3)}, {"fc": torch.ones(3, 2)})
    for bad in (torch.tensor([[1.0, float("nan")]]), torch.tensor([[float("inf"), 1.0]])):
        with pytest.raises(UserError, match="Expected finite updates but module 'fc' holds NaN"):
            choice.take({"fc": bad})
    with pytest.raises(UserError, match="it has no modules"):
        choice.take({})


def test_an_unknown_module_is_named():
    residue = sparse(10).take(full())
    with pytest.raises(UserError, match=r"module of the residual 'fc.bia'.*did you mean 'fc.bias'"):
        residue.delta("fc.bia")
    with pytest.raises(UserError, match=r"module of the task's update 'patches'.*'patch'"):
        TaskUpdate(None, residue).delta("patches")
