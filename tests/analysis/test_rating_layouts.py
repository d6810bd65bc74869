"""Databases in miniature, in the layout they are published in, and every way in which a copy may be broken."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import analysis
from analysis.rating_layouts import KADID, TID
from analysis.ratings import RatedChoices, RatedPair, RatedTriplet, Ratings, read_image
from surgeon.errors import AnalysisError


def picture(path: Path, value: int, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255 - value)).save(path)


def tid(folder: Path, name: str = "tid2013") -> Path:
    """Lists and files differ in case, as in the published archives."""
    for reference, file in (("I01", "I01.BMP"), ("i25", "i25.bmp")):
        picture(folder / "reference_images" / file, 100)
        for kind in (1, 8, 17):
            for level in (1, 2):
                picture(folder / "distorted_images" / f"{reference}_{kind:02d}_{level}.bmp", 100 + level)
    lines = [
        f"{6 - level}.5{kind} i{r:02d}_{kind:02d}_{level}.bmp"
        for r in (1, 25)
        for kind in (1, 8, 17)
        for level in (1, 2)
    ]
    (folder / "mos_with_names.txt").write_text("\r\n".join(lines) + "\r\n")
    return folder


def kadid(folder: Path) -> Path:
    lines = ["dist_img,ref_img,dmos,var"]
    for reference in (1, 2):
        picture(folder / "images" / f"I{reference:02d}.png", 10)
        for kind in (1, 25):
            for level in (1, 5):
                file = f"I{reference:02d}_{kind:02d}_{level:02d}.png"
                picture(folder / "images" / file, 10 * level)
                lines.append(f"{file},I{reference:02d}.png,{5 - 0.5 * level},0.25")
    (folder / "dmos.csv").write_text("\n".join(lines))
    return folder


def raid(
    folder: Path,
    head: str = "Reference,Distorted,Curve_Value,Sigmas,Response,Estimated_MOS",
    file: str = "responses.csv",
) -> Path:
    """Of level 1, the original, there is no second file."""
    lines, columns = [head], head.split(",")
    for kind in ("rot", "trans", "scale", "gn"):
        for number in (1, 2):
            reference = f"img_{number:02d}.png"
            picture(folder / "images" / "references" / reference, 50)
            for level in (1, 2, 3):
                shown = f"{kind}_img_{number:02d}_level_{level:02d}.png"
                if level > 1:
                    picture(folder / "images" / kind / shown, 50 + level)
                values = {0: reference, 1: f"{shown}  ", columns.index(response_of(columns)): str(1.5 * (level - 1))}
                lines.append(",".join(values.get(place, "0.5") for place in range(len(columns))))
    (folder / file).write_text("\n".join(lines))
    return folder


def response_of(columns: list[str]) -> str:
    return next(name for name in ("Response", "resp", "Percept_scale") if name in columns)


def bapps(folder: Path) -> Path:
    for split in ("val/cnn", "val/color", "train/mix"):
        for number, share in enumerate((0.0, 0.4, 1.0)):
            for place, part in enumerate(("ref", "p0", "p1")):
                picture(folder / "2afc" / split / part / f"{number:06d}.png", 60 * number + 10 * place)
            judge = folder / "2afc" / split / "judge" / f"{number:06d}.npy"
            judge.parent.mkdir(exist_ok=True)
            np.save(judge, np.array([share], dtype=np.float32))
    return folder


@pytest.mark.parametrize("name", ["tid2008", "tid2013"])
def test_tid(tmp_path: Path, name: str) -> None:
    data = analysis.rating_data(name, tid(tmp_path))
    assert isinstance(data, Ratings) and (len(data), len(data.references), data.higher) == (12, 2, "better")
    assert data.distortions == ["additive gaussian noise", "gaussian blur", "contrast change"]
    assert (data.items[3].score, data.items[3].level, data.items[3].distortion) == (4.58, 2, "gaussian blur")
    reference, distorted, score = data[0]
    assert reference.shape == distorted.shape == (3, 4, 6) and score == 5.51
    assert distorted[:, 0, 0].tolist() == pytest.approx([101 / 255, 0, 154 / 255])
    assert data.worse[0] < data.worse[1]  # a lower opinion is a larger difference


def test_kadids_dmos_is_higher_for_better_images(tmp_path: Path) -> None:
    data = analysis.rating_data("kadid10k", kadid(tmp_path))
    assert (len(data), data.higher, data.distortions) == (8, "better", ["gaussian blur", "contrast change"])
    assert [pair.score for pair in data.items[:2]] == [4.5, 2.5] and data.worse[0] < data.worse[1]


LAYOUTS = [
    ("Reference,Distorted,Curve_Value,Sigmas,Response,Estimated_MOS", "responses.csv"),
    ("Reference,Distorted,Response,Response_Scaled", "responses.csv"),
    ("ref,dist_ord,resp", "responses.csv"),
    ("Reference,Distorted,Curve_Value,Sigmas,Percept_scale,Estimated_MOS,JOD", "perceptual_scales.csv"),
]


@pytest.mark.parametrize(("head", "file"), LAYOUTS)
def test_raid_in_all_versions(tmp_path: Path, head: str, file: str) -> None:
    data = analysis.rating_data("raid", raid(tmp_path, head, file))
    assert (len(data), data.higher, data.curves) == (24, "worse", True)
    assert set(data.distortions) == {"rotation", "translation", "scale", "gaussian noise"}
    first = data.items[0]
    assert first.distorted == first.reference and (first.level, first.score) == (1, 0.0)
    assert data.items[2].score == 3.0 and data.items[2].distorted.endswith("rot_img_01_level_03.png")
    assert [p.reference for p in data.items] == sorted(p.reference for p in data.items)  # those of one together


def test_level_1_of_raid_with_a_file_of_its_own(tmp_path: Path) -> None:
    """It is the reference where it shows the same, whatever the bytes; and an image of its own where it does not."""
    raid(tmp_path)
    original, own = tmp_path / "images" / "references" / "img_01.png", tmp_path / "images" / "rot"
    shutil.copy(original, own / "rot_img_01_level_01.png")
    Image.open(original).save(own / "rot_img_02_level_01.png", compress_level=0)  # both references show the same
    picture(tmp_path / "images" / "gn" / "gn_img_01_level_01.png", 51)
    data = analysis.rating_data("raid", tmp_path)
    assert isinstance(data, Ratings)
    assert [pair.distortion for pair in data.items if pair.level == 1 and not pair.of_one] == ["gaussian noise"]
    assert len(data.of_two()) == 17 and not any(pair.of_one for pair in data.of_two().items)


def test_bapps(tmp_path: Path) -> None:
    data = analysis.rating_data("bapps", bapps(tmp_path))
    assert isinstance(data, RatedChoices) and len(data) == 6 and data.distortions == ["cnn", "color"]
    assert [item.share for item in data.items[:3]] == pytest.approx([0.0, 0.4, 1.0])
    for number, item in enumerate(data.items[:3]):
        names = {"ref": item.reference, "p0": item.first, "p1": item.second}
        assert {Path(name).parent.name: name for name in names.values()} == names
        reds = [round(255 * float(image[0, 0, 0])) for image in data[number][:3]]
        assert reds == [60 * number, 60 * number + 10, 60 * number + 20]  # reference, first, second
    assert len(analysis.rating_data("bapps", tmp_path, split="train")) == 3
    some = analysis.rating_data("bapps", tmp_path, split=["val/color", "train/mix"])
    assert some.distortions == ["color", "mix"] and [x.shape for x in some[1][:3]] == [(3, 4, 6)] * 3


def test_lists_of_distortions() -> None:
    assert (len(TID), len(KADID)) == (24, 25)
    assert (TID[7], TID[16], TID[23]) == ("gaussian blur", "contrast change", "sparse sampling")
    assert (KADID[0], KADID[9], KADID[24]) == ("gaussian blur", "jpeg", "contrast change")


Spoil = Callable[[Path], object]


def edit(file: str, old: str, new: str) -> Spoil:
    return lambda folder: (folder / file).write_text((folder / file).read_text().replace(old, new, 1))


def gone(file: str) -> Spoil:
    return lambda folder: (folder / file).unlink()


BROKEN: list[tuple[str, Callable[[Path], Path], Spoil, str]] = [
    ("tid2013", tid, gone("mos_with_names.txt"), "tid2013: no mos_with_names.txt in .*; unpack tid2013.rar"),
    ("tid2013", tid, gone("reference_images/i25.bmp"), r"no image 'i25.bmp' in .*reference_images \(.*line 7"),
    ("tid2013", tid, gone("distorted_images/I01_08_2.bmp"), r"no image 'i01_08_2.bmp' in .*images \(.*line 4, names"),
    ("tid2013", tid, edit("mos_with_names.txt", "5.58 ", "5,58 "), r"mos_with_names.txt, line 3: '5,58' is no score"),
    ("tid2013", tid, edit("mos_with_names.txt", "5.58 ", ""), r"line 3: 'i01_08_1.bmp' is no score and name"),
    ("tid2013", tid, edit("mos_with_names.txt", "5.58", "nan"), r"line 3: 'nan' is no score"),
    ("tid2013", tid, edit("mos_with_names.txt", "i01_08_1", "photo"), r"line 3: 'photo.bmp' is no name of a distorted"),
    ("tid2013", tid, edit("mos_with_names.txt", "i01_08_1", "i01_25_1"), r"line 3: distortion 25 is none of 1 to 24"),
    ("tid2008", tid, edit("mos_with_names.txt", "i01_08_1", "i01_18_1"), r"line 3: distortion 18 is none of 1 to 17"),
    ("tid2013", tid, lambda f: (f / "mos_with_names.txt").write_text(""), "has no scored image"),
    ("kadid10k", kadid, gone("dmos.csv"), "kadid10k: no dmos.csv in .*; unpack kadid10k.zip"),
    ("kadid10k", kadid, gone("images/I02.png"), r"no image 'I02.png' in .*images \(dmos.csv, line 6"),
    ("kadid10k", kadid, edit("dmos.csv", "dmos", "mos"), "line 1: the columns are dist_img, ref_img, mos, var, not"),
    ("kadid10k", kadid, edit("dmos.csv", ",0.25", ""), "dmos.csv, line 2: 3 cells, and the head has 4"),
    ("kadid10k", kadid, edit("dmos.csv", ",4.5,", ",good,"), "dmos.csv, line 2: 'good' is no score"),
    ("kadid10k", kadid, edit("dmos.csv", "I01_25_01", "I01_26_01"), "line 4: distortion 26 is none of 1 to 25"),
    ("raid", raid, gone("responses.csv"), "raid: no responses.csv in .*; get responses.csv or perceptual_scales.csv"),
    ("raid", raid, gone("images/gn/gn_img_02_level_03.png"), r"no image 'gn_img_02_level_03.png' in .* line 25, names"),
    ("raid", raid, edit("responses.csv", "rot_img", "rots_img"), "line 2: distortion 'rots' is none of rot, trans"),
    ("raid", raid, edit("responses.csv", "_level_", "-level-"), "line 2: 'rot_img_01-level-01.png' is no name"),
    ("bapps", bapps, gone("2afc/val/cnn/p1/000001.png"), r"no image '000001.png' in .*p1 \(000001.npy"),
    ("bapps", bapps, lambda f: (f / "2afc/val/cnn/judge/000000.npy").write_bytes(b"?"), "holds no share of judges"),
    ("bapps", bapps, lambda f: np.save(f / "2afc/val/cnn/judge/000000.npy", np.array([1.5])), "holds 1.5; a share is"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "spoil", "words"), BROKEN)
def test_broken_copies(tmp_path: Path, name: str, make: Callable[[Path], Path], spoil: Spoil, words: str) -> None:
    make(tmp_path)
    analysis.rating_data(name, tmp_path)
    spoil(tmp_path)
    with pytest.raises(AnalysisError, match=words):
        analysis.rating_data(name, tmp_path)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="no database 'kadid'; did you mean 'kadid10k'"):
        analysis.rating_data("kadid", tmp_path)
    with pytest.raises(AnalysisError, match=r"is published whole, and split is 'train'; part it by data\.split"):
        analysis.rating_data("tid2013", tmp_path, split="train")
    with pytest.raises(AnalysisError, match="bapps: no 2afc/val/cnns with ref, p0, p1 and judge in"):
        analysis.rating_data("bapps", bapps(tmp_path), split="val/cnns")


def test_images_are_read_when_asked_for(tmp_path: Path) -> None:
    data = analysis.rating_data("kadid10k", kadid(tmp_path))
    (tmp_path / "images" / "I02.png").write_bytes(b"no image")
    assert len(data[0]) == 3
    with pytest.raises(AnalysisError, match=r"I02.png cannot be read as an image \(cannot identify image file\)"):
        data[5]
    (tmp_path / "images" / "I02.png").unlink()
    with pytest.raises(AnalysisError, match="No such file"):
        data[5]


def test_grey_and_palette_files_become_colour(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "1"):
        Image.new(mode, (3, 2), 1).save(tmp_path / "one.png")
        assert read_image(tmp_path / "one.png").shape == (3, 2, 3)


IMAGES = {"a": torch.zeros(1, 2, 2), "b": torch.ones(1, 2, 2), "c": torch.full((1, 2, 2), 0.5)}
PAIRS = [
    RatedPair("a", "b", 3, "x"),
    RatedPair("a", "c", 1, "y"),
    RatedPair("b", "a", 2, "x"),
    RatedPair("c", "a", 0, "y"),
]


def test_parts_of_ratings() -> None:
    data = Ratings("mine", PAIRS, IMAGES.__getitem__, higher="better")
    assert data.worse.tolist() == [-3, -1, -2, 0] and [score for *_, score in data] == [3, 1, 2, 0]
    assert [p.score for p in data.only(distortions=["x"]).items] == [3, 2]
    assert data.only(references="a").references == ["a"] and data[1:3].items == tuple(PAIRS[1:3])
    train, held = data.split(0.34, seed=1)
    assert (len(train.references), len(held.references)) == (2, 1) and not set(train.references) & set(held.references)
    assert len(train) + len(held) == 4 and train.higher == "better" and data.split(0.34, seed=1)[1].items == held.items
    assert len({data.split(0.34, seed=s)[1].references[0] for s in range(20)}) == 3
    choices = RatedChoices("mine", [RatedTriplet("a", "b", "c", 0.5)], IMAGES.__getitem__)
    assert [x.mean().item() for x in next(iter(choices))[:3]] == [0, 1, 0.5] and choices.first(None) is choices


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Ratings("mine", [], IMAGES.__getitem__, higher="worse"), "mine: no judged image"),
        (lambda: Ratings("mine", PAIRS, IMAGES.__getitem__, higher="up"), "higher='up'; say whether higher scores"),
        (lambda: Ratings("mine", [RatedPair("a", "b", float("nan"))], IMAGES.__getitem__, higher="worse"), "is nan"),
        (lambda: RatedChoices("mine", [RatedTriplet("a", "b", "c", 2)], IMAGES.__getitem__), "share of 'c' is 2; give"),
        (lambda: mine().only(distortions=["z"]), "mine has no distortion 'z'; there are x, y"),
        (lambda: mine().split(0.1), "leaves a part empty"),
        (lambda: mine().split(1.0), "give a share between 0 and 1"),
        (lambda: Ratings("mine", PAIRS, lambda n: IMAGES[n] * 255, higher="worse")[0], "values 255 to 255; give 0"),
        (lambda: Ratings("mine", PAIRS, lambda n: n, higher="worse")[0], "image 'a' is str; read must answer floats"),
        (lambda: Ratings("mine", PAIRS, lambda n: IMAGES[n][0], higher="worse")[0], r"is torch.float32 \(2, 2\)"),
    ],
)  # fmt: skip
def test_bad_ratings(call: Callable[[], object], words: str) -> None:
    with pytest.raises(AnalysisError, match=words):
        call()


def mine() -> Ratings:
    return Ratings("mine", PAIRS, IMAGES.__getitem__, higher="worse")
