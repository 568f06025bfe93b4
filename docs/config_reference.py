"""config/README.md and config/experiment.schema.json, from the models of `qcsbm.schema`.

    python docs/config_reference.py

What a key means stands below it in its model. A test compares both files with what this makes.
"""

import ast
import inspect
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic.json_schema import models_json_schema

from qcsbm.schema import (
    document,
    evaluation,
    networks,
    outside,
    samplers,
    sde,
    sources,
    training,
)
from qcsbm.schema.base import Closed

CONFIG = Path(__file__).parents[1] / "config"
MODULES = (document, evaluation, networks, outside, samplers, sde, sources, training)
# As YAML 1.1 reads 1e-3, see `qcsbm.schema.base`.
NUMBER = r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$"
CODE = r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$"
LIMITS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
}
SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
INTRODUCTION = """\
<!-- Made by docs/config_reference.py. -->
# The experiment file

Each file here is one experiment, as a whole: facts that results depend on, and none of the machine.

| file | experiment |
|---|---|
| `config.yaml` | what runs if nothing else is said: in a clone a link to `quick.yaml` |
| `quick.yaml`, `ci.yaml`, `standard.yaml`, `standard_short.yaml`, `paper.yaml` | the tiers |
| `experiment.schema.json` | JSON Schema of such a file, which editors complete keys by |

For completion, write `# yaml-language-server: $schema=experiment.schema.json` in the first line.

A *cell* is one dataset with one method. Its keys are merged one by one from four places, later ones
winning: `defaults`, `datasets.<dataset>`, `methods.<method>` and
`datasets.<dataset>.methods.<method>`; a mapping whose `type` changes is replaced. Each of the four
may have any of the keys below *A cell*, or some of them. An unknown key, a wrong type and an
impossible value are refused with one sentence before any job. `python -m qcsbm describe` prints
what a cell has become.

A dash stands for keys that have no default.
"""
# Headings, and the models whose keys stand below them, by where they stand in the file.
SECTIONS: dict[str, dict[str, type[Closed]]] = {
    "The file": {"": document.Document},
    "A dataset": {
        "datasets.<dataset>": document.Dataset,
        "classifier": document.ClassifierTraining,
    },
    "Where images come from": {
        "data: {source: digits}": sources.Digits,
        "data: {source: patches}": sources.Patches,
        "data: {source: cifar10}": sources.Cifar10,
        "data: {source: cifar100}": sources.Cifar100,
        "data: {source: svhn}": sources.Svhn,
        "data: {source: imagenet32}": sources.ImageNet32,
        "data: {source: idx}": sources.Idx,
        "data: {source: folder}": sources.Folder,
        "data: {source: arrays}": sources.Arrays,
    },
    "A cell": {"": document.TrainedCell},
    "The SDE": {"sde: {type: ve}": sde.VE, "sde: {type: vp}": sde.VP},
    "The network": {
        "network: {type: ncsnpp}": networks.NCSNpp,
        "network: {type: module:Class}": networks.Own,
    },
    "Training": {
        "training": training.Training,
        "regulariser": training.Regulariser,
        "init_from": training.InitFrom,
    },
    "Samplers": {
        "samplers.<name>: {type: pc}": samplers.PC,
        "samplers.<name>: {type: ode}": samplers.ODE,
        "samplers.<name>: {type: heun}": samplers.Heun,
        "samplers.<name>: {type: langevin}": samplers.Langevin,
    },
    "Measurements": {
        "quality": evaluation.Quality,
        "likelihood": evaluation.Likelihood,
        "asymmetry": evaluation.Asymmetry,
        "circulation": evaluation.Circulation,
    },
    "A model from outside": {
        "": document.OutsideCell,
        "model: {type: diffusers}": outside.Diffusers,
        "model: {type: module:function}": outside.Function,
        "schedule: {type: edm}": outside.EDM,
        "schedule: {type: rectified_flow}": outside.RectifiedFlow,
    },
    "Tables, comparisons and two-dimensional examples": {
        "tables.<table>": document.Table,
        "comparisons.<label>": document.Comparisons,
        "toy": document.Toy,
    },
}


def meanings(model: type[Closed]) -> dict[str, str]:
    """What stands below the keys of ``model``, and of the models that it extends."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if base.__module__ in {module.__name__ for module in MODULES}:
            (tree,) = ast.parse(inspect.getsource(base)).body
            for key, text in zip(tree.body, tree.body[1:], strict=False):
                match key, text:
                    case ast.AnnAssign(), ast.Expr(ast.Constant(str(meaning))):
                        found[key.target.id] = meaning
    return found


def definitions() -> dict[str, Any]:
    """The JSON Schema of every model, by its name."""
    models = {model for section in SECTIONS.values() for model in section.values()}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, found = models_json_schema([(model, "validation") for model in ordered])
    for model in ordered:
        of_model = found["$defs"][model.__name__]
        for key, meaning in meanings(model).items():
            of_model["properties"][key]["description"] = meaning
        for key, field in model.model_fields.items():
            for number in numbers(of_model["properties"][key]):
                number |= dict(limits([*field.metadata, field.annotation]))
    for name in ("Own", "Function"):
        found["$defs"][name]["properties"]["type"]["pattern"] = CODE
    return found["$defs"]


def numbers(schema: Any) -> Iterator[dict[str, Any]]:
    """The parts of ``schema`` that are numbers."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield schema
        schema = list(schema.values())
    for part in schema if isinstance(schema, list) else ():
        yield from numbers(part)


