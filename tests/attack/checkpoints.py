"""Attacks on the backbone's weights: ``model.checkpoint=`` a file or folder that is damaged or odd.

A run on sound weights is the reference: what is the same numbers in another form must give the same
adapters, byte for byte; all else is refused, and no pickle ever runs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from attack.core import Case, Group, Outcome, Verdict, fork, judge
from torch import Tensor

State = dict[str, Tensor]

_RUN = (
    "benchmark.classes=2",
    "benchmark.styles=[photo,cartoon]",
    "benchmark.samples_per_class=4",
    "benchmark.test_samples_per_class=4",
    "strategy.epochs=1",
    "strategy.batch_size=8",
    "strategy.rank=2",
    "arms=none",
    "+arms.half={method: task_arithmetic, coefficients: 0.5}",
    "references=[base]",
    "report=false",
)
_MARK = "was_run"


class Bomb:
    """An object whose pickle runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


class Bench:
    """Sound weights, the run on them, and what compares others with it.

    Args:
        prepared: a folder for what all cases need.
    """

    def __init__(self, prepared: Path) -> None:
        self.prepared = prepared

    @functools.cached_property
    def state(self) -> State:
        """The sound weights."""
        from importlib.resources import as_file, files

        with as_file(files("cl_lora.models") / "embedded" / "backbone.safetensors") as path:
            stored = safetensors.torch.load(path.read_bytes())
        return {name: tensor.float() for name, tensor in stored.items()}

    def run(self, place: Path, checkpoint: Path | str, *more: str) -> Outcome:
        """Run on a checkpoint."""
        return fork(
            [
                *("run", "model=embedded", f"model.checkpoint='{checkpoint}'", *_RUN),
                *(f"benchmark.cache_dir={self.prepared / 'cache'}", f"run_dir={place / 'run'}"),
                *more,
            ],
            place,
        )

    def reference(self, state: State, *more: str) -> Path:
        """Return the folder of the run on weights, in their plainest form."""
        plain = {name: tensor.float().contiguous() for name, tensor in state.items()}
        data = safetensors.torch.save(dict(sorted(plain.items())))
        key = hashlib.sha256(data + repr(more).encode()).hexdigest()[:16]
        place = self.prepared / key
        if not place.exists():
            place.mkdir()
            (place / "plain.safetensors").write_bytes(data)
            outcome = self.run(place, place / "plain.safetensors", *more)
            assert outcome.code == 0, outcome.err
        return place / "run"

    def same(self, run: Path, state: State, *more: str) -> bool:
        """Return whether a run is that on these weights: the scores, and each byte of adapters."""
        return runs_agree(run, self.reference(state, *more))


def runs_agree(run: Path, reference: Path) -> bool:
    """Return whether scores and all trained tensors of two runs are the same."""
    names = ["scores.csv", *(p.relative_to(reference) for p in reference.rglob("*.safetensors"))]
    return all((run / n).read_bytes() == (reference / n).read_bytes() for n in names)


def bicubic(side: int, new: int) -> np.ndarray:
    """Return the matrix (new, side) of antialiased bicubic resampling with a = -1/2, in float64."""
    scale = side / new
    wide = max(scale, 1.0)
    found = np.zeros((new, side))
    for i in range(new):
        centre = (i + 0.5) * scale
        x = np.abs((np.arange(side) + 0.5 - centre) / wide)
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        row = np.where(x < 1, near, np.where(x < 2, far, 0))
        low, high = int(centre - 2 * wide + 0.5), int(centre + 2 * wide + 0.5)
        row[: max(low, 0)] = 0
        row[min(high, side) :] = 0
        found[i] = row / row.sum()
    return found


def regrid(embedding: Tensor, new: int) -> Tensor:
    """Return a position embedding (1, n^2, d) of another square, in float64."""
    side = round(embedding.shape[1] ** 0.5)
    grid = embedding.double().numpy().reshape(side, side, -1)
    m = bicubic(side, new)
    return torch.from_numpy(np.einsum("ai,bj,ijd->abd", m, m, grid).reshape(1, new * new, -1))


def cases(seed: int, prepared: Path) -> Sequence[Case]:
    """Return all cases."""
    bench = Bench(prepared)
    draw = random.Random(f"{seed}-checkpoints")
    return [
        *(_same(bench, *case) for case in _sound_files()),
        *(_refused(bench, *case) for case in _tensors(draw)),
        *(_refused(bench, *case) for case in _bytes(draw)),
        *_code(bench),
        *_grids(bench),
        *_places(bench),
        *_later(bench),
        *_class_token(bench),
        *_clip(prepared),
        *_t5(prepared),
    ]


# What holds the same numbers


