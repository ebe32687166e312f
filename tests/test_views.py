"""Views of pictures that are moved by pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import built, lenet, mlp, noise

from agents.impala import impala_actor
from evo_subnets import shifted_views
from evo_subnets.rl import EnsemblePolicy
from evo_subnets.views import View


@pytest.mark.parametrize("pixels", [1, 3])
def test_views_are_crops_of_a_picture_whose_border_is_repeated(pixels):
    pictures = noise(2, 3, 8, 6)
    padded = F.pad(pictures, [pixels] * 4, mode="replicate")
    for down in (-pixels, 0, pixels):
        for right in (-pixels, 0, pixels):
            top, left = pixels - down, pixels - right
            expected = padded[:, :, top : top + 8, left : left + 6]
            assert torch.equal(
                View(torch.nn.Identity(), down=down, right=right)(pictures), expected
            )


def test_the_mean_of_five_views():
    network, pictures = lenet().eval(), noise(4, 1, 28, 28)
    ways = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    each = torch.stack(
        [View(network, down=down, right=right)(pictures).softmax(-1) for down, right in ways]
    )
    together = shifted_views(network)(pictures).exp()
    torch.testing.assert_close(together, each.mean(0))
    assert not torch.allclose(together, each[0])


def test_an_agent_of_views_acts_on_frames():
    actor = built(lambda: impala_actor((2, 3, 4), frame_stack=1))
    policy = EnsemblePolicy(shifted_views(actor))
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    assert policy.predict(frames, deterministic=True)[0].shape == (3,)


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match="views are of pictures"):
        shifted_views(mlp())(noise(2, 5))
    with pytest.raises(ValueError, match="pixels must be at least 1"):
        shifted_views(lenet(), pixels=0)
