from bebygan.pretrained.registry import KNOWN


def test_known_shapes_are_those_of_the_networks() -> None:
    vgg16, vgg19 = KNOWN["vgg16"].shapes(), KNOWN["vgg19"].shapes()
    assert (len(vgg16), vgg16["features.28.weight"]) == (26, (512, 512, 3, 3))
    assert (len(vgg19), vgg19["features.34.weight"]) == (32, (512, 512, 3, 3))
    assert vgg16["features.0.weight"] == vgg19["features.0.weight"] == (64, 3, 3, 3)
    assert KNOWN["alexnet"].shapes()["features.3.weight"] == (192, 64, 5, 5)
