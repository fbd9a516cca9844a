"""Random distortions of images, batch by batch on tensors."""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


def random_affine(images: Tensor, strength: float, random: torch.Generator) -> Tensor:
    """Turn, scale, shear and shift each image by amounts of its own: uint8 [N, H, W] -> float32 [N, H, W], 0 to 255.

    At strength 1 the amounts are uniform in -12 to 12 degrees, 0.88 to 1.12 times, -0.2 to 0.2 (a tangent) and -2.5 to
    2.5 pixels along each axis; another strength multiplies these ranges. They say where each new pixel is read, so that
    0.88 times is an image 1.14 times as large. Pixels are interpolated bilinearly, outside is background. LeCun et al.,
    1998, section III, trained on such images too: shifted, scaled, squeezed and sheared.
    """
    amounts = strength * (2 * torch.rand(5, len(images), generator=random) - 1)
    angle, scale, shear = amounts[0] * math.radians(12), 1 + 0.12 * amounts[1], 0.2 * amounts[2]
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    # grid_sample counts from -1 at one border to 1 at the other.
    shift = 2.5 * amounts[3:] * 2 / images.shape[-1]
    rows = torch.stack([cosine, shear * cosine - sine, shift[0], sine, shear * sine + cosine, shift[1]], dim=1)
    grid = affine_grid(rows.view(-1, 2, 3), [len(images), 1, *images.shape[1:]], align_corners=False)
    pixels = images.unsqueeze(1).float()
    return grid_sample(pixels, grid.to(images.device), align_corners=False).squeeze(1)
