"""Finding the train, val and test splits of a data set by the names of its folders and files."""

import itertools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from openmae.config import SPLITS
from openmae.errors import RequestError, shown

# 1: as in older runs: no dev, eval and holdout, no classes like test_neg, and a folder that is linked from several
# splits is in one of them only; 2: as described in docs/data.md.
SPLIT_RULES = 2

_KNOWN = rb"train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?"
_ALSO = rb"dev(?:elopment)?|eval(?:uation)?|hold[-_ ]?out"
_SUFFIX = rb"([^a-z].*)?"
_NAME = {
    1: re.compile(rb"(%b)%b" % (_KNOWN, _SUFFIX), re.IGNORECASE | re.DOTALL),
    2: re.compile(rb"(%b|%b)%b" % (_KNOWN, _ALSO, _SUFFIX), re.IGNORECASE | re.DOTALL),
}
_WORDS = (*SPLITS, "dev", "eval", "hold")  # the words with which the spellings above begin
_NAMED = 3  # folders of a split that are listed by name


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The splits of a data set, by its files.

    Attributes:
        groups: the files of each split that exists.
        depth: which component of the paths would be the class.
        names: the folders or files that each split consists of; empty where the only split is all of the data.
        classes_like_splits: names that only look like splits: test_neg and test_pos without a train.
    """

    groups: dict[str, list[bytes]]
    depth: int = 0
    names: dict[str, list[bytes]] = field(default_factory=dict)
    classes_like_splits: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class _Head:
    """A folder or file name: the split word that it begins with, if any, and whether the name goes on after it."""

    word: str | None
    is_suffixed: bool
    is_file: bool


def find_layout(root: Path, files: list[bytes], is_table: bool, rules: int = SPLIT_RULES) -> Layout:
    """Assign the files below `root`, given by their paths in it, to splits.

    Children named train*, val*, test* and, beside those, dev*, eval*, holdout* are splits if all children that hold
    data are named so; otherwise everything is train. A single folder around everything is skipped. Where there is no
    train among them, names that go on after the word (test_neg, test_pos) are classes.

    Args:
        is_table: the files are parquet, whose names are no classes.
        rules: version of the rules, at most `SPLIT_RULES`; less for an older run.

    Raises:
        RequestError: data that is in no split lies beside train and another split, or two names may mean one split.
    """
    for depth in itertools.count():
        heads = _heads(files, depth, rules)
        if rules >= 2:
            is_lone = len(heads) == 1 and next(iter(heads.values())).word not in SPLITS
            like_splits = not is_table and _only_like_splits(heads)
            if like_splits and len(heads) > 1:
                return Layout(groups={"train": files}, classes_like_splits=sorted(heads))
            if like_splits or is_lone:
                heads = {name: _Head(None, False, head.is_file) for name, head in heads.items()}
        words = {head.word for head in heads.values() if head.word is not None}
        # Image files, unlike folders and tables, need two splits among them: test_001.png ... alone are no test set.
        are_files = all(head.is_file for head in heads.values())
        if all(head.word for head in heads.values()) and (is_table or not are_files or len(words) > 1):
            return _parted(root, files, depth, heads)
        if "train" in words and len(words) > 1:  # or held-out images would be trained on, because of one stray file
            known, strange = (
                [_shown(n) for n, head in heads.items() if (head.word is None) == no] for no in (False, True)
            )
            raise RequestError(
                f"beside {' and '.join(known[:3])} lie {', '.join(strange[:3])}: move what is no split elsewhere, or "
                "say which part each folder is, with --train PATH --val PATH --test PATH"
            )
        if len(heads) > 1 or any(head.is_file for head in heads.values()):
            return Layout(groups={"train": files})
    raise AssertionError("a path has an end")


def whole_layout(root: Path, files: list[bytes], is_table: bool, split: str) -> Layout:
    """All files as one split, as with `--train PATH`.

    A folder around everything that is named like a split is skipped, so that it does not count as a class.

    Raises:
        RequestError: by their names, the files are several splits.
    """
    found = find_layout(root, files, is_table)
    if len(found.groups) > 1:
        inside = " ".join(f"--{name} {shown(root / os.fsdecode(of[0]))}" for name, of in found.names.items())
        raise RequestError(
            f"--{split} {shown(root)} holds {' and '.join(found.groups)}: give the folder of each part, as {inside}"
        )
    names = [name for of_split in found.names.values() for name in of_split]
    is_wrapped = len(names) == 1 and not _head(os.path.basename(names[0]), is_table, SPLIT_RULES).is_suffixed
    return Layout(groups={split: files}, depth=found.depth if is_wrapped else 0)


def branch_of(folder: bytes) -> frozenset[str]:
    """The splits that a folder may belong to, by all names of its path; a linked folder is entered once for each."""
    return frozenset(word for name in folder.split(b"/") if (word := _head(name, False, SPLIT_RULES).word) is not None)


def split_origin(layout: Layout, split: str, root: Path) -> str:
    """The folders or files that a split consists of, as text."""
    names = layout.names.get(split, [])
    if not names:
        return f"all of {shown(root)}"
    text = ", ".join(map(_shown, names[:_NAMED]))
    return text + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _parted(root: Path, files: list[bytes], depth: int, heads: dict[bytes, _Head]) -> Layout:
    splits = _splits_of(root, heads)
    groups: dict[str, list[bytes]] = {}
    names: dict[str, list[bytes]] = {}
    for file in files:
        parts = file.split(b"/", depth + 1)
        groups.setdefault(splits[parts[depth]], []).append(file)
    for name, split in splits.items():
        first = next(file for file in files if file.split(b"/", depth + 1)[depth] == name)
        names.setdefault(split, []).append(b"/".join(first.split(b"/", depth + 1)[: depth + 1]))
    present = [split for split in SPLITS if split in groups]
    return Layout(
        groups={split: groups[split] for split in present},
        depth=depth + 1,
        names={split: sorted(names[split]) for split in present},
    )


def _splits_of(root: Path, heads: dict[bytes, _Head]) -> dict[bytes, str]:
    """The split of each name. What dev, eval and holdout mean depends on the names beside them."""
    words = {str(head.word) for head in heads.values()}
    split_of = {word: word for word in SPLITS if word in words}
    for word, candidates in (("dev", ("val",)), ("hold", ("test", "val")), ("eval", ("val", "test"))):
        if word in words:
            free = [split for split in candidates if split not in split_of.values()]
            if not free:
                names = ", ".join(sorted(map(_shown, heads)))
                raise RequestError(
                    f"{shown(root)} holds {names}, of which two may be the same part: say what each is with --train "
                    "PATH --val PATH --test PATH"
                )
            split_of[word] = free[0]
    return {name: split_of[str(head.word)] for name, head in heads.items()}


def _shown(name: bytes) -> str:
    return shown(os.fsdecode(name))


def _only_like_splits(heads: dict[bytes, _Head]) -> bool:
    return all(head.word is not None and head.word != "train" and head.is_suffixed for head in heads.values())


def _heads(files: list[bytes], depth: int, rules: int) -> dict[bytes, _Head]:
    """The names at `depth` of the files' paths, in their order."""
    is_file = {parts[depth]: len(parts) == depth + 1 for parts in (file.split(b"/", depth + 1) for file in files)}
    return {name: _head(name, of_file, rules) for name, of_file in is_file.items()}


def _head(name: bytes, is_file: bool, rules: int) -> _Head:
    match = _NAME[rules].fullmatch(os.path.splitext(name)[0] if is_file else name)
    if match is None:
        return _Head(None, False, is_file)
    word = next(word for word in _WORDS if match[1].lower().startswith(word.encode()))
    return _Head(word, match[2] is not None, is_file)
