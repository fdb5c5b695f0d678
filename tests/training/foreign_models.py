"""Other people's segmentation models, tiny and with random weights, each with its image processor."""

import transformers as tf

VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32}
VIT |= {"patch_size": 8}
SWIN = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 2, "image_size": 64}
SWIN |= {"out_features": ["stage1", "stage2", "stage3", "stage4"]}


def save(model, folder, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def named(*labels):
    """The config's fields of these labels, counted from 0."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}


def segformer(*labels):
    config = tf.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, **named(*labels)
    )
    return tf.SegformerForSemanticSegmentation(config).eval(), tf.SegformerImageProcessor(size=square(64))


def square(side):
    return {"height": side, "width": side}