def _sound_files() -> list[
    tuple[str, str, Callable[[State, Path], None], Callable[[State], State]]
]:
    """Return name, file name, what writes it, and the numbers that it holds."""

    def st(change: Callable[[State], State], metadata: dict[str, str] | None = None) -> Any:
        return lambda state, path: safetensors.torch.save_file(change(state), path, metadata)

    def pt(change: Callable[[State], Any], **options: Any) -> Any:
        return lambda state, path: torch.save(change(state), path, **options)

    def same(state: State) -> State:
        return dict(state)

    def to(dtype: torch.dtype) -> Callable[[State], State]:
        return lambda state: {k: v.to(dtype) for k, v in state.items()}

    def rounded(dtype: torch.dtype) -> Callable[[State], State]:
        return lambda state: {k: v.to(dtype).float() for k, v in state.items()}

    def mixed(state: State) -> State:
        kinds = (torch.float16, torch.float32, torch.float64)
        return {k: v.to(kinds[i % 3]) for i, (k, v) in enumerate(state.items())}

    def with_head(state: State) -> State:
        return {**state, "head.weight": torch.randn(10, 128), "head.bias": torch.randn(10)}

    def prefixed(prefix: str) -> Callable[[State], State]:
        return lambda state: {prefix + k: v for k, v in state.items()}

    def strided(state: State) -> State:
        return {k: torch.stack([v, v + 1], -1)[..., 0] for k, v in state.items()}

    def shared(state: State) -> State:
        whole = torch.cat([v.reshape(-1) for v in state.values()])
        found, at = {}, 0
        for k, v in state.items():
            found[k] = whole[at : at + v.numel()].view(v.shape)
            at += v.numel()
        return found

    def linear(state: State) -> State:
        weight = state["patch_embed.proj.weight"]
        return {**state, "patch_embed.proj.weight": weight.reshape(len(weight), -1)}

    def noise(state: State) -> State:
        return {k: v + 1 for k, v in state.items()}

    beside = {"epoch": 3, "optimizer": {"state": {}, "lr": 0.1}, "args": None}
    files = [
        ("safetensors", "w.safetensors", st(same), same),
        ("safetensors with metadata", "w.safetensors", st(same, {"a": "b"}), same),
        (
            "safetensors in another order",
            "w.safetensors",
            st(lambda s: dict(reversed(s.items()))),
            same,
        ),
        ("safetensors with a classifier", "w.safetensors", st(with_head), same),
        (
            "safetensors with a decoder",
            "w.safetensors",
            st(lambda s: {**s, "decoder.w": s["norm.bias"] if "norm.bias" in s else torch.ones(3)}),
            same,
        ),
        ("safetensors of fp64", "w.safetensors", st(to(torch.float64)), same),
        ("safetensors of fp16", "w.safetensors", st(to(torch.float16)), rounded(torch.float16)),
        ("safetensors of bf16", "w.safetensors", st(to(torch.bfloat16)), rounded(torch.bfloat16)),
        (
            "safetensors of three precisions",
            "w.safetensors",
            st(mixed),
            lambda s: {k: v.float() for k, v in mixed(s).items()},
        ),
        ("safetensors under module.", "w.safetensors", st(prefixed("module.")), same),
        ("torch .pth", "w.pth", pt(same), same),
        ("torch .pt", "w.pt", pt(same), same),
        ("torch without an ending", "weights", pt(same), same),
        ("torch, a name with umlauts and blanks", "Gewichte für später.pth", pt(same), same),
        ("torch, OrderedDict", "w.pth", pt(OrderedDict), same),
        ("torch, the older format", "w.pth", pt(same, _use_new_zipfile_serialization=False), same),
        ("torch under state_dict", "w.pth", pt(lambda s: {"state_dict": s, **beside}), same),
        ("torch under model", "w.pth", pt(lambda s: {"model": s, **beside}), same),
        (
            "torch under model and state_dict",
            "w.pth",
            pt(lambda s: {"model": {"state_dict": s}}),
            same,
        ),
        (
            "torch with averaged weights",
            "w.pth",
            pt(lambda s: {"state_dict": noise(s), "state_dict_ema": s}),
            same,
        ),
        ("torch under module.", "w.pth", pt(prefixed("module.")), same),
        ("torch under _orig_mod.module.", "w.pth", pt(prefixed("_orig_mod.module.")), same),
        ("torch under module._orig_mod.", "w.pth", pt(prefixed("module._orig_mod.")), same),
        (
            "torch of parameters",
            "w.pth",
            pt(lambda s: {k: torch.nn.Parameter(v) for k, v in s.items()}),
            same,
        ),
        ("torch of fp64", "w.pth", pt(to(torch.float64)), same),
        ("torch of fp16", "w.pth", pt(to(torch.float16)), rounded(torch.float16)),
        ("torch of bf16", "w.pth", pt(to(torch.bfloat16)), rounded(torch.bfloat16)),
        ("torch of strided tensors", "w.pth", pt(strided), same),
        ("torch of one storage", "w.pth", pt(shared), same),
        ("torch, patches as a linear layer", "w.pth", pt(linear), same),
        (
            "torch with counters beside",
            "w.pth",
            pt(lambda s: {**s, "steps": torch.tensor(7)}),
            same,
        ),
    ]
    return files


