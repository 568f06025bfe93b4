"""Measures of sample quality, on features and class logits of generated and real images."""


def metric_names(extractor: str) -> tuple[str, str]:
    """What Fréchet distance and class score are called with features of ``extractor``.

    Only with the Inception network are they FID and IS.
    """
    return ("fid", "is") if extractor == "inception" else ("fd", "cs")
