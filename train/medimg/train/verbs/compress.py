"""`medimg-train compress`."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from medimg.runtime import commandline
from medimg.runtime.commandline import PathArgument, standard_options
from medimg.runtime.errors import CheckFailedError
from medimg.train.compression.options import CompressOptions
from medimg.train.data.augmentation import read_augmentation
from medimg.train.fitting.options import require_effect
from medimg.train.verbs.answer import show
from medimg.train.verbs.compress_flags import compress_options
from medimg.train.verbs.terminal_progress import terminal_progress


@click.command()
@click.argument("model", type=PathArgument)
@click.argument("data", type=PathArgument)
@compress_options
@commandline.JSON_OPTION
@standard_options
def compress(
    model: Path,
    data: Path,
    output: Path,
    cache_dir: Path | None,
    plot: Path | None,
    resume: bool,
    restart: bool,
    augment: str,
    json_file: str | None,
    threads: int,
    **options: Any,  # noqa: ANN401  each is a field of CompressOptions
) -> None:
    """Make MODEL, a Keras chain of convolutions and dense layers, several times faster on this device.

    Channels are chosen on training images of DATA, widths by a model of the latency measured here, and the
    smaller network learns the answers of MODEL. Each point is exported to INT8 and compared with MODEL on the
    part test, which chooses nothing; the fastest point that does not fail is written.
    """
    from medimg.train.compression.compress import compress as run_compress
    from medimg.train.compression.summary import compress_lines

    changes = read_augmentation(augment)
    source = click.get_current_context().get_parameter_source
    if source("augment_copies") is ParameterSource.COMMANDLINE:
        require_effect("augment_copies", changes.changes, "--augment")
    result = run_compress(
        model,
        data,
        output,
        CompressOptions(augment=changes, **options),
        threads=threads,
        cache_dir=cache_dir,
        progress=terminal_progress(),
        resume=resume,
        restart=restart,
        plot=plot,
    )
    show(result, compress_lines(result), json_file)
    if result.output is None:
        raise CheckFailedError(
            f"no point is as good as {model} within --max-drop {result.options.max_drop:g}: nothing written"
        )