def _same(
    bench: Bench,
    name: str,
    file: str,
    write: Callable[[State, Path], None],
    numbers: Callable[[State], State],
) -> Case:
    def run(place: Path) -> tuple[Verdict, str]:
        write(dict(bench.state), place / file)
        outcome = bench.run(place, place / file)
        verdict = judge(outcome, lambda: bench.same(place / "run", numbers(bench.state)), place)
        return _must_run(verdict)

    return Case(f"sound: {name}", run)


def _must_run(verdict: tuple[Verdict, str]) -> tuple[Verdict, str]:
    """Return the verdict, in which what is sound may not be refused."""
    if verdict[0] is Verdict.REFUSED:
        return Verdict.UNCLEAR, f"sound, but refused: {verdict[1]}"
    return verdict


# What holds other numbers than those of this network


def _tensors(draw: random.Random) -> list[tuple[str, str, Callable[[State, Path], None]]]:
    names = ["patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"]
    names.append(f"blocks.{draw.randrange(1, 6)}.mlp.fc{draw.randrange(1, 3)}.bias")

    def st(change: Callable[[State], Any]) -> Any:
        def write(state: State, path: Path) -> None:
            made = change(state)
            safetensors.torch.save_file(state if made is None else made, path)

        return write

    def pt(change: Callable[[State], Any]) -> Any:
        def write(state: State, path: Path) -> None:
            made = change(state)
            torch.save(state if made is None else made, path)

        return write

    def put(name: str, value: float) -> Callable[[State], None]:
        def change(state: State) -> None:
            state[name] = state[name].clone()
            state[name].view(-1)[draw.randrange(state[name].numel())] = value

        return change

    def swap(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[State], None]:
        def change(state: State) -> None:
            state[name] = make(state[name])

        return change

    qkv, fc, where = names[2], names[3], "pos_embed"
    found: list[tuple[str, str, Callable[[State, Path], None]]] = []
    for name in names:
        for value in (float("nan"), float("inf"), float("-inf")):
            found.append((f"{value} in {name}", "w.safetensors", st(put(name, value))))
    found += [
        (
            "NaN in fp16",
            "w.safetensors",
            st(
                lambda s: {
                    k: v.half() if k != fc else (v * float("nan")).half() for k, v in s.items()
                }
            ),
        ),
        (
            "NaN in bf16, torch",
            "w.pth",
            pt(
                lambda s: {
                    k: v.bfloat16() if k != qkv else (v * float("nan")).bfloat16()
                    for k, v in s.items()
                }
            ),
        ),
        (
            "fp64 beyond fp32",
            "w.pth",
            pt(lambda s: {k: v.double() * (1e300 if k == fc else 1) for k, v in s.items()}),
        ),
        (
            "numbers so large that features overflow",
            "w.safetensors",
            st(
                lambda s: {
                    k: torch.full_like(v, 3e38) if k.endswith("fc1.weight") else v
                    for k, v in s.items()
                }
            ),
        ),
        (
            "NaN under state_dict",
            "w.pth",
            pt(lambda s: (put(qkv, float("nan"))(s), {"state_dict": s})[1]),
        ),
        ("a key missing", "w.safetensors", st(lambda s: s.pop(qkv) is None or None)),
        (
            "the position embedding missing",
            "w.safetensors",
            st(lambda s: s.pop(where) is None or None),
        ),
        ("a bias missing, torch", "w.pth", pt(lambda s: s.pop(fc) is None or None)),
        (
            "all keys under another prefix",
            "w.safetensors",
            st(lambda s: {f"encoder.{k}": v for k, v in s.items()}),
        ),
        (
            "a key twice, once under module.",
            "w.safetensors",
            st(lambda s: {**s, f"module.{qkv}": s[qkv] + 1}),
        ),
        (
            "a block more",
            "w.safetensors",
            st(
                lambda s: {
                    **s,
                    **{
                        k.replace("blocks.5", "blocks.6"): v.clone()
                        for k, v in s.items()
                        if k.startswith("blocks.5.")
                    },
                }
            ),
        ),
        (
            "layer scale, which this network lacks",
            "w.safetensors",
            st(lambda s: {**s, "blocks.0.ls1.gamma": torch.rand(128)}),
        ),
        (
            "a class token, which this network lacks",
            "w.safetensors",
            st(lambda s: {**s, "cls_token": torch.rand(1, 1, 128)}),
        ),
        (
            "another width",
            "w.safetensors",
            st(lambda s: {k: torch.cat([v, v], -1) for k, v in s.items()}),
        ),
        ("a transposed weight", "w.safetensors", st(swap(qkv, lambda v: v.T.contiguous()))),
        ("a flattened weight", "w.safetensors", st(swap(qkv, lambda v: v.reshape(-1)))),
        ("a weight with one row less", "w.safetensors", st(swap(qkv, lambda v: v[:-1].clone()))),
        (
            "patches of another size",
            "w.safetensors",
            st(swap(names[0], lambda v: v.repeat(1, 1, 2, 2))),
        ),
        ("patches of one channel", "w.safetensors", st(swap(names[0], lambda v: v[:, :1].clone()))),
        (
            "patches with a dimension more",
            "w.safetensors",
            st(swap(names[0], lambda v: v[None].clone())),
        ),
        ("a one-dimensional pos_embed", "w.safetensors", st(swap(where, lambda v: v.reshape(-1)))),
        ("a two-dimensional pos_embed", "w.safetensors", st(swap(where, lambda v: v[0].clone()))),
        (
            "a four-dimensional pos_embed",
            "w.safetensors",
            st(swap(where, lambda v: v[None].clone())),
        ),
        ("a pos_embed without dimensions", "w.safetensors", st(swap(where, lambda v: v.mean()))),
        ("a pos_embed of no tokens", "w.safetensors", st(swap(where, lambda v: v[:, :0].clone()))),
        ("a pos_embed of no square", "w.safetensors", st(swap(where, lambda v: v[:, :-1].clone()))),
        (
            "a pos_embed of two samples",
            "w.safetensors",
            st(swap(where, lambda v: v.repeat(2, 1, 1))),
        ),
        (
            "a pos_embed of another width",
            "w.safetensors",
            st(swap(where, lambda v: v[..., :64].clone())),
        ),
        (
            "a NaN in a pos_embed of another grid",
            "w.safetensors",
            st(swap(where, lambda v: torch.full((1, 16, 128), float("nan")))),
        ),
        ("a sparse pos_embed", "w.pth", pt(swap(where, lambda v: v.to_sparse()))),
        ("a sparse weight", "w.pth", pt(swap(qkv, lambda v: v.to_sparse()))),
        ("a weight sparse by rows", "w.pth", pt(swap(qkv, lambda v: v.to_sparse_csr()))),
        ("a weight without data", "w.pth", pt(swap(qkv, lambda v: v.to("meta")))),
        ("a pos_embed without data", "w.pth", pt(swap(where, lambda v: v.to("meta")))),
        (
            "integer weights",
            "w.safetensors",
            st(lambda s: {k: (v * 100).to(torch.int8) for k, v in s.items()}),
        ),
        ("one integer weight", "w.safetensors", st(swap(qkv, lambda v: (v * 100).to(torch.int32)))),
        ("a boolean weight", "w.safetensors", st(swap(qkv, lambda v: v > 0))),
        ("complex weights", "w.safetensors", st(swap(qkv, lambda v: torch.complex(v, v)))),
        ("complex weights, torch", "w.pth", pt(swap(qkv, lambda v: torch.complex(v, v)))),
        (
            "weights of eight bits",
            "w.safetensors",
            st(swap(qkv, lambda v: v.to(torch.float8_e4m3fn))),
        ),
        (
            "quantised weights",
            "w.pth",
            pt(swap(qkv, lambda v: torch.quantize_per_tensor(v, 0.01, 0, torch.qint8))),
        ),
        (
            "a tensor of 10^12 numbers over one",
            "w.pth",
            pt(swap(qkv, lambda v: torch.ones(1).expand(10**12))),
        ),
        (
            "a pos_embed of 10^10 numbers over one",
            "w.pth",
            pt(swap(where, lambda v: torch.ones(1).expand(1, 10**8, 128))),
        ),
        ("weights of no numbers", "w.safetensors", st(lambda s: {k: torch.empty(0) for k in s})),
        ("one weight of no numbers", "w.safetensors", st(swap(qkv, lambda v: v[:0].clone()))),
        ("no tensors", "w.safetensors", st(lambda s: {})),
        ("no tensors, torch", "w.pth", pt(lambda s: {})),
        ("no tensors under model", "w.pth", pt(lambda s: {"model": {}})),
        ("a list", "w.pth", pt(lambda s: list(s.values()))),
        ("a tensor", "w.pth", pt(lambda s: s[qkv])),
        ("a number", "w.pth", pt(lambda s: 3)),
        ("nothing", "w.pth", pt(lambda s: {"x": None}["x"] or False)),
        ("keys that are numbers", "w.pth", pt(lambda s: dict(enumerate(s.values())))),
        ("one key that is a number", "w.pth", pt(lambda s: {**s, 5: s[qkv]})),
        ("keys that are tuples", "w.pth", pt(lambda s: {(k,): v for k, v in s.items()})),
        (
            "values that are lists",
            "w.pth",
            pt(lambda s: {k: v.tolist() for k, v in s.items() if v.ndim == 1}),
        ),
        ("one value that is text", "w.pth", pt(lambda s: {**s, qkv: "weights"})),
        ("a list under state_dict", "w.pth", pt(lambda s: {"state_dict": list(s.values())})),
        (
            "weights wrapped twenty times",
            "w.pth",
            pt(lambda s: functools.reduce(lambda inner, _: {"model": inner}, range(20), s)),
        ),
    ]
    return found


