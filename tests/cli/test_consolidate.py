"""``fabric-lite consolidate``, on a checkpoint that two processes have saved."""

from __future__ import annotations

from uuid import UUID

import pytest
import torch
from torch import nn

from fabric_lite import Fabric
from fabric_lite.cli import main
from fabric_lite.testing import run_distributed


def save_sharded(path: str) -> dict[str, torch.Tensor]:
    """Train one step of a sharded model and save it; returns the whole weights."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="fsdp")
    fabric.launch()
    torch.manual_seed(0)
    model = fabric.setup_module(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)))
    optimizer = fabric.setup_optimizers(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    fabric.backward(model(torch.ones(2, 4) * (1 + fabric.global_rank)).square().mean())
    optimizer.step()
    fabric.save(path, {"model": model, "optimizer": optimizer, "step": 7, "rates": [0.1, 0.2]})
    fabric.save(f"{path}.odd", {"model": model, "odd": UUID(int=1)})
    return {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A checkpoint of two processes, and the weights in it."""
    folder = tmp_path_factory.mktemp("sharded") / "step-7.ckpt"
    weights, *_ = run_distributed(save_sharded, 2, str(folder))
    assert folder.is_dir()
    return folder, weights


@pytest.mark.parametrize("option", [None, "--output-file", "--output_file"])
def test_one_file(sharded, tmp_path, capsys, option):
    folder, weights = sharded
    file = folder.with_name("step-7.ckpt.consolidated") if option is None else tmp_path / "one.ckpt"
    assert main(["consolidate", str(folder), *([option, str(file)] if option else [])]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    checkpoint = torch.load(file, weights_only=True)
    assert (checkpoint["step"], checkpoint["rates"]) == (7, [0.1, 0.2])
    assert {name: tensor.shape for name, tensor in checkpoint["model"].items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }
    assert all(torch.equal(checkpoint["model"][name], weights[name]) for name in weights)

    fabric = Fabric(accelerator="cpu", devices=1)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    state = {"model": model, "optimizer": optimizer}
    fabric.setup(model, optimizer)
    fabric.load(file, state)
    assert torch.equal(model[0].weight, weights["0.weight"])
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert optimizer.state[model[1].bias]["momentum_buffer"].shape == (3,)


def test_what_cannot_be_consolidated(sharded, tmp_path, capsys):
    folder, _ = sharded
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").write_text("")
    for arguments, message in (
        ([tmp_path / "none"], f"There is no checkpoint '{tmp_path / 'none'}'."),
        ([tmp_path / "empty"], f"'{tmp_path / 'empty'}' is a folder without the files of a checkpoint."),
        ([tmp_path / "there"], f"'{tmp_path / 'there'}' is one file already."),
        ([folder, "--output-file", tmp_path / "there"], f"'{tmp_path / 'there'}' is there already."),
    ):
        assert main(["consolidate", *map(str, arguments)]) == 2
        assert capsys.readouterr().err.startswith(f"fabric-lite consolidate: {message}")


def test_objects_of_any_class_only_if_asked_for(sharded, tmp_path, capsys):
    folder = sharded[0].with_name("step-7.ckpt.odd")
    file = tmp_path / "one.ckpt"
    arguments = ["consolidate", str(folder), "--output-file", str(file)]
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        f"fabric-lite consolidate: {str(folder)!r} holds uuid.UUID, and not only tensors and plain values. If"
        " you trust the checkpoint, add --no-weights-only.\n"
    )
    assert not file.exists()
    assert main([*arguments, "--no-weights-only"]) == 0
    assert torch.load(file, weights_only=False)["odd"] == UUID(int=1)
