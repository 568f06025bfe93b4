"""The experiment file: read, merged into cells and checked.

A *cell* is one dataset with one method. Its facts are merged key by key from four places, later
ones winning: ``defaults``, ``datasets.<dataset>``, ``methods.<method>`` and
``datasets.<dataset>.methods.<method>``; the result is one `qcsbm.schema.document.TrainedCell`.
Where one of the last two has a ``model``, it is an `OutsideCell`, and what the others say of
training does not concern it. Nothing here imports torch, so that a dry run stays fast.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qcsbm.experiment.consistency import inconsistencies
from qcsbm.experiment.experiment import Experiment
from qcsbm.runtime.errors import MissingFile
from qcsbm.schema.base import ConfigError
from qcsbm.schema.document import (
    Cell,
    Dataset,
    Document,
    Measurements,
    OutsideCell,
    TrainedCell,
)
from qcsbm.schema.reading import Layer, parse, sentence, short

NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


def read(path: str | Path) -> Experiment:
    """The experiment file at ``path``, checked.

    Raises:
        ConfigError: see there.
        MissingFile: there is no such file.
    """
    if not Path(path).is_file():
        raise MissingFile(f"{path}: found no such file, expected an experiment file")
    content = Path(path).read_bytes()
    try:
        config = yaml.safe_load(content.decode())
    # Values such as 2026-99-99 lead the constructor to almost any exception.
    except Exception:
        raise ConfigError(f"{path}: found no YAML, expected an experiment file") from None
    require_keys_once(path)
    return load(config, str(path))


def require_keys_once(path: str | Path) -> None:
    """Refuse what readers of YAML pass over: a key that hides an earlier one of the same name.

    Raises:
        ConfigError: the YAML file at ``path`` has one.
    """
    waiting = [("", yaml.compose(Path(path).read_text(encoding="utf-8")))]
    visited = []  # an anchor may lead back to where it stands
    while waiting:
        place, node = waiting.pop()
        if not isinstance(node, yaml.MappingNode) or node in visited:
            continue
        visited.append(node)
        seen = set()
        for key, value in node.value:
            name = f"{place}.{key.value}" if place else str(key.value)
            if name in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{path}: {name}: found twice (line {line}), expected it once")
            seen.add(name)
            waiting.append((name, value))


def origins(config: Any, whole: Any, files: Sequence[str | Path]) -> list[str | Path]:
    """Those of ``files`` that ``config`` comes from, each once.

    ``whole`` is what they were merged into, and ``config`` that very object or one within it. One
    that is neither comes from none of them.
    """
    place = _place(config, whole)
    distinct = {Path(file).resolve(): file for file in files}.values()
    return [] if place is None else [file for file in distinct if _holds(file, place)]


def _place(part: Any, whole: Any) -> list[str] | None:
    """The keys that lead from ``whole`` to ``part``, None if it does not lie there."""
    if part is whole:
        return []
    for key, value in whole.items() if isinstance(whole, dict) else ():
        inner = _place(part, value)
        if inner is not None:
            return [key, *inner]
    return None


def _holds(file: str | Path, place: list[str]) -> bool:
    """Whether the YAML ``file`` says anything at ``place``."""
    found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    for key in place:
        found = found.get(key) if isinstance(found, dict) else None
    return bool(found)


def load(config: dict[str, Any], source: str) -> Experiment:
    """Check ``config``, read from the file(s) ``source``, and merge its cells.

    Raises:
        ConfigError: see there.
    """
    try:
        document = Document.model_validate(config)
    except ValidationError as error:
        raise ConfigError(sentence(Document, error, source, [("", config)])) from None
    for place, names in [
        ("tier", [document.tier]),
        ("datasets", document.datasets),
        ("methods", document.methods),
        ("tables", document.tables),
    ]:
        for name in names:
            if not NAME.fullmatch(name):
                raise ConfigError(
                    f"{source}: {place}: found the name {name!r}, expected lower-case letters, "
                    "digits and underscores, as it becomes part of file names"
                )

    datasets = {}
    cells: dict[tuple[str, str], Cell] = {}
    for name, raw in document.datasets.items():
        datasets[name] = parse(
            Dataset, source, [(f"datasets.{name}", {k: raw[k] for k in _own(raw)})]
        )
        overrides = raw.get("methods", {})
        if not isinstance(overrides, dict) or set(overrides) - set(document.methods):
            raise ConfigError(
                f"{source}: datasets.{name}.methods: found {short(overrides)}, expected some of "
                f"the methods {', '.join(document.methods)}"
            )
        for method, override in overrides.items():
            if not isinstance(override, dict):
                raise ConfigError(
                    f"{source}: datasets.{name}.methods.{method}: found {short(override)}, "
                    "expected a mapping of keys"
                )
        for method, row in document.methods.items():
            shared: list[Layer] = [
                ("defaults", document.defaults),
                (f"datasets.{name}", {k: v for k, v in raw.items() if k not in DATASET_KEYS}),
            ]
            own: list[Layer] = [
                (f"methods.{method}", row),
                (f"datasets.{name}.methods.{method}", overrides.get(method, {})),
            ]
            if any("model" in layer for _, layer in own):
                _require_untrained(source, own)
                layers = [WITHOUT_WEIGHTS, *map(_untrained, shared), *own]
                cells[name, method] = parse(OutsideCell, source, layers)
            else:
                cells[name, method] = parse(TrainedCell, source, [*shared, *own])
    experiment = Experiment(
        tier=document.tier,
        datasets=datasets,
        seeds={name: dataset.seeds or document.seeds for name, dataset in datasets.items()},
        methods=list(document.methods),
        cells=cells,
        tables=document.tables,
        comparisons=document.comparisons,
        toy=document.toy,
        strict=document.strict,
    )
    for problem in inconsistencies(experiment):
        raise ConfigError(f"{source}: {problem}")
    return experiment


# What only a model that is trained here has, in its cell and in what is measured of it.
TRAINING_KEYS = TrainedCell.model_fields.keys() - Measurements.model_fields.keys()
MEASUREMENTS = ("quality", "likelihood", "asymmetry")
WITHOUT_WEIGHTS: Layer = "defaults", {stage: {"weights": None} for stage in MEASUREMENTS}


def _untrained(layer: Layer) -> Layer:
    """What a ``layer`` that all methods share says of a model from outside."""
    place, keys = layer
    kept = {key: value for key, value in keys.items() if key not in TRAINING_KEYS}
    for stage in MEASUREMENTS:
        if isinstance(kept.get(stage), dict):
            kept[stage] = {key: v for key, v in kept[stage].items() if key != "weights"}
    return place, kept


def _require_untrained(source: str, layers: list[Layer]) -> None:
    """Refuse keys of a training beside ``model``.

    Raises:
        ConfigError: there are some.
    """
    for place, keys in layers:
        for key in keys:
            if key in TRAINING_KEYS:
                raise ConfigError(
                    f"{source}: {place}.{key}: found {short(keys[key])}, expected none beside "
                    "model, as a model from outside is not trained here"
                )
        for stage in MEASUREMENTS:
            found = keys.get(stage)
            if isinstance(found, dict) and "weights" in found:
                raise ConfigError(
                    f"{source}: {place}.{stage}.weights: found {short(found['weights'])}, expected "
                    "none beside model, as a model from outside has one set of weights"
                )


DATASET_KEYS = {*Dataset.model_fields, "methods"}


def _own(raw: dict[str, Any]) -> list[str]:
    return [key for key in raw if key in Dataset.model_fields]
