r"""Images per second of the predictor–corrector sampler, for the U and the C model.

    python benchmarks/sampling.py [--steps 20] [--repetitions 5] [--batches 1 8 64 128]

The networks are a small NCSN++ with random weights, for digits: what a step costs does not depend
on them. A whole image takes the 1000 steps of the published protocol; the rate is that of
such images. Models and batch sizes are timed in turn.

The last line is a JSON object; rates are from medians of CPU time.
"""

import argparse
import json
import platform
import statistics
import time

import torch

from qcsbm.runtime.seeding import generator
from qcsbm.sampling import pc
from qcsbm.schema.networks import NCSNpp
from qcsbm.schema.samplers import PC
from qcsbm.schema.sde import VE
from qcsbm.schema.specifications import Model
from qcsbm.score.models import build

SHAPE = (1, 8, 8)
# The random output layer of variance 1e-10 that training starts with would make the corrector
# divide by almost nothing.
MODEL = Model(
    parameterisation="score",
    residual=False,
    network=NCSNpp(
        type="ncsnpp",
        nf=16,
        ch_mult=[1, 2],
        num_res_blocks=1,
        attn_resolutions=[4],
        dropout=0.0,
        init_scale=1.0,
    ),
    sde=VE(type="ve", sigma_min=0.01, sigma_max=5.0),
)
PUBLISHED_STEPS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="predictor steps of a timed run")
    parser.add_argument("--repetitions", type=int, default=5, help="timed runs of each kind")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 128])
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    models = {
        name: build(SHAPE, MODEL.model_copy(update={"parameterisation": kind}), seed=0).eval()
        for name, kind in (("u", "score"), ("c", "energy"))
    }
    times: dict[tuple[str, int], list[float]] = {}
    for repetition in range(arguments.repetitions + 1):
        for name, model in models.items():
            for batch in arguments.batches:
                draws = generator(0, "sample", repetition)
                start = time.process_time()
                settings = PC(type="pc", steps=arguments.steps, snr=0.16, batch_size=batch)
                pc.sample(model, model.sde, (batch, *SHAPE), draws, settings)
                if repetition:  # the first round warms up
                    times.setdefault((name, batch), []).append(time.process_time() - start)

    result = {}
    print(f"{'model':>6} {'batch':>6} {'ms per step':>12} {'images/s':>9}")
    for (name, batch), values in times.items():
        seconds = statistics.median(values) / arguments.steps
        result[f"{name}_{batch}_images_per_s"] = batch / (seconds * PUBLISHED_STEPS)
        rate = result[f"{name}_{batch}_images_per_s"]
        print(f"{name:>6} {batch:>6} {1e3 * seconds:12.1f} {rate:9.3f}")
    result["torch"] = torch.__version__
    result["machine"] = platform.processor() or platform.machine()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
