"""Other people's segmentation models, tiny and with random weights, each with its image processor."""

import torch
import transformers as tf

VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32}
VIT |= {"patch_size": 8}
SWIN = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 2, "image_size": 64}
SWIN |= {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
SHORTEST = {"shortest_edge": 64, "longest_edge": 96}


def save(model, folder, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def make(name, *labels):
    """(model, processor) of a name in FOREIGN, with these labels, counted from 0: a model that marks some of all."""
    torch.manual_seed(3)
    make_pair = FOREIGN[name]
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}
    model, processor = make_pair(names)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)  # what is drawn for training gives nearly the same everywhere
    return model.eval(), processor


def square(side):
    return {"height": side, "width": side}


def segformer(names):
    sizes = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    model = tf.SegformerForSemanticSegmentation(tf.SegformerConfig(**sizes, **names))
    return model, tf.SegformerImageProcessor(size=square(64))


def upernet(names):
    sizes = {"hidden_size": 8, "auxiliary_in_channels": 32, "auxiliary_channels": 4}
    config = tf.UperNetConfig(backbone_config=tf.SwinConfig(**SWIN), **sizes, **names)
    return tf.UperNetForSemanticSegmentation(config), tf.SegformerImageProcessor(size=square(64))


def beit(names):
    config = tf.BeitConfig(**VIT, out_indices=[1, 2, 3, 4], auxiliary_channels=4, **names)
    return tf.BeitForSemanticSegmentation(config), tf.BeitImageProcessor(size=square(32))


def data2vec(names):
    config = tf.Data2VecVisionConfig(**VIT, out_indices=[1, 2, 3, 4], auxiliary_channels=4, **names)
    return tf.Data2VecVisionForSemanticSegmentation(config), tf.BeitImageProcessor(size=square(32))


def dpt(names):
    sizes = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8, "backbone_out_indices": [0, 1, 2, 3]}
    config = tf.DPTConfig(**VIT, **sizes, **names)
    return tf.DPTForSemanticSegmentation(config), tf.DPTImageProcessor(size=square(32))


def mobilevit(names):
    sizes = {"hidden_sizes": [8] * 3, "neck_hidden_sizes": [4] * 6 + [8], "aspp_out_channels": 8}
    model = tf.MobileViTForSemanticSegmentation(tf.MobileViTConfig(num_attention_heads=1, **sizes, **names))
    processor = tf.MobileViTImageProcessor(size={"shortest_edge": 64}, crop_size=square(64), do_center_crop=False)
    return model, processor  # keeps the aspect ratio


def mobilenet_v2(names):
    model = tf.MobileNetV2ForSemanticSegmentation(tf.MobileNetV2Config(depth_multiplier=0.25, **names))
    return model, tf.MobileNetV2ImageProcessor(size=square(64), do_center_crop=False)


def maskformer(names):
    detr = {f"{part}_{field}": 1 for part in ("encoder", "decoder") for field in ("layers", "attention_heads")}
    detr |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 32, "num_queries": 4}
    sizes = {"fpn_feature_size": 32, "mask_feature_size": 32, "decoder_config": tf.DetrConfig(**detr)}
    config = tf.MaskFormerConfig(backbone_config=tf.SwinConfig(**SWIN), **sizes, **names)
    return tf.MaskFormerForInstanceSegmentation(config), tf.MaskFormerImageProcessor(size=SHORTEST)


def mask2former(names):
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32}
    sizes |= {"dim_feedforward": 32, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2}
    config = tf.Mask2FormerConfig(backbone_config=tf.SwinConfig(**SWIN), num_queries=4, **sizes, **names)
    return tf.Mask2FormerForUniversalSegmentation(config), tf.Mask2FormerImageProcessor(size=SHORTEST)


FOREIGN = {
    make_pair.__name__: make_pair
    for make_pair in (segformer, upernet, beit, data2vec, dpt, mobilevit, mobilenet_v2, maskformer, mask2former)
}