def _bytes(draw: random.Random) -> list[tuple[str, str, Callable[[State, Path], None]]]:
    def st(change: Callable[[bytes], bytes]) -> Any:
        return lambda state, path: path.write_bytes(change(safetensors.torch.save(state)))

    def pt(change: Callable[[bytes], bytes]) -> Any:
        def write(state: State, path: Path) -> None:
            made = io.BytesIO()
            torch.save(state, made)
            path.write_bytes(change(made.getvalue()))

        return write

    def header(change: Callable[[dict[str, Any]], Any]) -> Any:
        def edit(data: bytes) -> bytes:
            (length,) = struct.unpack("<Q", data[:8])
            about = json.loads(data[8 : 8 + length])
            made = change(about)
            text = json.dumps(about).encode() if made is None else made
            return struct.pack("<Q", len(text)) + text + data[8 + length :]

        return st(edit)

    def of(about: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = about["blocks.0.attn.qkv.weight"]
        return found

    def length(number: int) -> Any:
        return st(lambda data: struct.pack("<Q", number) + data[8:])

    def cut(share: float) -> Callable[[bytes], bytes]:
        return lambda data: data[: int(len(data) * share)]

    def overlap(about: dict[str, Any]) -> None:
        other = about["blocks.1.attn.qkv.weight"]
        of(about)["data_offsets"] = other["data_offsets"]

    def twice(about: dict[str, Any]) -> bytes:
        text = json.dumps(about)
        one = json.dumps({"pos_embed": about["pos_embed"]})[1:-1]
        return f"{text[:-1]}, {one.replace('36', '25')}}}".encode()

    at = draw.random()
    found = [
        ("empty", "w.safetensors", st(lambda d: b"")),
        ("empty, torch", "w.pth", pt(lambda d: b"")),
        ("zeros", "w.safetensors", st(lambda d: bytes(len(d)))),
        ("zeros, torch", "w.pth", pt(lambda d: bytes(len(d)))),
        ("noise", "w.safetensors", st(lambda d: draw.randbytes(5000))),
        ("noise, torch", "w.pth", pt(lambda d: draw.randbytes(5000))),
        ("cut in the header", "w.safetensors", st(lambda d: d[:100])),
        ("cut in the length", "w.safetensors", st(lambda d: d[:5])),
        ("cut in the numbers", "w.safetensors", st(cut(at))),
        ("one byte less", "w.safetensors", st(lambda d: d[:-1])),
        ("one byte more", "w.safetensors", st(lambda d: d + b"x")),
        ("cut, torch", "w.pth", pt(cut(at))),
        ("cut at the end, torch", "w.pth", pt(lambda d: d[:-10])),
        ("a header of no bytes", "w.safetensors", length(0)),
        ("a header of 2^63 bytes", "w.safetensors", length(2**63)),
        ("a header of 2^40 bytes", "w.safetensors", length(2**40)),
        (
            "a header one byte shorter",
            "w.safetensors",
            header(lambda a: json.dumps(a)[:-1].encode()),
        ),
        ("a header that is a list", "w.safetensors", header(lambda a: b"[1, 2]")),
        ("a header in UTF-16", "w.safetensors", header(lambda a: json.dumps(a).encode("utf-16"))),
        (
            "a header with a BOM",
            "w.safetensors",
            header(lambda a: b"\xef\xbb\xbf" + json.dumps(a).encode()),
        ),
        ("a header of brackets", "w.safetensors", header(lambda a: b"[" * 100_000)),
        ("overlapping places", "w.safetensors", header(overlap)),
        (
            "places beyond the end",
            "w.safetensors",
            header(lambda a: of(a).update(data_offsets=[0, 2**40])),
        ),
        (
            "places the wrong way round",
            "w.safetensors",
            header(lambda a: of(a).update(data_offsets=of(a)["data_offsets"][::-1])),
        ),
        ("negative places", "w.safetensors", header(lambda a: of(a).update(data_offsets=[-4, 4]))),
        (
            "a shape too large",
            "w.safetensors",
            header(lambda a: of(a).update(shape=[2**40, 2**40])),
        ),
        ("a negative shape", "w.safetensors", header(lambda a: of(a).update(shape=[-384, -128]))),
        ("a shape that is text", "w.safetensors", header(lambda a: of(a).update(shape="384"))),
        ("an unknown precision", "w.safetensors", header(lambda a: of(a).update(dtype="F33"))),
        ("another precision", "w.safetensors", header(lambda a: of(a).update(dtype="F16"))),
        (
            "an integer precision of that width",
            "w.safetensors",
            header(lambda a: of(a).update(dtype="I32")),
        ),
        (
            "another name",
            "w.safetensors",
            header(lambda a: a.update(odd=a.pop("pos_embed")) or None),
        ),
        ("a tensor twice in the header", "w.safetensors", header(twice)),
        ("torch named safetensors", "w.safetensors", pt(lambda d: d)),
        ("safetensors named .pth", "w.pth", st(lambda d: d)),
        ("text", "w.pth", pt(lambda d: b"model: vit\n" * 50)),
        ("a picture", "w.pth", pt(lambda d: b"\x89PNG\r\n\x1a\n" + bytes(300))),
        ("a zip of something else", "w.pth", lambda state, path: _zip(path, {"a/b.txt": b"hello"})),
        (
            "a zip without its pickle",
            "w.pth",
            lambda state, path: _zip(path, {"w/data/0": bytes(64), "w/version": b"3\n"}),
        ),
        ("a zip with a storage missing", "w.pth", _without_storage),
        (
            "an archive of numpy",
            "w.npz",
            lambda state, path: np.savez(path, **{k: v.numpy() for k, v in state.items()}),
        ),
    ]
    return found


def _zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def _without_storage(state: State, path: Path) -> None:
    made = io.BytesIO()
    torch.save(state, made)
    with zipfile.ZipFile(made) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    lost = next(name for name in files if name.endswith("data/3"))
    _zip(path, {name: data for name, data in files.items() if name != lost})


def _refused(bench: Bench, name: str, file: str, write: Callable[[State, Path], None]) -> Case:
    def run(place: Path) -> tuple[Verdict, str]:
        write(dict(bench.state), place / file)
        verdict = judge(bench.run(place, place / file), None, place)
        return _blames_file(verdict, file)

    return Case(f"damaged: {name} ({Path(file).suffix})", run)


def _blames_file(verdict: tuple[Verdict, str], word: str) -> tuple[Verdict, str]:
    """Return the verdict, in which a refusal must name the file and not the learning rate."""
    if verdict[0] is Verdict.REFUSED and (word not in verdict[1] or "learning rate" in verdict[1]):
        return Verdict.UNCLEAR, f"blames something else than {word}: {verdict[1]}"
    return verdict


# Pickles with code


def _code(bench: Bench) -> list[Case]:
    def torch_bomb(path: Path, bomb: Bomb, **options: Any) -> None:
        torch.save({**bench.state, "x": bomb}, path, **options)

    def raw(path: Path, bomb: Bomb) -> None:
        path.write_bytes(pickle.dumps({"x": bomb}))

    def nested(path: Path, bomb: Bomb) -> None:
        torch.save({"state_dict": bench.state, "args": [bomb]}, path)

    def text(path: Path, bomb: Bomb) -> None:
        path.write_bytes(b"cos\nsystem\n(S\"touch '" + str(bomb.mark).encode() + b"'\"\ntR.")

    def evaluated(path: Path, bomb: Bomb) -> None:
        code = f"__import__('os').system(\"touch '{bomb.mark}'\")"
        path.write_bytes(b"cbuiltins\neval\n(V" + code.encode() + b"\ntR.")

    def script(path: Path, bomb: Bomb) -> None:
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)

    def module(path: Path, bomb: Bomb) -> None:
        torch.save(torch.nn.Linear(2, 2), path)

    def beside(path: Path, bomb: Bomb) -> None:
        torch.save(bench.state, path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("weights/code.pkl", pickle.dumps(bomb))

    ways: list[tuple[str, str, Callable[[Path, Bomb], None]]] = [
        ("in an archive of torch", "w.pth", torch_bomb),
        (
            "in the older format",
            "w.pth",
            functools.partial(torch_bomb, _use_new_zipfile_serialization=False),
        ),
        ("beside the weights", "w.pth", nested),
        ("a bare pickle", "w.pth", raw),
        ("a bare pickle named .bin", "w.bin", raw),
        ("a bare pickle named safetensors", "w.safetensors", raw),
        ("a pickle in letters", "w.pth", text),
        ("a pickle that evaluates", "w.pt", evaluated),
        ("a program of TorchScript", "w.pth", script),
        ("a whole module", "w.pth", module),
    ]

    def case(name: str, file: str, write: Callable[[Path, Bomb], None]) -> Case:
        def run(place: Path) -> tuple[Verdict, str]:
            mark = place / _MARK
            write(place / file, Bomb(mark))
            verdict = judge(bench.run(place, place / file), None, place)
            if mark.exists():
                return Verdict.WRONG, "the code of the pickle ran"
            return _blames_file(verdict, file)

        return Case(f"code: {name}", run)

    return [case(*way) for way in ways]


# Position embeddings of other sizes


def _grids(bench: Bench) -> list[Case]:
    def case(side: int, dtype: torch.dtype) -> Case:
        def run(place: Path) -> tuple[Verdict, str]:
            generator = torch.Generator().manual_seed(side)
            own = torch.randn(1, side * side, 128, generator=generator).to(dtype)
            path = place / "w.safetensors"
            safetensors.torch.save_file({**bench.state, "pos_embed": own}, path)
            outcome = bench.run(place, path)

            def right() -> bool:
                from cl_lora.models.backbones import ModelConfig, load_backbone

                config = ModelConfig("embedded", checkpoint=str(path))
                found = load_backbone(config).network.state_dict()["pos_embed"].double()
                expected = regrid(own, 6)
                return float((found - expected).abs().max()) < 1e-5

            return _must_run(judge(outcome, right, place))

        return Case(f"sound: places of {side} by {side} patches, {dtype}", run)

    return [case(side, dtype) for side in (1, 3, 8, 14) for dtype in (torch.float32, torch.float16)]


# What is no file, or is not what it was


def _places(bench: Bench) -> list[Case]:
    def folder(place: Path) -> None:
        (place / "w.pth").mkdir()

    def safetensors_folder(place: Path) -> None:
        (place / "w.pth").mkdir()
        safetensors.torch.save_file(bench.state, place / "w.pth" / "model.safetensors")

    def pipe(place: Path) -> None:
        os.mkfifo(place / "w.pth")

    def device(place: Path) -> None:
        (place / "w.pth").symlink_to("/dev/zero")

    def nowhere(place: Path) -> None:
        (place / "w.pth").symlink_to(place / "gone")

    def loop(place: Path) -> None:
        (place / "w.pth").symlink_to(place / "w.pth")

    def case(name: str, make: Callable[[Path], None], path: str = "w.pth") -> Case:
        def run(place: Path) -> tuple[Verdict, str]:
            make(place)
            return judge(bench.run(place, path), None, place)

        return Case(f"place: {name}", run)

    def link(place: Path) -> tuple[Verdict, str]:
        torch.save(bench.state, place / "real.pth")
        (place / "w.pth").symlink_to("real.pth")
        outcome = bench.run(place, "w.pth")
        return _must_run(judge(outcome, lambda: bench.same(place / "run", bench.state), place))

    def nothing(place: Path) -> None:
        return

    return [
        case("a folder", folder),
        case("a folder of a model", safetensors_folder),
        case("a pipe", pipe),
        case("a device without end", device),
        case("a link to nothing", nowhere),
        case("a link to itself", loop),
        case("nothing", nothing),
        case("a name of 300 letters", nothing, "w" * 300 + ".pth"),
        case("a home of nobody", nothing, "~nobody-of-that-name/w.pth"),
        Case("sound: a link to the file", link),
    ]


def _later(bench: Bench) -> list[Case]:
    """A run that is finished, and weights that change afterwards."""

    def case(name: str, change: Callable[[Path], None]) -> Case:
        def run(place: Path) -> tuple[Verdict, str]:
            path = place / "w.safetensors"
            safetensors.torch.save_file(bench.state, path)
            shutil.copytree(bench.reference(bench.state), place / "run")
            change(path)
            return judge(bench.run(place, path), None, place)

        return Case(f"later: {name}", run)

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)

    def nan(path: Path) -> None:
        state = safetensors.torch.load(path.read_bytes())
        state["pos_embed"].view(-1)[5] = float("nan")
        safetensors.torch.save_file(state, path)

    def other(path: Path) -> None:
        state = safetensors.torch.load(path.read_bytes())
        safetensors.torch.save_file({k: v * 1.01 for k, v in state.items()}, path)

    return [
        case("a bit of the weights flips", flip),
        case("a weight becomes NaN", nan),
        case("other weights take their place", other),
        case("the weights are gone", lambda path: path.unlink()),
    ]


