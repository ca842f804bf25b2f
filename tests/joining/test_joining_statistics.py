"""Methods that need statistics merge folders that hold them, as the library does."""

from __future__ import annotations

import pytest
import torch

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.adapters.model_folder import write_statistic
from cl_lora.cli import main
from cl_lora.merging import merge


@pytest.mark.parametrize(("method", "statistic"), [("regmean", "gram")])
def test_statistics_beside_adapters_are_used(tmp_path, method, statistic):
    generator = torch.Generator().manual_seed(0)
    for i in range(2):
        A, B = torch.randn(2, 4, generator=generator), torch.randn(5, 2, generator=generator)
        Adapter(f"a{i}", {"blocks.0.q": LoRAFactors(A, B)}).save(tmp_path / f"a{i}")
        inputs = torch.randn(20, 4, generator=generator)
        write_statistic(tmp_path / f"a{i}", statistic, {"blocks.0.q": inputs.T @ inputs})
    paths = [tmp_path / "a0", tmp_path / "a1"]
    expected = merge([Adapter.load(path) for path in paths], method, [0.5, 0.5])
    arguments = [*map(str, paths), "--method", method, "--dense", "--out", str(tmp_path / "o")]
    assert main(["merge", *arguments]) == 0
    found = Adapter.load(tmp_path / "o").factors["blocks.0.q"].delta()
    torch.testing.assert_close(found, expected.delta("blocks.0.q"))
