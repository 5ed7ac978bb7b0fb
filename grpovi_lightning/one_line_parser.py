"""The parser of commands that take no YAML."""

import argparse

from grpovi_lightning.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see {self.prog} --help")
