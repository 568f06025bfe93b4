"""From mappings in a file to models: parts are merged, and what does not fit gets one sentence."""

from collections import Counter
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from qcsbm.schema.base import OWN_CODE, Closed, ConfigError

# The keys that say which member of a union a mapping is.
TAGS = ("source", "type")
# Members of unions that no key tells apart, as paths of pydantic's errors have them.
UNTAGGED = ("Model", "ModelFromOutside", "Trained", "FromOutside")
# Key path and content of one of the places that a model is merged from.
Layer = tuple[str, dict[str, Any]]
# What earlier versions called them.
RENAMED_KEYS = {"asymmetry.levels": "noise_levels", "regulariser.times": "time_sampling"}
RENAMED_VALUES = {
    ("asymmetry.estimator", "probes"): "antisymmetric",
    ("asymmetry.estimator", "paper"): "trace",
    ("regulariser.time_sampling", "squared"): "importance",
}


def parse(model: type[Closed], source: str, layers: list[Layer]) -> Any:
    """Merge ``layers`` of (key path, mapping), later ones winning, into a ``model``."""
    merged: dict[str, Any] = {}
    for _, layer in layers:
        merged = _merge(merged, layer)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(sentence(model, error, source, layers)) from None


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``change``; a mapping of another type takes the place of one."""
    merged = dict(base)
    for key, value in change.items():
        before = merged.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            types = {part["type"] for part in (before, value) if "type" in part}
            merged[key] = _merge(before, value) if len(types) < 2 else value
        else:
            merged[key] = value
    return merged


def sentence(model: type[Closed], error: ValidationError, source: str, layers: list[Layer]) -> str:
    """The first of the errors as one sentence, under the key path of the layer that caused it."""
    errors = _of_the_nearest(error.errors())
    # A misspelt key is also a missing one; what stands in the file is the better thing to name.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path = _in_the_file(first["loc"], layers)
    if first["type"] == "union_tag_invalid":
        path.append(_tag(first))
    present = path[:-1] if first["type"] == "missing" else path
    layer = next((name for name, raw in reversed(layers) if _has(raw, present)), layers[-1][0])
    key = ".".join([layer, *path] if layer else path)
    where = f"{source}: {key}" if key else source
    return f"{where}: {_problem(model, first, path)}"


def _of_the_nearest(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Of members that no key tells apart, the errors of the one that has the fewest."""
    members = [
        next((e["loc"][: i + 1] for i, part in enumerate(e["loc"]) if part in UNTAGGED), ())
        for e in errors
    ]
    fewest = {place[:-1]: place for place, _ in Counter(members).most_common()}
    return [e for e, place in zip(errors, members, strict=True) if fewest[place[:-1]] == place]


def _problem(model: type[Closed], error: ErrorDetails, path: list[str]) -> str:
    """What was found and what was expected at ``path``."""
    kind, found = error["type"], error["input"]
    name = ".".join(path[-2:])
    if kind == "extra_forbidden":
        if name in RENAMED_KEYS:
            return f"found a key of earlier versions, expected {RENAMED_KEYS[name]}, its name now"
        known = ", ".join(_known_keys(model, error["loc"][:-1]))
        return f"found an unknown key, expected one of {known}"
    if kind == "missing":
        return "found nothing, expected a value"
    if kind == "union_tag_not_found":
        models = _models(_annotation(model, error["loc"]))
        known = ", ".join(repr(tag) for option in models for tag in _tags(option))
        return f"found no {_tag(error)}, expected one of {known}"
    if kind == "union_tag_invalid":
        return f"found {short(found[_tag(error)])}, expected one of {error['ctx']['expected_tags']}"
    if isinstance(found, str) and (name, found) in RENAMED_VALUES:
        return f"found {found!r}, expected {RENAMED_VALUES[name, found]!r}, its name now"
    return f"found {short(found)}, expected: {error['msg'][0].lower() + error['msg'][1:]}"


def _in_the_file(loc: tuple[int | str, ...], layers: list[Layer]) -> list[str]:
    """The path of an error without the tags of discriminated unions, which pydantic adds."""
    node: Any = {}
    for _, layer in layers:
        node = _merge(node, layer) if isinstance(layer, dict) else {}
    path = []
    for part in loc:
        inside = isinstance(node, dict) and part in node
        tags = map(node.get, TAGS) if isinstance(node, dict) else ()
        if not inside and part in (OWN_CODE, *UNTAGGED, *tags):
            continue
        path.append(str(part))
        node = node[part] if inside or isinstance(node, list) else None
    return path


def _known_keys(model: type[Closed], loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the model that lies at ``loc`` below ``model``."""
    return list(_models(_annotation(model, loc))[0].model_fields)


def _annotation(model: type[Closed], loc: tuple[int | str, ...]) -> Any:
    """The type of what lies at ``loc`` below ``model``."""
    annotation: Any = model
    for part in loc:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
            continue
        for option in _models(annotation):
            if part in option.model_fields:
                annotation = option.model_fields[part].annotation
                break
            if part in (option.__name__, *_tags(option)):
                annotation = option
                break
    return annotation


def _tag(error: ErrorDetails) -> str:
    """The key that says which member of a union a mapping is."""
    return error["ctx"]["discriminator"][1:-1]


def _models(annotation: Any) -> list[type[Closed]]:
    """The models that a value of the type ``annotation`` may be of."""
    if isinstance(annotation, type) and issubclass(annotation, Closed):
        return [annotation]
    return [model for option in get_args(annotation) for model in _models(option)]


def _tags(model: type[Closed]) -> tuple[Any, ...]:
    fields = [model.model_fields[tag] for tag in TAGS if tag in model.model_fields]
    # A type that is no choice is the name of code of one's own.
    return (get_args(fields[0].annotation) or (OWN_CODE,)) if fields else ()


def _has(raw: Any, path: list[str]) -> bool:
    for part in path:
        if isinstance(raw, list):
            return part.isdigit() and int(part) < len(raw)
        if not isinstance(raw, dict) or part not in raw:
            return False
        raw = raw[part]
    return True


def short(value: Any) -> str:
    """``value`` as a sentence shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
