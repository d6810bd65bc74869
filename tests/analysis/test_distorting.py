"""Images of known strength: stronger at each level, the same for one seed, and nothing else moves."""

import pytest
import torch
from sklearn.datasets import load_digits

import analysis
from analysis.distorting import STRONGEST, distort
from analysis.moving import shift_images
from surgeon.errors import AnalysisError


@pytest.mark.parametrize("source", ["digits", "photos"])
def test_each_level_is_further_from_the_reference(source: str) -> None:
    data = analysis.distorted_samples(source, images=3, size=40, levels=4)
    assert len(data) == 3 * 5 * 4 and data.higher == "worse" and data.distortions == list(STRONGEST)
    assert data[0][0].shape == ((1, 40, 40) if source == "digits" else (3, 40, 40))
    for place in range(0, len(data), 4):
        steps = [float((a - b).square().mean()) for a, b, _ in data[place : place + 4]]
        assert steps == sorted(steps) and steps[0] > 0
        assert [pair.score for pair in data.items[place : place + 4]] == [1, 2, 3, 4]


def test_the_same_for_one_seed() -> None:
    one, same, other = (analysis.distorted_samples(images=2, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(one, same, strict=True))
    assert torch.equal(one[0][1], one[0][1]) and not torch.equal(one[0][1], other[0][1])
    assert not torch.equal(one[0][1] - one[0][0], one[25][1] - one[25][0])  # noise of another image is other noise


def test_a_name_is_one_image_whatever_the_seed() -> None:
    """So two draws that overlap, as these do, can be seen to."""
    digits = [analysis.distorted_samples(images=40, seed=seed, size=8, levels=1) for seed in (7, 100)]
    photos = [analysis.distorted_samples("photos", images=99, seed=seed, size=212, levels=1) for seed in (1, 2)]
    assert set(digits[0].references) & set(digits[1].references) == {"digits 767"}
    for one, other in (digits, photos):
        assert len(set(one.references)) == len(one.references) == len({one.image(n).sum() for n in one.references})
        shared = set(one.references) & set(other.references)
        assert shared and all(torch.equal(one.image(name), other.image(name)) for name in shared)
    assert float(digits[0].image("digits 767")[0, 4, 4]) == load_digits().images[767, 4, 4] / 16


@pytest.mark.slow
def test_the_page_judges_digits_that_no_net_and_no_weight_saw() -> None:
    from tests.benchmarks.write_perceptual import samples, unseen

    parts = [set(samples("digits", part).references) for part in ("judged", "teach", "validate")]
    assert [len(part) for part in parts] == [40, 40, 20] and len(set().union(*parts)) == 100
    assert len(unseen()) == 450 and set().union(*parts) <= unseen()  # a quarter of 1,797 validates the nets


def test_what_each_distortion_does() -> None:
    image = torch.rand(3, 50, 50)
    assert all(torch.allclose(distort(image, kind, 0.0), image, atol=1e-6) for kind in STRONGEST)
    assert torch.equal(distort(image, "shift", 1.0), shift_images(image[None], 8, 8)[0])
    assert torch.allclose(distort(image, "contrast", 1.0).std(), 0.2 * image.std(), rtol=0.02)
    assert distort(image, "blur", 1.0).std() < 0.5 * image.std()
    flat = torch.full((1, 200, 200), 0.5)
    assert float((distort(flat, "noise", 0.5) - flat).std()) == pytest.approx(0.15, rel=0.05)
    assert all(torch.allclose(distort(flat, kind, 1.0), flat, atol=1e-5) for kind in STRONGEST if kind != "noise")
    with pytest.raises(AnalysisError, match="distortion 'jpeg' is unknown; there are noise, blur"):
        distort(image, "jpeg", 1.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels(channels: int) -> None:
    for source in ("digits", "photos"):
        assert len(analysis.distorted_samples(source, images=1, channels=channels)[0][1]) == channels


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"source": "cats"}, "source is 'cats'; it is one of digits, photos"),
        ({"distortions": ["jpeg"]}, r"distortions are \['jpeg'\]; there are noise"),
        ({"distortions": []}, "no distortion"),
        ({"distortions": "noise"}, "is the text 'noise'; write a list"),
        ({"images": 0}, "images is 0; give 1 to 1797"),
        ({"size": 500}, "size is 500; give 8 to 213"),
        ({"levels": 0}, "levels is 0"),
        ({"channels": 2}, "channels is 2; give 1 or 3"),
        ({"distortions": None}, "distortions is None; write a list of names"),
        ({"distortions": ["noise", "noise"]}, "name each once"),
        ({"images": 2.5}, "images is 2.5; give 1 to 1797"),
        ({"images": "a"}, "images is 'a'"),
        ({"images": 300, "source": "photos", "size": 213}, "of 213 pixels there are 216 squares"),
        ({"size": None}, "size is None; give 8 to 213"),
        ({"levels": 2.5}, "levels is 2.5"),
        ({"seed": -5}, "seed is -5; give a whole number from 0 up"),
    ],
)
def test_bad_settings(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(AnalysisError, match=words):
        analysis.distorted_samples(**arguments)  # type: ignore[arg-type]
