"""The command `grpovi push`."""

from pathlib import Path
from typing import Any

from analysis import ReportError
from analysis.card import model_card
from grpovi_lightning import publishing
from grpovi_lightning.errors import UserError
from grpovi_lightning.one_line_parser import OneLineParser


def push(arguments: list[str]) -> None:
    """Publish a run, or write its card alone.

    Raises:
        UserError: the request is wrong, or the hub refuses.
    """
    parser = OneLineParser(
        prog="grpovi push",
        description="Publishes what a run trained on the Hugging Face hub, with a model card (README.md) that names "
        "method, base model, data, rewards, settings and results. The card is written into the pushed folder, too.",
    )
    parser.add_argument("run", type=Path, help="the folder of a run, alone or in a study")
    parser.add_argument("repo", help="the repository, user/name; it is made where there is none")
    parser.add_argument(
        "--what",
        choices=["model", "adapter"],
        default="model",
        help="model (default): the whole model, adapters merged in; adapter: the adapters alone",
    )
    parser.add_argument("--private", action="store_true", help="the repository has to be private")
    parser.add_argument("--revision", default=None, help="a branch, made where there is none; default: the main one")
    parser.add_argument("--card_only", action="store_true", help="write the card, without the hub")
    given = parser.parse_args(arguments)
    if given.card_only and given.private:
        raise UserError("--private has no effect with --card_only, which makes no repository; leave one of them out")
    target = publishing.Target(given.repo, given.revision, given.private)
    folder = publishing.trained_folder(given.run, given.what)
    if not given.card_only:
        publishing.check_connection()
    card = publishing.signed(_card(given.run, given.what, given.repo, given.revision))
    if given.card_only:
        publishing.write_card(folder, card)
        print(f"card: {folder / publishing.CARD_FILE}")
        return
    place, changed = publishing.push(folder, card, target)
    for name in changed:
        print(f"push: {name} is without the folders of this machine there")
    print(f"push: {place}")


def _card(run: Path, *settings: Any) -> str:
    try:
        return model_card(run, *settings)
    except ReportError as error:
        raise UserError(str(error)) from error
