"""Rated image databases in the layout they are published in: TID2008, TID2013, KADID-10k, RAID and BAPPS.

Apart from `ratings`, which says what rated images are: here is only where each database keeps what. Lists are read and
every file is looked for at once; images are read when asked for.
"""

from __future__ import annotations

import csv
import filecmp
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch

from analysis.ratings import RatedChoices, RatedPair, RatedTriplet, Ratings, read_image
from surgeon.errors import AnalysisError

TID = (
    "additive gaussian noise", "noise in colour components", "spatially correlated noise", "masked noise",
    "high frequency noise", "impulse noise", "quantization noise", "gaussian blur", "image denoising", "jpeg",
    "jpeg2000", "jpeg transmission errors", "jpeg2000 transmission errors", "non-eccentricity pattern noise",
    "block-wise distortions", "mean shift", "contrast change", "colour saturation", "multiplicative gaussian noise",
    "comfort noise", "lossy compression of noisy images", "colour quantization with dither", "chromatic aberrations",
    "sparse sampling",
)  # fmt: skip
KADID = (
    "gaussian blur", "lens blur", "motion blur", "colour diffusion", "colour shift", "colour quantization",
    "colour saturation 1", "colour saturation 2", "jpeg2000", "jpeg", "white noise", "white noise in colour components",
    "impulse noise", "multiplicative noise", "denoise", "brighten", "darken", "mean shift", "jitter",
    "non-eccentricity patch", "pixelate", "quantization", "colour block", "high sharpen", "contrast change",
)  # fmt: skip
RAID = {"rot": "rotation", "trans": "translation", "scale": "scale", "gn": "gaussian noise"}
RAID_COLUMNS = {  # of the versions published so far: file, and its columns for reference, distorted image, response
    "perceptual_scales.csv": [("Reference", "Distorted", "Percept_scale")],
    "responses.csv": [("Reference", "Distorted", "Response"), ("ref", "dist_ord", "resp")],
}
IMAGES = (".png", ".bmp", ".jpg", ".jpeg")
HOW_TO_GET = {
    "tid2008": "unpack tid2008.rar (ponomarenko.info/tid2008.htm); it holds mos_with_names.txt, reference_images/ and "
    "distorted_images/",
    "tid2013": "unpack tid2013.rar (ponomarenko.info/tid2013.htm); it holds mos_with_names.txt, reference_images/ and "
    "distorted_images/",
    "kadid10k": "unpack kadid10k.zip (database.mmsp-kn.de); it holds dmos.csv and images/",
    "raid": "get responses.csv or perceptual_scales.csv (github.com/paudauo/BBDD_Affine_Transformations) and put the "
    "images (zenodo.org/records/15341729) below the same folder",
    "bapps": "run download_dataset.sh of github.com/richzhang/PerceptualSimilarity; name its folder dataset, which "
    "holds 2afc/",
}


def rating_data(name: str, folder: str | Path, *, split: str | Sequence[str] | None = None) -> Ratings | RatedChoices:
    """Open a database of images that people judged, as it is published.

    Args:
        name: "tid2008" or "tid2013" (mean opinion scores, higher is better), "kadid10k" (its ``dmos`` is higher for
            better images), "raid" (response curves, higher is worse), "bapps" (choices between two).
        folder: Where it was unpacked.
        split: Parts of BAPPS: "val" (all of it, the default), "train", or one or several like "val/cnn". The others
            are published whole; part them by :meth:`Ratings.split`.

    Returns:
        :class:`Ratings`; of BAPPS :class:`RatedChoices`. Images are read when asked for, but for second copies of
        RAID's originals, which are compared with them at once.

    Raises:
        AnalysisError: For an unknown name or split, a missing file or image, or a bad line, with its number.

    Example:
        >>> rating_data("tid2013", "no/such/folder")
        Traceback (most recent call last):
        ...
        surgeon.errors.AnalysisError: tid2013: no mos_with_names.txt in no/such/folder; unpack tid2013.rar ...

    References:
        Ponomarenko et al., TID2008, 2009, and TID2013, Signal Processing: Image Communication 30, 2015. Lin, Hosu and
        Saupe, KADID-10k, QoMEX 2019. Dauden-Oliver et al., RAID, arXiv:2412.10211. Zhang et al., The Unreasonable
        Effectiveness of Deep Features as a Perceptual Metric (BAPPS), CVPR 2018, arXiv:1801.03924.
    """
    known = {"tid2008": _tid, "tid2013": _tid, "kadid10k": _kadid, "raid": _raid, "bapps": _bapps}
    if name not in known:
        near = get_close_matches(str(name), known, 1)
        hint = f"did you mean '{near[0]}'?" if near else "it is one of"
        raise AnalysisError(f"rating_data: no database '{name}'; {hint} ({', '.join(known)})")
    where = Path(folder).expanduser()
    if name == "bapps":
        return _bapps(where, ("val",) if split is None else (split,) if isinstance(split, str) else tuple(split))
    if split is not None:
        raise AnalysisError(f"rating_data: {name} is published whole, and split is {split!r}; part it by data.split")
    read: Callable[[str, Path], Ratings] = known[name]  # type: ignore[assignment]
    return read(name, where)


