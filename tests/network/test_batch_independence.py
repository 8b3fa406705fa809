"""What a latent decodes to does not depend on the latents beside it, not in the last bit."""

import pytest
import torch

from vcinr_batch.config import NetworkConfig
from vcinr_batch.network import fitting
from vcinr_batch.network.fitting import decode_latents, decode_linear_term, decode_siren
from vcinr_batch.network.gated_siren import GatedSiren

SAMPLES = 21
KINDS = ["gate none", "gate eof", "shift none", "shift eof", "sparse_shift none", "none eof"]
POINTS = {"one": 1, "few": 5, "some": 333, "many": 2701}


def make_network(kind: str, points: int) -> GatedSiren:
    torch.manual_seed(points)
    modulation, linear = kind.split()
    config = NetworkConfig(
        modulation=modulation, linear_term=linear, latent_dim=24, hidden_dim=32, hidden_layers=2, rank=2, hyper_dim=16
    )
    network = GatedSiren(config, torch.rand(points, 3) * 2 - 1, 1)
    if network.linear is not None:
        torch.nn.init.normal_(network.linear.basis)
    return network.requires_grad_(False)


@pytest.mark.parametrize("points", POINTS.values(), ids=POINTS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_any_samples_in_any_order_have_the_bits_that_they_have_among_all(kind: str, points: int) -> None:
    network = make_network(kind, points)
    latents = network.phi0 + 0.3 * torch.randn(SAMPLES, 24)
    whole = decode_latents(network, latents)
    torch.testing.assert_close(whole, network(latents), rtol=0, atol=1e-4)
    assert len(torch.unique(whole[:, 0])) == SAMPLES
    for size in (1, 2, 3, 5, 7, 8, 9, 16, SAMPLES):
        chosen = torch.randperm(SAMPLES)[:size]
        assert torch.equal(decode_latents(network, latents[chosen]), whole[chosen]), size


@pytest.mark.parametrize("kind", KINDS)
def test_so_it_is_at_coordinates_off_the_grid_and_for_the_linear_term_alone(kind: str) -> None:
    network = make_network(kind, 40)
    latents = network.phi0 + 0.3 * torch.randn(SAMPLES, 24)
    linear, chosen = decode_linear_term(network, latents), torch.tensor([20, 3, 4])
    assert linear.shape == (SAMPLES, 40, 1)
    assert torch.equal(decode_linear_term(network, latents[chosen]), linear[chosen])
    if network.siren is not None:
        coordinates = torch.rand(333, 3)
        siren = decode_siren(network, latents, coordinates)
        assert torch.equal(decode_siren(network, latents[chosen], coordinates), siren[chosen])


def test_few_activations_are_held_however_many_samples_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network("gate eof", 600)
    held: list[int] = []
    whole = network.at_coordinates

    def counted(latents: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        held.append(len(latents) * len(coordinates) * 32)
        return whole(latents, coordinates)

    monkeypatch.setattr(network, "at_coordinates", counted)
    monkeypatch.setattr(fitting, "DECODE_FLOATS", 6400)  # 200 points
    decode_latents(network, network.phi0 + torch.randn(SAMPLES, 24))
    assert 0 < max(held) <= 6400
