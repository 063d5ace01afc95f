"""Names of the whole and of a part: a scan of a part, told in the names of the whole."""

from __future__ import annotations

import re

from ghostify.names import prefixes
from ghostify.scanning.result import Scan


def entering(part: str, name: str) -> str:
    """A name in a part as the whole has it; of a row of blocks (``a..b``), both ends."""
    return "..".join(f"{part}.{end}".strip(".") for end in name.split(".."))


def leaving(part: str, name: str) -> str:
    """The other way round."""
    return "..".join(end.removeprefix(f"{part}.") for end in name.split(".."))


def named_in(part: str, found: Scan) -> Scan:
    """The scan of a part with the names of the whole."""

    def named(name: str) -> str:
        return entering(part, name)

    known = set(prefixes(site.name for site in found.sites))

    def mentioned(match: re.Match[str]) -> str:
        name = match[0].strip("'")
        return match[0].replace(name, named(name)) if known.issuperset(name.split("..")) else match[0]

    def told(text: str | None) -> str | None:
        """A sentence that names modules, which are quoted or have a dot in them."""
        return text and re.sub(r"'[^']+'|[\w-]+(?:\.+[\w-]+)+", mentioned, text)

    sites = [
        site.model_copy(
            update={
                "name": named(site.name),
                "aliases": tuple(map(named, site.aliases)),
                "obstacle": told(site.obstacle),
                "unfit": told(site.unfit),
            }
        )
        for site in found.sites
    ]
    ops = [op.model_copy(update={"module": named(op.module)}) for op in found.ops]
    params = {named(name): n for name, n in found.params.items()}
    stages = [
        stage.model_copy(
            update={
                "name": named(stage.name),
                "obstacle": told(stage.obstacle),
                "parent": None if stage.parent is None else named(stage.parent),
                "blocks": tuple(
                    block.model_copy(update={"name": named(block.name), "modules": tuple(map(named, block.modules))})
                    for block in stage.blocks
                ),
            }
        )
        for stage in found.stages
    ]
    return found.model_copy(
        update={
            "sites": tuple(sites),
            "others": {named(name): reason for name, reason in found.others.items()},
            "ops": tuple(ops),
            "params": params,
            "stages": tuple(stages),
        }
    )
