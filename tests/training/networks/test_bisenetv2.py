from collections.abc import Callable

import torch
from torch import nn

from segship.training.networks.bisenetv2 import BiSeNetV2, ContextEmbedding, GuidedAggregation

Shape = tuple[int, ...]


def test_what_remains_after_training_has_3_4_million_parameters() -> None:
    with torch.device("meta"):
        network = BiSeNetV2(19)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    assert sum(size for name, size in sizes.items() if not name.startswith("boosters.")) == 3_358_755


def test_the_boosters_see_the_end_of_each_semantic_stage_in_training_only(
    build_small: Callable[..., nn.Module],
) -> None:
    network = build_small("bisenetv2")
    shapes: list[Shape] = []
    for booster in network.get_submodule("boosters").children():
        booster.register_forward_pre_hook(lambda _module, inputs: shapes.append(tuple(inputs[0].shape)))
    pictures = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        outputs = network.train()(pictures)
        assert shapes == [(2, 16, 16, 24), (2, 32, 8, 12), (2, 64, 4, 6), (2, 128, 2, 3)]
        assert [output.shape[2:] for output in outputs] == [(64, 96), (16, 24), (8, 12), (4, 6), (2, 3)]
        assert len(network.eval()(pictures)) == 1
    assert len(shapes) == 4


def test_the_detail_branch_stays_at_an_eighth_and_the_semantic_goes_to_a_thirty_second(
    build_small: Callable[..., nn.Module],
) -> None:
    network = build_small("bisenetv2").eval()
    shapes: list[Shape] = []
    for name in ("detail", "context", "aggregate"):
        network.get_submodule(name).register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape)))
    with torch.inference_mode():
        network(torch.randn(1, 3, 64, 96))
    assert shapes == [(1, 128, 8, 12), (1, 128, 2, 3), (1, 128, 8, 12)]


def test_the_context_of_one_pixel_reaches_all() -> None:
    torch.manual_seed(0)
    context = ContextEmbedding(16).eval()
    x = torch.randn(1, 16, 9, 9)
    changed = x.clone()
    changed[:, :, 0, 0] += 5
    with torch.inference_mode():
        assert (context(x) != context(changed)).any(dim=1).all()


def test_each_branch_guides_the_other() -> None:
    torch.manual_seed(0)
    aggregate = GuidedAggregation(16).eval()
    detail, semantic = torch.randn(1, 16, 9, 13), torch.randn(1, 16, 3, 4)
    with torch.inference_mode():
        fused = aggregate(detail, semantic)
        assert fused.shape == detail.shape
        assert not torch.allclose(fused, aggregate(detail, 0 * semantic))
        assert not torch.allclose(fused, aggregate(0 * detail, semantic))