# A network with a class token, by its name in timm


def _class_token(bench: Bench) -> list[Case]:
    model = ("model=timm", "model.name=test_vit", "model.img_size=32")

    @functools.cache
    def state() -> str:
        import timm

        torch.manual_seed(1)
        vit = timm.create_model("test_vit", img_size=32, num_classes=5)
        path = bench.prepared / "test_vit.pth"
        torch.save(vit.state_dict(), path)
        return str(path)

    def case(name: str, change: Callable[[State], State], sound: bool) -> Case:
        def run(place: Path) -> tuple[Verdict, str]:
            plain: State = torch.load(state(), weights_only=True)
            torch.save(change(plain), place / "w.pth")
            outcome = bench.run(place, place / "w.pth", *model)
            if not sound:
                return _blames_file(judge(outcome, None, place), "w.pth")
            return _must_run(
                judge(outcome, lambda: bench.same(place / "run", plain, *model), place)
            )

        return Case(f"class token: {name}", run)

    def without(part: str) -> Callable[[State], State]:
        return lambda s: {k: v for k, v in s.items() if not k.startswith(part)}

    return [
        case("sound", dict, True),
        case("sound without the classifier", without("head"), True),
        case("sound under model", lambda s: {"model": s}, True),  # type: ignore[dict-item]
        case("the class token missing", without("cls_token"), False),
        case(
            "places without one for the class token",
            lambda s: {**s, "pos_embed": s["pos_embed"][:, 1:]},
            False,
        ),
        case(
            "a class token that is NaN",
            lambda s: {**s, "cls_token": s["cls_token"] * float("nan")},
            False,
        ),
        case("a classifier that is NaN", lambda s: {**s, "head.bias": s["head.bias"] / 0}, True),
        case("weights of another network", lambda s: dict(bench.state), False),
    ]


