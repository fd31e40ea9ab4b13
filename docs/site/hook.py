"""What the site has besides the pages of docs/: README files of the tree, a page for each method, the API reference.

Links are written for readers of the repository. Here those to a README lead to its page, those to a Python file to its
place in the reference, those to a picture to a copy; a link to another file of the repository becomes its name.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
LINKS = {"sq/kernels": "kernels", "sq/baselines": "baselines", "sq/analysis": "analysis", "sq/conf": "conf"}
UNNAMED = "kernels"  # has no __init__.py, so that mkdocstrings finds it by its own folder alone
PICTURES = (".svg", ".png")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")

# griffe takes "low, high: ..." of an Attributes section for an attribute "low," of type "high".
JOINT = re.compile(r"<b><code>(<span[^>]*>)([a-z_0-9]+),</span></code></b>\s*\(<code>(.*?)</code>\)")

_pages: dict[str, str] = {}  # path in the repository -> page of the site
_sources: dict[str, str] = {}  # page of the site -> path in the repository


def on_config(config: Any) -> Any:
    """Fill the parts of the navigation that lists of files make."""
    parts = {"methods/": _method_nav(), "about/": _about_nav(), "reference/": _reference_nav()}
    config["nav"] = [
        {title: parts.get(target, target) if isinstance(target, str) else target}
        for entry in config["nav"]
        for title, target in entry.items()
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add pages and pictures."""
    for found in list(files):
        _know(f"docs/{found.src_uri}", found.src_uri)
    for source, page in _readmes().items():
        _know(source, page)
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for path in [path for folder in ("analysis", "docs") for path in sorted((ROOT / folder).rglob("*"))]:
        source = path.relative_to(ROOT).as_posix()
        if path.suffix in PICTURES and "build" not in path.parts and source not in _pages:
            _know(source, f"files/{source}")
            files.append(File.generated(config, f"files/{source}", abs_src_path=str(path)))
    for name, (title, target) in _methods().items():
        page = f"methods/{name}.md"
        files.append(File.generated(config, page, content=_method_page(name, title, target)))
    for room, modules in _rooms().items():
        note = f"Imported as `sq.{room}`.\n" if room == UNNAMED else ""
        content = [f"# {room}\n", note, *(f"::: {module}\n" for module in modules)]
        files.append(File.generated(config, f"reference/{room}.md", content="\n".join(content)))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Attributes that share a line in a docstring get their names back."""

    def names(found: re.Match[str]) -> str:
        others = re.sub(r"<[^>]*>|[()]", "", found.group(3))
        return f"<b><code>{found.group(1)}{found.group(2)}, {others}</span></code></b>"

    return JOINT.sub(names, output) if page.file.src_uri.startswith(("reference/", "methods/")) else output


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    source = _sources.get(page.file.src_uri)
    return markdown if source is None else LINK.sub(lambda found: _link(found, source, page.file.src_uri), markdown)


def _link(found: re.Match[str], source: str, page: str) -> str:
    mark, text, target = found.groups()
    path, sign, anchor = target.partition("#")
    if re.match(r"[a-z]+:", target) or not path:
        return found[0]
    wanted = os.path.normpath(PurePosixPath(source).parent / path)
    for link, folder in LINKS.items():
        wanted = re.sub(rf"^{link}(?=/|$)", folder, wanted)
    for candidate in (wanted, f"{wanted}/README.md"):
        if candidate in _pages:
            return f"{mark}[{text}]({_relative(_pages[candidate], page)}{sign}{anchor})"
    module = _module(ROOT / wanted)
    for name, (_, built) in _methods().items():
        if built.rpartition(".")[0] == module:
            return f"[{text}]({_relative(f'methods/{name}.md', page)})"
    for room, modules in _rooms().items():
        if module in modules:
            return f"[{text}]({_relative(f'reference/{room}.md', page)}#{module})"
    return text if text.startswith("`") else f"`{text}`"


def _relative(target: str, page: str) -> str:
    return os.path.relpath(target, PurePosixPath(page).parent)


def _know(source: str, page: str) -> None:
    _pages[source], _sources[page] = page, source


@cache
def _readmes() -> dict[str, str]:
    """README files of the repository -> their pages."""
    found = {"README.md": "index.md"}
    for folder in ("sq", "kernels", "baselines", "analysis"):
        for path in sorted((ROOT / folder).rglob("README.md")):
            source = path.relative_to(ROOT).as_posix()
            if "build" not in path.parts and not any(source.startswith(f"{link}/") for link in LINKS):
                found[source] = f"about/{path.parent.relative_to(ROOT).as_posix().replace('/', '.')}.md"
    return found


def _about_nav() -> list[dict[str, str]]:
    titled = {page: (ROOT / source).read_text(encoding="utf-8").splitlines()[0] for source, page in _readmes().items()}
    return [{title.lstrip("# "): page} for page, title in titled.items() if page != "index.md"]


@cache
def _methods() -> dict[str, tuple[str, str]]:
    """Name of a method's config -> its first comment, and the class that it builds."""
    found = {}
    for path in sorted((ROOT / "conf" / "method").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        head = " ".join(line.lstrip("# ") for line in text.partition("\nname:")[0].splitlines() if line.startswith("#"))
        found[path.stem] = (head.replace(" @package _global_", ""), _target(path))
    return found


def _target(path: Path) -> str:
    """The class of a method's config, or of the config that it changes."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "_target_" in config:
        return str(config["_target_"])
    base = next(entry for entry in config["defaults"] if entry != "_self_")  # /method/NAME@_here_
    return _target(path.with_name(PurePosixPath(base.partition("@")[0]).name + ".yaml"))


def _method_nav() -> list[dict[str, str]]:
    return [{name: f"methods/{name}.md"} for name in _methods()]


def _method_page(name: str, head: str, target: str) -> str:
    """The config's comment, the arguments, and the class with its module's text, once under the first name it has."""
    module, _, kind = target.rpartition(".")
    lines = (ROOT / "conf" / "method" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    arguments = "\n".join(line for line in lines if not line.startswith("#"))
    listing = f"`conf/method/{name}.yaml`:\n\n```yaml\n{arguments.strip()}\n```\n"
    first = next(other for other, (_, built) in _methods().items() if built.rpartition(".")[0] == module)
    if name != first:
        return f"# {name}\n\n{head}\n\n{listing}\nThe class: [{kind}]({first}.md).\n"
    return f"# {name}\n\n{head}\n\n{listing}\n::: {module}\n"


@cache
def _rooms() -> dict[str, list[str]]:
    """Room -> its public modules; methods and baselines have pages of their own."""
    described = {target.rpartition(".")[0] for _, target in _methods().values()}
    rooms: dict[str, list[str]] = {}
    for path in sorted((ROOT / "sq").glob("*.py")):
        if path.stem != "__init__":
            rooms.setdefault("sq", ["sq"]).append(f"sq.{path.stem}")
    for folder in sorted(path for path in (ROOT / "sq").iterdir() if path.is_dir() and not path.name.startswith("_")):
        modules = [_module(path) for path in sorted(folder.resolve().rglob("*.py")) if "build" not in path.parts]
        if modules:
            rooms[folder.name] = [module for module in modules if "._" not in module and module not in described]
    return rooms


def _module(path: Path) -> str:
    """The name that users import a file of the repository by."""
    source = path.with_suffix("").relative_to(ROOT).as_posix().removesuffix("/__init__")
    for link, folder in LINKS.items():
        if folder != UNNAMED:
            source = re.sub(rf"^{folder}(?=/|$)", link, source)
    return source.replace("/", ".")


def _reference_nav() -> list[dict[str, str]]:
    return [{room: f"reference/{room}.md"} for room in _rooms()]
