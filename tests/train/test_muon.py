from __future__ import annotations

import torch

from orchd.train.muon import Muon, orthogonalise


def test_singular_values_come_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 16, 16), (2, 16, 48), (2, 48, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.shape == (shape[0], 16)
        assert ((values > 0.3) & (values < 1.3)).all()


def test_it_goes_downhill() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(8, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)]
    wanted = [torch.randn(8, 8), torch.randn(4, 8)]
    muon = Muon(weights, learning_rate=0.05, weight_decay=0.01)
    losses = []
    for _ in range(60):
        loss = sum(((a - b) ** 2).mean() for a, b in zip(weights, wanted, strict=True))
        assert isinstance(loss, torch.Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        muon.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    assert all(weight.grad is None for weight in weights)