def _missing(name: str, where: Path, what: str) -> AnalysisError:
    return AnalysisError(f"{name}: no {what} in {where}; {HOW_TO_GET[name]}")


def _bad(path: Path, line: int, why: str) -> AnalysisError:
    return AnalysisError(f"{path}, line {line}: {why}; get the file anew")


class _Files:
    """The images below a folder, found by name whatever its case: TID's lists and files differ in it."""

    def __init__(self, name: str, where: Path, pattern: str) -> None:
        self.name, self.where = name, where
        found = (path for path in sorted(where.glob(pattern)) if path.suffix.lower() in IMAGES)
        self.paths = {path.name.lower(): str(path) for path in reversed(list(found))}

    def __contains__(self, file: str) -> bool:
        return file.lower() in self.paths

    def path(self, file: str, source: Path, line: int) -> str:
        if file not in self:
            raise AnalysisError(
                f"{self.name}: no image '{file}' in {self.where} ({source.name}, line {line}, names it); "
                f"{HOW_TO_GET[self.name]}"
            )
        return self.paths[file.lower()]


def _lines(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise _missing(name, path.parent, path.name) from None
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"{path} cannot be read ({error}); get the file anew") from None
    return ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def _number(text: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _bad(path, line, f"'{text.strip()}' is no score")
    return value


def _named(file: str, pattern: str, path: Path, line: int, wanted: str) -> re.Match[str]:
    found = re.fullmatch(pattern, file, re.IGNORECASE)
    if found is None:
        raise _bad(path, line, f"'{file}' is no name of a distorted image, such as {wanted}")
    return found


def _distortion(names: Sequence[str], number: str, path: Path, line: int) -> str:
    if not 1 <= int(number) <= len(names):
        raise _bad(path, line, f"distortion {number} is none of 1 to {len(names)}")
    return names[int(number) - 1]


def _tid(name: str, where: Path) -> Ratings:
    """``mos_with_names.txt``: a score and a name like I01_08_3.bmp: reference 1, distortion 8, level 3."""
    source, kinds = where / "mos_with_names.txt", TID[:17] if name == "tid2008" else TID
    lines = list(_lines(name, source))
    originals, distorted = (_Files(name, where / part, "*") for part in ("reference_images", "distorted_images"))
    pairs = []
    for number, line in lines:
        words = line.split()
        if len(words) != 2:
            raise _bad(source, number, f"'{line.strip()}' is no score and name")
        parts = _named(words[1], r"(i\d+)_(\d+)_(\d+)\.bmp", source, number, "I01_08_3.bmp")
        reference = originals.path(f"{parts[1]}.bmp", source, number)
        kind = _distortion(kinds, parts[2], source, number)
        score = _number(words[0], source, number)
        pairs.append(RatedPair(reference, distorted.path(words[1], source, number), score, kind, int(parts[3])))
    return _ratings(name, source, pairs, "better", "mean opinion score")


def _kadid(name: str, where: Path) -> Ratings:
    """``dmos.csv``: dist_img, ref_img, dmos, var; a name like I01_08_03.png as of TID."""
    source, files = where / "dmos.csv", _Files(name, where / "images", "*")
    pairs = []
    for number, (file, original, score) in _columns(name, source, [("dist_img", "ref_img", "dmos")]):
        parts = _named(file, r"(i\d+)_(\d+)_(\d+)\.png", source, number, "I01_08_03.png")
        kind = _distortion(KADID, parts[2], source, number)
        reference, shown = (files.path(one, source, number) for one in (original, file))
        pairs.append(RatedPair(reference, shown, _number(score, source, number), kind, int(parts[3])))
    return _ratings(name, source, pairs, "better", "degradation category rating, 5 is imperceptible")


def _raid(name: str, where: Path) -> Ratings:
    """Names like rot_img_01_level_04.png; level 1 is the original, and named as such even where it is a second file."""
    there = [where / file for file in RAID_COLUMNS if (where / file).exists()]
    source = there[0] if there else where / "responses.csv"
    rows, files, pairs = list(_columns(name, source, RAID_COLUMNS[source.name])), _Files(name, where, "**/*"), []
    for number, (original, file, score) in rows:
        parts = _named(file, r"([a-z]+)_(img_\d+)_level_(\d+)\.png", source, number, "rot_img_01_level_04.png")
        if parts[1].lower() not in RAID:
            raise _bad(source, number, f"distortion '{parts[1]}' is none of {', '.join(RAID)}")
        reference, level = files.path(original, source, number), int(parts[3])
        shown = reference if level == 1 and file not in files else files.path(file, source, number)
        shown = reference if level == 1 and _same(reference, shown) else shown
        pairs.append(RatedPair(reference, shown, _number(score, source, number), RAID[parts[1].lower()], level))
    pairs.sort(key=lambda pair: pair.reference)  # stable: the file goes through the distortions first
    return _ratings(name, source, pairs, "worse", "response (psi / sigma)", curves=True)


def _same(one: str, other: str) -> bool:
    """Whether two files hold one image."""
    return one == other or filecmp.cmp(one, other, shallow=False) or torch.equal(*map(read_image, (one, other)))


def _columns(name: str, path: Path, layouts: Sequence[tuple[str, ...]]) -> Iterator[tuple[int, list[str]]]:
    """The wanted columns of each line of a CSV file, by one of several headers."""
    lines = _lines(name, path)
    first = next(lines, (1, ""))
    head = [cell.strip() for cell in next(csv.reader([first[1]]))]
    wanted = next((layout for layout in layouts if set(layout) <= set(head)), None)
    if wanted is None:
        raise _bad(path, first[0], f"the columns are {', '.join(head)}, not {', '.join(layouts[0])}")
    for number, line in lines:
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if len(cells) != len(head):
            raise _bad(path, number, f"{len(cells)} cells, and the head has {len(head)}")
        yield number, [cells[head.index(column)] for column in wanted]


def _ratings(
    name: str, source: Path, pairs: list[RatedPair], higher: str, scored: str, curves: bool = False
) -> Ratings:
    if not pairs:
        raise AnalysisError(f"{name}: {source} has no scored image; get the file anew")
    return Ratings(name, pairs, read_image, higher=higher, scored=scored, curves=curves)  # type: ignore[arg-type]


def _bapps(where: Path, splits: Iterable[str]) -> RatedChoices:
    """``2afc/val/cnn/`` and so on: ``ref``, ``p0``, ``p1`` with images, ``judge`` with shares, all of equal names."""
    folders: list[Path] = []
    for split in splits:
        place = where / "2afc" / split
        inner = [place] if (place / "judge").is_dir() else sorted(path.parent for path in place.glob("*/judge"))
        if not inner:
            raise _missing("bapps", where, f"2afc/{split} with ref, p0, p1 and judge")
        folders += [folder for folder in inner if folder not in folders]
    return RatedChoices("bapps", [triplet for folder in folders for triplet in _triplets(folder)], read_image)


def _triplets(folder: Path) -> Iterator[RatedTriplet]:
    images = {part: _Files("bapps", folder / part, "*") for part in ("ref", "p0", "p1")}
    judged = sorted((folder / "judge").glob("*.npy"))
    if not judged:
        raise _missing("bapps", folder, "judge/*.npy")
    for path in judged:
        try:
            share = float(np.load(path, allow_pickle=False).reshape(()))
        except (OSError, ValueError, EOFError) as error:
            raise AnalysisError(f"{path} holds no share of judges ({error}); get the data set anew") from None
        if not 0 <= share <= 1:
            raise AnalysisError(f"{path} holds {share:g}; a share is from 0 to 1, get the data set anew")
        reference, first, second = (images[part].path(f"{path.stem}.png", path, 1) for part in images)
        yield RatedTriplet(reference, first, second, share, folder.name)
