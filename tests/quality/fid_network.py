"""The Inception network of pytorch-fid without its weights, which are not at hand."""

import pytest
from pytorch_fid import inception
from torchvision.models import Inception3


def random_network():
    """The network that `pytorch_fid.inception.fid_inception_v3` builds, before it loads weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda url, progress: {})
        patch.setattr(Inception3, "load_state_dict", lambda self, state: None)
        return inception.fid_inception_v3()
