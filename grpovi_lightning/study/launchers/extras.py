"""Packages that only some launchers need."""

from importlib.util import find_spec

from grpovi_lightning.errors import UserError


def need_package(launcher: str, package: str) -> None:
    """Refuse to go on without a package; it is not imported.

    Raises:
        UserError: it is not installed.
    """
    if find_spec(package) is None:
        raise UserError(
            f"--launcher {launcher} needs the package {package}: pip install 'grpovi-lightning[{launcher}]'"
        )
