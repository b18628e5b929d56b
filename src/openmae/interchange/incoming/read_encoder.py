"""The encoder of a checkpoint of another library: its shape, from its weights and its config.json."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from openmae.config import Grid, ViTShape
from openmae.errors import RequestError
from openmae.interchange.incoming.conversion import ConversionState, as_pair
from openmae.model.block import LAYER_NORM_EPS
from openmae.model.positions import resample_positions
from openmae.model.relative_positions import CLASS_OFFSETS

HEAD_WIDTH = 64
TRANSFORMERS_EPS = 1e-12  # of its ViT, ViTMAE and BEiT where no config.json says otherwise
USUAL_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # So400M, Huge, giant and gigantic: not 64 wide
MAX_WINDOW = 256
MAX_ENLARGED = 100  # a file can have its positions resampled to at most so many times as many
MOCO_HEADS = {384: 12, 768: 12}  # MoCo v3's S and B both have 12 (docs/paper.md, table 3)


def read_encoder(state: ConversionState) -> ViTShape:
    """Find the encoder's shape, and bring its positions and relative positions into the form it has here.

    Raises:
        RequestError: it lacks something, or would compute something else here.
    """
    weights = state.weights
    kernel = _need(state, "patch_embed.proj.weight", 4)
    width, channels, patch_size, second = kernel.shape
    if patch_size != second:
        raise RequestError(f"{state.source} has patches of {patch_size} x {second} px: openmae's are square")
    numbers = {int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d{1,6})\.", name))}
    depth = max(numbers, default=-1) + 1
    if len(numbers) < depth or not numbers:
        raise RequestError(f"{state.source} has {len(numbers)} blocks, the last numbered {depth - 1}: it is incomplete")
    _spread_shared_table(state, depth)
    relative, grid = "none", None
    table = weights.get("blocks.0.attn.relative.table")
    if table is not None:
        relative, grid = "bias", _grid_of_biases(state, len(table) - CLASS_OFFSETS, patch_size)
    by_row = {n: weights.get(f"blocks.{n}.attn.relative.rel_pos_h") for n in sorted(numbers)}
    window_size, global_blocks = 0, tuple[int, ...]()
    if state.recognised.family == "vitdet":
        window_size, global_blocks, relative, grid = _windows(state, by_row, patch_size)
    has_class = "cls_token" in weights
    positions = weights.get("pos_embed")
    if positions is not None:
        grid = _fit_positions(state, positions, grid, patch_size, has_class)
    elif relative == "none":
        raise RequestError(f"{state.source} lacks pos_embed: without positions an encoder sees a bag of patches")
    assert grid is not None
    has_norm = "norm.weight" in weights
    if not has_norm and state.recognised.family != "vitdet" and "fc_norm.weight" not in weights:
        raise RequestError(f"{state.source} lacks the encoder's norm.weight ({width},): it is incomplete")
    shape = ViTShape(
        image_size=(grid[0] * patch_size, grid[1] * patch_size),
        patch_size=patch_size,
        channels=channels,
        width=width,
        depth=depth,
        num_heads=_heads(state, width, table, by_row),
        positions="none" if positions is None else "absolute",
        relative_positions=relative,
        layer_scale="blocks.0.ls1.gamma" in weights,
        class_token=has_class,
        # A classifier that norms after pooling has no norm of tokens; `Classifier` takes it away itself.
        final_norm=has_norm or ("fc_norm.weight" in weights and "head.weight" in weights),
        window_size=window_size,
        global_blocks=global_blocks,
        norm_eps=_norm_eps(state),
    )
    activation = state.config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise RequestError(f"{state.source} computes {activation!r}: openmae has the exact GELU, whose features differ")
    return shape


def _need(state: ConversionState, name: str, ndim: int) -> Tensor:
    value = state.weights.get(name)
    if value is None or value.ndim != ndim:
        got = "nothing" if value is None else f"a shape of {tuple(value.shape)}"
        raise RequestError(f"{state.source}: {name} has {got}, it must have {ndim} dimensions: it is damaged")
    return value


def _norm_eps(state: ConversionState) -> float:
    eps = state.config.get("layer_norm_eps")
    if eps is not None:
        if not isinstance(eps, int | float) or not 0 < eps < 1:
            raise RequestError(
                f"{state.source} says that layer_norm_eps is {str(eps)[:50]!r}: it must lie between 0 and 1"
            )
        return float(eps)
    is_transformers = state.recognised.program == "transformers" and state.recognised.family != "vitdet"
    if is_transformers:
        state.remarks.append(f"the eps of its norms is taken to be {TRANSFORMERS_EPS:g}, transformers' own")
    elif state.recognised.family in ("vit", "dino", "beit"):
        state.remarks.append(f"the exact GELU, and {LAYER_NORM_EPS:g} as the eps of its norms: the file does not say")
    return TRANSFORMERS_EPS if is_transformers else LAYER_NORM_EPS


def _spread_shared_table(state: ConversionState, depth: int) -> None:
    """BEiT pre-trains with one table for all blocks and fine-tunes with a copy in each: the same function."""
    shared = state.weights.pop("shared.table", None)
    if shared is None:
        return
    for number in range(depth):
        name = f"blocks.{number}.attn.relative.table"
        own = state.weights.get(name)
        state.weights[name] = shared.clone() if own is None else own + shared
    state.remarks.append("its one table of relative positions is copied into every block, as BEiT fine-tunes")


def _windows(
    state: ConversionState, by_row: Mapping[int, Tensor | None], patch_size: int
) -> tuple[int, tuple[int, ...], str, Grid | None]:
    """Window, global blocks, kind of relative positions and grid of a ViTDet backbone."""
    size, indices = state.config.get("window_size"), state.config.get("window_block_indices")
    tables = {number: table for number, table in by_row.items() if table is not None}
    grid: Grid | None = None
    if tables:
        longest = max(len(table) for table in tables.values())
        block = next(n for n, table in tables.items() if len(table) == longest)
        columns = state.weights[f"blocks.{block}.attn.relative.rel_pos_w"]
        grid = ((longest + 1) // 2, (len(columns) + 1) // 2)
    if size is not None and indices is not None:
        is_window = isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= MAX_WINDOW
        if not is_window or not isinstance(indices, list) or not set(map(str, indices)) <= set(map(str, by_row)):
            given = str((size, indices))[:100]
            raise RequestError(
                f"{state.source} says that window_size and window_block_indices are {given}: no such blocks"
            )
        window, global_blocks = size, tuple(n for n in by_row if n not in indices)
    elif tables:
        lengths = {len(table) for table in tables.values()}
        global_blocks = tuple(n for n, table in tables.items() if len(table) == max(lengths))
        window = (min(lengths) + 1) // 2 if len(lengths) > 1 else 0
    else:
        window, global_blocks = 0, ()
        state.remarks.append("neither config.json nor relative positions name windows: attention is global")
    if not window or len(global_blocks) == len(by_row):
        window, global_blocks = 0, ()
    if window:
        state.remarks.append(f"windows of {window} x {window} patches, global attention in blocks {global_blocks}")
    size = as_pair(state.config.get("image_size"))
    if grid is None and size is not None:
        grid = (size[0] // patch_size, size[1] // patch_size)
    return window, global_blocks, "decomposed" if tables else "none", grid


def _fit_positions(
    state: ConversionState, positions: Tensor, grid: Grid | None, patch_size: int, has_class: bool
) -> Grid:
    """Bring the position table to (1, prefix + N, D), resampled if necessary; return its grid."""
    old = tuple(positions.shape)
    positions = positions[None] if positions.ndim == 2 else positions
    if positions.ndim != 3 or len(positions) != 1:
        raise RequestError(f"{state.source}: pos_embed is {old}: it must be (1, patches, width)")
    count, width = positions.shape[1:]
    own = grid if state.recognised.family != "vitdet" else None
    if own is None:
        grids = [(height // patch_size, width // patch_size) for height, width in state.image_sizes]
        own = next((g for g in grids if g[0] * g[1] in (count, count - 1)), None)
    if own is None or own[0] * own[1] not in (count, count - 1):
        # A square of patches after the class token; other grids are not guessed.
        side = math.isqrt(count - int(has_class or state.recognised.family == "vitdet"))
        if side * side != count - int(has_class or state.recognised.family == "vitdet") or not side:
            raise RequestError(
                f"{state.source} has {count} positions, no square of patches and a class token: say its size in pixels "
                "with --image-size H W (openmae convert) or image_size=(H, W) (openmae.load)"
            )
        own = (side, side)
    with_class = count - own[0] * own[1]
    if with_class and not has_class:
        positions = positions[:, 1:]
        state.remarks.append("its class token's position is dropped: it has no class token")
    elif has_class and not with_class:
        positions = torch.cat([positions.new_zeros(1, 1, width), positions], dim=1)
        state.remarks.append("its class token has no position: zero")
    target = grid or own
    if target != own:
        if not 0 < target[0] * target[1] <= MAX_ENLARGED * count:
            raise RequestError(
                f"{state.source} says {target[0]}x{target[1]} patches and has {count} positions: damaged?"
            )
        positions = resample_positions(positions, own, target, int(has_class))
        state.remarks.append(f"positions resampled (bicubic) from {own[0]}x{own[1]} to {target[0]}x{target[1]} patches")
    state.weights["pos_embed"] = positions
    if old != (new := tuple(positions.shape)):
        state.resized["encoder.pos_embed"] = (old, new)
    return target


def _grid_of_biases(state: ConversionState, num_offsets: int, patch_size: int) -> Grid:
    """The grid of a table with so many (row, column) offsets: by the file's image size, else a square."""
    for size in state.image_sizes:
        grid = (size[0] // patch_size, size[1] // patch_size)
        if (2 * grid[0] - 1) * (2 * grid[1] - 1) == num_offsets:
            return grid
    side = math.isqrt(max(num_offsets, 0))
    if side * side != num_offsets or side % 2 == 0:
        raise RequestError(
            f"{state.source} has relative positions of {num_offsets} offsets, which are of no square: say its size in "
            "pixels with --image-size H W (openmae convert)"
        )
    return ((side + 1) // 2, (side + 1) // 2)


def _heads(state: ConversionState, width: int, table: Tensor | None, by_row: Mapping[int, Tensor | None]) -> int:
    vectors = next((v for v in by_row.values() if v is not None), None)
    num_heads = state.number("num_attention_heads", "num_heads")
    if num_heads is not None:
        heads, why = num_heads, "as it says"
    elif table is not None:
        heads, why = table.shape[1], "from its table of relative positions"
    elif vectors is not None:
        heads, why = width // vectors.shape[1], "from its relative positions"
    elif state.hints.num_heads is not None:
        heads, why = state.hints.num_heads, "as requested"
    elif state.recognised.family == "moco-v3" and width in MOCO_HEADS:
        heads, why = MOCO_HEADS[width], f"as MoCo v3 has at a width of {width}"
    elif width in USUAL_HEADS:
        heads, why = USUAL_HEADS[width], f"as is usual at a width of {width}, which --num-heads can change"
    elif width % HEAD_WIDTH == 0:
        heads, why = width // HEAD_WIDTH, f"width / {HEAD_WIDTH}, which --num-heads can change"
    else:
        raise RequestError(f"{state.source} does not say how many heads share its width of {width}: give --num-heads")
    if state.hints.num_heads not in (None, heads):
        raise RequestError(f"--num-heads got {state.hints.num_heads}, but {state.source} has {heads} ({why})")
    state.remarks.append(f"{heads} heads ({why})")
    return heads
