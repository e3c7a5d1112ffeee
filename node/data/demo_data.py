"""The demo's data: what every CPython carries, so that nothing has to be fetched.

One node gets the language reference (`pydoc_data.topics`) as texts, the other the standard library's
docstrings as questions and answers. The library's sources are parsed and never imported. Both belong to
Python and stand under the PSF licence.
"""

from __future__ import annotations

import ast
import inspect
import json
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from pydoc_data.topics import topics

MIN_ANSWER_CHARACTERS = 40
MAX_ANSWER_CHARACTERS = 600
MAX_QUESTIONS = 4000
MAX_TOPIC_CHARACTERS = 2000

_LEFT_OUT = frozenset(
    {
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "site-packages",
        "dist-packages",
        "turtledemo",
        "ensurepip",
        "pydoc_data",
        "__pycache__",
    }
)
_WAYS_TO_ASK = {
    "module": "What is the Python module `{}` for?",
    "class": "What is `{}` in Python?",
    "function": "What does `{}` do in Python?",
}


def write_topics(file: Path) -> int:
    """Write the language reference as `text` rows, each some paragraphs of a topic, and return their number."""
    return _write(
        file, ({"text": f"{name}\n\n{part}"} for name, text in sorted(topics.items()) for part in _parts(text))
    )


def write_docstrings(file: Path, limit: int = MAX_QUESTIONS) -> int:
    """Write the standard library's docstrings as `messages` rows and return their number.

    Args:
        file: The jsonl file to write.
        limit: Most rows; they are taken evenly from the whole library.
    """
    found = list(_questions(Path(sysconfig.get_paths()["stdlib"])))
    number = min(limit, len(found))
    rows = (
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in (found[index * len(found) // number] for index in range(number))
    )
    return _write(file, rows)


def _write(file: Path, rows: Iterator[Mapping[str, object]]) -> int:
    number = 0
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            number += 1
    return number


def _questions(library: Path) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for file in sorted(library.rglob("*.py")):
        parts = file.relative_to(library).with_suffix("").parts
        if _LEFT_OUT.intersection(parts) or any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        name = ".".join(part for part in parts if part != "__init__")
        for kind, dotted, docstring in _docstrings(name, _parse(file)):
            answer = _answer(docstring)
            if answer and answer not in seen:
                seen.add(answer)
                yield _WAYS_TO_ASK[kind].format(dotted), answer


def _parse(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # a stray file in the library is none of the demo's business
        return ast.Module(body=[], type_ignores=[])


def _docstrings(name: str, node: ast.Module | ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    kind = "module" if isinstance(node, ast.Module) else "class"
    if node.body and (text := ast.get_docstring(node, clean=False)):
        yield kind, name, text
    for item in node.body:
        if isinstance(item, ast.ClassDef) and not item.name.startswith("_"):
            yield from _docstrings(f"{name}.{item.name}", item)
        elif isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)) and not item.name.startswith("_"):
            yield "function", f"{name}.{item.name}", ast.get_docstring(item, clean=False) or ""


def _parts(text: str) -> Iterator[str]:
    """Yield the paragraphs, as many together as fit: a whole topic a row would make a lopsided held-out split."""
    part = ""
    for paragraph in text.strip().split("\n\n"):
        if part and len(part) + len(paragraph) > MAX_TOPIC_CHARACTERS:
            yield part
            part = ""
        part = f"{part}\n\n{paragraph}".strip("\n")
    yield part


def _answer(docstring: str) -> str:
    """Return as many whole paragraphs from the beginning as fit, or nothing."""
    answer = ""
    for paragraph in inspect.cleandoc(docstring).split("\n\n"):
        longer = f"{answer}\n\n{paragraph.strip()}".strip()
        if len(longer) > MAX_ANSWER_CHARACTERS:
            break
        answer = longer
    return answer if len(answer) >= MIN_ANSWER_CHARACTERS else ""
