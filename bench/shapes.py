"""The shapes of the models that are timed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

Shape = tuple[int, ...]


def numel_of(shapes: tuple[Shape, ...]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def gpt2_shapes(
    width: int = 768, vocabulary: int = 50257, positions: int = 1024, blocks: int = 12
) -> tuple[Shape, ...]:
    """The 148 tensors of GPT-2 small: 124,439,808 parameters."""

    def block() -> Iterator[Shape]:
        yield from ((width,), (width,))  # ln_1
        yield from ((width, 3 * width), (3 * width,))  # attn.c_attn
        yield from ((width, width), (width,))  # attn.c_proj
        yield from ((width,), (width,))  # ln_2
        yield from ((width, 4 * width), (4 * width,))  # mlp.c_fc
        yield from ((4 * width, width), (width,))  # mlp.c_proj

    shapes = [(vocabulary, width), (positions, width)]
    for _ in range(blocks):
        shapes += block()
    return (*shapes, (width,), (width,))  # ln_f


def resnet50_shapes(classes: int = 1000) -> tuple[Shape, ...]:
    """The 161 tensors of ResNet-50: 25,557,032 parameters."""

    def conv_bn(out: int, into: int, size: int) -> Iterator[Shape]:
        yield from ((out, into, size, size), (out,), (out,))

    shapes = [*conv_bn(64, 3, 7)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(blocks):
            shapes += [*conv_bn(width, channels, 1), *conv_bn(width, width, 3), *conv_bn(4 * width, width, 1)]
            if i == 0:  # the shortcut
                shapes += conv_bn(4 * width, channels, 1)
            channels = 4 * width
    return (*shapes, (classes, channels), (classes,))


def llama_shapes(
    width: int = 2048, mlp: int = 8192, kv: int = 512, vocabulary: int = 128256, blocks: int = 16
) -> tuple[Shape, ...]:
    """The 146 tensors of a Llama of 1 B whose output weights are its embedding: 1,235,814,400 parameters."""

    def block() -> Iterator[Shape]:
        yield from ((width, width), (kv, width), (kv, width), (width, width))  # q, k, v, o
        yield from ((mlp, width), (mlp, width), (width, mlp))  # gate, up, down
        yield from ((width,), (width,))  # norms

    shapes: list[Shape] = [(vocabulary, width)]
    for _ in range(blocks):
        shapes += block()
    return (*shapes, (width,))


# Those that predict.py and explore.py know, by the names they have in tables.
MODELS: dict[str, tuple[Shape, ...]] = {
    "GPT-2": gpt2_shapes(),
    "ResNet-50": resnet50_shapes(),
    "Llama 1 B": llama_shapes(),
}
