"""DATA: labelled images in any of the layouts that the commands take."""

from medimg.runtime.data.dataset import DataSet, Sample, Split, load_batches
from medimg.runtime.data.reading import read_data
from medimg.runtime.data.split import stratified_split

__all__ = ["DataSet", "Sample", "Split", "load_batches", "read_data", "stratified_split"]
