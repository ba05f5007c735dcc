"""SavedModels whose loading runs what no answer needs: by initialisers, savers, and their names."""

import subprocess
import sys
from pathlib import Path

import pytest

from medimg.export.errors import SourceError
from medimg.export.sources import load_source

pytestmark = pytest.mark.long
OPERATIONS = {
    "write": "WriteFile",
    "save": "SaveV2",
    "merge": "MergeV2Checkpoints",
    "restore": "RestoreV2",
    "read": "ReadFile",
}
WAYS = ("function", "bare", "believed")

WITHOUT_KERAS_EXTRAS = "import sys; sys.modules['sklearn'] = sys.modules['matplotlib'] = None\n"
"""Keras would load them, and uses neither: two fifths of TensorFlow's start."""
MAKE = """
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

folder, canary = sys.argv[1:]
tf.train.Checkpoint(v=tf.Variable(1.0)).write(folder + "/other")
DOES = {
    "write": lambda: tf.io.write_file(canary, "pwned"),
    "save": lambda: tf.raw_ops.SaveV2(
        prefix=canary, tensor_names=["a"], shape_and_slices=[""], tensors=[tf.constant(1.0)]
    ),
    "merge": lambda: tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[folder + "/other"], destination_prefix=canary, delete_old_dirs=False
    ),
    "restore": lambda: tf.raw_ops.RestoreV2(
        prefix=folder + "/other",
        tensor_names=["v/.ATTRIBUTES/VARIABLE_VALUE"],
        shape_and_slices=[""],
        dtypes=[tf.float32],
    ),
    "read": lambda: tf.io.read_file(canary),
}

class Resource(tf.saved_model.experimental.TrackableResource):
    def __init__(self, does):
        super().__init__()
        self._does = does
    def _create_resource(self):
        return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name="evil")
    def _initialize(self):
        self._does()

class Model(tf.Module):
    def __init__(self, does):
        self.resource = Resource(does)
    @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3), tf.float32)])
    def serve(self, images):
        with tf.control_dependencies([tf.raw_ops.VarIsInitializedOp(resource=self.resource.resource_handle)]):
            return tf.nn.softmax(tf.reduce_mean(images, (1, 2)))

def initialiser(objects):
    for node in objects.nodes:
        for child in node.children:
            if child.local_name == "_initialize":
                return objects.nodes[child.node_id]

def rewrite(path, believed):
    saved = saved_model_pb2.SavedModel.FromString(open(path, "rb").read())
    graph = saved.meta_graphs[0]
    node = initialiser(graph.object_graph_def)
    (name,) = node.function.concrete_functions
    node.bare_concrete_function.concrete_function_name = name
    if believed:
        del graph.object_graph_def.concrete_functions[name]
        caller = graph.graph_def.node.add(name="believed", op="StatefulPartitionedCall")
        caller.attr["f"].func.name = name
        graph.saver_def.save_tensor_name = "believed:0"
    open(path, "wb").write(saved.SerializeToString())

for what, does in DOES.items():
    for way in ("function", "bare", "believed"):
        target = f"{folder}/{what}-{way}"
        model = Model(does)
        tf.saved_model.save(model, target, signatures={"serving_default": model.serve})
        if way != "function":
            rewrite(target + "/saved_model.pb", way == "believed")
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one SavedModel for each operation and each way to have it run."""
    folder = tmp_path_factory.mktemp("hostile")
    made = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS_EXTRAS + MAKE, folder, folder / "canary"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", OPERATIONS)
def test_what_loading_would_run_is_refused_whatever_names_it(hostile: Path, what: str, way: str) -> None:
    with pytest.raises(SourceError, match=f"holds the operation {OPERATIONS[what]}"):
        load_source(hostile / f"{what}-{way}")
    assert not list(hostile.glob("canary*"))


def test_the_files_are_real(hostile: Path, tmp_path: Path) -> None:
    """TensorFlow itself runs them: the refusals above are what stands between."""
    load = (
        f"{WITHOUT_KERAS_EXTRAS}import tensorflow as tf\n"
        "for path in sys.argv[1:]:\n"
        "    try: tf.saved_model.load(path)\n"
        "    except KeyError: print('no', path)\n"
    )
    paths = [str(hostile / f"write-{way}") for way in ("function", "bare")]
    subprocess.run([sys.executable, "-c", load, *paths[1:]], check=True, capture_output=True)
    written = list(hostile.glob("canary*"))
    for file in written:
        file.unlink()
    assert written
