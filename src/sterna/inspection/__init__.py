"""Look inside a compiled library or a model folder: the same report as text or as one page.

In: a path. Out: text of at most 100 columns, or a self-contained HTML page with charts. Nothing
here executes a library or reads a weight's values, so libraries for any machine can be shown.
"""

from __future__ import annotations

from pathlib import Path

from sterna.base.errors import ArtifactError, UsageError
from sterna.inspection.document import Report
from sterna.inspection.folder import folder_report
from sterna.inspection.library import library_report
from sterna.inspection.page import to_page
from sterna.inspection.peaks import measure_peaks
from sterna.inspection.text import to_text
from sterna.runtime.library import read_header, read_manifest

__all__ = ["html", "report"]


def report(path: Path, context: int | None = None) -> str:
    """The report as text; `context` cached tokens, a quarter of the window where None.

    Raises UsageError for a context that makes no sense for what lies at `path`, ArtifactError for
    a file that is no library, CheckpointError for a folder that is no converted model.
    """
    return to_text(_report(path, context, charts=False))


def html(path: Path, context: int | None = None) -> str:
    """The report as one HTML page, with charts; raises as `report` does.

    For a library it measures this machine with numpy, under a second, to draw the roofline.
    """
    return to_page(_report(path, context, charts=True))


def _report(path: Path, context: int | None, *, charts: bool) -> Report:
    if path.is_dir():
        if context is not None:
            raise UsageError(
                f"--context {context} is about the costs of a compiled library, and {path} is a "
                "folder; leave it out, or give a library made with `sterna compile`"
            )
        return folder_report(path, charts=charts)
    manifest = read_manifest(path)
    read_header(path)  # what was cut behind the manifest is refused as well
    try:
        peaks = measure_peaks() if charts else None
        return library_report(path, manifest, context, peaks)
    except OverflowError:
        raise ArtifactError(
            f"{path} has sizes in its manifest that no machine could hold: compile the model again"
        ) from None
