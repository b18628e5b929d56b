"""Which classes a data set of masks has, and which stored value stands for ignored pixels."""

from collections.abc import Iterable
from dataclasses import dataclass

from openmae.config.segmenter_shape import MAX_SEGMENT_CLASSES
from openmae.data.masks.class_names import MAX_ID
from openmae.data.masks.numbering import Numbering
from openmae.data.masks.palette import IGNORED, IGNORED_NAMES, Palette
from openmae.errors import RequestError, shown

DEFAULT_IGNORE_INDEX = 255
_NO_CLASS_NAMES = (*IGNORED_NAMES, "background", "other", "others")  # what the 0 of --reduce-zero-label is called
_MAX_UNNAMED = 1000  # classes that are believed in without names
# Guessing from the values: a few numbers that do not occur are classes of other images (VOC has 21). Where most up to a
# high one do not, that one is rather a shade: 128, 254 or 255 of a black and white picture, 38 of a palette made grey.
_MIN_DOUBTFUL = 32
_SHADES, _SHADE_SHARE = (
    200,
    0.1,
)  # so many values, all but 0 and 255 on so few pixels: the soft edges of black and white
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class DecidedClasses:
    """The classes of a data set.

    Attributes:
        classes: their names, in order of ids.
        numbering: what each stored value means.
        notes: how this was decided, where there was something to decide.
    """

    classes: tuple[str, ...]
    numbering: Numbering
    notes: tuple[str, ...] = ()

    @classmethod
    def of_known(cls, classes: tuple[str, ...], ignore_index: int | None, reduce_zero_label: bool) -> "DecidedClasses":
        """What an earlier start decided."""
        numbering = Numbering(num_classes=len(classes), ignore_index=ignore_index, reduce_zero_label=reduce_zero_label)
        return cls(classes=classes, numbering=numbering)


def check_numbering(ignore_index: int | None, reduce_zero_label: bool, palette: str | None, names: str | None) -> None:
    """Raise RequestError for settings that do not fit each other; `palette` and `names` are paths."""
    if ignore_index is not None and not IGNORED <= ignore_index <= MAX_ID:
        raise RequestError(f"--ignore-index {ignore_index}: expected 0 to {MAX_ID}, or -1 where no value is ignored")
    if palette is None:
        return
    if names is not None:
        raise RequestError(f"--palette {shown(palette)} names the classes, too: leave --class-names out")
    for flag, is_given in (("--ignore-index", ignore_index is not None), ("--reduce-zero-label", reduce_zero_label)):
        if is_given:
            raise RequestError(
                f"{flag} is about numbers, but with --palette masks hold colours: leave it out, and name the colour of "
                "ignored pixels void in the palette"
            )


def decide_classes(
    values: dict[int, int],
    *,
    names: dict[int, str] | None,
    palette: Palette | None,
    ignore_index: int | None,
    reduce_zero_label: bool,
) -> DecidedClasses:
    """Decide on the classes, from their names or palette or, without these, from the values that occur.

    Args:
        values: the number of pixels of each stored value, over all splits.
        names: of classes by number, see `read_class_names`. With `reduce_zero_label` the numbers are stored values if
            there is no name for 0, or one as "background" or "unlabeled"; otherwise they are class ids.
        ignore_index: the stored value that is ignored; -1: none is; None: 255, but where 255 is the number of a class
            (it is named, or other masks have higher numbers), 65535.

    Raises:
        RequestError: the values are too many to be classes, do not look like classes, or all are ignored.
    """
    if palette is not None:
        numbering = Numbering(num_classes=len(palette.names))
        notes = _absent_notes(palette.names, numbering, values, "--palette")
        return DecidedClasses(classes=palette.names, numbering=numbering, notes=tuple(notes))
    names_by_id, notes = _names_by_id(names, reduce_zero_label)
    ignored, reason = _ignore_index(ignore_index, names_by_id, set(values), reduce_zero_label)
    notes += [reason] if reason else []
    if names_by_id is not None:
        if max(names_by_id) >= MAX_SEGMENT_CLASSES:
            raise RequestError(
                f"--class-names numbers a class {max(names_by_id)}: the highest that a model can have is "
                f"{MAX_SEGMENT_CLASSES - 1}, so number the classes of the masks anew"
            )
        classes = tuple(names_by_id.get(i, f"class {i}") for i in range(max(names_by_id) + 1))
        unused = tuple(i for i in range(len(classes)) if i not in names_by_id)
        origin = "--class-names"
    else:
        highest = max((v for v in values if v not in (IGNORED, ignored)), default=-1)
        count = highest + 1 - reduce_zero_label
        if count < 1:
            raise RequestError(f"all pixels of all masks are ignored ({_ignored_values(ignored, reduce_zero_label)})")
        if count > _MAX_UNNAMED:
            raise RequestError(
                f"the highest value in the masks is {highest}: so many classes need --class-names FILE, which also "
                f"says what is no class; or --ignore-index {highest}, if that is what its pixels mean"
            )
        _check_looks_like_classes(values, ignored, highest)
        classes, unused = tuple(f"class {i}" for i in range(count)), ()
        origin = f"the highest value in the masks, {highest} (--class-names FILE would say more)"
    numbering = Numbering(
        num_classes=len(classes), ignore_index=ignored, reduce_zero_label=reduce_zero_label, unused=unused
    )
    notes += _absent_notes(classes, numbering, values, origin)
    return DecidedClasses(classes=classes, numbering=numbering, notes=tuple(notes))


