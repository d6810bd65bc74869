"""The words of docs/attribution.md around the figures that write_attribution computes."""

TEXT = """# Which parts does an answer rest on?

Two questions, asked with [captum](https://captum.ai) (`pip install "cnn-surgeon[attack]"`): how much of an answer flows
through each unit of a network, and does that tell what the unit is worth? And does a saliency map move with the image?
The network is put back bit for bit, also after an error or Ctrl-C.

```python
import torch
import surgeon
import analysis

model = surgeon.create_model("preact_resnet18_plain", width=8, num_classes=10)
data = [(torch.rand(8, 3, 32, 32), torch.arange(8))]  # batches of (images, class indices)
found = analysis.attribution(model, data, method="conductance", steps=8)
print(found)                          # found.figure(), found.report("page.html"), found.to_json("a.json")
moved = analysis.attribution_equivariance(model, data, method=["saliency", "smoothgrad"], shifts=(1, 2, 4))
print(moved)
```

```bash
surgeon analyze attribution resnet50 --pretrained --data folder:imagenet/val --limit 100 --no-robustness
surgeon analyze attribution-shifts runs/digits_spd/original --method saliency --method gradcam
```

## Attribution to units

An attribution gives every number in the output of a unit a part of f(x) - f(b): f is the logit of a class, x the
image, b the baseline. Of a detector, f is the sum of the `top` (100) largest scores, a place's score being that of
its likeliest class. `target="label"` explains the right class, `"predicted"` the chosen one.

| method | what a number in a unit's output gets |
|---|---|
| `conductance` | gradient times change of the number, summed along the straight path from b to x (Dhamdhere 2019) |
| `branch_conductance` | the same of output less input, where a residual block's skip is an identity |
| `integrated_gradients` | mean gradient on the path of *this unit's output*, times its change (Sundararajan 2017) |
| `gradient_x_activation` | gradient times value, at x alone |

- `signed_share`: their sum over f(x) - f(b). Of conductance it is 1 wherever everything passes through (every
  residual block of a ResNet, whatever it does), less or more where other ways lead past the unit. Of integrated
  gradients it is the share of the answer that is lost where this unit alone says what it says of the baseline:
  everything else stays as it is for x.
- `absolute_share`: the sum of absolute values over |f(x) - f(b)|: how much flows, counting what cancels. It grows
  with the number of values that pull against each other, and is what ranks units here.
- Both are medians over the images, with an interval between two order statistics that needs no distribution (at least
  95%, none for fewer than six images). Images whose answer is that of their baseline have no share; they are counted.
- `integration_error_share`: of conductance, how far the sum is from that of half the steps; of integrated gradients,
  how far from the change of the answer it should be. `completeness_error`, in the settings, says how far the sum over
  the pixels is from f(x) - f(b). More `steps` make both smaller.
- `rerand_difference`, `verdict`: what the unit costs when it is drawn anew ([inside.md](inside.md)); measured on the
  same images, or taken from `robustness=`, a result you have. `rank_correlation`: Spearman's over the units, with a
  percentile interval from drawing units anew (narrow for few units: read it with the number of units) and the share
  of chance orders that are as far from zero (all orders up to seven units, else 9,999).

**Baselines.** `"zero"` is 0 as the model takes images: the mean colour of normalised data. `"mean"` is each image's
mean colour, `"blur"` the image blurred by an eighth of its side; numbers and tensors are taken as they are.

**Whose output.** Of a unit of several modules, that of the one which finishes last; of a module called several times,
of its last call; of one that answers several tensors, the first. The column `taken` says which. Code that writes into
its input (`nn.ReLU(inplace=True)`, `x += shortcut`) is of no consequence: the unit's output is read, and the code
goes on with a copy, so that a network whose code counts on what was written stays what it is. Values of the model
itself (class tokens) have no output; layers that mix images into one row have none per image; `note` says so.

**One pass for all units.** Captum's `LayerConductance` needs a pass over the path for each layer, and takes the
gradient at the beginning of each step, so that its error falls with the number of steps. Here one pass serves all
units, and steps are trapezoids, whose error falls with the square. For {blocks} units of the ResNet below,
{cost_images} images and {steps} steps: {ours:.1f} s against {stock:.1f} s one by one. `integrated_gradients` is
captum's own, a pass for each unit. `memory=` (or `internal_batch_size=`) bounds a forward and backward pass: paths,
and if need be images, are cut.

## Does it tell what a unit is worth? On digits

Measured on {date}, torch {torch}, captum {captum}. `python -m tests.benchmarks.write_attribution` trains the nets
of the shipped recipes `digits_layers_fcn`, `_vgg` and `_resnet`, {seeds} seeds each, and writes this page. {images}
validation images, baseline zero, {steps} steps; units drawn anew three times, on {judged} images. The sum over pixels
is within {completeness:.1%} of f(x) - f(b) in every net, that over any unit's output within {apart:.1%}: in these
nets everything passes through every unit. {left} images were left out.

Spearman's correlation of absolute share and loss when drawn anew, over the units of a net:

{ranks}

{verdicts}

The output of every unit of these nets carries all of the answer (signed share 1), skips included, so that what ranks
them is how much cancels inside: that mostly falls with depth, as maps get smaller, whatever a unit is worth.
`branch_conductance` leaves out what skips carry past a block. Part of what it tells is which units have a skip past
them at all; over the blocks whose skip is an identity alone it is, seed by seed,
{alone}.

![shares of the ResNet's blocks, and what drawing them anew costs](attribution_units.png)

## Attribution equivariance

`analysis.attribution_equivariance` compares the map of the shifted image with the shifted map of the image, for the
same class (that of the image as it was):

- `pearson`, `spearman`: correlation over the pixels, 1 where the map moves exactly with the image; `l2`: 2|a - b| /
  (|a| + |b|), 0 there. Means over the images with bootstrap intervals.
- `chance_...`: against the map of another image (the one before). `stayed_...`: against the map left where it was:
  one so smooth that a pixel makes no difference is as good as that.

Maps: `saliency`, `input_x_gradient`, `integrated_gradients`, `smoothgrad` (each image's noise is drawn once, and moves
with it), `guided_backprop`, `gradcam` and `guided_gradcam` (at the last unit with a feature map, or `unit=`). `padding`
is `"circular"`, `"mirror"` or `"black"`; without wrapping only what shows the same pixels is compared. A network of
circular convs, pointwise nonlinearities and global pooling has 1 to rounding; with a stride only at shifts it divides.

Below: the convnet of `digits_spd` (digits 16 pixels wide at random places of 32; strides of 8 in all, zeros at the
borders, so that a wrapping shift of 8 changes something too) and the same net after `blurpool`, `spd` and `aps`
(circular), each fine-tuned for ten epochs; circular shifts along the diagonal, {images} images, mean ± standard
deviation over {seeds} seeds of Pearson's correlation.

{shifts}

{shift_words}

![how far maps of the original net move with the image](attribution_shifts.png)

## Limits

- A network with random layers draws anew in each pass; sums then hold in the mean only.
- Guided methods change gradients at `nn.ReLU` layers alone: without one they are refused, and functions
  (`F.relu`) keep their gradients. GradCAM needs maps with channels first, which Swin and ViT do not have.
- Segmentation, pose and oriented boxes are not explained, only detectors and classifiers.
- LayerDeepLift and methods that need modules used once are left out: many networks call one activation several times.
"""
