"""Settings of a run: the device that is asked for, and what makes no other run."""

from __future__ import annotations

import pytest
import torch

from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.settings import has_fast_bf16, pick_device, read_settings
from cl_lora.support.errors import UserError


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of two CUDA devices and Metal, as far as torch tells."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.fixture
def no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of processors only."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auto", "cuda"),
        ("cpu", "cpu"),
        ("cuda", "cuda"),
        ("cuda:0", "cuda:0"),
        ("cuda:1", "cuda:1"),
        ("mps", "mps"),
    ],
)
def test_a_device_that_is_there(name: str, expected: str) -> None:
    assert pick_device(name) == torch.device(expected)


@pytest.mark.usefixtures("no_devices")
def test_without_an_accelerator_auto_is_the_processor() -> None:
    assert pick_device("auto") == torch.device("cpu")


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize(
    "name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps:0", "cuda:0:1", ""]
)
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(UserError, match=r"Unknown device .*cuda"):
        pick_device(name)


@pytest.mark.usefixtures("devices")
def test_a_device_beyond_the_last() -> None:
    with pytest.raises(UserError, match="device=cuda:2 was asked for but torch sees 2 of them"):
        pick_device("cuda:2")


@pytest.mark.usefixtures("no_devices")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match=f"device={name} .* none; use device=auto"):
        pick_device(name)


def test_the_processors_bf16_says_nothing_of_another_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert has_fast_bf16(torch.device("cpu"))
    assert not has_fast_bf16(torch.device("mps"))


def test_which_plugins_are_loaded_makes_no_other_run() -> None:
    """They only offer choices: what is chosen of them stands in its own place."""
    one, other = (
        read_settings(compose_config([f"plugins={names}"])).identity("data", {})
        for names in ("[]", "[my.module]")
    )
    assert one == other
