"""DATA of any layout, read."""

from pathlib import Path

from medimg.runtime.data import readers
from medimg.runtime.data.dataset import DataSet
from medimg.runtime.errors import DataError
from medimg.runtime.tasks import TaskName


def read_data(path: str | Path, *, labelled: bool = True, task: TaskName = "multiclass") -> DataSet:
    """Read a data set, whichever layout it has; images in files are found, not yet opened.

    - a folder with a folder per class, or `train/ val/ test/` each holding such;
    - with `labelled=False`, any folder of images;
    - a CSV file with the columns `path,label[,patient][,split]`, paths relative to the file;
    - a CIFAR-10 folder in the python layout;
    - a MedMNIST `.npz`.

    Labels are sorted by name, samples by path.

    Args:
        path: the folder or file.
        labelled: whether every image must have a label, and there must be two classes or more.
        task: `multilabel` takes a CSV whose labels are joined by `|`, or none, or a MedMNIST archive with a
            column of 0 and 1 for each class.

    Raises:
        DataError: the layout is none of these, or it holds no images, or (labelled) fewer than two classes,
            or its labels are not those of the task.
    """
    if path == "":
        raise DataError("an empty name is no data set: is a variable not set?")
    return readers.read(Path(path), labelled=labelled, task=task)
