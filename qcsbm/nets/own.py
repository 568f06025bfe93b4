"""Networks of one's own: any class in a Python file in the working directory.

The class is a `torch.nn.Module` whose constructor takes ``image_size``, ``channels`` and the other
keys of ``network`` as keyword arguments, and draws its weights from PyTorch's global generator. Its
``forward(x, sigma)`` maps images x (B, C, H, W) and noise levels σ (B,) to a tensor like x that is
twice differentiable in x; the samples of a batch do not interact, and in evaluation mode the same
input has the same output. `qcsbm.training.contract` tries all of this.
"""

from torch import nn

from qcsbm.runtime import own_code
from qcsbm.runtime.errors import BadInput
from qcsbm.schema import networks


def build(image_size: int, channels: int, settings: networks.Own) -> nn.Module:
    """The network of ``settings`` for images of ``channels`` × ``image_size`` × ``image_size``.

    Raises:
        BadInput: there is no such class, it is no module, or it cannot be constructed so.
    """
    cls = own_code.load(settings.type)
    if not issubclass(cls, nn.Module):
        raise BadInput(f"{settings.type}: found a {cls.__name__}, expected a torch.nn.Module")
    own = settings.model_extra or {}
    arguments = {"image_size": image_size, "channels": channels, **own}
    with own_code.errors_located(settings.type, f"a network for {', '.join(arguments)}"):
        return cls(**arguments)
