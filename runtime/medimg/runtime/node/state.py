"""The folder of a node's state: the database, and images and reports as files beside it."""

import hashlib
from pathlib import Path

from medimg.runtime.node.database import Database
from medimg.runtime.node.files import make_folder, sync_folder


class State(Database):
    """A database and its files.

    Args:
        folder: made if it is not there, by its owner.
        is_owner: whether this process is the node, and no visitor.
    """

    def __init__(self, folder: Path, *, is_owner: bool = True) -> None:
        self.folder, self.images, self.reports = folder, folder / "images", folder / "reports"
        if is_owner:
            for part in (folder, self.images, self.reports):
                make_folder(part)
        super().__init__(folder / "node.db", is_owner=is_owner)
        if is_owner:
            sync_folder(folder)

    def image_path(self, series_key: str, sop_uid: str) -> Path:
        """Name a new image's file: by digests, so that no text of a peer becomes a path."""
        return self.images / f"{series_key}{hashlib.sha256(sop_uid.encode()).hexdigest()[:32]}.dcm"

    def report_path(self, report_uid: str) -> Path:
        """Name a report's file."""
        return self.reports / f"{report_uid}.dcm"

    def overlay_path(self, report_uid: str) -> Path:
        """Name the file of a report's overlay."""
        return self.reports / f"{report_uid}.overlay.dcm"
