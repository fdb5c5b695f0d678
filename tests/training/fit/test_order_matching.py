"""Modules under other names are matched by order and shape only where one order fits."""

import pytest
import torch

from hub_unets.training.fit.order_matching import AmbiguousOrderError, match_by_order


def tensors(**shapes):
    return {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


TARGET = tensors(stem__weight=(4, 3, 3, 3), body__norm__weight=(4,), body__norm__bias=(4,), body__fc__weight=(8, 4))


def test_numbers_give_the_order():
    source = {
        "net.10.weight": torch.zeros(8, 4, 1, 1),  # a 1x1 convolution is a linear layer
        "net.2.weight": torch.zeros(4),
        "net.2.bias": torch.zeros(4),
        "net.1.weight": torch.zeros(4, 3, 3, 3),
        "net.11.weight": torch.zeros(99, 8),  # a classifier after the target's end
        "net.2.num_batches_tracked": torch.tensor(1),
    }
    assert match_by_order(source, TARGET) == {
        "stem.weight": "net.1.weight",
        "body.norm.weight": "net.2.weight",
        "body.norm.bias": "net.2.bias",
        "body.fc.weight": "net.10.weight",
    }


def test_shapes_give_the_order_of_names():
    source = tensors(a__weight=(8, 4), b__weight=(4,), b__bias=(4,), c__weight=(4, 3, 3, 3))
    assert match_by_order(source, TARGET)["body.fc.weight"] == "a.weight"


def test_other_shapes_do_not_match():
    assert match_by_order(tensors(a__weight=(8, 4), c__weight=(4, 3, 3, 3)), TARGET) is None


@pytest.mark.parametrize(("names", "clear"), [("qk", False), (["fc1", "fc2"], True)])
def test_equal_shapes_need_numbers(names, clear):
    first, second = names
    source = tensors(**{f"{first}__weight": (4, 4), f"{second}__weight": (4, 4)})
    target = tensors(query__weight=(4, 4), key__weight=(4, 4))
    if clear:
        assert match_by_order(source, target)["query.weight"] == "fc1.weight"
    else:
        with pytest.raises(AmbiguousOrderError, match=r"^q.weight and k.weight$"):
            match_by_order(source, target)


def test_equal_names_decide_between_equal_shapes():
    target = tensors(block__conv__weight=(4, 4), block__downsample__weight=(4, 4))
    source = tensors(x__downsample__weight=(4, 4), x__conv__weight=(4, 4))
    assert match_by_order(source, target)["block.conv.weight"] == "x.conv.weight"


def test_a_parameter_of_its_own_may_stand_anywhere():
    target = tensors(block__gamma=(4,), block__conv__weight=(4, 3))
    source = tensors(x__0__weight=(4, 3), x__layer_scale=(4, 1, 1))
    assert match_by_order(source, target) == {"block.gamma": "x.layer_scale", "block.conv.weight": "x.0.weight"}
