"""Random distortions of images, a mini-batch at a time."""

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from lenet.params import Train


def augmented(images: Tensor, options: Train, random: torch.Generator) -> Tensor:
    """The images as `train.flip` and `train.augment` say, anew in each call: uint8 [N, H, W] -> [N, H, W]."""
    if options.flip:
        images = random_flip(images, random)
    if options.augment:
        images = random_affine(images, options.augment, random)
    return images


def random_flip(images: Tensor, random: torch.Generator) -> Tensor:
    """Flip each image left to right with probability 1/2: [N, H, W] -> the same shape and type."""
    chosen = torch.rand(len(images), 1, 1, generator=random) < 0.5
    return torch.where(chosen.to(images.device), images.flip(2), images)


def random_affine(images: Tensor, strength: float, random: torch.Generator) -> Tensor:
    """Rotate, scale, shear and shift each image by random amounts: uint8 [N, H, W] -> float32 [N, H, W] in [0, 255].

    At strength 1 the amounts are uniform: an angle in [-12, 12] degrees, a scale in [0.88, 1.12], the tangent of a
    shear in [-0.2, 0.2], and a shift in [-2.5, 2.5] pixels along each axis. Another strength multiplies these ranges.
    The transform maps each new pixel to where it is read, so a scale of 0.88 enlarges the image 1.14 times.
    Interpolation is bilinear; pixels outside the image count as background. LeCun et al., 1998, section III, trained on
    distorted images too: shifted, scaled, squeezed and sheared.
    """
    height, width = images.shape[1:]
    amounts = strength * (2 * torch.rand(5, len(images), 1, 1, generator=random) - 1)
    angle, scale, shear = amounts[0] * math.radians(12), 1 + 0.12 * amounts[1], 0.2 * amounts[2]
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    # Centres of pixels, as grid_sample counts: from -1 at one border to 1 at the other.
    x = (2 * torch.arange(width) + 1) / width - 1
    y = ((2 * torch.arange(height) + 1) / height - 1).unsqueeze(1)
    # As `affine_grid`, whose batched product has other bits on other processors and takes several times as long.
    read_x = cosine * x + (shear * cosine - sine) * y + 2.5 * amounts[3] * 2 / width
    read_y = sine * x + (shear * sine + cosine) * y + 2.5 * amounts[4] * 2 / height
    grid = torch.stack([read_x, read_y], dim=3).to(images.device)
    return grid_sample(images.unsqueeze(1).float(), grid, align_corners=False).squeeze(1)
