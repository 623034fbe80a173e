"""The errors that medcam raises on purpose; anything else is a defect.

    MedcamError
    |-- UsageError        what was asked for cannot be asked for        (exit code 2)
    |-- ModelError        the network could not be loaded or run        (exit code 3)
    |-- InputError        an image could not be read                    (exit code 4)
    |   `-- GeometryError   ... or is not a regular grid in space
    `-- OutputError       a result could not be written                 (exit code 5)

Each message says what is wrong, what came, what was expected and what to do, in words a clinical researcher can use.
"""


class MedcamError(Exception):
    """Base of every error that medcam raises on purpose."""

    exit_code = 1


class UsageError(MedcamError):
    """What was asked for does not exist or does not fit: an unknown layer, a class out of range."""

    exit_code = 2


class ModelError(MedcamError):
    """The network could not be loaded, is not trusted, or does not accept this input."""

    exit_code = 3


class InputError(MedcamError):
    """An image is missing, damaged, or of a kind that medcam does not read."""

    exit_code = 4


class GeometryError(InputError):
    """Voxels do not lie on one regular grid, or two grids cannot meet."""


class OutputError(MedcamError):
    """A result could not be written."""

    exit_code = 5
