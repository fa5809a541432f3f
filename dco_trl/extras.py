"""The error for a missing extra, with the command that installs it."""

from importlib.util import find_spec


def require(who: str, extra: str, *packages: str) -> None:
    """Raise an `ImportError` with the install command unless all packages are installed; none is imported."""
    for package in packages:
        if find_spec(package) is None:
            raise missing(who, extra, f"No module named {package!r}")


def missing(who: str, extra: str, reason: object, otherwise: str = "") -> ImportError:
    """The error for a package that cannot be imported.

    pip takes the extra's packages from the metadata of the installed `dco-trl`, wherever that was installed from.
    """
    return ImportError(f"{who} needs more ({reason}). Install it with `pip install 'dco-trl[{extra}]'`{otherwise}.")