def _check_looks_like_classes(values: dict[int, int], ignored: int | None, highest: int) -> None:
    """Raise RequestError where the values up to the highest are hardly the numbers of classes."""
    found = sorted(v for v in values if v not in (IGNORED, ignored))
    few = ", ".join(map(str, found[:_NAMED])) + (f", … {highest}" if len(found) > _NAMED else "")
    advice = (
        "if these are classes, name them: --class-names FILE with a line id,name for each; if the masks are black and "
        "white pictures, --palette FILE with the lines 0 0 0 NAME and 255 255 255 NAME"
    )
    if highest >= _MIN_DOUBTFUL and 2 * len(found) < highest + 1:
        raise RequestError(f"of the numbers 0 to {highest} the masks hold only {len(found)} ({few}): {advice}")
    between = sum(count for value, count in values.items() if 0 < value < DEFAULT_IGNORE_INDEX)
    if len(found) >= _SHADES and max(values) <= DEFAULT_IGNORE_INDEX and between < _SHADE_SHARE * sum(values.values()):
        raise RequestError(
            f"the masks hold {len(found)} values ({few}), but all between 0 and 255 on few pixels, as soft edges of "
            f"black and white pictures do: save them without smoothing, and {advice}"
        )


def check_train_classes(data: str, pixels: Iterable[int], classes: tuple[str, ...], numbering: Numbering) -> None:
    """Raise RequestError unless at least two classes have `pixels` (by class) in train."""
    present = [i for i, count in enumerate(pixels) if count]
    if len(present) > 1:
        return
    ignored = _ignored_values(numbering.ignore_index, numbering.reduce_zero_label)
    if not present:
        raise RequestError(f"all pixels of the training masks of {shown(data)} are ignored ({ignored})")
    advice = ""
    if numbering.ignore_index == DEFAULT_IGNORE_INDEX and numbering.stored_value(present[0]) == 0:
        advice = (
            "; if they are black and white pictures, give a --palette FILE with the lines 0 0 0 NAME and 255 255 255 "
            "NAME"
        )
    raise RequestError(
        f"all pixels of the training masks of {shown(data)} are {shown(classes[present[0]])} or ignored ({ignored}): "
        f"at least two classes are needed{advice}"
    )


def _names_by_id(names: dict[int, str] | None, reduce_zero_label: bool) -> tuple[dict[int, str] | None, list[str]]:
    """Class names by class id, and how they were read."""
    if names is None or not reduce_zero_label:
        return names, []
    zero = names.get(0)
    if zero is not None and zero.lower() not in _NO_CLASS_NAMES:
        return names, [f"--reduce-zero-label: names are of what remains: value 1 is {shown(zero)}"]
    by_id = {value - 1: name for value, name in names.items() if value > 0}
    if not by_id:
        raise RequestError(f"--reduce-zero-label leaves no class of --class-names: its only name is {shown(str(zero))}")
    first = min(by_id)
    return by_id, [f"--reduce-zero-label: names are of stored values: value {first + 1} is {shown(by_id[first])}"]


def _ignore_index(
    given: int | None, names: dict[int, str] | None, values: set[int], reduce_zero_label: bool
) -> tuple[int | None, str]:
    """The ignored value, and a remark where it is another than one would expect."""
    if given is not None:
        return (None if given == -1 else given), ""
    if names is not None:
        is_class = DEFAULT_IGNORE_INDEX - reduce_zero_label in names
        why = "255 is a class of --class-names"
    else:
        others = values - {IGNORED, MAX_ID}
        is_class = max(others, default=0) > DEFAULT_IGNORE_INDEX
        why = "masks hold values above 255, so 255 may be a class"
        if MAX_ID in values and DEFAULT_IGNORE_INDEX not in values:
            is_class, why = True, "masks hold 65535 and no 255"
    if not is_class:
        return DEFAULT_IGNORE_INDEX, ""
    return MAX_ID, f"{why}: ignored pixels are those of 65535 (--ignore-index says otherwise)"


def _absent_notes(classes: tuple[str, ...], numbering: Numbering, values: dict[int, int], origin: str) -> list[str]:
    """Where the classes are from, those that occur nowhere, those that are called void."""
    named = [i for i in range(len(classes)) if i not in numbering.unused]
    absent = [i for i in named if numbering.stored_value(i) not in values]
    note = f"{len(named)} classes from {origin}"
    if numbering.unused:
        note += f"; {len(numbering.unused)} numbers between them have no name"
    if absent:
        few = ", ".join(shown(classes[i]) for i in absent[:_NAMED]) + (", …" if len(absent) > _NAMED else "")
        note += f"; {len(absent)} of them in no mask ({few})"
    notes = [note]
    for i in named:
        value = numbering.stored_value(i)
        if classes[i].lower() in IGNORED_NAMES and value != numbering.ignore_index:
            advice = "--reduce-zero-label ignores it and numbers the others from 0, " if value == 0 else ""
            notes.append(
                f"class {i} is learnt though it is called {shown(classes[i])}: {advice}--ignore-index {value} "
                "ignores it"
            )
    return notes


def _ignored_values(ignore_index: int | None, reduce_zero_label: bool) -> str:
    values = ["0"] if reduce_zero_label else []
    values += [str(ignore_index)] if ignore_index is not None else []
    return f"value {' and '.join(values)}" if values else "by the palette"
