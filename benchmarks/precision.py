r"""What bfloat16 does to the parameter gradients of DSM and of both estimators of L_QC.

    python benchmarks/precision.py [--steps 800] [--draws 60]

U and C are trained on digits in float32. On the same batches (data, noise, t, probes) the gradient
g of each loss is then computed with the network in float32 and in bfloat16. With d the difference
and V the total variance of g over batches, reported are

* error: :math:`\sqrt{E\|d\|^2 / E\|g\|^2}`, of a single step;
* bias: :math:`\|E d\| / \|E g\|`, which no number of steps averages out. Both squared norms are
  estimated without bias from all pairs of different batches;
* noise: :math:`Var(d) / V`, next to the variance that batches have anyway.

The last line is a JSON object.
"""

import argparse
import json
import math
import platform

import torch
from torch import Tensor

from qcsbm.conservativeness.products import rademacher
from qcsbm.data.digits import digits
from qcsbm.runtime.seeding import generator
from qcsbm.schema.networks import NCSNpp
from qcsbm.schema.sde import VE
from qcsbm.schema.sources import Digits
from qcsbm.schema.specifications import Model
from qcsbm.schema.training import Training
from qcsbm.score.losses import training_loss
from qcsbm.score.models import ScoreModel, build
from qcsbm.training.loop import BatchOrder, draw_batch, train

MODEL = Model(
    parameterisation="score",
    residual=False,
    network=NCSNpp(
        type="ncsnpp", nf=16, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[4], dropout=0.0
    ),
    sde=VE(type="ve", sigma_min=0.01, sigma_max=5.0),
)
TRAINING = Training(batch_size=64, lr=1e-3, warmup=100, ema=0.99, dequantise=True)
LOSSES = {
    "U, DSM": ("score", None),
    "C, DSM": ("energy", None),
    "U, L_QC trace": ("score", "trace"),
    "U, L_QC antisymmetric": ("score", "antisymmetric"),
}


def gradient(model: ScoreModel, batch: tuple, v: Tensor, estimator: str | None) -> Tensor:
    """The parameter gradient of DSM, or of σ² L_QC by ``estimator``, as one long vector."""
    model.zero_grad()
    loss = training_loss(model, *batch, v[None] if estimator else None, estimator or "trace")
    (loss.qc if estimator else loss.dsm).mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


class Moments:
    """Running sums over vectors: their mean, its squared norm and their total variance."""

    def __init__(self):
        self.n, self.total, self.squares = 0, 0.0, 0.0

    def add(self, vector: Tensor) -> None:
        self.n += 1
        self.total = self.total + vector
        self.squares += float(vector.square().sum())

    @property
    def mean_square(self) -> float:
        return self.squares / self.n

    @property
    def squared_mean(self) -> float:
        """An unbiased estimate of the squared norm of the mean: of either sign."""
        of_total = float(self.total.square().sum())
        return (of_total - self.squares) / (self.n * (self.n - 1))

    @property
    def variance(self) -> float:
        return self.mean_square - self.squared_mean


def compare(model: ScoreModel, batches: list, estimator: str | None) -> dict[str, float]:
    """Error, bias and noise of bfloat16 over ``batches``."""
    exact, difference = Moments(), Moments()
    for *batch, v in batches:
        model.precision = torch.float32
        g = gradient(model, batch, v, estimator)
        model.precision = torch.bfloat16
        exact.add(g)
        difference.add(gradient(model, batch, v, estimator) - g)
    return {
        "error": math.sqrt(difference.mean_square / exact.mean_square),
        "bias": math.sqrt(max(difference.squared_mean, 0.0) / exact.squared_mean),
        "noise": difference.variance / exact.variance,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="training steps of U and of C")
    parser.add_argument("--draws", type=int, default=60, help="batches")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    data = digits(Digits(source="digits"))
    images = data.train.images
    energy = MODEL.model_copy(update={"parameterisation": "energy", "residual": True})
    models = {
        model.parameterisation: build(images.shape[1:], model, seed=0) for model in (MODEL, energy)
    }
    order = BatchOrder(len(images), TRAINING.batch_size, 1)
    batches = []
    for step in range(arguments.draws):
        indices = order(step + 1)
        batch = draw_batch(images, data.levels, indices, TRAINING, models["score"], 1, step)
        batches.append((*batch, rademacher(batch[0].shape, generator(1, "probes", step))))
    for model in models.values():
        train(model, images, data.levels, TRAINING, None, 0, arguments.steps)

    print(f"{'gradient of':>24} {'error':>9} {'bias':>9} {'noise':>9}")
    result = {}
    for name, (parameterisation, estimator) in LOSSES.items():
        result[name] = compare(models[parameterisation], batches, estimator)
        print(f"{name:>24} " + " ".join(f"{value:9.2g}" for value in result[name].values()))
    machine = platform.processor() or platform.machine()
    print(json.dumps(result | {"torch": torch.__version__, "machine": machine}))


if __name__ == "__main__":
    main()