# Folders of transformers


def _clip(prepared: Path) -> list[Case]:
    @functools.cache
    def sound() -> Path:
        write = importlib.import_module("tiny_clip").write_clip
        return Path(write(prepared / "clip"))

    def start(place: Path) -> Outcome:
        return fork(
            [
                *("run", "model=clip_b32", f"model.checkpoint={place / 'model'}", *_RUN),
                *(f"benchmark.cache_dir={prepared / 'cache'}", f"run_dir={place / 'run'}"),
            ],
            place,
        )

    @functools.cache
    def reference() -> Path:
        place = prepared / "clip-run"
        place.mkdir()
        shutil.copytree(sound(), place / "model")
        outcome = start(place)
        assert outcome.code == 0, outcome.err
        return place / "run"

    def right(place: Path) -> bool:
        return runs_agree(place / "run", reference())

    return _folders("CLIP", sound, start, right, "vision_model.encoder.layers.0.mlp.fc1.weight")


def _t5(prepared: Path) -> list[Case]:
    @functools.cache
    def sound() -> Path:
        save = importlib.import_module("tiny_t5")
        save.save_questions(prepared / "questions", train=16, test=8)
        return Path(save.save_t5(prepared / "t5"))

    def start(place: Path) -> Outcome:
        return fork(
            [
                *("run", "experiment=few_shot_language", f"benchmark.root={prepared}/questions"),
                *(f"model.checkpoint={place / 'model'}", "arms=none", "yardstick=null"),
                *(
                    "+arms.uniform={method: task_arithmetic, coefficients: uniform, adapt: none, "
                    "head_start: text}",
                    "shots=[0]",
                    "draws=1",
                    "strategy.epochs=1",
                    "strategy.rank=2",
                    "report=false",
                ),
                *(f"benchmark.cache_dir={prepared / 'cache'}", f"run_dir={place / 'run'}"),
            ],
            place,
        )

    def right(place: Path) -> bool:
        return (place / "run" / "scores.csv").is_file()

    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    return _folders("T5", sound, start, right, name)


