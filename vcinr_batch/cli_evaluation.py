"""Options of `vcinr decompress` for values at points and on another grid than the archive's."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vcinr_batch.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.decompress import DecompressReport
    from vcinr_batch.console import ProgressDisplay

Points = Annotated[
    str | None,
    typer.Option(metavar="CSV", help="At the points of a file with columns latitude (lat) and longitude (lon)."),
]
GridSpacing = Annotated[
    float | None, typer.Option(metavar="DEGREES", help="On a regular grid of this spacing over the archive's extent.")
]

Evaluate = Callable[[str, str, Mapping[str, str], bool, Mapping[str, Any], "ProgressDisplay"], "DecompressReport"]
"""Takes archive, output, selection, whether to overwrite, storage options, and where to show the progress."""


def evaluation_request(points: str | None, grid: float | None, runs_elsewhere: bool) -> Evaluate | None:
    """What does the work where points or a grid are asked for; None where the archive's own grid is.

    Raises:
        ConfigError: options that contradict each other.
    """
    if points is None and grid is None:
        return None
    if points is not None and grid is not None:
        raise ConfigError("--points and --grid contradict each other: give one of them")
    if runs_elsewhere:
        name = "--grid" if points is None else "--points"
        raise ConfigError(f"{name} is evaluated in this process: leave out --workers, --address and --no-wait")

    def evaluate(
        archive: str,
        output: str,
        select: Mapping[str, str],
        overwrite: bool,
        storage_options: Mapping[str, Any],
        display: "ProgressDisplay",
    ) -> "DecompressReport":
        from pipelines.evaluated_output import decompress_grid, decompress_points

        def show(done: int, total: int) -> None:
            display.show("evaluate", done, total, {"value_bytes": 4 * done})

        if points is not None:
            return decompress_points(archive, output, points, select, overwrite, storage_options, show)
        assert grid is not None
        return decompress_grid(archive, output, grid, select, overwrite, storage_options, show)

    return evaluate
