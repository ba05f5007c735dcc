"""DATA: labelled images in any of the layouts that the commands take."""

from medimg.runtime.data.dataset import (
    DataSet,
    Sample,
    Split,
    Task,
    load_batches,
    read_data,
    stratified_split,
    walk_images,
)

__all__ = [
    "DataSet",
    "Sample",
    "Split",
    "Task",
    "load_batches",
    "read_data",
    "stratified_split",
    "walk_images",
]
