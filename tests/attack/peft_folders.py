"""Attacks on ``cl-lora merge``: PEFT folders that are damaged, odd or too large, and odd options.

The reference is a dense sum in float64 by numpy alone, from the files that were given and the file
that came out; and peft, which must read what came out and compute the same from it.
"""

from __future__ import annotations

import functools
import json
import math
import os
import random
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from attack.core import Case, Group, Outcome, Verdict, fork, judge
from torch import Tensor

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
HEAD, TRAINING = "head.safetensors", "training.json"
SHAPES = {"layers.0.q": (6, 5), "layers.0.v": (6, 5), "layers.1.q": (6, 5), "layers.1.v": (6, 5)}
PREFIX = "base_model.model."
RANK, ALPHA = 2, 6
_MARK = "was_run"

State = dict[str, Tensor]
Deltas = dict[str, "np.ndarray[Any, Any]"]
Change = Callable[[Path], Any]


def key(module: str, side: str) -> str:
    """Return the name of a factor in a file of peft's."""
    return f"{PREFIX}{module}.lora_{side}.weight"


Q_A, Q_B = key("layers.0.q", "A"), key("layers.0.q", "B")


class Bomb:
    """An object whose pickle runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def tensors(seed: int) -> State:
    """Return the factors of an adapter."""
    draw = np.random.default_rng(seed)
    found = {}
    for module, (d_out, d_in) in SHAPES.items():
        found[key(module, "A")] = draw.standard_normal((RANK, d_in))
        found[key(module, "B")] = draw.standard_normal((d_out, RANK))
    return {name: torch.from_numpy(value).float() for name, value in found.items()}


def config() -> dict[str, Any]:
    """Return the adapter_config.json of peft for it."""
    from peft import LoraConfig

    made = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=["q", "v"],
        base_model_name_or_path="someone/model",
        inference_mode=True,
    )
    return {k: sorted(v) if isinstance(v, set) else v for k, v in made.to_dict().items()}


@functools.cache
def _config_text() -> str:
    return json.dumps(config(), indent=2, default=str)


def write(folder: Path, seed: int) -> Path:
    """Write an adapter as peft does."""
    folder.mkdir()
    safetensors.torch.save_file(tensors(seed), folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(_config_text())
    return folder


def numbers(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor's numbers in float64."""
    return tensor.detach().double().numpy()


