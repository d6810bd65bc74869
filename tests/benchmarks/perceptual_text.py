"""The words of docs/perceptual.md; `write_perceptual` fills in what was measured."""

TEXT = """# Perceptual distance

How different do two images look? `analysis.PerceptualDistance` answers in the features of any network, before or after
surgery; `fit_perceptual` learns its weights from scores that people gave; `perceptual` measures how well a distance
agrees with people, with intervals, and how much it sees of small shifts. The last part of this page was measured on
{date}, torch {torch}, timm {timm}, {machine}, by `python -m tests.benchmarks.write_perceptual`.

## Use

```python
import timm
from analysis import PerceptualDistance, fit_perceptual, perceptual, rating_data

model = timm.create_model("vgg16.tv_in1k", pretrained=True)  # or operated: surgeon.apply(model, "blurpool")
distance = PerceptualDistance(model, form="gap")  # or form="lpips"
tid = rating_data("tid2008", "data/TID2008")
print(fit_perceptual(distance, tid, validation=0.2))  # 20% of the references validate
distance.save("runs/gap")  # weights as safetensors, the rest as JSON

found = perceptual(distance, rating_data("kadid10k", "data/kadid10k"))
print(found)  # Spearman, Pearson, Kendall; all, and per distortion
found.report("runs/gap/kadid.html")

distance = PerceptualDistance.load("runs/gap", model)
value = distance(reference, distorted)  # (N, 3, H, W) twice, values 0 to 1; differentiable
```

```bash
surgeon analyze perceptual vgg16.tv_in1k --pretrained --form gap --fit tid2008:data/TID2008 --data kadid10k:data/kadid
surgeon analyze perceptual vgg16.tv_in1k --pretrained --weights runs/perceptual/weights --data raid:data/RAID
```

The distance has a frozen copy of the network in evaluation mode; your model is never touched. Its one trainable
parameter holds the weights. A pass ends at the last tap, so images may have any size the layers before it take
(`size=` resizes them first). Mean and std are those of timm's `pretrained_cfg`, or given. Taps are the outputs of
timm's `feature_info` (of VGG the ReLUs before the pools, as in LPIPS, and the last pool), else the last module of each
stage, or those named: VGG-16's five pools are
`taps=("features.4", "features.9", "features.16", "features.23", "features.30")`.

Any other metric is measured alike: `perceptual` takes a function of two batches that answers (N,).

### Data

| name | what was judged | published files that are read |
| --- | --- | --- |
| `tid2008`, `tid2013` | opinion score, higher is better | `mos_with_names.txt`, `{{reference,distorted}}_images/` |
| `kadid10k` | `dmos`, which is higher for *better* images | `dmos.csv`, `images/` |
| `raid` | response curves (psi / sigma), higher is worse | `responses.csv` or `perceptual_scales.csv`, images below |
| `bapps` | share of judges who chose the second image | `2afc/{{train,val}}/*/{{ref,p0,p1,judge}}` |

Every file is looked for when the list is read, whatever the case of its name; images are opened when asked for (but
for second copies of RAID's originals, which are compared with them at once).

Your own pairs: `Ratings("mine", [RatedPair(reference, distorted, score, distortion)], read, higher="worse")`, `read`
from a name to a tensor. `higher` is asked for because names mislead. `data.split(0.2)` parts by reference, `data.only`
picks. `distorted_samples("digits")` and `("photos")` make images of known strength of what scikit-learn ships; two of
its seeds may draw the same digit, so draw once and split.

`split`, and the check that validation shares no reference with training, see names, not content. TID2008 and TID2013
share their 25 reference photographs: to learn on one and judge on the other is no test on new content.

RAID's level 1 is the original: it counts in the curves, not in correlations and shifts, where a pair of an image with
itself would match for free. `found.settings["self_pairs"]` and a note tell how many pairs were left out.

## Definitions

f and g are the features of both images at a tap, (C, H, W); w >= 0 one weight per channel.

- `form="lpips"`: f' = f / (|f| over channels + eps); d = sum over taps of the mean over positions of
  sum over channels of w (f' - g')^2.
- `form="gap"`: F, G = averages of f, g over positions, all taps joined to one vector; d = sqrt(mean((w (F - G))^2)).
- Loss of `fit_perceptual`: minus Pearson's correlation of d with the scores (turned so that more is worse), per batch.
  What the weights act on is one number per channel and pair: the network looks at each image once, epochs cost next
  to nothing (`memory=` says how much is kept).
- Agreement: Spearman, Pearson (of d as it is, no logistic curve fitted between), Kendall's tau-b, over all pairs and
  per distortion; `spearman_of_curves` within each reference and distortion, averaged. 95% intervals draw *references*
  anew, with all their images: images made from one reference are no independent witnesses.
- Shifts: `relative_distance` is the mean distance of a reference to itself shifted, over the mean distance of its
  distorted images, both averaged over references first; `share_below` the share of distorted images nearer to their
  reference than that.
- Choices (BAPPS): `agreement` is the mean share of judges who chose as the distance does (a tie counts half);
  `agreement_of_judges` is what one more judge would reach, mean of p^2 + (1 - p)^2.

## What differs from the paper and its code

Paper 002 (arXiv:2604.27870) reports, for VGG-16: Spearman 0.89 (GAP form) against 0.75 (retrained lpips form) on
KADID-10k, 0.95 on RAID. Neither its text nor its code says over what RAID's figure is taken, so both the pooled and the
per-curve one are given here.

| | paper's code | LPIPS | here |
| --- | --- | --- | --- |
| weights, lpips form | free: distances may be negative | negative ones set to 0 after a step | softplus: above 0 |
| weights, gap form | free; only squares count | - | softplus |
| weights at the start | lpips form random, gap form 1 | random | 1 |
| taps of VGG-16 | after the five pools | ReLUs before them | as timm says (before), or named |
| eps | 1e-6 | 1e-10 | 1e-6, `eps=` |
| dropout in training | none | 0.5 | none, `dropout=` |
| trained on | TID2008, mean opinion scores | BAPPS, a small ranking net | any scores |
| epoch that is kept | best mean over validation batches | last | best over all validation pairs |
| images | 384 x 512 | 64 x 64 | any |
| intervals | none | none | over references |

## Measured on the smoke data

None of the databases is at hand where this page was written, and no ImageNet weights: what follows shows that all of it
works, and compares the forms on a question with known answers. **It is no test of the paper's figures.** Nobody judged
these images: a "score" is the level of the distortion, and levels of different distortions are not equally visible.

- Network: `digits_vgg16` (VGG-16's thirteen convs, 8 to 32 channels, 112 weights), untrained, and trained for
  {net_epochs} epochs on digits; {seeds} seeds of both. Taps are its five pools, as in the paper's code. "blurpool": the
  trained net with its pools anti-aliased by `surgeon.apply(model, "blurpool")`, not trained again.
- Weights: learned on {teaching} digits with noise, blur and contrast in five levels, {validating} more validate; 200
  epochs at most, Adam, {lr}. No shift and no rotation is among what they are taught.
- Judged on {judged} other digits, and on {judged} squares of scikit-learn's two photographs in grey (some overlap
  others), both with all five distortions. "taught": pooled over noise, blur and contrast; "curves": Spearman within a
  reference and distortion, averaged, of shift and of rotation; mean ± standard deviation over seeds.
- No digit that judges taught or validated weights, and none of the three was among those the nets were trained on: all
  are of the validation part of the recipe's split, drawn at once and parted by reference.
- "1 px", "4 px": the distance of an image to itself, shifted (mirrored border), relative to the mean distortion.

### Digits

{digits}

### Photographs

{photos}

![Agreement per distortion, small shifts and curves of the GAP form on photographs](perceptual.png)

The picture is `found.figure()` of the GAP form, weights learned, trained net, seed 0, on photographs.

### Reading

Differences are paired by seed, with their 95% interval (Student's t over {seeds} seeds, wide as three are few).

{verdict}

In short:

{closing}

Control: with circular convolutions, no stride and a circular shift the GAP form answers {control:.0e} of the mean
distortion, which is rounding; the lpips form {control_lpips:.0%}.
"""
