"""The U-Net's configuration: defaults, refusals, and the sizes of unpadded convolutions."""

import pytest

from hub_unets.configuration.configuration_unet import UNetConfig

NAMES = {0: "background", 1: "polyp"}


@pytest.mark.parametrize("fields", [{}, {"num_labels": 2}, {"binary_head": True}])
def test_two_labels_are_background_and_polyp_with_one_logit(fields):
    config = UNetConfig(**fields)
    assert config.id2label == NAMES
    assert config.label2id == {"background": 0, "polyp": 1}
    assert (config.num_labels, config.binary_head, config.num_logits) == (2, True, 1)


def test_custom_names_are_kept():
    config = UNetConfig(id2label={0: "none", 1: "tool"})
    assert config.id2label == {0: "none", 1: "tool"}
    assert config.label2id == {"none": 0, "tool": 1}
    assert config.num_logits == 1


@pytest.mark.parametrize("fields", [{}, {"num_labels": 3}])
def test_names_give_the_number_of_labels_and_their_keys_may_be_strings(fields):
    config = UNetConfig(id2label={"2": "boundary", "0": "background", "1": "polyp"}, **fields)
    assert list(config.id2label.items()) == [(0, "background"), (1, "polyp"), (2, "boundary")]
    assert config.label2id == {"background": 0, "polyp": 1, "boundary": 2}
    assert (config.num_labels, config.num_logits) == (3, 3)


@pytest.mark.parametrize(
    ("fields", "logits"),
    [({"num_labels": 4}, 4), ({"binary_head": False}, 2), ({"num_labels": 2, "binary_head": True}, 1)],
)
def test_one_logit_for_each_label_without_a_binary_head(fields, logits):
    assert UNetConfig(**fields).num_logits == logits


@pytest.mark.parametrize("labels", [1, 3, 4])
def test_names_that_do_not_fit_num_labels_become_numbers_with_a_warning(labels):
    names = {label: f"name {label}" for label in range(labels)}
    with pytest.warns(UserWarning, match="id2label has not num_labels=2 names"):
        config = UNetConfig(num_labels=2, id2label=names)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1}


@pytest.mark.parametrize("fields", [{"num_labels": 3}, {"id2label": {0: "none", 1: "polyp", 2: "tool"}}])
def test_a_binary_head_is_off_unless_there_are_two_labels(fields):
    config = UNetConfig(binary_head=True, **fields)
    assert (config.binary_head, config.num_logits) == (False, 3)


def test_labels_of_a_call_replace_those_of_the_file(tmp_path):
    UNetConfig().save_pretrained(tmp_path)
    three_names = {0: "none", 1: "polyp", 2: "tool"}
    text_keys = {str(label): name for label, name in three_names.items()}
    calls = [
        {"id2label": three_names},
        {"id2label": three_names, "num_labels": 3},
        {"id2label": text_keys, "label2id": {name: label for label, name in text_keys.items()}},
    ]
    for call in calls:
        config = UNetConfig.from_pretrained(tmp_path, **call)
        assert config.id2label == three_names
        assert config.label2id == {"none": 0, "polyp": 1, "tool": 2}
        assert (config.num_labels, config.num_logits, config.binary_head) == (3, 3, False)
    config, unused = UNetConfig.from_pretrained(tmp_path, num_labels=3, return_unused_kwargs=True, revision_x=1)
    assert (config.num_logits, unused) == (3, {"revision_x": 1})
    assert UNetConfig.from_pretrained(tmp_path, num_labels=2).id2label == NAMES
    assert UNetConfig.from_pretrained(tmp_path, id2label={0: "a", 1: "b"}).num_logits == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_channels": 0}, "num_channels must be at least 1, got 0"),
        ({"base_channels": 0}, "base_channels must be at least 1"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"padding": "reflect"}, "padding must be one of same, valid, got 'reflect'"),
        ({"upsample": "nearest"}, "upsample must be one of transpose, bilinear"),
        ({"num_labels": 1}, "num_labels=1 leaves no background"),
        ({"padding": "valid", "backbone": "resnet18"}, "padding='valid' is for the plain path"),
        ({"detail_channels": 4}, "detail_channels is for backbones"),
        ({"decoder_channels": [8, 8]}, r"decoder_channels needs 4 widths \(depth\)"),
        (
            {"id2label": {0: "background", 2: "polyp"}},
            "id2label must give each label a name of its own, from 0: .*got",
        ),
        ({"id2label": {0: "polyp", 1: "polyp"}}, "id2label must give each label a name of its own"),
        ({"id2label": {0: "background", 1: True}}, "id2label must give each label a name of its own"),
        ({"id2label": {"zero": "background", "one": "polyp"}}, "id2label must give each label"),
        ({"id2label": ["background", "polyp"]}, r"id2label must .*got \['background', 'polyp'\]"),
        ({"id2label": {}}, "id2label must give each label"),
    ],
)
def test_a_config_that_describes_no_network_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**fields)


@pytest.mark.parametrize(("depth", "margin"), [(1, 8), (2, 20), (3, 44), (4, 92)])
def test_margin_of_unpadded_convolutions(depth, margin):
    assert UNetConfig(depth=depth, padding="valid").valid_margin == margin
    assert UNetConfig(depth=depth).valid_margin == 0


@pytest.mark.parametrize(
    ("depth", "size", "nearest"),
    [(4, 571, 572), (4, 579, 572), (4, 581, 588), (4, 100, 188), (1, 21, 20), (1, 19, 20), (1, 1, 20)],
)
def test_a_size_that_loses_rows_is_refused_naming_the_nearest(depth, size, nearest):
    config = UNetConfig(depth=depth, padding="valid")
    with pytest.raises(ValueError, match=f"got {size}, the nearest that fits is {nearest}"):
        config.check_valid_size(size)
    config.check_valid_size(nearest)
    UNetConfig(depth=depth).check_valid_size(size)