def deltas_of(folder: Path) -> Deltas:
    """Return what an undamaged folder adds to each layer, by the definition of LoRA."""
    import re

    settings = json.loads((folder / CONFIG).read_text())
    stored = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    state = {name.replace(".default.", "."): tensor for name, tensor in stored.items()}
    found = {}
    for name, tensor in state.items():
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        A, B = numbers(tensor), numbers(state[key(module, "B")])
        alpha = settings.get("lora_alpha", 8)
        for pattern, value in (settings.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        rank = A.shape[0]
        scaling = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        found[module] = scaling * (B @ A)
    return found


def close(found: Deltas, expected: Deltas, tolerance: float) -> bool:
    """Return whether two updates are the same but for rounding."""
    if set(found) != set(expected):
        return False
    size = max(float(np.abs(value).max()) for value in expected.values())
    return all(
        bool(np.isfinite(found[m]).all())
        and float(np.abs(found[m] - expected[m]).max()) <= tolerance * size
        for m in expected
    )


def by_peft(folder: Path) -> Deltas:
    """Return what peft adds to each layer, having read the folder."""
    from peft import PeftModel

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.v = torch.nn.Linear(5, 6), torch.nn.Linear(5, 6)

    class Base(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([Layer(), Layer()])
            self.classifier = torch.nn.Linear(5, 3)

    model = PeftModel.from_pretrained(Base(), str(folder))
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if getattr(layer, "lora_A", None):
            found[name] = numbers(layer.get_delta_weight("default"))
    return found


def merge(place: Path, *more: str, sources: Sequence[str] = ("a", "b")) -> Outcome:
    """Merge the adapters of a folder."""
    return fork(["merge", *sources, "--out", "out", *more], place, longest_s=60)


def is_sum(place: Path, weights: Mapping[str, float], tolerance: float = 1e-5) -> bool:
    """Return whether ``out`` is the weighted sum of adapters, for numpy and for peft."""
    expected: Deltas = {}
    for name, weight in weights.items():
        for module, delta in deltas_of(place / name).items():
            expected[module] = expected.get(module, 0) + weight * delta
    out = place / "out"
    return close(deltas_of(out), expected, tolerance) and close(
        by_peft(out), expected, max(tolerance, 1e-4)
    )


def verdict(place: Path, outcome: Outcome, right: Callable[[], bool] | None) -> tuple[Verdict, str]:
    """Return what a merge amounts to; a refused one leaves nothing."""
    if (place / _MARK).exists():
        return Verdict.WRONG, "the code of the pickle ran"
    found = judge(outcome, right, place)
    if found[0] is Verdict.REFUSED and (place / "out").exists():
        return Verdict.HALF, f"--out is there: {found[1]}"
    return found


def cases(seed: int, prepared: Path) -> Sequence[Case]:
    """Return all cases."""
    import peft  # noqa: F401  (the forks need not import it again)

    import cl_lora.joining  # noqa: F401

    draw = random.Random(f"{seed}-peft_folders")
    return [
        *_settings(),
        *_config_files(),
        *_tensor_files(draw),
        *_pickles(),
        *_heads(),
        *_options(),
        *_places(),
        *_recipes(),
        *_models(),
        *_comparisons(),
        *_banks(prepared),
    ]


def _case(
    name: str,
    change: Change,
    *more: str,
    sound: bool | None = False,
    weights: tuple[float, float] = (0.5, 0.5),
    tolerance: float = 1e-5,
    word: str = "",
) -> Case:
    """Return the case of a changed adapter ``b``.

    Args:
        name: of the case.
        change: what is done to the folder of ``b``.
        more: options of the command.
        sound: whether the sum must come out; None if it may be refused too.
        weights: of the two.
        tolerance: relative, of the numbers.
        word: what a refusal must name.
    """

    def run(place: Path) -> tuple[Verdict, str]:
        write(place / "a", 1)
        write(place / "b", 2)
        change(place / "b")
        outcome = merge(place, *more)
        given = dict(zip("ab", weights, strict=True))
        right = None if sound is False else (lambda: is_sum(place, given, tolerance))
        found = verdict(place, outcome, right)
        if sound and found[0] is Verdict.REFUSED:
            return Verdict.UNCLEAR, f"sound, but refused: {found[1]}"
        if found[0] is Verdict.REFUSED and word not in found[1]:
            return Verdict.UNCLEAR, f"does not name {word}: {found[1]}"
        return found

    return Case(name, run)


# adapter_config.json, field by field


def _set(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _drop(name: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / CONFIG
        found = json.loads(path.read_text())
        del found[name]
        path.write_text(json.dumps(found))

    return change


def _settings() -> list[Case]:
    sound: list[tuple[str, dict[str, Any]]] = [
        ("lora_alpha", {"lora_alpha": 16}),
        ("lora_alpha", {"lora_alpha": 0.3}),
        ("lora_alpha", {"lora_alpha": -4}),
        ("lora_alpha", {"lora_alpha": 0}),
        ("alpha_pattern", {"alpha_pattern": {"q": 3, r"layers\.1\.v": 5.5}}),
        ("alpha_pattern", {"alpha_pattern": {"^layers.0.q": 11}}),
        ("alpha_pattern", {"alpha_pattern": {}}),
        ("alpha_pattern", {"alpha_pattern": None}),
        ("rank_pattern", {"rank_pattern": {"q": 2, "v": 2}, "r": 8}),
        ("use_rslora", {"use_rslora": True}),
        ("target_modules", {"target_modules": ["layers.0.q", "layers.1.q", "v"]}),
        ("target_modules", {"target_modules": r".*\.(q|v)"}),
        ("target_modules", {"target_modules": "all-linear"}),
        ("target_modules", {"target_modules": None}),
        ("layers_to_transform", {"layers_to_transform": []}),
        ("exclude_modules", {"exclude_modules": ["k"]}),
        ("bias", {"bias": "none"}),
        ("bias", {"bias": None}),
        ("use_dora", {"use_dora": False}),
        ("modules_to_save", {"modules_to_save": []}),
        ("init_lora_weights", {"init_lora_weights": "gaussian"}),
        ("lora_dropout", {"lora_dropout": 0.5}),
        ("an unknown empty field", {"of_tomorrow": None}),
        ("inference_mode", {"inference_mode": False}),
    ]
    wrong: list[tuple[str, Any]] = [
        *(("lora_alpha", v) for v in (1e39, -1e39, 1e-42, math.nan, math.inf, 10**400)),
        *(("lora_alpha", v) for v in ("16", True, None, [16], {})),
        *(("alpha_pattern", v) for v in ([], "", 0, False, "q", ["q"], {"q": "3"}, {"q": None})),
        *(("alpha_pattern", {p: 3}) for p in ("(", "(?i)q", "[", "q{99999999999}", "*")),
        *(("alpha_pattern", {p: 3}) for p in ("(a*)*b", "((.*)*)*!", ".*.*.*.*.*.*x", "(.|.)*x")),
        *(("alpha_pattern", {"q": v}) for v in (1e39, math.nan, math.inf, True)),
        *(("rank_pattern", v) for v in ([], "q", {"q": 4}, {"q": 0}, {"q": "2"}, {"(": 2})),
        *(("r", v) for v in (4, 1, 0, -2, 2.5, "2", True, None, 1e20, [2])),
        *(("target_modules", v) for v in (["k"], [], "", 3, [3], ["q"], {"q": 1}, "(", "(q*)*x")),
        *(("exclude_modules", v) for v in (["q"], ".*v", 7)),
        *(("layers_to_transform", v) for v in ([0], 1, "0", [0.5])),
        *(("bias", v) for v in ("all", "lora_only", "other", 1, [])),
        *(("use_dora", v) for v in (True, "false", 1)),
        *(("use_rslora", v) for v in ("true", 1, "", [])),
        *(("fan_in_fan_out", v) for v in ("true", 1, True)),
        *(("modules_to_save", v) for v in ("classifier", [3], [""], ["q"], {"a": 1})),
        *(("init_lora_weights", v) for v in ("pissa", "olora", "corda", ["x"], 3)),
        *(("peft_type", v) for v in ("LORA ", "lora", "IA3", "XLORA", None, 3, ["LORA"])),
        *(("task_type", v) for v in ("NOTHING", 3, ["CAUSAL_LM"])),
        *(("base_model_name_or_path", v) for v in ("other/model", 3, "\ud800", "a" * 5000)),
        *(("revision", v) for v in (3, ["main"])),
        *(("auto_mapping", v) for v in ("x", {"a": 3}, [])),
        ("lora_bias", True),
        ("layer_replication", [[0, 1], [0, 2]]),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["weight"]),
        ("use_qalora", True),
        ("alora_invocation_tokens", [1]),
        ("of_tomorrow", True),
        ("of_tomorrow", {"a": [1, 2]}),
    ]
    return [
        *(
            _case(f"{name} {_short(changes)}", _set(**changes), sound=True)
            for name, changes in sound
        ),
        *(_case(f"{name} {_short(value)}", _set(**{name: value})) for name, value in wrong),
        _case("r of another rank, and lora_alpha to match", _set(r=4, lora_alpha=12)),
        *(_case(f"{name} missing", _drop(name), sound=None) for name in ("r", "lora_alpha")),
        *(_case(f"{n} missing", _drop(n), sound=True) for n in ("bias", "use_dora", "revision")),
        _case("target_modules missing", _drop("target_modules"), sound=True),
        _case("peft_type missing", _drop("peft_type")),
    ]


def _short(value: object) -> str:
    return "10^400" if value == 10**400 else ascii(value)[:50]


def _config_files() -> list[Case]:
    def text(change: Callable[[str], str | bytes]) -> Change:
        def edit(folder: Path) -> None:
            made = change((folder / CONFIG).read_text())
            (folder / CONFIG).write_bytes(made.encode() if isinstance(made, str) else made)

        return edit

    def twice(given: str) -> str:
        return given.rstrip().removesuffix("}") + ', "lora_alpha": 10}'

    def pipe(folder: Path) -> None:
        (folder / CONFIG).unlink()
        os.mkfifo(folder / CONFIG)

    def link(folder: Path) -> None:
        (folder / CONFIG).rename(folder / "real.json")
        (folder / CONFIG).symlink_to("real.json")

    def loop(folder: Path) -> None:
        (folder / CONFIG).unlink()
        (folder / CONFIG).symlink_to(CONFIG)

    def inside(folder: Path) -> None:
        (folder / CONFIG).unlink()
        (folder / CONFIG).mkdir()

    broken: list[tuple[str, Change]] = [
        ("empty", text(lambda t: "")),
        ("cut", text(lambda t: t[: len(t) // 2])),
        ("zeros", text(lambda t: bytes(len(t)))),
        ("a list", text(lambda t: "[]")),
        ("a text", text(lambda t: '"LORA"')),
        ("null", text(lambda t: "null")),
        ("with a BOM", text(lambda t: t.encode("utf-8-sig"))),
        ("in UTF-16", text(lambda t: t.encode("utf-16"))),
        (
            "in Latin-1 with an umlaut",
            text(lambda t: t.replace("someone", "jürgen").encode("latin-1")),
        ),
        ("of brackets", text(lambda t: "[" * 200_000)),
        ("of nested objects", text(lambda t: '{"a":' * 100_000)),
        (
            "with a number of 5000 digits",
            text(lambda t: t.replace(f'"lora_alpha": {ALPHA}', '"lora_alpha": ' + "9" * 5000)),
        ),
        ("missing", lambda f: (f / CONFIG).unlink()),
        ("a folder", inside),
        ("a pipe", pipe),
        ("a link to itself", loop),
    ]
    return [
        *(_case(f"{CONFIG} {name}", change) for name, change in broken),
        _case(f"{CONFIG} a link to a file", link, sound=True),
        _case(f"{CONFIG} with CRLF", text(lambda t: t.replace("\n", "\r\n")), sound=True),
        _case(f"{CONFIG} with a key twice", text(twice), sound=True),
    ]


# adapter_model.safetensors


def _state(change: Callable[[State], Any]) -> Change:
    def edit(folder: Path) -> None:
        state = safetensors.torch.load((folder / WEIGHTS).read_bytes())
        made = change(state)
        found = made if isinstance(made, dict) else state
        safetensors.torch.save_file({k: v.contiguous() for k, v in found.items()}, folder / WEIGHTS)

    return edit


def _put(name: str, value: float) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[name].view(-1)[3] = value

    return change


def _swap(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[name] = make(state[name])

    return change


def _tensor_files(draw: random.Random) -> list[Case]:
    def raw(change: Callable[[bytes], bytes]) -> Change:
        return lambda folder: (folder / WEIGHTS).write_bytes(
            change((folder / WEIGHTS).read_bytes())
        )

    def header(change: Callable[[dict[str, Any]], Any]) -> Change:
        def edit(data: bytes) -> bytes:
            (length,) = struct.unpack("<Q", data[:8])
            about = json.loads(data[8 : 8 + length])
            made = change(about)
            text = made if isinstance(made, bytes) else json.dumps(about).encode()
            return struct.pack("<Q", len(text)) + text + data[8 + length :]

        return raw(edit)

    def flip(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        changed = bytearray(data)
        changed[8 + draw.randrange(2, length - 2)] ^= 0x80
        return bytes(changed)

    def to(dtype: torch.dtype) -> Callable[[State], State]:
        return lambda state: {k: v.to(dtype) for k, v in state.items()}

    def mixed(state: State) -> State:
        kinds = (torch.float16, torch.float64, torch.float32)
        return {k: v.to(kinds[i % 3]) for i, (k, v) in enumerate(state.items())}

    def rescaled(state: State) -> State:
        return {k: v * (1e-25 if "lora_A" in k else 1e25) for k, v in state.items()}

    def pipe(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        os.mkfifo(folder / WEIGHTS)

    def device(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / WEIGHTS).symlink_to("/dev/zero")

    def link(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "blob")
        (folder / WEIGHTS).symlink_to("blob")

    def loop(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / WEIGHTS).symlink_to(WEIGHTS)

    q, module = "layers.0.q", "'layers.0.q'"
    of = functools.partial(_case, sound=True)
    A, B = Q_A, Q_B
    sound = [
        of("weights in fp64", _state(to(torch.float64))),
        of("weights in fp16", _state(to(torch.float16)), tolerance=1e-5),
        of("weights in bf16", _state(to(torch.bfloat16)), tolerance=1e-5),
        of("weights in three precisions", _state(mixed)),
        of(
            "weights under .default",
            _state(lambda s: {k.replace(".weight", ".default.weight"): v for k, v in s.items()}),
            sound=None,
        ),
        of("A by 1e-25 and B by 1e25", _state(rescaled)),
        of("weights of zero", _state(lambda s: {k: v * 0 for k, v in s.items()})),
        of("one module of denormal numbers", _state(_swap(A, lambda v: v * 1e-40)), sound=None),
        of("a link to the weights", link),
        of("another file beside them", lambda f: (f / "README.md").write_text("hello")),
        of("a folder beside them", lambda f: (f / "checkpoint-10").mkdir()),
        of("an older pickle beside them", lambda f: (f / PICKLE).write_bytes(b"nothing")),
    ]
    wrong: list[tuple[str, Change, str]] = [
        *((f"{v} in A", _state(_put(A, v)), module) for v in (math.nan, math.inf, -math.inf)),
        *((f"{v} in B", _state(_put(B, v)), module) for v in (math.nan, math.inf)),
        (
            "NaN in fp16",
            _state(lambda s: (_put(B, math.nan)(s), {k: v.half() for k, v in s.items()})[1]),
            module,
        ),
        (
            "3e38 in A and B",
            _state(lambda s: (_put(A, 3e38)(s), _put(B, 3e38)(s))[0]),
            module,
        ),
        ("fp64 beyond fp32 in B", _state(_swap(B, lambda v: v.double() * 1e300)), ""),
        ("A missing", _state(lambda s: s.pop(A) is None), module),
        ("B missing", _state(lambda s: s.pop(B) is None), module),
        ("a module missing", _state(lambda s: s.pop(A) is s.pop(B)), module),
        ("all modules missing", _state(lambda s: {}), ""),
        (
            "a module more",
            _state(lambda s: s.update({key("layers.2.q", x): s[key(q, x)].clone() for x in "AB"})),
            "layers.2.q",
        ),
        (
            "a tensor more",
            _state(lambda s: s.update({f"{PREFIX}layers.0.q.weight": torch.ones(6, 5)})),
            "layers.0.q.weight",
        ),
        (
            "a tensor of DoRA",
            _state(
                lambda s: s.update({f"{PREFIX}{q}.lora_magnitude_vector.weight": torch.ones(6)})
            ),
            "magnitude",
        ),
        (
            "factors of an embedding",
            _state(lambda s: s.update({f"{PREFIX}e.lora_embedding_A": torch.ones(2, 6)})),
            "embedding",
        ),
        (
            "a bias of B",
            _state(lambda s: s.update({f"{PREFIX}{q}.lora_B.bias": torch.ones(6)})),
            "bias",
        ),
        (
            "a factor twice",
            _state(lambda s: s.update({A.replace(".weight", ".default.weight"): s[A] + 1})),
            "",
        ),
        (
            "names without the prefix",
            _state(lambda s: {k.removeprefix(PREFIX): v for k, v in s.items()}),
            "",
        ),
        (
            "names with the prefix twice",
            _state(lambda s: {PREFIX + k: v for k, v in s.items()}),
            "",
        ),
        ("A and B transposed", _state(lambda s: s.update({A: s[A].T, B: s[B].T})), module),
        ("A and B exchanged", _state(lambda s: s.update({A: s[B], B: s[A]})), module),
        ("A transposed", _state(_swap(A, lambda v: v.T)), module),
        ("A of another rank", _state(_swap(A, lambda v: v[:1])), module),
        (
            "A and B of another rank",
            _state(lambda s: s.update({A: s[A][:1], B: s[B][:, :1]})),
            module,
        ),
        ("A of another width", _state(_swap(A, lambda v: v[:, :3])), module),
        ("B of another width", _state(_swap(B, lambda v: v[:3])), module),
        ("A flattened", _state(_swap(A, lambda v: v.reshape(-1))), module),
        ("A with a dimension more", _state(_swap(A, lambda v: v[None])), module),
        ("A without dimensions", _state(_swap(A, lambda v: v.sum())), module),
        (
            "factors of a convolution",
            _state(lambda s: s.update({A: s[A][..., None, None], B: s[B][..., None, None]})),
            module,
        ),
        ("rank zero", _state(lambda s: s.update({A: s[A][:0], B: s[B][:, :0]})), module),
        ("no columns", _state(_swap(A, lambda v: v[:, :0])), module),
        ("no rows", _state(_swap(B, lambda v: v[:0])), module),
        ("integers", _state(to(torch.int8)), ""),
        ("one integer factor", _state(_swap(A, lambda v: (v * 9).to(torch.int32))), ""),
        (
            "unsigned bytes, as quantised ones",
            _state(_swap(B, lambda v: (v * 9).to(torch.uint8))),
            "",
        ),
        ("a boolean factor", _state(_swap(A, lambda v: v > 0)), ""),
        ("a complex factor", _state(_swap(A, lambda v: torch.complex(v, v))), ""),
        ("eight-bit numbers", _state(to(torch.float8_e4m3fn)), ""),
        ("empty", raw(lambda d: b""), ""),
        ("zeros", raw(lambda d: bytes(len(d))), ""),
        ("cut in the length", raw(lambda d: d[:4]), ""),
        ("cut in the header", raw(lambda d: d[:60]), ""),
        ("cut in the numbers", raw(lambda d: d[: len(d) - draw.randrange(1, 200)]), ""),
        ("bytes behind the end", raw(lambda d: d + b"xx"), ""),
        ("a flipped byte in the header", raw(flip), ""),
        ("a header of 2^60 bytes", raw(lambda d: struct.pack("<Q", 2**60) + d[8:]), ""),
        ("a header of brackets", header(lambda a: b"[" * 100_000), ""),
        ("a header in UTF-16", header(lambda a: json.dumps(a).encode("utf-16")), ""),
        (
            "overlapping places",
            header(lambda a: a[A].update(data_offsets=a[key("layers.1.q", "A")]["data_offsets"])),
            "",
        ),
        ("places beyond the end", header(lambda a: a[A].update(data_offsets=[0, 2**50])), ""),
        ("a shape too large", header(lambda a: a[A].update(shape=[2**50, 5])), ""),
        (
            "a shape the other way round",
            header(lambda a: a[A].update(shape=a[A]["shape"][::-1])),
            "",
        ),
        ("an unknown precision", header(lambda a: a[A].update(dtype="F7")), ""),
        ("another precision of that width", header(lambda a: a[A].update(dtype="I32")), ""),
        ("missing", lambda f: (f / WEIGHTS).unlink(), ""),
        ("a folder", lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()), ""),
        ("a pipe", pipe, ""),
        ("a device without end", device, ""),
        ("a link to itself", loop, ""),
    ]
    return [*sound, *(_case(f"weights: {n}", change, word=word) for n, change, word in wrong)]


def _pickles() -> list[Case]:
    def pickled(make: Callable[[State, Path], Any], **options: Any) -> Change:
        def edit(folder: Path) -> None:
            state = safetensors.torch.load((folder / WEIGHTS).read_bytes())
            (folder / WEIGHTS).rename(folder.parent / "kept")
            torch.save(make(state, folder.parent / _MARK), folder / PICKLE, **options)

        return edit

    def raw(data: bytes) -> Change:
        def edit(folder: Path) -> None:
            (folder / WEIGHTS).unlink()
            (folder / PICKLE).write_bytes(data)

        return edit

    def cut(folder: Path) -> None:
        pickled(lambda s, m: s)(folder)
        data = (folder / PICKLE).read_bytes()
        (folder / PICKLE).write_bytes(data[: len(data) // 2])

    def case(name: str, change: Change) -> Case:
        def run(place: Path) -> tuple[Verdict, str]:
            write(place / "a", 1)
            write(place / "b", 2)
            change(place / "b")
            outcome = merge(place)

            def right() -> bool:
                (place / "kept").rename(place / "b" / WEIGHTS)
                return is_sum(place, {"a": 0.5, "b": 0.5})

            found = verdict(place, outcome, right)
            return found

        return Case(f"{PICKLE}: {name}", run)

    sound = [
        case("tensors alone", pickled(lambda s, m: s)),
        case("the older format", pickled(lambda s, m: s, _use_new_zipfile_serialization=False)),
    ]
    wrong = [
        ("with code", pickled(lambda s, m: {**s, "x": Bomb(m)})),
        (
            "with code, the older format",
            pickled(lambda s, m: {**s, "x": Bomb(m)}, _use_new_zipfile_serialization=False),
        ),
        ("with code around the tensors", pickled(lambda s, m: [Bomb(m), s])),
        ("a list", pickled(lambda s, m: list(s.values()))),
        ("a number", pickled(lambda s, m: 3)),
        ("keys that are numbers", pickled(lambda s, m: dict(enumerate(s.values())))),
        ("sparse factors", pickled(lambda s, m: {k: v.to_sparse() for k, v in s.items()})),
        ("factors without data", pickled(lambda s, m: {k: v.to("meta") for k, v in s.items()})),
        ("complex factors", pickled(lambda s, m: {k: torch.complex(v, v) for k, v in s.items()})),
        (
            "quantised factors",
            pickled(
                lambda s, m: {
                    k: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8) for k, v in s.items()
                }
            ),
        ),
        (
            "10^12 numbers over one",
            pickled(lambda s, m: {**s, Q_A: torch.ones(1).expand(2, 10**12)}),
        ),
        ("empty", raw(b"")),
        ("noise", raw(bytes(range(256)) * 9)),
        ("an unfinished pickle", raw(b"\x80\x02}q\x00(X\x01\x00\x00\x00a")),
        ("a pickle of nothing", raw(b".")),
        ("cut", cut),
    ]
    return [*sound, *(_case(f"{PICKLE}: {name}", change) for name, change in wrong)]


# What was trained beside the factors


def _heads() -> list[Case]:
    def saved(seed: int, **changes: Tensor | None) -> Change:
        def edit(folder: Path) -> None:
            draw = torch.Generator().manual_seed(seed)
            head: dict[str, Tensor | None] = {
                "classifier.weight": torch.randn(3, 5, generator=draw),
                "classifier.bias": torch.randn(3, generator=draw),
            }
            head.update({f"classifier.{name}": value for name, value in changes.items()})
            kept = {f"{PREFIX}{k}": v for k, v in head.items() if v is not None}
            _state(lambda s: s.update(kept))(folder)
            _set(modules_to_save=["classifier"])(folder)

        return edit

    def beside(folder: Path, head: State, listed: Any = (HEAD,)) -> None:
        safetensors.torch.save_file(head, folder / HEAD)
        (folder / TRAINING).write_text(json.dumps({"files": list(listed)}))

    nan = float("nan")

    def case(name: str, first: Change, second: Change, sound: bool = False, *more: str) -> Case:
        def run(place: Path) -> tuple[Verdict, str]:
            first(write(place / "a", 1))
            second(write(place / "b", 2))
            outcome = merge(place, *more)

            def right() -> bool:
                parts = [
                    safetensors.torch.load((place / n / WEIGHTS).read_bytes())
                    for n in ("a", "b", "out")
                ]
                names = [n for n in parts[0] if "classifier" in n]
                heads = all(
                    np.allclose(
                        numbers(parts[2][n]),
                        (numbers(parts[0][n]) + numbers(parts[1][n])) / 2,
                        rtol=1e-6,
                    )
                    for n in names
                )
                return heads and is_sum(place, {"a": 0.5, "b": 0.5})

            found = verdict(place, outcome, right if sound else None)
            if sound and found[0] is Verdict.REFUSED:
                return Verdict.UNCLEAR, f"sound, but refused: {found[1]}"
            return found

        return Case(f"head: {name}", run)

    def file(change: Callable[[Path], Any], listed: Any = (HEAD,)) -> Change:
        def edit(folder: Path) -> None:
            beside(folder, {"weight": torch.ones(3, 5)}, listed)
            change(folder)

        return edit

    def pipe(folder: Path) -> None:
        (folder / HEAD).unlink()
        os.mkfifo(folder / HEAD)

    def training_pipe(folder: Path) -> None:
        (folder / TRAINING).unlink()
        os.mkfifo(folder / TRAINING)

    def training(text: str) -> Change:
        return lambda folder: (folder / TRAINING).write_text(text)

    def nothing(folder: Path) -> None:
        return

    sound_file = file(nothing)
    return [
        case("of both", saved(1), saved(2), True),
        case("NaN", saved(1), saved(2, bias=torch.full((3,), nan))),
        case("infinity", saved(1), saved(2, weight=torch.full((3, 5), math.inf))),
        case("of other classes", saved(1), saved(2, weight=torch.ones(4, 5), bias=torch.ones(4))),
        case("without its bias", saved(1), saved(2, bias=None)),
        case("of one alone", saved(1), lambda f: None),
        case(
            "sums beyond single precision",
            saved(1, bias=torch.full((3,), 3e38)),
            saved(2, bias=torch.full((3,), 3e38)),
            False,
            "--weights",
            "1,1",
        ),
        case(
            "integers that differ",
            saved(1, steps=torch.tensor([1])),
            saved(2, steps=torch.tensor([2])),
        ),
        case("a file, cut", sound_file, file(lambda f: os.truncate(f / HEAD, 20))),
        case("a file, empty", sound_file, file(lambda f: (f / HEAD).write_bytes(b""))),
        case("a file, missing", sound_file, file(lambda f: (f / HEAD).unlink())),
        case("a file that is a pipe", sound_file, file(pipe)),
        case(
            "a file with NaN", sound_file, lambda f: beside(f, {"weight": torch.full((3, 5), nan)})
        ),
        case("a list of files that is a number", sound_file, file(training('{"files": 3}'))),
        case("a list of lists of files", sound_file, file(training('{"files": [["x"]]}'))),
        case(
            "a list with a file elsewhere", sound_file, file(nothing, ["../../a/head.safetensors"])
        ),
        case("training.json cut", sound_file, file(training('{"files": ['))),
        case(
            "training.json in UTF-16",
            sound_file,
            file(lambda f: (f / TRAINING).write_bytes('{"files": []}'.encode("utf-16"))),
        ),
        case("training.json a list", sound_file, file(training("[]"))),
        case("training.json a pipe", sound_file, file(training_pipe)),
        case("training.json of brackets", sound_file, file(training("[" * 100_000))),
        case(
            "digests that are wrong",
            sound_file,
            file(training(json.dumps({"files": [HEAD], "digests": {WEIGHTS: "00"}}))),
        ),
        case(
            "digests that are a list",
            sound_file,
            file(training(json.dumps({"files": [HEAD], "digests": [1]}))),
        ),
    ]


# Options of the command


def _options() -> list[Case]:
    def nothing(folder: Path) -> None:
        return

    def good(name: str, *more: str, weights: tuple[float, float] = (0.5, 0.5), **rest: Any) -> Case:
        return _case(f"option: {name}", nothing, *more, sound=True, weights=weights, **rest)

    def bad(*more: str) -> Case:
        return _case(f"option: {' '.join(more)[:60]}", nothing, *more)

    return [
        good("none"),
        good("weights", "--weights", "0.3,-1.2", weights=(0.3, -1.2)),
        good("weights of zero", "--weights", "0,0", weights=(0, 0)),
        good("large weights", "--weights", "1e30,1", weights=(1e30, 1)),
        good("small weights", "--weights", "1e-30,1e-30", weights=(1e-30, 1e-30)),
        good("cat", "--method", "cat", "--weights", "2,3", weights=(2, 3)),
        good("linear", "--method", "linear", "--dense"),
        bad("--rank", str(10**20)),
        good("a rank of 4", "--rank", "4"),
        good("float16", "--dtype", "float16", tolerance=2e-3),
        good("bfloat16", "--dtype", "bfloat16", tolerance=2e-2),
        good("float64", "--dtype", "float64"),
        bad("--weights", "1e39,1"),
        bad("--weights", "1e308,1e308"),
        bad("--weights", "1e400,1"),
        bad("--weights", "nan,1"),
        bad("--weights", "inf,1"),
        bad("--weights", "1"),
        bad("--weights", "1,2,3"),
        bad("--weights", ""),
        bad("--weights", "1,,2"),
        bad("--weights", "a,b"),
        bad("--weights", "1;2"),
        bad("--weights", "1e38,1e38", "--dtype", "float16"),
        bad("--weights", "1e6,1", "--dtype", "float16"),
        bad("--method", "nothing"),
        bad("--method", ""),
        bad("--method", "ties"),
        bad("--method", "fisher"),
        bad("--method", "regmean", "--rank", "2"),
        *(
            bad("--method", "ties", "--rank", "2", "--density", d)
            for d in ("0", "1.5", "-1", "nan")
        ),
        *(bad("--method", "ties", "--rank", "2", "--density", d) for d in ("inf", "x", "1,2", "")),
        *(bad("--method", "dare_linear", "--rank", "2", "--density", d) for d in ("0", "2", "nan")),
        *(
            bad("--method", "dare_linear", "--dense", "--set", f"mask_seed={s}")
            for s in ("x", "1.5", "[1]")
        ),
        *(bad("--rank", r) for r in ("0", "-1", "1.5", "nan", "1e20", "many", "")),
        *(bad("--dtype", d) for d in ("float8", "int8", "", "torch.float32")),
        *(bad("--space", s) for s in ("nothing", "", "factor")),
        *(bad("--set", s) for s in ("", "=", "x=1", "density=", "rank=2", "trim=&a [*a]")),
        bad("--set", "density=0.5", "--set", "density=0.5"),
        bad("--dense", "--rank", "2"),
        bad("--delta"),
        bad("--json"),
        bad("--base", "b"),
        bad("--base", "nowhere"),
        bad("--unknown"),
        _case(
            "lora_alpha of 1e38 and weights of 10",
            _set(lora_alpha=1e38),
            "--weights",
            "1,10",
            word="layers.0",
        ),
        _case(
            "lora_alpha of 1e38 and ties",
            _set(lora_alpha=1e38),
            "--method",
            "ties",
            "--weights",
            "1,100",
            "--dense",
            word="layers.0",
        ),
        _case(
            "factors of 1e30, in ties",
            _state(lambda s: {k: v * 1e30 for k, v in s.items()}),
            "--method",
            "ties",
            "--dense",
            word="'b'",
        ),
        _case(
            "factors of 1e30, in space factors",
            _state(lambda s: {k: v * 1e30 for k, v in s.items()}),
            "--space",
            "factors",
        ),
        _case(
            "factors of 1e30, cut to a rank",
            _state(lambda s: {k: v * 1e30 for k, v in s.items()}),
            "--rank",
            "1",
            word="'b'",
        ),
    ]


def _places() -> list[Case]:
    def case(
        name: str,
        prepare: Change,
        *arguments: str,
        right: Callable[[Path], bool] | None = None,
    ) -> Case:
        def run(place: Path) -> tuple[Verdict, str]:
            write(place / "a", 1)
            write(place / "b", 2)
            prepare(place)
            before = _listing(place)
            outcome = fork(["merge", *arguments], place, longest_s=60)
            found = judge(outcome, None if right is None else (lambda: right(place)), place)
            if found[0] is Verdict.REFUSED and _listing(place) != before:
                return Verdict.HALF, f"left something: {found[1]}"
            if right is not None and found[0] is Verdict.REFUSED:
                return Verdict.UNCLEAR, f"sound, but refused: {found[1]}"
            return found

        return Case(f"place: {name}", run)

    def nothing(place: Path) -> None:
        return

    def half(place: Path) -> bool:
        return is_sum(place, {"a": 0.5, "b": 0.5})

    def at(out: str) -> Callable[[Path], bool]:
        def moved(place: Path) -> bool:
            shutil.copytree((place / out), place / "out")
            return half(place)

        return moved

    long = "x" * 300
    return [
        case("out is an input", nothing, "a", "b", "--out", "a"),
        case("out is inside an input", nothing, "a", "b", "--out", "a/out"),
        case("out is deep inside an input", nothing, "a", "b", "--out", "b/x/y/out"),
        case("out is there", lambda p: (p / "out").mkdir(), "a", "b", "--out", "out"),
        case("out is a file", lambda p: (p / "out").write_text("x"), "a", "b", "--out", "out"),
        case(
            "out is below a file", lambda p: (p / "f").write_text("x"), "a", "b", "--out", "f/out"
        ),
        case("out is a pipe", lambda p: os.mkfifo(p / "out"), "a", "b", "--out", "out"),
        case(
            "out is a link to an input",
            lambda p: (p / "out").symlink_to("a"),
            "a",
            "b",
            "--out",
            "out",
        ),
        case(
            "out is a link to itself",
            lambda p: (p / "out").symlink_to("out"),
            "a",
            "b",
            "--out",
            "out",
        ),
        case(
            "out is below a link to itself",
            lambda p: (p / "l").symlink_to("l"),
            "a",
            "b",
            "--out",
            "l/out",
        ),
        case("out has 300 letters", nothing, "a", "b", "--out", long),
        case("out is empty", nothing, "a", "b", "--out", ""),
        case("out is in /proc", nothing, "a", "b", "--out", "/proc/out"),
        case("out is the root", nothing, "a", "b", "--out", "/"),
        case("no out", nothing, "a", "b"),
        case("no adapters", nothing, "--out", "out"),
        case("an adapter that is not there", nothing, "a", "c", "--out", "out"),
        case("an adapter of 300 letters", nothing, "a", long, "--out", "out"),
        case("an adapter without a name", nothing, "a", "", "--out", "out"),
        case(
            "an adapter that is a file",
            lambda p: (p / "c").write_text("x"),
            "a",
            "c",
            "--out",
            "out",
        ),
        case("an adapter that is a pipe", lambda p: os.mkfifo(p / "c"), "a", "c", "--out", "out"),
        case(
            "an adapter that is a link to itself",
            lambda p: (p / "c").symlink_to("c"),
            "a",
            "c",
            "--out",
            "out",
        ),
        case(
            "an adapter that is an empty folder",
            lambda p: (p / "c").mkdir(),
            "a",
            "c",
            "--out",
            "out",
        ),
        case("the file and not the folder", nothing, "a", f"b/{WEIGHTS}", "--out", "out"),
        case(
            "an adapter with an odd name",
            lambda p: ((p / "b").rename(p / "b\x1b[31m\n"), None)[1],
            "a",
            "b\x1b[31m",
            "--out",
            "out",
        ),
        case("a sound one, deep and new", nothing, "a", "b", "--out", "x/y/z", right=at("x/y/z")),
        case(
            "a sound one, by links",
            lambda p: (p / "c").symlink_to("b"),
            "a/",
            "./c",
            "--out",
            "out",
            right=half,
        ),
        case(
            "a sound one, an odd name",
            lambda p: shutil.copytree(p / "b", p / "b\x1b[31m\nc"),
            "a",
            "b\x1b[31m\nc",
            "--out",
            "out",
            right=half,
        ),
        case("one adapter", nothing, "a", "--out", "out", right=lambda p: is_sum(p, {"a": 1})),
        case(
            "an adapter twice",
            nothing,
            "a",
            "a",
            "--out",
            "out",
            right=lambda p: is_sum(p, {"a": 1}),
        ),
    ]


def _listing(place: Path) -> list[str]:
    return sorted(os.fsdecode(p) for p in place.rglob("*"))


# Recipes


_RECIPE = """\
models:
  - model: a
    parameters: {weight: 0.3}
  - model: b
    parameters: {weight: 0.7}
merge_method: task_arithmetic
"""


def _recipes() -> list[Case]:
    def case(name: str, text: str | bytes | Change, sound: bool = False) -> Case:
        def run(place: Path) -> tuple[Verdict, str]:
            write(place / "a", 1)
            write(place / "b", 2)
            path = place / "recipe.yaml"
            if callable(text):
                text(path)
            else:
                path.write_bytes(text.encode() if isinstance(text, str) else text)
            outcome = merge(place, sources=["recipe.yaml"])
            right = (lambda: is_sum(place, {"a": 0.3, "b": 0.7})) if sound else None
            found = verdict(place, outcome, right)
            if sound and found[0] is Verdict.REFUSED:
                return Verdict.UNCLEAR, f"sound, but refused: {found[1]}"
            return found

        return Case(f"recipe: {name}", run)

    def put(old: str, new: str) -> str:
        assert old in _RECIPE
        return _RECIPE.replace(old, new, 1)

    laughs = "x0: &x0 [a, a]\n" + "".join(
        f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]\n" for i in range(1, 40)
    )
    return [
        case("sound", _RECIPE, True),
        case("sound, with a BOM", _RECIPE.encode("utf-8-sig"), True),
        case("sound, with anchors", put("model: a", "model: &name a"), True),
        case("empty", ""),
        case("a list", "[1, 2]"),
        case("cut", _RECIPE[:40]),
        case("no YAML", "a: [b"),
        case("with tabs", put("  - model", "\t- model")),
        case("bytes of zero", bytes(100)),
        case("in Latin-1", put("model: a", "model: ä").encode("latin-1")),
        case("a tag that runs code", "models: !!python/object/apply:os.system ['touch was_run']\n"),
        case("aliases that grow to 2^40", laughs + _RECIPE),
        case(
            "aliases that grow, as a model",
            laughs.replace("x", "models", 1).replace("models0", "q0", 1)
            + put("model: a", "model: *x39"),
        ),
        case("an alias in itself", put("weight: 0.3", "weight: &w [*w]")),
        case("a weight of NaN", put("0.3", ".nan")),
        case("a weight of infinity", put("0.3", ".inf")),
        case("a weight of 1e39", put("0.3", "1.0e+39")),
        case("a weight of 400 digits", put("0.3", "9" * 400)),
        case("a weight of 5000 digits", put("0.3", "9" * 5000)),
        case("a weight in words", put("0.3", "much")),
        case("a weight that is true", put("0.3", "true")),
        case("a weight that is a date", put("0.3", "2020-01-01")),
        case("weights that are not all there", put("    parameters: {weight: 0.3}\n", "")),
        case("a density of 2", put("weight: 0.3", "weight: 0.3, density: 2")),
        case("lambda of 1e39", _RECIPE + "parameters: {lambda: 1.0e+39}\n"),
        case("lambda of NaN", _RECIPE + "parameters: {lambda: .nan}\n"),
        case("normalize over a sum of 0", put("0.3", "-0.7") + "parameters: {normalize: true}\n"),
        case("an unknown method", put("task_arithmetic", "magic")),
        case("a method that is a list", put("task_arithmetic", "[ties]")),
        case("an unknown key", _RECIPE + "speed: fast\n"),
        case("a model that is a number", put("model: a", "model: 3")),
        case("a model of 300 letters", put("model: a", "model: " + "x" * 300)),
        case("a model that is not there", put("model: a", "model: c")),
        case("an unknown dtype", _RECIPE + "dtype: float7\n"),
        case("a dtype that is a list", _RECIPE + "dtype: [float32]\n"),
        case("a base of 300 letters", _RECIPE + f"base_model: {'x' * 300}\n"),
        case("a folder", lambda path: path.mkdir()),
        case("a pipe", os.mkfifo),
        case("not there", lambda path: None),
    ]


# Whole models


def _models() -> list[Case]:
    def model(seed: int) -> State:
        draw = torch.Generator().manual_seed(seed)
        return {
            "layer.weight": torch.randn(4, 3, generator=draw),
            "layer.bias": torch.randn(4, generator=draw),
            "ids": torch.arange(3),
        }

    def edit(change: Callable[[State], Any]) -> Change:
        def edited(path: Path) -> None:
            state = safetensors.torch.load(path.read_bytes())
            change(state)
            safetensors.torch.save_file(state, path)

        return edited

    def raw(change: Callable[[bytes], bytes]) -> Change:
        return lambda path: path.write_bytes(change(path.read_bytes()))

    def pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    def bomb(path: Path) -> None:
        state = safetensors.torch.load(path.read_bytes())
        torch.save({**state, "x": Bomb(path.parent / _MARK)}, path)

    def case(name: str, change: Change, *more: str, of: str = "b", sound: bool = False) -> Case:
        def run(place: Path) -> tuple[Verdict, str]:
            for i, each in enumerate(("base", "a", "b")):
                safetensors.torch.save_file(model(i), place / f"{each}.safetensors")
            change(place / f"{of}.safetensors")
            files = [f"{each}.safetensors" for each in ("a", "b")]
            outcome = merge(place, "--base", "base.safetensors", *more, sources=files)

            def right() -> bool:
                out = safetensors.torch.load((place / "out" / "model.safetensors").read_bytes())
                base, a, b = (
                    safetensors.torch.load((place / f"{each}.safetensors").read_bytes())
                    for each in ("base", "a", "b")
                )
                sums = all(
                    np.allclose(
                        numbers(out[k]), (numbers(a[k]) + numbers(b[k])) / 2, rtol=1e-5, atol=1e-6
                    )
                    for k in ("layer.weight", "layer.bias")
                )
                return sums and torch.equal(out["ids"], base["ids"])

            found = verdict(place, outcome, right if sound else None)
            if sound and found[0] is Verdict.REFUSED:
                return Verdict.UNCLEAR, f"sound, but refused: {found[1]}"
            return found

        return Case(f"model: {name}", run)

    weight = "layer.weight"
    return [
        case("sound", lambda p: None, sound=True),
        case("NaN", edit(_put(weight, math.nan))),
        case("infinity in the base", edit(_put(weight, math.inf)), of="base"),
        case(
            "3e38 and -3e38",
            edit(lambda s: s.update({weight: s[weight] * 0 + 3e38})),
            "--weights",
            "1,5",
        ),
        case("sums beyond single precision", lambda p: None, "--weights", "3e38,3e38"),
        case("beyond float16", lambda p: None, "--weights", "1e6,1", "--dtype", "float16"),
        case("a weight of 1e39", lambda p: None, "--weights", "1e39,1"),
        case("a tensor missing", edit(lambda s: s.pop("layer.bias"))),
        case("a tensor more", edit(lambda s: s.update(extra=torch.ones(2)))),
        case("another shape", edit(_swap(weight, lambda v: v[:2].clone()))),
        case("transposed", edit(_swap(weight, lambda v: v.T.contiguous()))),
        case("other integers", edit(lambda s: s.update(ids=torch.tensor([0, 1, 9])))),
        case("integers for numbers", edit(_swap(weight, lambda v: v.to(torch.int8)))),
        case("a complex tensor", edit(_swap(weight, lambda v: torch.complex(v, v)))),
        case("cut", raw(lambda d: d[:-9])),
        case("the base cut", raw(lambda d: d[:50]), of="base"),
        case("the base empty", raw(lambda d: b""), of="base"),
        case("a pipe", pipe),
        case("the base a pipe", pipe, of="base"),
        case("the base not there", lambda p: p.unlink(), of="base"),
        case("a pickle with code", bomb),
        case("the base a pickle with code", bomb, of="base"),
    ]


def _comparisons() -> list[Case]:
    """``--info`` merges nothing, and shows no number that is none."""

    def case(name: str, change: Change) -> Case:
        def run(place: Path) -> tuple[Verdict, str]:
            write(place / "a", 1)
            write(place / "b", 2)
            change(place / "b")
            outcome = fork(["merge", "a", "b", "--info", "--json"], place, longest_s=60)

            def right() -> bool:
                one, two = deltas_of(place / "a"), deltas_of(place / "b")
                x, y = (np.concatenate([d[m].ravel() for m in SHAPES]) for d in (one, two))
                found = json.loads(outcome.out)["cosine"][0][1]
                expected = x / np.linalg.norm(x) @ (y / np.linalg.norm(y))
                return abs(found - float(expected)) < 1e-5

            return judge(outcome, right, place)

        return Case(f"--info: {name}", run)

    return [
        case("sound", lambda f: None),
        case("another precision", _state(lambda s: {k: v.double() for k, v in s.items()})),
        case(
            "A by 1e-25 and B by 1e25",
            _state(lambda s: {k: v * (1e-25 if "lora_A" in k else 1e25) for k, v in s.items()}),
        ),
        case("lora_alpha of 1e39", _set(lora_alpha=1e39)),
        case("lora_alpha of 1e38", _set(lora_alpha=1e38)),
        case("NaN", _state(_put(Q_A, math.nan))),
        case("zero", _state(lambda s: {k: v * 0 for k, v in s.items()})),
    ]


# Adapters of others in the bank of a run


def _banks(prepared: Path) -> list[Case]:
    @functools.cache
    def finished() -> Path:
        place = prepared / "bank"
        place.mkdir()
        outcome = start(place)
        assert outcome.code == 0, outcome.err
        return place / "run"

    def start(place: Path) -> Outcome:
        return fork(
            [
                *(
                    "run",
                    "model=embedded",
                    "benchmark.classes=2",
                    "benchmark.styles=[photo,cartoon]",
                ),
                *("benchmark.samples_per_class=4", "benchmark.test_samples_per_class=4"),
                *("strategy.epochs=1", "strategy.batch_size=8", "strategy.rank=2", "arms=none"),
                "+arms.half={method: task_arithmetic, coefficients: 0.5}",
                *("references=[base]", "report=false", f"run_dir={place / 'run'}"),
                f"benchmark.cache_dir={prepared / 'cache'}",
            ],
            place,
        )

    def case(name: str, change: Change) -> Case:
        def run(place: Path) -> tuple[Verdict, str]:
            shutil.copytree(finished(), place / "run")
            scores = (place / "run" / "scores.csv").read_text()
            (place / "run" / "scores.csv").unlink()  # so that the adapters are needed again
            change(place / "run" / "adapters" / "seed-0" / "00-photo")
            outcome = start(place)
            right: Callable[[], bool] = lambda: (place / "run/scores.csv").read_text() == scores  # noqa: E731
            return judge(outcome, right, place)

        return Case(f"bank: {name}", run)

    def other(folder: Path) -> None:
        shutil.rmtree(folder)
        write(folder, 1)

    def exchanged(folder: Path) -> None:
        shutil.copytree(folder.parent / "01-cartoon", folder, dirs_exist_ok=True)

    def pipe(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        os.mkfifo(folder / WEIGHTS)

    def without_record(change: Change) -> Change:
        def edit(folder: Path) -> None:
            path = folder / TRAINING
            found = json.loads(path.read_text())
            for name in ("digests", "digest"):
                found.pop(name, None)
            path.write_text(json.dumps(found))
            change(folder)

        return edit

    return [
        case("sound", lambda f: None),
        case("an adapter of somebody else", other),
        case("the adapter of another experience", exchanged),
        case("another lora_alpha", _set(lora_alpha=99)),
        case("lora_alpha of 1e39", _set(lora_alpha=1e39)),
        case("another rank", _set(r=3)),
        case("an alpha_pattern", _set(alpha_pattern={"qkv": 1e39})),
        case("weights a pipe", pipe),
        case("weights in fp16", _state(lambda s: {k: v.half() for k, v in s.items()})),
        case(
            "NaN, without digests",
            without_record(_state(lambda s: {k: v * math.nan for k, v in s.items()})),
        ),
        case(
            "an alpha_pattern that hangs, without digests",
            without_record(_set(alpha_pattern={"(a*)*b": 3})),
        ),
        case(
            "an alpha_pattern that is damaged, without digests",
            without_record(_set(alpha_pattern={"(?i)q": 3})),
        ),
        case("lora_alpha of 1e39, without digests", without_record(_set(lora_alpha=1e39))),
    ]


GROUP = Group("peft_folders", "PEFT folders and merges", cases)
