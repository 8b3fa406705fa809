"""Which files a source consists of, and which of them belong to one member of an ensemble."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vcinr_batch.errors import ConfigError, SourceError
from vcinr_batch.storage import exists, list_urls, public_url


def expand_urls(urls: str | Sequence[str], storage_options: Mapping[str, Any]) -> tuple[str, ...]:
    """Every URL once, patterns replaced by what they match; a file whose own name looks like a pattern is that file.

    Raises:
        SourceError: no URL at all, or a pattern that matches nothing.
    """
    found: dict[str, None] = {}
    for url in [urls] if isinstance(urls, str) else urls:
        literal = not _is_pattern(url) or exists(url, storage_options=storage_options)
        matches = [url] if literal else list_urls(url, storage_options=storage_options)
        if not matches:
            raise SourceError(f"no file matches {public_url(url)}")
        found.update(dict.fromkeys(matches))
    if not found:
        raise SourceError("no source given")
    return tuple(found)


def group_by_member(urls: Sequence[str], pattern: str | None) -> dict[str, list[str]]:
    """URLs by what the pattern's group matches in them, sorted; one group without a name where there is no pattern.

    Raises:
        ConfigError: not a regular expression with one group.
        SourceError: a URL in which it is not found.
    """
    if pattern is None:
        return {"": list(urls)}
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"source.member_pattern = {pattern!r} is not a regular expression: {error}") from error
    if expression.groups != 1:
        raise ConfigError(f"source.member_pattern = {pattern!r} needs exactly one group, it has {expression.groups}")
    groups: dict[str, list[str]] = {}
    for url in urls:
        match = expression.search(url)
        if match is None or not match.group(1):
            raise SourceError(f"member_pattern {pattern!r} is not found in {public_url(url)}")
        groups.setdefault(match.group(1), []).append(url)
    numbered = all(member.isdecimal() for member in groups)
    return dict(sorted(groups.items(), key=lambda group: int(group[0]) if numbered else group[0]))


def _is_pattern(url: str) -> bool:
    return "*" in url or "[" in url or ("?" in url and not url.startswith(("http://", "https://")))
