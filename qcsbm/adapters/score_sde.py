"""Published NCSN++ checkpoints as fields: those of score_sde and of the paper's code, under VE.

References:
    https://github.com/yang-song/score_sde_pytorch (configs/ve/cifar10_ncsnpp_continuous.py)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from qcsbm.adapters.field import Field
from qcsbm.adapters.published import read_published
from qcsbm.nets.ncsnpp import NCSNpp
from qcsbm.runtime.files import sha256
from qcsbm.schema import networks, sde
from qcsbm.schema.reading import parse
from qcsbm.schema.specifications import Model
from qcsbm.score.models import build

# Of the file checkpoint_8.pth with four residual blocks per level, which score_sde published.
CIFAR10 = {"nf": 128, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 4, "attn_resolutions": [16]}


def from_score_sde(
    path: str | Path,
    network: Mapping[str, Any] | None = None,
    *,
    image_size: int = 32,
    channels: int = 3,
    sigma_min: float = 0.01,
    sigma_max: float = 50.0,
) -> Field:
    """The score with the averaged weights of the checkpoint ``path``, for images in [0, 1].

    ``network`` has keys of `qcsbm.schema.networks.NCSNpp`. Those that it leaves out are the ones
    that score_sde published for CIFAR-10, so are the other arguments.

    Raises:
        MissingFile: there is no such file.
        BadInput: the file is no such checkpoint, or one of another network; or there is no such
            network.
    """
    settings = {"type": "ncsnpp", **CIFAR10, **(network or {})}
    scales = {"type": "ve", "sigma_min": sigma_min, "sigma_max": sigma_max}
    model = Model(
        parameterisation="score",
        residual=False,
        network=parse(networks.NCSNpp, str(path), [("network", settings)]),
        sde=parse(sde.VE, str(path), [("", scales)]),
    )
    shape = (channels, image_size, image_size)
    score = build(shape, model, seed=0)
    score.network.load_state_dict(read_published(path, cast(NCSNpp, score.network)).ema)
    score.eval().requires_grad_(False)
    return Field(
        score,
        "score",
        score.sde,
        Path(path).name,
        shape=shape,
        data_range=(0.0, 1.0),
        module=score,
        files={str(path): sha256(path)},
    )
