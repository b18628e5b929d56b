"""Table 1: what each choice of the paper is worth, one at a time, beside the default row (ViT-L, 800 epochs there).

Decoder depths are eighths of the default's, widths eighths of the encoder's, PCA coefficients an eighth of a patch's
values, all as in the paper, whatever the model's size.
"""

from collections.abc import Callable

from openmae.experiments.setup import Setup, width_of_decoder
from openmae.experiments.studies.study import DEFAULT, Row, Section, Study, label_with_paper
from openmae.planning.encoder import heads_for

PROTOCOLS = ("finetune", "linear", "knn")
PAPER_DEFAULT = {"finetune": 84.9, "linear": 73.5}
DEPTHS = {1: (84.8, 65.5), 2: (84.9, 70.0), 4: (84.9, 71.9), 8: (84.9, 73.5), 12: (84.4, 73.3)}
WIDTHS = {128: (84.9, 69.1), 256: (84.8, 71.3), 512: (84.9, 73.5), 768: (84.4, 73.1), 1024: (84.3, 73.1)}


def _paper(finetune: float, linear: float) -> dict[str, float]:
    return {"finetune": finetune, "linear": linear}


def _default(label: str) -> Row:
    return Row(name=DEFAULT, label=f"{label}, default", paper=PAPER_DEFAULT)


def table_1a(setup: Setup) -> Section:
    """The decoder's depth."""
    rows = []
    for theirs, paper in DEPTHS.items():
        ours = max(1, round(setup.decoder_depth * theirs / 8))
        label = label_with_paper(ours, theirs, "blocks")
        name, changes = f"decoder depth {theirs}-8ths", {"decoder_depth": ours}
        rows.append(
            _default(label) if theirs == 8 else Row(name=name, label=label, changes=changes, paper=_paper(*paper))
        )
    return Section("a: decoder depth", tuple(rows))


def table_1b(setup: Setup) -> Section:
    """The decoder's width."""
    rows = []
    for theirs, paper in WIDTHS.items():
        ours = width_of_decoder(setup.width, theirs // 128)
        label = label_with_paper(ours, theirs, "wide")
        changes = {"decoder_width": ours, "decoder_num_heads": heads_for(ours, 32)}
        name = f"decoder width {theirs // 128}-8ths"
        rows.append(
            _default(label) if theirs == 512 else Row(name=name, label=label, changes=changes, paper=_paper(*paper))
        )
    return Section("b: decoder width", tuple(rows))


def table_1c(setup: Setup) -> Section:
    """Mask tokens in the encoder."""
    with_tokens = Row(
        name="mask tokens in the encoder",
        label="encoder with mask tokens",
        changes={"mask_tokens_in_encoder": True},
        paper=_paper(84.2, 59.6),
        paper_cost={"FLOPs": 3.3, "time": 2.8},  # the time is table 2's: 42.4 hours and 15.4
    )
    return Section("c: mask token", (with_tokens, _default("encoder without mask tokens")))


def table_1d(setup: Setup) -> Section:
    """The target."""
    count = max(1, setup.patch_values // 8)
    return Section(
        "d: target",
        (
            _default("pixels"),
            Row(
                name="norm-pixel",
                label="normalised pixels",
                changes={"target": "norm-pixel"},
                paper=_paper(85.4, 73.9),
            ),
            Row(
                name="pca",
                label=f"PCA, {label_with_paper(count, 96, 'coefficients')}",
                changes={"target": "pca", "pca_coefficients": count},
                paper=_paper(84.6, 72.3),
            ),
            Row(
                name="token",
                label="tokens (paper: DALL-E's)",
                changes={"target": "token"},
                paper=_paper(85.3, 71.6),
            ),
        ),
    )


def table_1e(setup: Setup) -> Section:
    """The augmentation."""
    rows = {
        "none": ("none: centre crop", (84.0, 65.7)),
        "crop-fixed": ("crop of fixed size", (84.7, 73.1)),
        "crop-jitter": ("crop and colour jitter", (84.3, 71.9)),
    }
    named = {
        kind: Row(name=f"augment {kind}", label=label, changes={"augment": kind}, paper=_paper(*paper))
        for kind, (label, paper) in rows.items()
    }
    ordered = (named["none"], named["crop-fixed"], _default("crop of random size"), named["crop-jitter"])
    return Section("e: augmentation", ordered)


def table_1f(setup: Setup) -> Section:
    """The sampling of masks."""
    return Section("f: mask sampling", mask_rows())


def mask_rows() -> tuple[Row, ...]:
    """The rows of table 1f, three of which figure 6 draws."""
    return (
        _default("random, 75 %"),
        Row(
            name="block 50", label="block, 50 %", changes={"mask": "block", "mask_ratio": 0.5}, paper=_paper(83.9, 72.3)
        ),
        Row(name="block 75", label="block, 75 %", changes={"mask": "block"}, paper=_paper(82.8, 63.9)),
        Row(name="grid 75", label="grid, 75 %", changes={"mask": "grid"}, paper=_paper(84.0, 66.0)),
    )


SECTIONS: dict[str, Callable[[Setup], Section]] = {
    "table-1a": table_1a,
    "table-1b": table_1b,
    "table-1c": table_1c,
    "table-1d": table_1d,
    "table-1e": table_1e,
    "table-1f": table_1f,
}


def table_1(name: str, setup: Setup) -> Study:
    """Table 1, all of it (`table-1`) or one of its parts (`table-1a` to `table-1f`)."""
    sections = tuple(make(setup) for part, make in SECTIONS.items() if name in ("table-1", part))
    what = "the ablations" if name == "table-1" else sections[0].title.partition(": ")[2]
    return Study(
        name=name,
        title=f"{name.replace('-', ' ').capitalize()}: {what}",
        sections=sections,
        protocols=PROTOCOLS,
        remarks=_remarks(name, setup),
    )


def _remarks(name: str, setup: Setup) -> tuple[str, ...]:
    if name not in ("table-1", "table-1d") or setup.token_settings:
        return ()
    return ("The tokens are of a tokenizer trained on the same images, where the paper takes DALL-E's.",)
