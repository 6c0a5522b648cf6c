"""Small real models of every captioner, built here: their outputs depend on the pixels, known by construction."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.engine.run_support import new_folder

# Name, category (9 rating, 0 general, 4 character), weights of the mean blue, green and red, and a constant.
WD14_TAGS = [
    ("general", 9, (0, 0, 0), 0.5),
    ("sensitive", 9, (0, 0, 1), 0.0),
    ("questionable", 9, (0, 0, 0), 0.1),
    ("explicit", 9, (0, 0, 0), 0.0),
    ("1girl", 0, (0, 0, 0), 0.9),
    ("very_blue", 0, (1, 0, 0), 0.0),
    ("very_green", 0, (0, 1, 0), 0.0),
    ("very_red", 0, (0, 0, 1), 0.0),
    ("^_^", 0, (0, 0, 0), 0.6),
    ("never", 0, (0, 0, 0), 0.01),
    ("hero_(costume)_(saga)", 4, (0, 0, 0), 0.7),
    ("other_hero", 4, (0, 0, 1), 0.0),
]
V3_TAGS = [*WD14_TAGS[:4], *WD14_TAGS[10:], *WD14_TAGS[4:10]]
"""Another order of categories and another name of the input, so that nothing rests on places."""
DEEPDANBOORU_TAGS = [
    ("sky", (0, 0, 1), 0.0),
    ("tree", (0, 1, 0), 0.0),
    ("rating:safe", (0, 0, 0), 0.9),
    ("rating:explicit", (0, 0, 0), 0.1),
]


def write_onnx(
    path, rows, *, size, scale=1 / 255, name="input", batch="N", channels_first=False, is_logits=False, every=1
):
    """Write a model whose scores are the mean colour (of every n-th pixel) times weights plus a constant, in 0..1."""
    weights = np.array([row[-2] for row in rows], np.float32).T * np.float32(scale)
    constants = np.array([row[-1] for row in rows], np.float32)
    shape = [batch, 3, size, size] if channels_first else [batch, size, size, 3]
    axes = np.array([2, 3] if channels_first else [1, 2], np.int64)
    nodes = [
        helper.make_node("Slice", [name, "starts", "ends", "axes", "steps"], ["some"]),
        helper.make_node("ReduceMean", ["some", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["weighted"]),
        helper.make_node("Add", ["weighted", "constants"], ["sums"]),
        helper.make_node(
            "Identity" if is_logits else "Clip", ["sums"] if is_logits else ["sums", "low", "high"], ["out"]
        ),
    ]
    corner, steps = np.zeros(2, np.int64), np.full(2, every, np.int64)
    stored = {
        "starts": corner,
        "ends": corner + size,
        "steps": steps,
        "axes": axes,
        "weights": weights,
        "constants": constants,
    }
    if not is_logits:
        stored |= {"low": np.float32(0), "high": np.float32(1)}
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, len(rows)])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def scores(rows, means):
    """Return the scores by construction: `means` are of the model's own channels, already scaled to 0..1."""
    return [min(1.0, max(0.0, float(np.dot(row[-2], means)) + row[-1])) for row in rows]


def _write_csv(folder: Path, rows) -> None:
    lines = ["tag_id,name,category,count", *(f'{n},"{row[0]}",{row[1]},1' for n, row in enumerate(rows))]
    (folder / "selected_tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@cache
def wd14_v14(every=1) -> Path:
    """Return a folder of the v1.4 layout, which takes any number of pictures; it may look at some pixels only."""
    folder = new_folder()
    write_onnx(folder / "model.onnx", WD14_TAGS, size=448, name="input_1:0", every=every)
    _write_csv(folder, WD14_TAGS)
    return folder


@cache
def wd14_v3() -> Path:
    """Return a folder of the v3 layout, which takes two pictures at once, no more and no fewer."""
    folder = new_folder()
    write_onnx(folder / "model.onnx", V3_TAGS, size=448, batch=2)
    _write_csv(folder, V3_TAGS)
    return folder


@cache
def mapped() -> Path:
    """Return a folder with a tag_mapping.json, whose model takes channels first and gives logits."""
    folder = new_folder()
    rows = [("good", "Quality", (0, 0, 0), 3.0), ("a_cat", "General", (0, 0, 0), 2.0), ("pg", "Rating", (0, 0, 0), 1.0)]
    write_onnx(folder / "model_optimized.onnx", rows, size=448, channels_first=True, is_logits=True)
    mapping = {str(place): {"tag": row[0], "category": row[1]} for place, row in enumerate(rows)}
    (folder / "tag_mapping.json").write_text(json.dumps(mapping))
    return folder


@cache
def deepdanbooru() -> Path:
    """Return a folder with DeepDanbooru's ONNX export and tags.txt."""
    folder = new_folder()
    write_onnx(folder / "deepdanbooru.onnx", DEEPDANBOORU_TAGS, size=512, scale=1, name="inputs")
    (folder / "tags.txt").write_text("\n".join(row[0] for row in DEEPDANBOORU_TAGS) + "\n")
    return folder


WORDS = [
    "a", "an", "the", "of", "on", "in", "with", "cat", "dog", "woman", "man", "cup", "table", "flower", "city",
    "red", "blue", "green", "black", "white", "photo", "small",
]  # fmt: skip


@cache
def blip() -> Path:
    """Return a BLIP of two layers with random weights and a vocabulary of twenty-two words."""
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration

    folder = new_folder()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS]) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
    text = {**layers, "vocab_size": len(special) + len(WORDS), "encoder_hidden_size": 32, "max_position_embeddings": 64}
    tokens = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config={**text, **tokens}, vision_config={**layers, "image_size": 32, "patch_size": 16}, projection_dim=16
    )
    torch.manual_seed(3)
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():  # Wider than the initial ones, so that pictures make a difference to words.
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embeddings" not in name:
                weight.mul_(12)
        model.text_decoder.cls.predictions.bias[: len(special)] = -20
        model.text_decoder.cls.predictions.bias[3] = 0
    model.save_pretrained(folder)
    processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
