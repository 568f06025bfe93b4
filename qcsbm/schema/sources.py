"""Where images come from: a model for each source of data."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from qcsbm.schema.base import Closed, Count, FolderName, Several, Whole


class Source(Closed):
    """Where images come from, and what the configuration alone knows of them.

    ``shape`` is (C, H, W), None where only the files know; ``labelled`` whether images have labels;
    ``whole`` has the number of images in each split of the files, where those are published.
    """

    whole: ClassVar[dict[str, int]] = {}

    @property
    def shape(self) -> tuple[int, int, int] | None:
        return None

    @property
    def labelled(self) -> bool:
        return False

    def images_in(self, split: str) -> int | None:
        """The number of images in ``split``, "train" or "test", None where only the files know."""
        return getattr(self, split) or self.whole.get(split)


class Digits(Source):
    """The 8 × 8 digits with 17 grey levels that scikit-learn ships."""

    total: ClassVar[int] = 1797
    source: Literal["digits"]
    # Both splits have all ten of them.
    test: Annotated[Whole, Field(ge=10, le=total - 10)] = 360
    """Images of the test split; all others are for training."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, 8, 8)

    @property
    def labelled(self) -> bool:
        return True

    def images_in(self, split: str) -> int:
        return self.test if split == "test" else self.total - self.test


class Patches(Source):
    """Colour patches of the two photographs that scikit-learn ships."""

    source: Literal["patches"]
    size: Annotated[Whole, Field(ge=4, le=64)]
    """Height and width, in pixels."""
    train: Count
    """Patches for training."""
    test: Several
    """Patches of the test split, from other regions."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, self.size, self.size)


class FromFiles(Source):
    """Images from files on this machine, all or some of them."""

    train: Count | None = None
    """So many images at random; all if null."""
    test: Several | None = None
    """So many images at random; all if null."""


class Published(FromFiles):
    """Colour images of 256 levels with labels, in files that anyone can have."""

    levels: ClassVar[int] = 256

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, 32, 32)

    @property
    def labelled(self) -> bool:
        return True


class Cifar10(Published):
    whole: ClassVar = {"train": 50_000, "test": 10_000}
    source: Literal["cifar10"]


class Cifar100(Published):
    whole: ClassVar = {"train": 50_000, "test": 10_000}
    source: Literal["cifar100"]


class Svhn(Published):
    whole: ClassVar = {"train": 73_257, "test": 26_032}
    source: Literal["svhn"]


class ImageNet32(Published):
    whole: ClassVar = {"train": 1_281_167, "test": 50_000}
    source: Literal["imagenet32"]


class Own(FromFiles):
    """The user's own images."""

    name: FolderName
    """The folder with its files, below that of all datasets."""
    levels: Annotated[Whole, Field(ge=2, le=256)] = 256
    """Grey levels of a channel."""


class Idx(Own):
    """Grey images in IDX files, such as Fashion-MNIST."""

    source: Literal["idx"]

    @property
    def labelled(self) -> bool:
        return True


class Folder(Own):
    """PNG images in the folders ``train`` and ``test``."""

    source: Literal["folder"]


class Arrays(Own):
    """NumPy arrays, in a file for each split."""

    source: Literal["arrays"]
    layout: Literal["nhw", "nhwc", "nchw"]
    """The order of their axes."""
    labels: bool = False
    """Whether there are labels, too."""

    @property
    def labelled(self) -> bool:
        return self.labels


Data = Annotated[
    Digits | Patches | Idx | Cifar10 | Cifar100 | Svhn | ImageNet32 | Folder | Arrays,
    Field(discriminator="source"),
]


class Fingerprint(Closed):
    """The files of a dataset: their number, their size, and the SHA-256 of a list of them."""

    files: Count
    bytes: Annotated[Whole, Field(ge=0)]
    sha256: str
