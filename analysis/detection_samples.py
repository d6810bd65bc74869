"""A page of sample images with boxes: what is there, and what each net found, coloured by kind of error.

Apart from the diagnosis because it deals with pictures and HTML. The page is one file: pictures are embedded small and
once, boxes are drawn over them by the browser, and pointing at a box names it.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from analysis.detection_kinds import KINDS, Boxed
from surgeon.errors import AnalysisError
from surgeon.storage import replace_file

Picture = str | Path | NDArray[np.uint8]
SIDE = 360  # pixels of the longer side of an embedded picture
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Net:
    """One net's detections, the place in ``KINDS`` of each (-1: not counted), and the names of the classes."""

    label: str
    found: Boxed
    kinds: NDArray[np.int64]
    names: list[str]


def write_samples(
    path: str | Path,
    images: Sequence[Picture],
    nets: Sequence[Net],
    there: Boxed,
    colours: Mapping[str, str],
    count: int,
    seed: int,
) -> Path:
    """Write the page.

    Args:
        path: Of the HTML file.
        images: Of the data set, in order: paths, or arrays (height, width, 3) of bytes.
        nets: Shown side by side after the objects.
        there: The objects.
        colours: Kind to colour.
        count: Images shown, drawn at random among those with an object or a counted detection.
        seed: Of the draw.

    Raises:
        AnalysisError: When there are fewer images than boxes tell of, or one cannot be read.
    """
    of_interest = np.unique(np.concatenate([there.image, *(net.found.image[net.kinds >= 0] for net in nets)]))
    if len(of_interest) and of_interest[-1] >= len(images):
        raise AnalysisError(
            f"samples: {len(images)} images, but boxes in image {of_interest[-1] + 1}; give all images, in order"
        )
    drawn = np.random.default_rng(seed).permutation(of_interest)[: max(count, 0)]
    samples = [_sample(int(image), images[image], nets, there, colours) for image in np.sort(drawn)]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    about = {"of": len(images), "seed": seed, "colours": dict(colours), "labels": [net.label for net in nets]}
    text = environment.get_template("samples.html").render(samples=samples, **about)
    replace_file(Path(path), text.encode())
    return Path(path)


def _sample(
    image: int, picture: Picture, nets: Sequence[Net], there: Boxed, colours: Mapping[str, str]
) -> dict[str, Any]:
    data, width, height = _embedded(picture, image)
    names = nets[0].names
    mine = there.image == image
    boxes = [_box(box, names[label], "white") for box, label in zip(there.boxes[mine], there.labels[mine], strict=True)]
    classes = Counter(box["words"] for box in boxes)
    note = ", ".join(f"{name} ({number})" for name, number in classes.items()) or "none"
    panels = [{"label": "objects", "boxes": boxes, "note": note}]
    panels += [_panel(net, image, colours) for net in nets]
    name = f"image {image + 1}" if isinstance(picture, np.ndarray) else Path(picture).name
    return {"name": name, "data": data, "width": width, "height": height, "panels": panels}


def _panel(net: Net, image: int, colours: Mapping[str, str]) -> dict[str, Any]:
    chosen = np.flatnonzero((net.found.image == image) & (net.kinds >= 0))
    chosen = chosen[np.argsort(net.found.scores[chosen])]  # the surest on top
    boxes = []
    for index in chosen:
        kind = KINDS[net.kinds[index]]
        words = f"{net.names[net.found.labels[index]]} {net.found.scores[index]:.2f}: {kind}"
        boxes.append(_box(net.found.boxes[index], words, colours[kind]))
    counts = np.bincount(net.kinds[chosen], minlength=len(KINDS))
    note = ", ".join(f"{number} {kind}" for kind, number in zip(KINDS, counts, strict=True) if number)
    return {"label": net.label, "boxes": boxes, "note": note or "none counted"}


def _box(box: NDArray[np.float64], words: str, colour: str) -> dict[str, Any]:
    x1, y1, x2, y2 = (round(float(value), 1) for value in box)
    return {"x": x1, "y": y1, "width": round(x2 - x1, 1), "height": round(y2 - y1, 1), "words": words, "colour": colour}


def _embedded(picture: Picture, image: int) -> tuple[str, int, int]:
    """A small JPEG as base64, and the width and height of the original."""
    try:
        opened = Image.fromarray(picture) if isinstance(picture, np.ndarray) else Image.open(picture)
        opened = ImageOps.exif_transpose(opened).convert("RGB")  # turned upright, as the boxes are
    except (ImportError, OSError, TypeError, ValueError) as error:  # ultralytics looks for more plugins of Pillow
        raise AnalysisError(f"samples: no image {image + 1}: {error}; give paths, or arrays of bytes") from error
    size = opened.size
    opened.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    opened.save(buffer, format="JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode(), *size
