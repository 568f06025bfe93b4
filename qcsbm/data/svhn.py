"""Street View House Numbers: 32 × 32 colour images of digits, in the official MATLAB files.

References:
    Reading digits in natural images with unsupervised feature learning (Netzer et al., 2011);
    http://ufldl.stanford.edu/housenumbers/
"""

from qcsbm.data.local import require_published, shuffled
from qcsbm.data.raw import dataset_folder
from qcsbm.data.splits import SPLITS, Split, Splits
from qcsbm.schema.sources import Svhn


def svhn(config: Svhn) -> Splits:
    """73 257 training and 26 032 test images of 10 classes, in random order; "extra" is not used.

    Raises:
        MissingFile: one of the files is missing.
        BadInput: one of the files is not the published one.
    """
    from torchvision.datasets import SVHN  # takes seconds, and only this source needs it

    folder = dataset_folder(config.source)
    splits = {}
    for name in SPLITS:
        url, file, md5 = SVHN.split_list[name]
        require_published(folder / file, md5, url)
        dataset = SVHN(folder, split=name)
        splits[name] = Split(dataset.data, dataset.labels)
    return shuffled(folder, config, splits)
