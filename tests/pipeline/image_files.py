"""Files in the official formats of MNIST and CIFAR, of few images."""

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def mnist_bytes(count: int) -> tuple[bytes, bytes]:
    """The file of `count` random images, and that of their labels 0, 1, ... 9, 0, ..."""
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
    return idx_bytes(images), idx_bytes(np.arange(count) % 10)


def text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode()


def cifar_bytes(pixels: np.ndarray, labels: list[int], key="labels", columns_first=False, filenames=b"]") -> bytes:
    """A batch as Python 2's cPickle wrote it: protocol 2, texts as byte strings, the array as numpy 1 reduced it."""
    count = len(pixels).to_bytes(2, "little")
    content = pixels.tobytes(order="F" if columns_first else "C")
    return (
        b"\x80\x02}q\x01("
        + (text("batch_label") + text("training batch 1 of 5"))
        + (text(key) + b"]q\x05(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e")
        + (text("data") + b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09")
        + (b"(K\x01M" + count + b"M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNN")
        + (b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" + (b"\x88" if columns_first else b"\x89"))
        + (b"T" + len(content).to_bytes(4, "little") + content + b"tb")
        + (text("filenames") + filenames + b"u.")
    )


def some_cifar() -> tuple[np.ndarray, list[int]]:
    return np.random.default_rng(1).integers(0, 256, (3, 3072), np.uint8), [6, 9, 0]


def that_makes(folder: str) -> bytes:
    """Instructions of a pickle that call os.mkdir."""
    return b"cos\nmkdir\n(X" + len(folder).to_bytes(4, "little") + folder.encode() + b"tR"