def limits(annotations: Iterable[Any]) -> Iterator[tuple[str, float]]:
    """The bounds among ``annotations``: pydantic's schemas lack those behind a validator."""
    for annotation in annotations:
        for name, keyword in LIMITS.items():
            if hasattr(annotation, name):
                yield keyword, getattr(annotation, name)
        parts = getattr(annotation, "metadata", None) or getattr(annotation, "__metadata__", ())
        yield from limits([*parts, *get_args(annotation)])


def written(schema: Any) -> Any:
    """``schema`` for what stands in a file: numbers as text too, and parts that will be merged."""
    if isinstance(schema, list):
        return [written(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    left_out = ("required", "discriminator", "title") if "type" in schema else ("discriminator",)
    found = {
        "anyOf" if key == "oneOf" else key: written(value)
        for key, value in schema.items()
        if key not in left_out or isinstance(value, dict) and key != "discriminator"
    }
    if found.get("type") == "number":
        found |= {"type": ["number", "string"], "pattern": NUMBER}
    return found


def schema() -> dict[str, Any]:
    """The JSON Schema of an experiment file."""
    found = written(definitions())
    trained, outer = found.pop("TrainedCell"), found.pop("OutsideCell")
    cell = trained | {"properties": outer["properties"] | trained["properties"]}
    dataset = found["Dataset"]
    dataset["properties"] = cell["properties"] | dataset["properties"]
    dataset["properties"]["methods"] = {
        "type": "object",
        "additionalProperties": {"$ref": "#/$defs/Cell"},
        "description": "By method, keys of this dataset's cell with it.",
    }
    dataset["required"] = ["label", "data"]
    found["Table"]["required"] = ["methods"]
    whole = found.pop("Document")
    keys = whole["properties"]
    keys["defaults"] |= {"$ref": "#/$defs/Cell"}
    keys["methods"]["additionalProperties"] = {"$ref": "#/$defs/Cell"}
    keys["datasets"]["additionalProperties"] = {"$ref": "#/$defs/Dataset"}
    del keys["defaults"]["additionalProperties"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **whole,
        "title": "An experiment of qcsbm",
        "required": ["tier", "seeds", "datasets", "methods", "tables"],
        "$defs": found | {"Cell": cell},
    }


def values(key: dict[str, Any]) -> str:
    """Which values a key may have."""
    if "enum" in key or "const" in key:
        return ", ".join(f"`{value}`" for value in key.get("enum", [key.get("const")]))
    if "anyOf" in key or "oneOf" in key:
        found = [values(option) for option in key.get("anyOf", key.get("oneOf"))]
        return " or ".join(dict.fromkeys(found))
    if key.get("type") == "array":
        return f"list: {values(key['items'])}"
    if key.get("type") in ("integer", "number"):
        bounds = [f"{sign} {key[name]:g}" for name, sign in SIGNS.items() if name in key]
        return " ".join([key["type"], ", ".join(bounds)]).strip()
    if "type" in key and key["type"] != "object":
        return "text" if key["type"] == "string" else key["type"]
    return "mapping"


def rows(of_model: dict[str, Any]) -> list[str]:
    """A table of the keys of a model, but for the one that says which of several it is."""
    found = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, described in of_model["properties"].items():
        if "const" in described:
            continue
        default = f"`{json.dumps(described['default'])}`" if "default" in described else ""
        if key in of_model.get("required", []):
            default = "—"
        meaning = described.get("description", "").replace("|", "\\|").replace("``", "`")
        found.append(f"| `{key}` | {values(described)} | {default} | {meaning} |")
    return found


def readme() -> str:
    """The page with every key."""
    found, described = [INTRODUCTION], definitions()
    for heading, models in SECTIONS.items():
        found.append(f"## {heading}\n")
        for place, model in models.items():
            text = (inspect.getdoc(model) or "").replace("``", "`")
            found.append(f"**`{place}`** — {text}\n" if place else f"{text}\n")
            table = rows(described[model.__name__])
            found += ["\n".join(table) + "\n"] if len(table) > 2 else []
    return "\n".join(found)


def files() -> dict[Path, str]:
    """What either file has to be."""
    text = json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
    return {CONFIG / "README.md": readme(), CONFIG / "experiment.schema.json": text}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
