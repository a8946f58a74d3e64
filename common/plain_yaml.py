"""YAML that is nothing but data: what people write into a configuration, and no more."""

import unicodedata
from pathlib import Path
from typing import Any

import yaml

from common.errors import EncoreError

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_DEPTH = 50
MAX_BYTES = 4 * 2**20


def read_mapping(path: Path, name: str = "") -> dict[str, Any]:
    """The mapping in a yaml file. EncoreError, one line with the place, when it is not one (see parse_mapping).

    name: what the file is called in errors, where its path says too much."""
    name = name or str(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise EncoreError(f"{name}: larger than {MAX_BYTES} bytes: no configuration")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EncoreError(f"{name}: cannot be read: {error}") from error
    return parse_mapping(text, name)


def parse_mapping(text: str, name: str) -> dict[str, Any]:
    """The mapping in a text. EncoreError on what is no yaml, and on aliases (ten lines of them can stand for a
    billion), keys given twice (the last would win without a word), deep nesting, control characters, other keys than
    text."""
    try:
        _refuse_what_is_no_data(name, text)
        content = yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}" if mark else ""
        raise EncoreError(f"{name}{where}: not valid yaml: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise EncoreError(f"{name}: cannot be read: {' '.join(str(error).split())}") from error
    except EncoreError:
        raise
    except Exception as error:  # the constructors of dates, numbers and tags raise what they like
        raise EncoreError(f"{name}: not valid yaml: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise EncoreError(f"{name}:1: must be a mapping of fields, see CONTRIBUTING.md")
    _refuse_other_keys_than_text(name, content)
    return content


def _refuse_what_is_no_data(name: str, text: str) -> None:
    """Before any of it is built."""
    open_: list[list[Any]] = []  # of each collection: keys so far (None: a sequence), whether a key comes next
    for event in yaml.parse(text, Loader):
        wrong = ""
        if isinstance(event, yaml.NodeEvent) and open_ and open_[-1][0] is not None:
            keys, is_key = open_[-1]
            open_[-1][1] = not is_key
            if is_key and isinstance(event, yaml.ScalarEvent):
                wrong = f"{event.value[:40]!r} is given twice" if event.value in keys else ""
                keys.add(event.value)
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append([set() if isinstance(event, yaml.MappingStartEvent) else None, True])
        elif isinstance(event, yaml.CollectionEndEvent):
            open_.pop()
        if isinstance(event, yaml.AliasEvent):
            wrong = f"the alias *{event.anchor}: write the value out"
        elif len(open_) > MAX_DEPTH:
            wrong = f"more than {MAX_DEPTH} levels of nesting"
        elif isinstance(event, yaml.ScalarEvent) and any(map(_is_control, event.value)):
            wrong = f"a control character in {event.value[:40]!a}"
        if wrong:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise EncoreError(f"{name}:{line}: not allowed here: {wrong}")


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"


def _refuse_other_keys_than_text(name: str, content: Any) -> None:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        if isinstance(content, dict) and not isinstance(key, str):
            raise EncoreError(f"{name}: the key {key!r} must be text: write it in quotes")
        _refuse_other_keys_than_text(name, value)
