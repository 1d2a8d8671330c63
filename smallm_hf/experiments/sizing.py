"""The width at which a model has about a given number of parameters."""

from bisect import bisect_left
from collections.abc import Mapping
from functools import cache
from typing import Any

from smallm_hf.base.errors import UserError
from smallm_hf.config import model_config
from smallm_hf.pretrained import fresh_model

TOLERANCE = 0.1  # share of the wanted parameters by which a model may miss them
# Widths that grow together; of these `hidden_size` always, the others where a recipe states them.
WIDTHS = ("hidden_size", "embedding_size", "intermediate_size")
WITHOUT_HEADS = 4  # what the width is a multiple of where there are no heads that divide it


def count_parameters(fields: Mapping[str, Any]) -> int:
    """All parameters of the model that these fields of a recipe describe; a tied head counts once."""
    return sum(parameter.numel() for parameter in fresh_model(model_config(fields), "meta").parameters())


def with_parameters(fields: Mapping[str, Any], wanted: int) -> dict[str, Any]:
    """The fields of a model at another width, at which it has about so many parameters.

    The width is a multiple of twice the heads, or of `WITHOUT_HEADS`; the other widths that are stated keep their
    proportion to it. Depth, heads and vocabulary stay.

    Args:
        fields: `model_type`, `vocab_size` and others, as in a recipe.
        wanted: parameters, tables included.

    Raises:
        UserError: no width comes within `TOLERANCE` of it.
    """
    config = model_config(fields)
    aliases = {alias: name for name, alias in config.attribute_map.items()}
    stated = {aliases.get(name, name): value for name, value in fields.items()}
    unit = 2 * getattr(config, "num_attention_heads", 0) or WITHOUT_HEADS

    def at(units: int) -> dict[str, Any]:
        factor = units * unit / config.hidden_size
        scaled = {name: max(1, round(stated[name] * factor)) for name in WIDTHS if name in stated}
        return stated | scaled | {"hidden_size": units * unit}

    @cache
    def parameters(units: int) -> int:
        return count_parameters(at(units))

    most = 1
    while parameters(most) < wanted:
        most *= 2
    above = 1 + bisect_left(range(1, most), wanted, key=parameters)
    units = min({max(1, above - 1), above}, key=lambda units: abs(parameters(units) - wanted))
    if abs(parameters(units) - wanted) > TOLERANCE * wanted:
        raise UserError(
            f"no width gives about parameters={wanted:,}: hidden_size={units * unit} has {parameters(units):,}, more "
            f"than {TOLERANCE:.0%} from it; give another number, or a smaller vocabulary"
        )
    return at(units)
