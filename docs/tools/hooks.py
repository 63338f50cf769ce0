"""Hooks of MkDocs: pages made from files elsewhere in the repository and from the public names, and links to them."""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from reference import reference_pages

ROOT = Path(__file__).parent.parent.parent

# Path in the repository -> path in the site; of sources, the reference of what is in them.
PAGES = {
    "lq/__init__.py": "reference/functions.md",
    "lq/config/qconfig.py": "reference/configuration.md",
    "lq/analysis/__init__.py": "reference/analysis.md",
    "lq/analysis/auto_exclude.py": "reference/training.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "README.md": "index.md",
    **{
        f"recipes/{readme.parent.name}/README.md": f"recipes/{readme.parent.name}.md"
        for readme in ROOT.glob("recipes/*/README.md")
    },
}
ORIGINS = {uri: path for path, uri in PAGES.items() if path.endswith(".md") and path != "README.md"}

# What Material takes from the network to search in pages that are opened as files, and what does so here.
SHIM, OWN_SHIM = "https://unpkg.com/iframe-worker/shim", "search_in_files.js"
_FOREIGN = re.compile(
    r'<(?:script|img|iframe)[^>]* src="(https?:)?//[^>]*>|<link[^>]*rel="stylesheet"[^>]*href="https?:[^>]*>'
)

_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the navigation, where it says ``folder/*``."""
    generated = [*sorted(ORIGINS), *reference_pages()]
    config.nav = [_filled(item, generated) for item in config.nav or []]
    return config


def _filled(item: Any, generated: Iterable[str]) -> Any:
    if not isinstance(item, dict):
        return item
    ((title, content),) = item.items()
    if isinstance(content, str) and content.endswith("/*"):
        return {title: [uri for uri in generated if uri.startswith(content[:-1])]}
    if isinstance(content, list):
        return {title: [_filled(inner, generated) for inner in content]}
    return item


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in ``docs/``."""
    contents = {uri: (ROOT / path).read_text(encoding="utf-8") for uri, path in ORIGINS.items()}
    for uri, content in {**contents, **reference_pages()}.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that are right in the repository be right in the site."""
    uri = page.file.src_uri
    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(lambda match: _link(match, uri), part) for part in parts[::2]]
    return "".join(parts)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Let nothing in a page come from elsewhere."""
    return _offline(output, page.file.dest_uri)


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """Nor in what is no page, such as the one of an error."""
    return _offline(output_content, template_name)


def _offline(output: str, uri: str) -> str:
    output = output.replace(SHIM, posixpath.relpath(OWN_SHIM, posixpath.dirname(uri) or "."))
    foreign = _FOREIGN.search(output)
    if foreign is not None:
        raise PluginError(f"{uri} does not work offline: {foreign[0]}")
    return output


def _link(match: re.Match[str], uri: str) -> str:
    mark, text, link = match.groups()
    target, hash_mark, anchor = link.partition("#")
    if not target or ":" in target:
        return match[0]
    origin = ORIGINS.get(uri, f"docs/{uri}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    found = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
    if found is None:
        return text  # a file that is no page
    return f"{mark}[{text}]({posixpath.relpath(found, posixpath.dirname(uri) or '.')}{hash_mark}{anchor})"
