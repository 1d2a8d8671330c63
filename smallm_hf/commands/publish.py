"""Publishes a finished run on the Hugging Face Hub."""

from pathlib import Path

from jsonargparse import ActionYesNo

from smallm_hf.base.command_line import take
from smallm_hf.base.parser import CommandParser
from smallm_hf.hub.configuration import Statements, asked_for

DESCRIPTION = "Publishes a finished run as one repository that loads everywhere, checked before and after."
EXAMPLES = (
    "publish --run runs/quickstart --verify_card",
    "publish --run runs/quickstart --repo user/name --dry_run",
    "publish --repo user/name --space user/try-name",
)


def main() -> None:
    """Publishes or checks what the line names."""
    parser = CommandParser(DESCRIPTION, EXAMPLES, usage="--run RUN --repo USER/NAME [OPTIONS]")
    parser.add_argument("--run", type=Path, help="the run folder")
    parser.add_argument("--repo", help="user/name, or name in the namespace of the token")
    parser.add_argument("--space", help="user/name of a Space: publish the page to try --repo, which is on the Hub")
    parser.add_argument("--private", action="store_true", help="a repository that is created now is private")
    parser.add_argument("--checkpoints", action=ActionYesNo(no_prefix="no_"), default=True, help="tag checkpoints too")
    parser.add_argument("--exports", type=Path, nargs="*", default=[], help="what smallm export made from best/")
    parser.add_argument("--dry_run", action="store_true", help="show files, sizes and card; without network or token")
    parser.add_argument("--verify_card", action="store_true", help="only recompute what the card of best/ says")
    parser.add_argument("--revision", help="a branch for the best weights instead of main; leaves tags alone")
    parser.add_argument("--data_repo", help="publish the text too, as this data set; only if it is yours to give away")
    parser.add_argument("--include_report", action="store_true", help="publish report.html, whatever text it quotes")
    parser.add_section("card", "What the card says and no record knows: licences, data set, language", Statements)
    given = parser.parse_args().as_dict()
    what = asked_for(given, parser.get_defaults().as_dict())
    statements, space, _ = take(Statements, given), given.pop("space"), given.pop("verify_card")
    if what == "card":
        from smallm_hf.hub.checks import verify_card

        print("\n".join(verify_card(given["run"])))
    elif what == "space":
        from smallm_hf.demo.space import publish_space

        publish_space(given["repo"], space, private=given["private"], dry_run=given["dry_run"])
    else:
        from smallm_hf.hub.publishing import publish

        publish(**given, statements=statements)
