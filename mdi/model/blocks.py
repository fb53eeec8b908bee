"""Which blocks of a model are not like the others: read from its config, where it lists them or gives a rule. Sorted indices."""

from __future__ import annotations

from mdi.errors import ModelError
from mdi.model.families import Family, Windows
from mdi.model.fields import Fields
from mdi.model.rope import FULL, LOCAL

FIRST_WINDOW = 28  # what silence about max_window_layers means to transformers
Blocks = tuple[int, ...]


def unrotated_blocks(config: Fields, family: Family, n_blocks: int) -> Blocks:
    """Blocks whose queries and keys are not rotated: they do not see positions."""
    if family.unrotated_period is None:
        return ()
    rotated = config.integers("no_rope_layers", 2)  # despite its name, 1 means rotated
    if rotated is None:
        period = config.integer("no_rope_layer_interval", family.unrotated_period)
        return tuple(range(period - 1, n_blocks, period))
    if len(rotated) < n_blocks:
        raise config.refusal("no_rope_layers", f"a list of {n_blocks}")
    return tuple(block for block in range(n_blocks) if not rotated[block])


def windowed_blocks(config: Fields, family: Family, n_blocks: int, unrotated: Blocks) -> Blocks:
    """Blocks that see a window only. Raises ModelError when the config lists kinds of attention that are not known."""
    if family.windows is Windows.NEVER or config.optional_integer("sliding_window", family.sliding_window) is None:
        return ()
    everyone = tuple(range(n_blocks))
    switched = config.boolean("use_sliding_window", False)
    match family.windows:
        case Windows.ALL:
            return everyone
        case Windows.SWITCHED:
            return everyone if switched else ()
        case Windows.LATE:
            late = everyone[config.integer("max_window_layers", FIRST_WINDOW, least=0) :]
            return _listed(config, n_blocks, late) if switched else ()
        case Windows.UNROTATED:
            return _listed(config, n_blocks, unrotated) if switched else ()
        case Windows.PERIODIC:
            period = config.integer("sliding_window_pattern", family.window_period)
            return _listed(config, n_blocks, tuple(block for block in everyone if (block + 1) % period))


def _listed(config: Fields, n_blocks: int, silence: Blocks) -> Blocks:
    """The blocks with a window in `layer_types`; `silence` when the config has no such list."""
    kinds = config.values.get("layer_types")
    if kinds is None:
        return silence
    if not isinstance(kinds, list) or len(kinds) != n_blocks:
        raise config.refusal("layer_types", f"a list of {n_blocks}")
    if unknown := [kind for kind in kinds if kind not in (FULL, LOCAL)]:
        raise ModelError(f"{config.origin} has layers of the type {unknown[0]!r:.80}, which are not supported")
    return tuple(block for block, kind in enumerate(kinds) if kind == LOCAL)


def sparse_blocks(config: Fields, family: Family, n_blocks: int) -> Blocks:
    """Blocks whose feed-forward part is a mixture of experts."""
    if family.experts is None:
        return ()
    step = config.integer("decoder_sparse_step", 1)
    dense = config.integers("mlp_only_layers", n_blocks) or ()
    return tuple(block for block in range(step - 1, n_blocks, step) if block not in dense)