def _folders(
    kind: str,
    sound: Callable[[], Path],
    start: Callable[[Path], Outcome],
    right: Callable[[Path], bool],
    name: str,
) -> list[Case]:
    """Return the attacks on the folder of a model of transformers."""

    def weights(change: Callable[[State], Any]) -> Callable[[Path], None]:
        def edit(folder: Path) -> None:
            path = folder / "model.safetensors"
            state = safetensors.torch.load(path.read_bytes())
            change(state)
            safetensors.torch.save_file(state, path, {"format": "pt"})

        return edit

    def config(**changes: Any) -> Callable[[Path], None]:
        def edit(folder: Path) -> None:
            path = folder / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

        return edit

    def put(value: float) -> Callable[[State], None]:
        def change(state: State) -> None:
            state[name].view(-1)[3] = value

        return change

    def replace(file: str, data: bytes) -> Callable[[Path], None]:
        return lambda folder: (folder / file).write_bytes(data) and None

    def pickled(folder: Path) -> None:
        state = safetensors.torch.load((folder / "model.safetensors").read_bytes())
        (folder / "model.safetensors").unlink()
        torch.save({**state, "x": Bomb(folder.parent / _MARK)}, folder / "pytorch_model.bin")

    def pipe(folder: Path) -> None:
        (folder / "config.json").unlink()
        os.mkfifo(folder / "config.json")

    def weights_pipe(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        os.mkfifo(folder / "model.safetensors")

    def case(title: str, change: Callable[[Path], Any], is_sound: bool = False) -> Case:
        def run(place: Path) -> tuple[Verdict, str]:
            shutil.copytree(sound(), place / "model")
            change(place / "model")
            outcome = start(place)
            if (place / _MARK).exists():
                return Verdict.WRONG, "the code of the pickle ran"
            if is_sound:
                return _must_run(judge(outcome, lambda: right(place), place))
            return _blames_file(judge(outcome, None, place), "model")

        return Case(f"{kind}: {title}", run)

    return [
        case("sound", lambda folder: None, True),
        case("NaN", weights(put(float("nan")))),
        case("infinity", weights(put(float("inf")))),
        case("a weight missing", weights(lambda s: s.pop(name))),
        case(
            "a weight of another shape", weights(lambda s: s.update({name: s[name][:-1].clone()}))
        ),
        case(
            "an integer weight", weights(lambda s: s.update({name: (s[name] * 9).to(torch.int8)}))
        ),
        case("weights cut", lambda f: os.truncate(f / "model.safetensors", 4000)),
        case("no weights", lambda f: (f / "model.safetensors").unlink()),
        case("weights that are a pipe", weights_pipe),
        case("a pickle with code", pickled),
        case("no config.json", lambda f: (f / "config.json").unlink()),
        case("config.json empty", replace("config.json", b"")),
        case(
            "config.json in UTF-16",
            replace("config.json", '{"model_type": "clip"}'.encode("utf-16")),
        ),
        case("config.json a list", replace("config.json", b"[]")),
        case("config.json a pipe", pipe),
        case("another type of model", config(model_type="bert")),
        case(
            "a type that runs code",
            config(
                auto_map={"AutoConfig": "odd.Odd", "AutoModelForSeq2SeqLM": "odd.Odd"},
                model_type="odd",
            ),
        ),
    ]


GROUP = Group("checkpoints", "Checkpoints of the backbone", cases)
