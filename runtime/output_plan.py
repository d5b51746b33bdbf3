"""Where the outputs of each picture of a job go."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from segship.runtime.errors import ImageError
from segship.runtime.outputs import check_free, output_names, output_paths, too_long
from segship.runtime.source_item import Source, SourceItem

if TYPE_CHECKING:
    from segship.runtime.infer import Job


class Plan:
    """Where the outputs of each picture go, no two to one place, and which pictures have theirs already.

    Args:
        job: that is done.
        source: of its pictures.

    Raises:
        OutputError: if an output is there that must not be written over.

    Attributes:
        left_out: pictures whose outputs were there, so far.
    """

    def __init__(self, job: "Job", source: Source) -> None:
        self._job = job
        self._names: WeakKeyDictionary[SourceItem, Path] = WeakKeyDictionary()  # a name goes with its item
        self._taken: set[str] = set()
        self._may_meet = source.is_joined
        self.left_out = 0
        known = source.known_items
        for item, name in zip(known, output_names([item.place for item in known]), strict=True):
            # What cannot be read has no outputs, and takes no name from what has.
            self._names[item] = name if isinstance(item.picture, ImageError) else self._unused(name)
        if not (job.overwrite or job.skip_existing):
            check_free(job.out, job.kinds, list(self._names.values()), job.knobs.outputs)

    def name(self, item: SourceItem) -> Path:
        """Return what the outputs of an item are called."""
        return self._names.get(item, item.place)

    def to_do(self, items: Iterator[SourceItem]) -> Iterator[SourceItem]:
        """Yield the items whose outputs are not all there; one whose outputs cannot be named, with that as its error.

        Raises:
            OutputError: if some are of an item that nobody could know of, and they must not be written over.
        """
        job = self._job
        for item in items:
            is_known = item in self._names
            if self._may_meet and not is_known and not isinstance(item.picture, ImageError):
                self._names[item] = self._unused(item.place)
            paths = output_paths(job.out, job.kinds, self.name(item), job.knobs.outputs).values()
            if fault := too_long(paths):
                yield replace(item, picture=ImageError(f"{item.name}: {fault}"))
                continue
            if job.skip_existing and paths and all(path.exists() for path in paths):
                self.left_out += 1
                continue
            if not job.overwrite and not job.skip_existing and not is_known:
                check_free(job.out, job.kinds, [self.name(item)], job.knobs.outputs)
            yield item

    def _unused(self, name: Path) -> Path:
        """Return a name, with a number where another picture has it; from then on it is taken.

        The items of one source never meet, and an endless one would fill the memory here: of joined ones only.
        """
        found, number = name, 1
        while str(found).casefold() in self._taken:
            number += 1
            found = name.with_name(f"{name.name}-{number}")
        self._taken.add(str(found).casefold())
        return found
